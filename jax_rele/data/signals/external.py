"""Signals of any teacher: an API's answers, a torch model's scores, people's labels (docs/signals.md).

A row of JSONL or Parquet holds the signals of one pair

    {"pair_id", "label_probs"?: [..] or {label: p}, "score"?: p, "label"?: name, "rationale"?: text in the grammar,
     "verdicts"?: {dimension: verdict} or "verdict_probs"?: {dimension: [..]}, "confidence"?, "rationale_embedding"?}

and at least one of label_probs, score, label and rationale. A table that `write_signals` wrote is read as it is.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import numpy as np

from jax_rele.data.rows import RowError, id_text
from jax_rele.data.signals.table import TOLERANCE, is_signals_table, read_signals, take_signals, validate_signals
from jax_rele.data.sources.shards import read_rows
from jax_rele.errors import UserError
from jax_rele.rationale import ParseFailure, escape, find_evidence, parse_output, render
from jax_rele.types import VERDICTS, LabelSchema, Pair, Rationale, Signals, Span

KEYS = (
    *("pair_id", "label_probs", "score", "label", "rationale", "verdicts", "verdict_probs"),
    *("confidence", "rationale_embedding"),
)
"""What is read of a row; other columns are not."""

_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")


@dataclass(frozen=True)
class ExternalSignals:
    """The signals that a file holds for given pairs.

    Attributes:
      signals: those of the pairs, in the order of the file.
      others: rows of other pairs, which were left out.
      rationales: texts given as rationales.
      unparsed: how many of them are no rationale, and so left neither text nor evidence.
      first_unparsed: the first of those: its row and why.
      unread: columns that nothing reads.
    """

    signals: Signals
    others: int
    rationales: int
    unparsed: int = 0
    first_unparsed: str = ""
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class _ParsedRow:
    """The signals of one row."""

    label_probs: np.ndarray
    verdict_probs: np.ndarray
    evidence: tuple[Span, ...]
    rationale: str
    failure: str
    confidence: float
    embedding: list[float] | None


def read_external_signals(
    path: str | os.PathLike,
    pairs: Sequence[Pair],
    *,
    schema: LabelSchema,
    dimensions: Sequence[str],
    fields: Sequence[str],
) -> ExternalSignals:
    """Reads a file of signals for the given pairs.

    Args:
      path: a JSONL (also .gz) or Parquet file with rows as above, or a table that `write_signals` wrote.
      pairs: rows of other pairs are counted and left out.
      schema, dimensions: what the signals must be about.
      fields: the item's texts in which the evidence of a rationale is looked for.

    Raises:
      UserError: no such file, an unknown suffix, a damaged or empty file, or a row that cannot be read: other labels or
        dimensions, no number or no distribution where one belongs, a pair twice. It names the file, the row and the
        fix.
    """
    name = os.fspath(path).lower()
    if not name.endswith(_SUFFIXES):
        raise UserError(f"{path}: unknown suffix; signals are read from {', '.join(_SUFFIXES)}")
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file of signals; check the path")
    by_id = {pair.pair_id: pair for pair in pairs}
    if name.endswith(".parquet") and is_signals_table(path):
        all_signals = read_signals(path, schema.names, dimensions)
        rows = [row for row, pair_id in enumerate(all_signals.pair_ids) if pair_id in by_id]
        signals = take_signals(all_signals, rows)
        return ExternalSignals(signals, len(all_signals.pair_ids) - len(rows), sum(map(bool, signals.rationales)))

    seen: dict[str, int] = {}
    columns: dict[str, None] = {}
    by_pair: dict[str, _ParsedRow] = {}
    rationales, failures, width = 0, [], None
    for number, row in read_rows(path):
        pair_id = None
        try:
            if isinstance(row, RowError):
                raise row
            columns.update(dict.fromkeys(row))
            pair_id = _pair_id(row)
            if seen.setdefault(pair_id, number) != number:
                raise RowError(f"the pair is in row {seen[pair_id]} too; keep one of them")
            if pair_id not in by_id:
                continue
            parsed = _read(row, by_id[pair_id], schema, dimensions, fields)
            rationales += row.get("rationale") is not None
            if parsed.embedding is not None:
                width = width or (len(parsed.embedding), number)
                if len(parsed.embedding) != width[0]:
                    raise RowError(
                        f"rationale_embedding holds {len(parsed.embedding)} numbers, that of row {width[1]} "
                        f"{width[0]}; all must be of one width"
                    )
        except RowError as error:
            raise UserError(f"{_where(path, number, pair_id)}: {error}") from None
        by_pair[pair_id] = parsed
        if parsed.failure:
            failures.append(f"row {number}: {parsed.failure}")
    if not seen:
        raise UserError(f"{path}: the file has no rows; write one a pair")
    signals = _join(by_pair, len(schema), len(dimensions), width[0] if width else 0)
    validate_signals(signals, schema.names, dimensions, str(path))
    return ExternalSignals(
        signals=signals,
        others=len(seen) - len(by_pair),
        rationales=rationales,
        unparsed=len(failures),
        first_unparsed=failures[0] if failures else "",
        unread=tuple(name for name in columns if name not in KEYS),
    )


def read_rationale(text: str, dimensions: Sequence[str], labels: Sequence[str]) -> Rationale | ParseFailure:
    """The rationale in a teacher's text, as `parse_output`; without comparisons where it compares nothing.

    The parser completes what it reads with absent dimensions, which for a label alone would be verdicts that nobody
    gave.
    """
    parsed = parse_output(text, dimensions=dimensions, labels=labels)
    if isinstance(parsed, ParseFailure) or any(
        comparison.query_values or comparison.item_values or comparison.verdict != "absent"
        for comparison in parsed.comparisons
    ):
        return parsed
    return Rationale((), parsed.label)


def _join(by_pair: Mapping[str, _ParsedRow], n_labels: int, n_dimensions: int, width: int) -> Signals:
    rows = list(by_pair.values())
    embedding = np.array([row.embedding or [np.nan] * width for row in rows], np.float32) if width else None
    verdict_probs = np.array([row.verdict_probs for row in rows], np.float32)
    return Signals(
        pair_ids=tuple(by_pair),
        label_probs=np.array([row.label_probs for row in rows], np.float32).reshape(-1, n_labels),
        verdict_probs=verdict_probs.reshape(-1, n_dimensions, len(VERDICTS)),
        evidence=tuple(row.evidence for row in rows),
        rationales=tuple(row.rationale for row in rows),
        confidence=np.array([row.confidence for row in rows], np.float32),
        rationale_embedding=embedding,
    )


def _read(
    row: Mapping, pair: Pair, schema: LabelSchema, dimensions: Sequence[str], fields: Sequence[str]
) -> _ParsedRow:
    probs = _label_probs(row, schema)
    rationale, failure = _rationale(row, probs, schema, dimensions)
    if probs is None:
        if rationale is None or rationale.label is None:
            reason = f"its rationale gives none ({failure})" if failure else "it has none of them"
            raise RowError(f"a row needs label_probs, score, label or a rationale with its label; {reason}")
        probs = _one_hot(schema.index(rationale.label), len(schema))
    confidence = row.get("confidence")
    return _ParsedRow(
        label_probs=probs,
        verdict_probs=_verdict_probs(row, rationale, dimensions),
        evidence=() if rationale is None else find_evidence(pair, rationale, fields),
        # A label alone explains nothing: no student shall learn from it that there is no evidence.
        rationale=render(rationale) if rationale is not None and rationale.comparisons else "",
        failure=failure,
        confidence=1.0 if confidence is None else _probability(confidence, "confidence"),
        embedding=_embedding(row),
    )


def _label_probs(row: Mapping, schema: LabelSchema) -> np.ndarray | None:
    """The first of label_probs, score and label that the row has, as a distribution [C]; None if it has none."""
    if (raw := row.get("label_probs")) is not None:
        if isinstance(raw, Mapping):
            _known(raw, schema.names, "label_probs", "labels")
            raw = [0.0 if raw.get(name) is None else raw[name] for name in schema.names]
        return _distribution(raw, "label_probs", schema.names)
    if (raw := row.get("score")) is not None:
        if len(schema) != 2:
            raise RowError(f"a score says all only of two labels, the config has {len(schema)}; give label_probs")
        probability, positive = _probability(raw, "score"), int(np.flatnonzero(schema.is_positive)[0])
        return _one_hot(positive, 2) * probability + _one_hot(1 - positive, 2) * (1.0 - probability)
    if (raw := row.get("label")) is not None:
        _known([raw], schema.names, "label", "labels")
        return _one_hot(schema.index(raw), len(schema))
    return None


def _rationale(
    row: Mapping, probs: np.ndarray | None, schema: LabelSchema, dimensions: Sequence[str]
) -> tuple[Rationale | None, str]:
    """The rationale of a row, and why there is none although it has a text."""
    if (text := row.get("rationale")) is None:
        return None, ""
    if not isinstance(text, str):
        raise RowError(f"rationale must be text in the grammar, got {type(text).__name__}")
    parsed = read_rationale(text, dimensions, schema.names)
    if isinstance(parsed, ParseFailure) and probs is not None:
        # Comparisons whose conclusion stands in another column.
        label = escape(schema.names[int(probs.argmax())])
        again = read_rationale(f"{text}\nlabel: {label}", dimensions, schema.names)
        parsed = again if isinstance(again, Rationale) and again.comparisons else parsed
    return (None, parsed.reason) if isinstance(parsed, ParseFailure) else (parsed, "")


def _verdict_probs(row: Mapping, rationale: Rationale | None, dimensions: Sequence[str]) -> np.ndarray:
    """[D, V], NaN where the row gives no verdict; what it gives outright counts more than its rationale."""
    probs = np.full((len(dimensions), len(VERDICTS)), np.nan)
    for comparison in rationale.comparisons if rationale is not None else ():
        probs[dimensions.index(comparison.dimension)] = _one_hot(VERDICTS.index(comparison.verdict), len(VERDICTS))
    verdicts, distributions = row.get("verdicts"), row.get("verdict_probs")
    if verdicts is not None and distributions is not None:
        raise RowError("it has both verdicts and verdict_probs; leave one out")
    for name, raw in (("verdicts", verdicts), ("verdict_probs", distributions)):
        if raw is None:
            continue
        if not isinstance(raw, Mapping):
            raise RowError(f"{name} must map dimensions to values, got {type(raw).__name__}")
        _known(raw, dimensions, name, "dimensions")
        for dimension, value in raw.items():
            if value is not None and name == "verdicts":
                _known([value], VERDICTS, f"the verdict on {dimension!r}", "verdicts")
                probs[dimensions.index(dimension)] = _one_hot(VERDICTS.index(value), len(VERDICTS))
            elif value is not None:
                probs[dimensions.index(dimension)] = _distribution(value, f"verdict_probs of {dimension!r}", VERDICTS)
    return probs


def _embedding(row: Mapping) -> list[float] | None:
    if (raw := row.get("rationale_embedding")) is None:
        return None
    if not isinstance(raw, list | tuple) or not raw:
        raise RowError("rationale_embedding must be a list of numbers; leave it out where there is none")
    values = [_number(value, "rationale_embedding") for value in raw]
    if not np.isfinite(values).all():
        raise RowError("rationale_embedding holds a number that is not finite; leave it out where there is none")
    return values


def _distribution(raw: object, name: str, over: Sequence[str]) -> np.ndarray:
    if not isinstance(raw, list | tuple) or len(raw) != len(over):
        raise RowError(f"{name} must hold {len(over)} numbers, for {list(over)}, got {reprlib.repr(raw)}")
    probs = np.array([_number(value, name) for value in raw])
    if np.isnan(probs).any():
        raise RowError(f"{name} hold a NaN: {raw}; leave them out where they are not known")
    if (probs < 0).any():
        raise RowError(f"{name} hold a negative number: {raw}; give probabilities, e.g. the softmax of logits")
    if not abs(probs.sum() - 1.0) <= TOLERANCE:
        raise RowError(f"{name} sum to {probs.sum():.4g}, not to 1: {raw}; divide them by their sum")
    return probs


def _probability(raw: object, name: str) -> float:
    value = _number(raw, name)
    if not 0.0 <= value <= 1.0:
        raise RowError(f"{name} must lie in [0, 1], got {raw!r}")
    return value


def _number(value: object, name: str) -> float:
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, Real):
        raise RowError(f"{name} must be numbers, got {reprlib.repr(value)}")
    return float(value)


def _known(raw: Iterable[object], names: Sequence[str], what: str, kind: str) -> None:
    for name in raw:
        if name not in names:
            raise RowError(
                f"{what} says {reprlib.repr(name)}, which is not one of the {kind} {list(names)}; use these names"
            )


def _one_hot(index: int, size: int) -> np.ndarray:
    return np.eye(size)[index]


def _pair_id(row: Mapping) -> str:
    pair_id = row.get("pair_id")
    if isinstance(pair_id, bool) or not (text := id_text(pair_id, "pair_id")):
        raise RowError("missing pair_id; give each row that of its pair")
    return text


def _where(path: str | os.PathLike, number: int, pair_id: str | None) -> str:
    return f"{path} row {number}" + (f" (pair_id {pair_id!r})" if pair_id is not None else "")
