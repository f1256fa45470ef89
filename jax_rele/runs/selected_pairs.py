"""The labelled pairs that `finetune.selection` lets the teacher learn from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jax_rele.config import Config, local_name
from jax_rele.data import read_external_signals
from jax_rele.data.pairs.selection import left_out
from jax_rele.errors import UserError
from jax_rele.io import hash_file
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


def select(config: Config, pairs: list[Pair]) -> tuple[list[Pair], Mapping[str, int]]:
    """The selected pairs, and how many each reason left out; all of them where no file is set.

    Raises:
      UserError: as `read_external_signals`; or no pair is selected.
    """
    paths = files(config)
    if not paths:
        return pairs, {}
    schema = config.labels.schema_
    reasons = left_out(
        np.array([schema.index(pair.label or "") for pair in pairs], np.int64),
        dispute=config.finetune.selection.dispute,
        **{name: _probs(config, path, pairs) for name, path in paths.items()},
    )
    counts = {reason: int(rows.sum()) for reason, rows in reasons.items()}
    selected = np.flatnonzero(~np.any(list(reasons.values()), axis=0))
    if not len(selected):
        counted = ", ".join(f"{reason} {count}" for reason, count in counts.items())
        raise UserError(
            f"finetune.selection: none of the {len(pairs)} labelled training pairs is selected ({counted}); "
            "leave out one of its files, or give predictions for these pairs"
        )
    return [pairs[row] for row in selected], {f"left_out.{reason}": count for reason, count in counts.items()}


def _probs(config: Config, path: str, pairs: list[Pair]) -> np.ndarray:
    """[N, C] the distributions in a file, NaN for a pair that it does not have."""
    signals = read_external_signals(
        path,
        pairs,
        schema=config.labels.schema_,
        dimensions=config.rationale.dimensions,
        fields=config.data.item_fields,
    ).signals
    row_of = {pair_id: row for row, pair_id in enumerate(signals.pair_ids)}
    probs = np.full((len(pairs), len(config.labels.names)), np.nan)
    for row, pair in enumerate(pairs):
        if (there := row_of.get(pair.pair_id)) is not None:
            probs[row] = signals.label_probs[there]
    return probs
