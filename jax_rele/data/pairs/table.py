"""A table of pairs as a sequence that is read from disk as it is used."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jax_rele.data.parquet import OPTIONAL_PAIR_COLUMNS, PAIRS, fill_missing, pairs_from_arrow, reading_table
from jax_rele.errors import UserError
from jax_rele.types import Pair

_CHUNK = 1024


class PairTable(Sequence[Pair]):
    """The pairs of a Parquet table, or some of them, as a sequence; a few row groups are in memory at a time.

    Reading in the order of the table, or nearby, is fast; each jump to a row group that is not in memory reads that
    group. It may be read by several threads, and sent to another process.

    Args:
      path: a table with the schema `PAIRS`.
      rows: [M] which rows, in this order; None for all.
      held_groups: how many row groups are kept in memory, the ones used last.

    Raises:
      UserError: no such table, a damaged one, or one of something else; damage inside a row group where it is read.
    """

    def __init__(self, path: str | os.PathLike, rows: np.ndarray | None = None, held_groups: int = 4):
        self.path = Path(path)
        self._held_groups = held_groups
        self._cached_groups: OrderedDict[int, pa.Table] = OrderedDict()
        self._lock = threading.Lock()
        with reading_table(self.path):
            self._file = pq.ParquetFile(self.path, page_checksum_verification=True)
        columns = self._file.schema_arrow.names
        missing = [name for name in PAIRS.names if name not in (*columns, *OPTIONAL_PAIR_COLUMNS)]
        if missing:
            raise UserError(f"{self.path}: the table has no column {missing}, only {columns}; it is no table of pairs")
        self._names = [name for name in PAIRS.names if name in columns]
        metadata = self._file.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._ends = np.cumsum([0, *sizes], dtype=np.int64)
        self._rows = np.arange(self._ends[-1]) if rows is None else np.asarray(rows, np.int64)

    def __reduce__(self):
        return PairTable, (self.path, self._rows, self._held_groups)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index):
        """One pair, or for a slice a list of pairs."""
        if isinstance(index, slice):
            return list(self._pairs(self._rows[index]))
        return next(self._pairs(self._rows[[index]]))

    def __iter__(self) -> Iterator[Pair]:
        return self._pairs(self._rows)

    def select(self, indices: np.ndarray) -> PairTable:
        """The pairs at some indices of this sequence, [M] integers, or [len] bool for those that are true."""
        return PairTable(self.path, self._rows[indices], self._held_groups)

    def column(self, name: str) -> pa.ChunkedArray:
        """[len] one column, e.g. `split`, without making pairs."""
        with reading_table(self.path):
            column = self._file.read(columns=[name]).column(name)
            is_whole = len(self._rows) == len(column) and (np.diff(self._rows) == 1).all()
            return column if is_whole else column.take(self._rows)

    def tables(self) -> Iterator[pa.Table]:
        """The pairs as tables of some of them, without making pairs."""
        return self._tables(self._rows)

    def _pairs(self, rows: np.ndarray) -> Iterator[Pair]:
        for table in self._tables(rows):
            yield from pairs_from_arrow(table)

    def _tables(self, rows: np.ndarray) -> Iterator[pa.Table]:
        groups = np.searchsorted(self._ends, rows, side="right") - 1
        # Neighbours in one group are read together, up to a limit: pairs take more memory than the table.
        starts = np.flatnonzero(np.diff(groups, prepend=-1))
        for start, stop in zip(starts, [*starts[1:], len(rows)]):
            for first in range(start, stop, _CHUNK):
                some = rows[first : min(first + _CHUNK, stop)] - self._ends[groups[start]]
                yield _take(self._group(int(groups[start])), some)

    def _group(self, group: int) -> pa.Table:
        with self._lock:
            if group not in self._cached_groups:
                self._cached_groups[group] = self._read(group)
                if len(self._cached_groups) > self._held_groups:
                    self._cached_groups.popitem(last=False)
            self._cached_groups.move_to_end(group)
            return self._cached_groups[group]

    def _read(self, group: int) -> pa.Table:
        with reading_table(self.path):
            table = self._file.read_row_group(group, columns=self._names)
            table.validate(full=True)
            table = fill_missing(table, PAIRS, OPTIONAL_PAIR_COLUMNS)
            return table.select(PAIRS.names).cast(PAIRS).combine_chunks()


def by_query(pairs: Iterable[Pair]) -> list[int]:
    """An order of pairs in which those of a query follow each other, as they share a prompt's beginning."""
    groups: dict[str, list[int]] = {}
    for index, pair in enumerate(pairs):
        groups.setdefault(pair.query, []).append(index)
    return list(chain.from_iterable(groups.values()))


def _take(table: pa.Table, rows: np.ndarray) -> pa.Table:
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
        return table.slice(int(rows[0]), len(rows))
    return table.take(rows)
