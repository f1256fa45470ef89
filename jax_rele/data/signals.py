"""A table of signals, with the label names and dimensions that its arrays mean."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jax_rele.data.tables import read_table, write_table
from jax_rele.errors import UserError
from jax_rele.types import VERDICTS, Signals, Span

_FLOATS = pa.list_(pa.float32())
_SPAN = pa.struct([("source", pa.string()), ("start", pa.int32()), ("end", pa.int32()), ("dimension", pa.string())])
_SCHEMA = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("label_probs", _FLOATS),
        pa.field("verdict_probs", pa.list_(_FLOATS)),
        pa.field("evidence", pa.list_(_SPAN)),
        pa.field("rationale", pa.string()),
    ]
)
_LABELS, _DIMENSIONS = b"jax_rele.labels", b"jax_rele.dimensions"
_TOLERANCE = 1e-3
_MEND = "score the pair again"


def write_signals(
    path: str | os.PathLike, signals: Signals, label_names: Sequence[str], dimensions: Sequence[str]
) -> None:
    """Writes signals as one Parquet table, probabilities in float32, NaN verdicts as null.

    Columns: pair_id string, label_probs list<float> [C], verdict_probs list<list<float>> [D][V], evidence
    list<struct<source, start, end, dimension>>, rationale string. Metadata: the label names and dimensions, as JSON.

    Raises:
      UserError: as `validate_signals`.
    """
    validate_signals(signals, label_names, dimensions, str(path))
    metadata = {_LABELS: json.dumps(list(label_names)), _DIMENSIONS: json.dumps(list(dimensions))}
    columns = {
        "pair_id": signals.pair_ids,
        "label_probs": list(np.asarray(signals.label_probs, np.float32)),
        "verdict_probs": [_verdict_lists(row) for row in np.asarray(signals.verdict_probs, np.float32)],
        "evidence": [[vars(span) for span in spans] for spans in signals.evidence],
        "rationale": signals.rationales,
    }
    write_table(path, columns, _SCHEMA.with_metadata(metadata))


def read_signals(path: str | os.PathLike, label_names: Sequence[str], dimensions: Sequence[str]) -> Signals:
    """Reads what `write_signals` wrote: float32 arrays, NaN where there is no verdict.

    Raises:
      UserError: a missing or damaged table, other label names or dimensions than the given ones, or as
        `validate_signals`.
    """
    table = read_table(path, _SCHEMA).combine_chunks()
    metadata = table.schema.metadata or {}
    for key, what, wanted in ((_LABELS, "labels", label_names), (_DIMENSIONS, "dimensions", dimensions)):
        if key not in metadata:
            raise UserError(f"{path}: the table does not say its {what}; write it with jax_rele.data.write_signals")
        if json.loads(metadata[key]) != list(wanted):
            raise UserError(
                f"{path}: the signals are for the {what} {json.loads(metadata[key])}, the config has {list(wanted)}; "
                f"run the score stage again or set the config back"
            )
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    signals = Signals(
        pair_ids=tuple(columns["pair_id"].to_pylist()),
        label_probs=_vectors(columns["label_probs"], len(label_names), str(path), "label_probs"),
        verdict_probs=_verdict_array(columns["verdict_probs"], len(dimensions), str(path)),
        evidence=tuple(tuple(Span(**span) for span in spans or ()) for spans in columns["evidence"].to_pylist()),
        rationales=tuple(text or "" for text in columns["rationale"].to_pylist()),
    )
    validate_signals(signals, label_names, dimensions, str(path))
    return signals


def validate_signals(
    signals: Signals, label_names: Sequence[str], dimensions: Sequence[str], source: str = "signals"
) -> None:
    """Checks that signals can be learned from; the message names `source`, the row (from 1) and the mend.

    A label distribution, and a verdict distribution that is not NaN throughout, must hold no NaN and no negative number
    and sum to 1 within 1e-3; a `pair_id` must occur once; evidence must be a non-empty span for one of the dimensions.

    Raises:
      UserError: one of these does not hold, or the arrays have other shapes than [N, C] and [N, D, V].
    """
    n = len(signals.pair_ids)
    labels, verdicts = np.asarray(signals.label_probs), np.asarray(signals.verdict_probs)
    shapes = ((n, len(label_names)), (n, len(dimensions), len(VERDICTS)))
    if (labels.shape, verdicts.shape) != shapes or not len(signals.evidence) == len(signals.rationales) == n:
        raise UserError(
            f"{source}: {n} pairs need label_probs and verdict_probs of shapes {shapes[0]} and {shapes[1]} and as many "
            f"evidence and rationales, got {labels.shape}, {verdicts.shape}, {len(signals.evidence)} and "
            f"{len(signals.rationales)}; score with the labels and dimensions of the config"
        )
    seen: dict[str, int] = {}
    for row, pair_id in enumerate(signals.pair_ids):
        if seen.setdefault(pair_id, row) != row:
            raise UserError(
                f"{_where(source, signals, row)}: the pair_id is in row {seen[pair_id] + 1} too; keep one of them"
            )
    _check_distributions(labels, np.zeros(n, bool), "label_probs", signals, source)
    for d, dimension in enumerate(dimensions):
        absent = np.isnan(verdicts[:, d]).all(axis=-1)
        _check_distributions(verdicts[:, d], absent, f"verdict_probs of {dimension!r}", signals, source)
    for row, spans in enumerate(signals.evidence):
        for span in spans:
            if span.dimension not in dimensions or not 0 <= span.start < span.end:
                raise UserError(
                    f"{_where(source, signals, row)}: evidence {span} needs 0 <= start < end and one of the dimensions "
                    f"{list(dimensions)}; {_MEND}"
                )


def _check_distributions(probs: np.ndarray, absent: np.ndarray, name: str, signals: Signals, source: str) -> None:
    """Raises UserError for the first row of probs [N, K] that is no distribution and not `absent` [N]."""
    problems = (
        ("hold a NaN", np.isnan(probs).any(axis=-1)),
        ("hold a negative number", (probs < 0).any(axis=-1)),
        ("do not sum to 1", ~(np.abs(probs.sum(axis=-1, dtype=np.float64) - 1) <= _TOLERANCE)),
    )
    for problem, rows in problems:
        rows = np.flatnonzero(rows & ~absent)
        if rows.size:
            raise UserError(
                f"{_where(source, signals, rows[0])}: {name} {problem}: {probs[rows[0]].tolist()}; {_MEND} or leave it "
                f"out"
            )


def _where(source: str, signals: Signals, row: int) -> str:
    return f"{source} row {row + 1} (pair_id {signals.pair_ids[row]!r})"


def _verdict_lists(probs: np.ndarray) -> list | None:
    """[D, V] -> lists, null for a dimension of NaNs, null for all if there is no other."""
    rows = [None if np.isnan(row).all() else row.tolist() for row in probs]
    return rows if any(row is not None for row in rows) else None


def _vectors(lists: pa.ListArray, width: int, source: str, name: str) -> np.ndarray:
    """N lists of `width` floats -> [N, width]."""
    lengths = pc.fill_null(pc.list_value_length(lists), -1).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(lengths != width)
    if wrong.size:
        raise UserError(
            f"{source} row {wrong[0] + 1}: {name} must hold {width} numbers, got {lists[wrong[0]]}; {_MEND}"
        )
    return lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, width)


def _verdict_array(lists: pa.ListArray, n_dimensions: int, source: str) -> np.ndarray:
    """N (lists of D (lists of V floats or null) or null) -> [N, D, V], NaN for null."""
    probs = np.full((len(lists), n_dimensions, len(VERDICTS)), np.nan, np.float32)
    for row in np.flatnonzero(lists.is_valid().to_numpy(zero_copy_only=False)):
        values = lists[row].as_py()
        if len(values) != n_dimensions or any(value is not None and len(value) != len(VERDICTS) for value in values):
            raise UserError(
                f"{source} row {row + 1}: verdict_probs must hold {len(VERDICTS)} numbers for each of {n_dimensions} "
                f"dimensions, got {values}; {_MEND}"
            )
        for d, value in enumerate(values):
            if value is not None:
                probs[row, d] = [np.nan if number is None else number for number in value]
    return probs
