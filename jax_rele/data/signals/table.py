"""A table of signals, with the label names and dimensions that its arrays mean. docs/signals.md describes it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jax_rele.data.parquet import read_schema, read_table, write_table
from jax_rele.data.rows import one_line
from jax_rele.errors import UserError
from jax_rele.types import VERDICTS, Signals, Span

_FLOATS = pa.list_(pa.float32())
_SPAN = pa.struct([("source", pa.string()), ("start", pa.int32()), ("end", pa.int32()), ("dimension", pa.string())])
SCHEMA = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("label_probs", _FLOATS),
        pa.field("verdict_probs", pa.list_(_FLOATS)),
        pa.field("evidence", pa.list_(_SPAN)),
        pa.field("rationale", pa.string()),
        pa.field("confidence", pa.float32()),
        pa.field("rationale_embedding", _FLOATS),
    ]
)
"""Schema of a table of signals."""
OPTIONAL = ("confidence", "rationale_embedding")
"""Columns that a table may lack."""
_LABELS, _DIMENSIONS = b"jax_rele.labels", b"jax_rele.dimensions"
TOLERANCE = 1e-3
"""By how much the sum of a distribution may differ from 1."""
_FIX = "score the pair again"


def write_signals(
    path: str | os.PathLike, signals: Signals, label_names: Sequence[str], dimensions: Sequence[str]
) -> None:
    """Writes signals as one Parquet table, numbers in float32, NaN verdicts and embeddings as null.

    Columns: pair_id string, label_probs list<float> [C], verdict_probs list<list<float>> [D][V], evidence
    list<struct<source, start, end, dimension>>, rationale string, confidence float, rationale_embedding list<float>
    [R]. Metadata: the label names and dimensions, as JSON.

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
        "confidence": np.asarray(signals.confidence, np.float32),
        "rationale_embedding": _embedding_lists(signals.rationale_embedding, len(signals.pair_ids)),
    }
    write_table(path, columns, SCHEMA.with_metadata(metadata))


def read_signals(path: str | os.PathLike, label_names: Sequence[str], dimensions: Sequence[str]) -> Signals:
    """Reads what `write_signals` wrote: float32 arrays, NaN where there is no verdict or embedding.

    A table may lack the columns confidence and rationale_embedding; a null confidence is 1.

    Raises:
      UserError: a missing or damaged table, other label names or dimensions than the given ones, or as
        `validate_signals`.
    """
    table = read_table(path, SCHEMA, OPTIONAL)
    check_metadata(table.schema.metadata or {}, label_names, dimensions, path)
    return signals_from_arrow(table, label_names, dimensions, str(path))


def iter_signals(
    path: str | os.PathLike, label_names: Sequence[str], dimensions: Sequence[str], count: int
) -> Iterator[Signals]:
    """Reads what `write_signals` wrote in parts of at most `count` rows, so that the table need not fit in memory.

    Raises:
      UserError: as `read_signals`.
    """
    check_metadata(read_schema(path).metadata or {}, label_names, dimensions, path)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            missing = [name for name in OPTIONAL if name not in file.schema_arrow.names]
            for batch in file.iter_batches(batch_size=count):
                part = pa.Table.from_batches([batch])
                for name in missing:
                    part = part.append_column(SCHEMA.field(name), pa.nulls(len(part), SCHEMA.field(name).type))
                part.validate(full=True)
                table = part.select(SCHEMA.names).cast(SCHEMA)
                yield signals_from_arrow(table, label_names, dimensions, str(path))
    except (ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(
            f"{path}: the table is damaged ({one_line(error)}); delete it and run the stage again"
        ) from error


def has_rationale_embeddings(path: str | os.PathLike) -> bool:
    """Whether any pair of a table of signals has a rationale embedding. Raises UserError for a damaged file."""
    if "rationale_embedding" not in read_schema(path).names:
        return False
    with pq.ParquetFile(path) as file:
        parts = file.iter_batches(columns=["rationale_embedding"])
        return any(part.column(0).null_count < len(part) for part in parts)


def check_metadata(
    metadata: Mapping[bytes, bytes], label_names: Sequence[str], dimensions: Sequence[str], path: str | os.PathLike
) -> None:
    """Raises UserError where a table's metadata do not name these labels and dimensions."""
    for key, what, expected in ((_LABELS, "labels", label_names), (_DIMENSIONS, "dimensions", dimensions)):
        if key not in metadata:
            raise UserError(f"{path}: the table does not say its {what}; write it with jax_rele.data.write_signals")
        if json.loads(metadata[key]) != list(expected):
            raise UserError(
                f"{path}: the signals are for the {what} {json.loads(metadata[key])}, the config has {list(expected)}; "
                f"run the score stage again or set the config back"
            )


def signals_from_arrow(table: pa.Table, label_names: Sequence[str], dimensions: Sequence[str], source: str) -> Signals:
    """The rows of a table with the columns of `SCHEMA`. Raises UserError as `validate_signals`."""
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    signals = Signals(
        pair_ids=tuple(columns["pair_id"].to_pylist()),
        label_probs=_vectors(columns["label_probs"], len(label_names), source, "label_probs"),
        verdict_probs=_verdict_array(columns["verdict_probs"], len(dimensions), source),
        evidence=tuple(tuple(Span(**span) for span in spans or ()) for spans in columns["evidence"].to_pylist()),
        rationales=tuple(text or "" for text in columns["rationale"].to_pylist()),
        confidence=pc.fill_null(columns["confidence"], 1.0).to_numpy(zero_copy_only=False),
        rationale_embedding=_embeddings(columns["rationale_embedding"], source),
    )
    validate_signals(signals, label_names, dimensions, source)
    return signals


def is_signals_table(path: str | os.PathLike) -> bool:
    """Whether a Parquet file is a table of signals and not a looser one. Raises UserError for a damaged file."""
    return _LABELS in (read_schema(path).metadata or {})


def take_signals(signals: Signals, rows: Sequence[int]) -> Signals:
    """The signals of some rows, in their order."""
    indices, embedding = np.asarray(rows, np.int64), signals.rationale_embedding
    return Signals(
        pair_ids=tuple(signals.pair_ids[row] for row in rows),
        label_probs=signals.label_probs[indices],
        verdict_probs=signals.verdict_probs[indices],
        evidence=tuple(signals.evidence[row] for row in rows),
        rationales=tuple(signals.rationales[row] for row in rows),
        confidence=np.asarray(signals.confidence)[indices],
        rationale_embedding=None if embedding is None else embedding[indices],
    )


def concat_signals(parts: Sequence[Signals]) -> Signals:
    """The rows of several signals of the same labels and dimensions, one after the other."""
    widths = [part.rationale_embedding.shape[1] for part in parts if part.rationale_embedding is not None]
    embeddings = [
        np.full((len(part.pair_ids), widths[0]), np.nan, np.float32)
        if part.rationale_embedding is None
        else part.rationale_embedding
        for part in parts
        if widths
    ]
    return Signals(
        pair_ids=tuple(chain.from_iterable(part.pair_ids for part in parts)),
        label_probs=np.concatenate([part.label_probs for part in parts]),
        verdict_probs=np.concatenate([part.verdict_probs for part in parts]),
        evidence=tuple(chain.from_iterable(part.evidence for part in parts)),
        rationales=tuple(chain.from_iterable(part.rationales for part in parts)),
        confidence=np.concatenate([np.asarray(part.confidence) for part in parts]),
        rationale_embedding=np.concatenate(embeddings) if embeddings else None,
    )


def validate_signals(
    signals: Signals, label_names: Sequence[str], dimensions: Sequence[str], source: str = "signals"
) -> None:
    """Checks that signals can be learned from; the message names `source`, the row (from 1) and how to fix it.

    A label distribution, and a verdict distribution that is not NaN throughout, must hold no NaN and no negative number
    and sum to 1 within 1e-3; a `pair_id` must occur once; evidence must be a non-empty span for one of the dimensions;
    a confidence must lie in [0, 1]; a rationale embedding that is not NaN throughout must hold finite numbers.

    Raises:
      UserError: one of these does not hold, or the arrays have other shapes than [N, C], [N, D, V], [N] and [N, R].
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
    confidence, embedding = np.asarray(signals.confidence), signals.rationale_embedding
    if confidence.shape != (n,) or (embedding is not None and (embedding.ndim != 2 or len(embedding) != n)):
        raise UserError(
            f"{source}: {n} pairs need confidence of shape {(n,)} and rationale_embedding of shape ({n}, width), or "
            f"None, got {confidence.shape} and {getattr(embedding, 'shape', None)}; give every pair one"
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
    if (bad := np.flatnonzero(~((confidence >= 0) & (confidence <= 1)))).size:
        raise UserError(
            f"{_where(source, signals, bad[0])}: confidence must lie in [0, 1], got {confidence[bad[0]]:g}; leave it "
            "out where it is not known"
        )
    if embedding is not None:
        bad = np.flatnonzero(~(np.isfinite(embedding).all(axis=-1) | np.isnan(embedding).all(axis=-1)))
        if bad.size:
            raise UserError(
                f"{_where(source, signals, bad[0])}: rationale_embedding holds a number that is not finite; leave it "
                "out where there is none"
            )
    for row, spans in enumerate(signals.evidence):
        for span in spans:
            if span.dimension not in dimensions or not 0 <= span.start < span.end:
                raise UserError(
                    f"{_where(source, signals, row)}: evidence {span} needs 0 <= start < end and one of the dimensions "
                    f"{list(dimensions)}; {_FIX}"
                )


def _check_distributions(probs: np.ndarray, absent: np.ndarray, name: str, signals: Signals, source: str) -> None:
    """Raises UserError for the first row of probs [N, K] that is no distribution and not `absent` [N]."""
    problems = (
        ("hold a NaN", np.isnan(probs).any(axis=-1)),
        ("hold a negative number", (probs < 0).any(axis=-1)),
        ("do not sum to 1", ~(np.abs(probs.sum(axis=-1, dtype=np.float64) - 1) <= TOLERANCE)),
    )
    for problem, rows in problems:
        if (rows := np.flatnonzero(rows & ~absent)).size:
            raise UserError(
                f"{_where(source, signals, rows[0])}: {name} {problem}: {probs[rows[0]].tolist()}; {_FIX} or leave it "
                f"out"
            )


def _where(source: str, signals: Signals, row: int) -> str:
    return f"{source} row {row + 1} (pair_id {signals.pair_ids[row]!r})"


def _verdict_lists(probs: np.ndarray) -> list | None:
    """[D, V] -> lists, null for a dimension of NaNs, null for all if there is no other."""
    rows = [None if np.isnan(row).all() else row.tolist() for row in probs]
    return rows if any(row is not None for row in rows) else None


def _embedding_lists(embedding: np.ndarray | None, n: int) -> list:
    """[N, R] or None -> N lists, null for a row of NaNs."""
    if embedding is None:
        return [None] * n
    return [None if np.isnan(row).all() else row for row in np.asarray(embedding, np.float32)]


def _embeddings(lists: pa.ListArray, source: str) -> np.ndarray | None:
    """N lists of R floats or null -> [N, R], NaN for null; None where all are null."""
    if not (present := np.flatnonzero(lists.is_valid().to_numpy(zero_copy_only=False))).size:
        return None
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)[present].astype(int)
    if (wrong := np.flatnonzero((lengths != lengths[0]) | (lengths == 0))).size:
        raise UserError(
            f"{source} row {present[wrong[0]] + 1}: rationale_embedding holds {lengths[wrong[0]]} numbers, that of row "
            f"{present[0] + 1} {lengths[0]}; all must be of one width from 1 on"
        )
    embedding = np.full((len(lists), lengths[0]), np.nan, np.float32)
    embedding[present] = lists.flatten().to_numpy(zero_copy_only=False).reshape(len(present), -1)
    return embedding


def _vectors(lists: pa.ListArray, width: int, source: str, name: str) -> np.ndarray:
    """N lists of `width` floats -> [N, width]."""
    lengths = pc.fill_null(pc.list_value_length(lists), -1).to_numpy(zero_copy_only=False)
    if (wrong := np.flatnonzero(lengths != width)).size:
        raise UserError(f"{source} row {wrong[0] + 1}: {name} must hold {width} numbers, got {lists[wrong[0]]}; {_FIX}")
    return lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, width)


def _verdict_array(lists: pa.ListArray, n_dimensions: int, source: str) -> np.ndarray:
    """N (lists of D (lists of V floats or null) or null) -> [N, D, V], NaN for null."""
    inner = lists.flatten()
    present, stated = (np.flatnonzero(array.is_valid().to_numpy(zero_copy_only=False)) for array in (lists, inner))
    lengths, widths = (pc.fill_null(pc.list_value_length(array), -1).to_numpy() for array in (lists, inner))
    rows = np.repeat(present, lengths[present])  # of `inner`
    wrong = np.union1d(present[lengths[present] != n_dimensions], rows[stated[widths[stated] != len(VERDICTS)]])
    if wrong.size:
        row = int(wrong[0])
        raise UserError(
            f"{source} row {row + 1}: verdict_probs must hold {len(VERDICTS)} numbers for each of {n_dimensions} "
            f"dimensions, got {lists[row].as_py()}; {_FIX}"
        )
    flat = np.full((len(inner), len(VERDICTS)), np.nan, np.float32)
    flat[stated] = inner.flatten().to_numpy(zero_copy_only=False).reshape(-1, len(VERDICTS))
    probs = np.full((len(lists), n_dimensions, len(VERDICTS)), np.nan, np.float32)
    probs[present] = flat.reshape(len(present), n_dimensions, len(VERDICTS))
    return probs
