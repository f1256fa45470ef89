"""The labelled pairs that `finetune.selection` lets the teacher learn from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jax_rele.config import Config, local_name
from jax_rele.data import read_external_signals
from jax_rele.data.pairs.selection import left_out
from jax_rele.errors import UserError, named
from jax_rele.io import hash_file
from jax_rele.runs import layout
from jax_rele.types import Pair


def files(config: Config) -> dict[str, str]:
    """The files of predictions that are set, by the name of their field."""
    selection = config.finetune.selection
    fields = {name: getattr(selection, name) for name in ("wrong_by", "right_by", "undisputed_by")}
    return {name: path for name, path in fields.items() if path}


def external_inputs(config: Config) -> dict[str, str]:
    """A hash of each file. Raises UserError for one that cannot be read."""
    hashes = {}
    for name, path in files(config).items():
        where = f"finetune.selection.{name}"
        try:
            hashes[f"{where} {local_name(path)}"] = hash_file(path)
        except OSError as error:
            raise UserError(f"{where}: {path} cannot be read: {error.strerror}; check the path") from None
    return hashes


def check(config: Config, run_dir: Path) -> None:
    """Raises UserError as `select` for the prepared pairs, before anything is annotated or trained."""
    if files(config) and not config.score.signals:
        select(config, run_dir)


def select(config: Config, run_dir: Path) -> dict[str, Any]:
    """Which labelled training pairs the files of `finetune.selection`, at least one, select.

    Returns:
      `rows`: their numbers among the labelled training pairs; `counts`: how many each reason left out.

    Raises:
      UserError: as `read_external_signals`, naming the field of the config; or no pair is selected.
    """
    pairs, schema, paths = layout.load_pairs(run_dir, "train"), config.labels.schema_, files(config)
    labels = np.array([schema.index(pair.label or "") for pair in pairs], np.int64)
    probs = {name: _probs(config, name, path, pairs) for name, path in paths.items()}
    # Read only where it is part of what the stage is hashed by.
    dispute = config.finetune.selection.dispute if "undisputed_by" in paths else 1.0
    reasons = left_out(labels, **probs, dispute=dispute)
    counts = {reason: int(rows.sum()) for reason, rows in reasons.items()}
    selected = np.flatnonzero(~np.any(list(reasons.values()), axis=0))
    if not len(selected):
        counted = ", ".join(f"{reason} {count}" for reason, count in counts.items())
        raise UserError(
            f"finetune.selection: none of the {len(pairs)} labelled training pairs is selected ({counted}); "
            "leave out one of its files, or give predictions for these pairs"
        )
    for label in sorted(set(labels) - set(labels[selected])):
        print(f"warning: finetune.selection: no pair with the label {schema.names[label]} is selected")
    return {"rows": selected.tolist(), "counts": {f"left_out.{reason}": count for reason, count in counts.items()}}


def _probs(config: Config, name: str, path: str, pairs: Sequence[Pair]) -> np.ndarray:
    """[N, C] the distributions in a file, NaN for a pair that it does not have."""
    with named(f"finetune.selection.{name}", path):
        signals = read_external_signals(
            path,
            pairs,
            schema=config.labels.schema_,
            dimensions=config.rationale.dimensions,
            fields=config.data.item_fields,
        ).signals
    row_of = {pair_id: row for row, pair_id in enumerate(signals.pair_ids)}
    probs = np.full((len(pairs), len(config.labels.names)), np.nan, np.float32)
    for row, pair in enumerate(pairs):
        if (there := row_of.get(pair.pair_id)) is not None:
            probs[row] = signals.label_probs[there]
    return probs
