"""What a run reads of another run: its teacher, or its signals."""

from __future__ import annotations

from pathlib import Path

from jax_rele.config import Config
from jax_rele.errors import UserError
from jax_rele.io import hash_ends, hash_folder, hash_values
from jax_rele.models.weights import weights_hash
from jax_rele.runs import layout, pipeline
from jax_rele.runs.stages import STAGES


def read_other(config: Config, run_dir: Path, stage: str, where: str) -> Config:
    """The config of another run that judges with our labels on our dimensions.

    Args:
      config: ours.
      run_dir: its folder.
      stage: which of its stages is read.
      where: the config path that names the folder, for errors.

    Raises:
      UserError: it is our own folder, or as `pipeline.read_finished`, or its labels or dimensions are others.
    """
    if run_dir.resolve() == config.run_dir.resolve():
        raise UserError(f"{where}: {run_dir} is the folder of this run itself; give that of another one")
    other = pipeline.read_finished(run_dir, stage, where)
    for path, theirs, ours in (
        ("labels.names", other.labels.names, config.labels.names),
        ("rationale.dimensions", other.rationale.dimensions, config.rationale.dimensions),
    ):
        if theirs != ours:
            raise UserError(
                f"{where}: {path} of the run {run_dir} are {list(theirs)}, here they are {list(ours)}; both must have "
                "the same, in the same order"
            )
    return other


def hash_teacher(other: Config, run_dir: Path) -> str:
    """A hash of the teacher of another run: its config, tokenizer, base and adapters."""
    base = hash_ends(path for path in (run_dir / layout.BASE).rglob("*") if path.is_file())
    if not other.adapt.enabled:
        base = weights_hash(other.teacher.init)
    folders = [hash_folder(run_dir / folder) for folder in (layout.TEACHER_TOKENIZER, layout.lora(other))]
    return hash_values([pipeline.sections(other, STAGES["score"]), base, *folders])
