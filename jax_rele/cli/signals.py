"""check-signals: what a file of another teacher's signals holds for the pairs of a run."""

from __future__ import annotations

from jax_rele.config import Config
from jax_rele.runs import external_signals, pipeline


def check_signals(config: Config, path: str) -> None:
    """Prints what a file of signals holds for the pairs of a run.

    Raises:
      UserError: `score` would refuse the file, or `prepare` has not finished.
    """
    pipeline.require(config, "prepare")
    matched = external_signals.read(config, config.run_dir, path)
    print(f"{path}: signals of {len(matched.file.signals.pair_ids)} pairs of {config.run_dir}")
    for line in external_signals.summary(config, matched):
        print(f"  {line}")
