"""The training pairs and their arrays, neither of which has to fit in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from jax_rele.config import Config
from jax_rele.data import PairTable
from jax_rele.data.pairs.splits import normalise_query
from jax_rele.data.signals.lazy_table import SignalTable
from jax_rele.data.tokens.token_cache import Columns, load_or_build
from jax_rele.runs import artefacts
from jax_rele.types import Pair, Signals

CHUNK = 4096
"""Pairs in memory while their columns are computed."""

_PACKAGES = ("transformers", "tokenizers")


@dataclass(frozen=True)
class TrainingData:
    """The pairs of a run to learn from, labelled ones first: those that have signals.

    Attributes:
      run_dir: the run.
      cache: the folder of cached columns.
      signals: the teacher's signals.
      row_indices: [N] int, the row of each pair in `signals`.
      labelled: how many pairs have a human label.
      content: hashes of the tables.
    """

    run_dir: Path
    cache: Path
    signals: SignalTable
    row_indices: np.ndarray
    labelled: int
    content: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.row_indices)


def open_data(config: Config, run_dir: Path) -> TrainingData:
    """The training data that `prepare` and `score` wrote.

    Our own teacher judges every pair; of another's signals `score` has checked that none is missing, unless
    `score.allow_missing`.
    """
    names = {"pairs": artefacts.PAIRS, "unlabelled": artefacts.UNLABELLED, "signals": artefacts.SIGNALS}
    signals = SignalTable(
        run_dir / artefacts.SIGNALS, config.labels.names, config.rationale.dimensions, config.cache / "tokens"
    )
    row_indices = [
        np.concatenate([[], *(signals.row_indices(ids) for ids in _ids(run_dir / names[table]))]).astype(np.int64)
        for table in ("pairs", "unlabelled")
    ]
    row_indices = [indices[indices >= 0] for indices in row_indices]
    return TrainingData(
        run_dir=run_dir,
        cache=config.cache / "tokens",
        signals=signals,
        row_indices=np.concatenate(row_indices),
        labelled=len(row_indices[0]),
        content={name: _file_hash(run_dir / path) for name, path in names.items()},
    )


def _ids(path: Path) -> Iterator[list[str]]:
    """The `pair_id`s to learn from, a piece at a time: of the table of judged pairs, those of the training split."""
    judged = path.name == Path(artefacts.PAIRS).name
    with pq.ParquetFile(path) as table:
        for batch in table.iter_batches(CHUNK, columns=["pair_id", "split", "label"]):
            rows = zip(*(batch[name].to_pylist() for name in ("pair_id", "split", "label")))
            yield [pair_id for pair_id, split, label in rows if not judged or (split == "train" and label is not None)]


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pairs_of(data: TrainingData) -> Iterator[Pair]:
    """The pairs, in order."""
    judged = filter(_learns_from, PairTable(data.run_dir / artefacts.PAIRS))
    for pairs in (judged, iter(PairTable(data.run_dir / artefacts.UNLABELLED))):
        while part := list(islice(pairs, CHUNK)):
            known = data.signals.row_indices([pair.pair_id for pair in part]) >= 0
            yield from (pair for pair, is_known in zip(part, known) if is_known)


def _learns_from(pair: Pair) -> bool:
    return pair.split == "train" and pair.label is not None


def columns(
    data: TrainingData,
    kind: str,
    depends_on: Any,
    make: Callable[[Sequence[Pair], Signals], Mapping[str, Any]],
    ragged: Mapping[str, int] | None = None,
) -> Columns:
    """Columns with a row per pair, computed once and cached, see `token_cache.load_or_build`.

    Args:
      data: the pairs.
      kind: what the columns are.
      depends_on: what they depend on beside the pairs and signals.
      make: (pairs, their signals) -> nested dict of arrays with a row per pair.
      ragged: see `load_or_build`.
    """

    def chunks():
        pairs, start = pairs_of(data), 0
        while part := list(islice(pairs, CHUNK)):
            yield make(part, data.signals.take(data.row_indices[start : start + len(part)]))
            start += len(part)

    versions = {package: metadata.version(package) for package in _PACKAGES}
    return load_or_build(data.cache, kind, [depends_on, dict(data.content), versions], chunks, ragged or {})


def queries(data: TrainingData) -> Columns:
    """`query` [N] uint64, a hash of each pair's normalised query, and `labelled` [N] bool."""

    def make(pairs: Sequence[Pair], _: Signals) -> Mapping[str, Any]:
        digests = (hashlib.blake2b(normalise_query(pair.query).encode(), digest_size=8).digest() for pair in pairs)
        return {
            "query": np.frombuffer(b"".join(digests), np.uint64),
            "labelled": np.array([pair.label is not None for pair in pairs]),
        }

    return columns(data, "queries", None, make)
