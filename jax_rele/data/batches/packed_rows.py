"""Rows of a batch dealt into fewer, longer ones for the students' encoder: `models.packed_rows` on the host.

The rows of each device, or of its part of a micro batch, are packed by themselves and into as many rows as those of
the others. A batch that does not fit keeps its padded rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jax_rele.data.tokens.packing import pack_examples

ColumnPath = tuple[str, ...]
"""The names that lead to a column of a batch."""

MOST = 13 / 16
"""Rows are packed where the layers then read at most this fraction of the padded rows' tokens; a smaller saving does
not pay for moving them (docs/benchmarks/packed_rows.md)."""

STEPS = 16
"""Packed rows are so many that they hold a whole number of these parts of the padded rows' tokens, so that trainings
on much the same data share one compiled step."""

SPREAD = 4.0
"""There are packed rows for parts whose tokens are up to so many standard deviations above the mean."""


@dataclass(frozen=True)
class Parts:
    """How the rows of a batch are divided.

    Attributes:
      shards: devices or groups of them that hold rows of their own, one after the other.
      micro_batches: parts that a step computes one after the other; each has every `micro_batches`-th group of a
        shard.
      group_size: rows of a group, which none of these divides.
    """

    shards: int
    micro_batches: int
    group_size: int

    @property
    def count(self) -> int:
        """How many parts there are."""
        return self.shards * self.micro_batches

    def fits(self, rows: int) -> bool:
        """Whether every part is within one shard."""
        groups = self.micro_batches * self.group_size if self.micro_batches > 1 else 1
        return rows % (self.shards * groups) == 0

    def split(self, rows: np.ndarray) -> np.ndarray:
        """[B, ...] -> [parts, rows of a part, ...], a shard's parts side by side."""
        shape = self.shards, -1, self.micro_batches, self.group_size if self.micro_batches > 1 else 1
        return rows.reshape(*shape, *rows.shape[1:]).swapaxes(1, 2).reshape(self.count, -1, *rows.shape[1:])

    def join(self, parts: np.ndarray) -> np.ndarray:
        """The inverse of `split`."""
        shape = self.shards, self.micro_batches, -1, self.group_size if self.micro_batches > 1 else 1
        return parts.reshape(*shape, *parts.shape[2:]).swapaxes(1, 2).reshape(-1, *parts.shape[2:])


@dataclass(frozen=True)
class PackedInputs:
    """What is packed.

    Attributes:
      parts: how batches are divided.
      length: tokens of a packed row; a column with longer rows has packed rows of its own length.
      rows: path of a `valid` column -> the packed rows of a part, for each length bucket; 0: rows stay as they are.
    """

    parts: Parts
    length: int
    rows: Mapping[ColumnPath, Sequence[int]]


def row_length(full: int, length: int) -> int:
    """Tokens of the packed rows of a column whose longest row has `full`."""
    return max(full, length)


def pack_rows(lengths: np.ndarray, padded: int, rows: int, length: int, parts: Parts) -> dict[str, np.ndarray] | None:
    """The `models.packed_rows.Packing` of a batch.

    Args:
      lengths: [B] tokens of each row; rows of 0 are left out.
      padded: tokens of a padded row.
      rows, length: packed rows of a part, and tokens of one.
      parts: how the batch is divided.

    Returns:
      `source` [parts, rows, length] and `target` [B, padded]; None where a part needs more rows.
    """
    by_part = parts.split(lengths)
    begins = np.zeros(by_part.shape, np.int64)
    for sizes, begin in zip(by_part, begins):
        packed = _pack(sizes, length)
        if len(packed) > rows:
            return None
        for number, members in enumerate(packed):
            begin[members] = number * length + np.cumsum([0, *sizes[members][:-1]])
    columns = np.arange(padded)
    target = np.where(columns < by_part[..., None], begins[..., None] + columns, -1)
    part, row, column = np.nonzero(target >= 0)
    source = np.full((len(by_part), rows * length), -1, np.int32)
    source[part, target[part, row, column]] = row * padded + column
    return {"source": source.reshape(-1, rows, length), "target": parts.join(target).astype(np.int32)}


def choose_rows(batches: Sequence[np.ndarray], padded: int, length: int, parts: Parts) -> int:
    """The packed rows of a part that nearly every batch fits in; 0 where packing does not pay.

    Args:
      batches: the `lengths` of some batches, as `pack_rows` takes them.
      padded, length, parts: as in `pack_rows`.
    """
    by_part = np.concatenate([parts.split(lengths) for lengths in batches])
    tokens = by_part.sum(axis=1)
    least = int(np.ceil((tokens.mean() + SPREAD * tokens.std()) / length))
    rows = max(least, *(len(_pack(sizes, length)) for sizes in by_part))
    return round_rows(rows, by_part.shape[1] * padded, length)


def round_rows(rows: int, padded: int, length: int) -> int:
    """So many packed rows or some more, see `STEPS`; 0 where they hold more than `MOST` of the `padded` tokens."""
    steps = -(-rows * length * STEPS // padded)
    rows = max(rows, steps * padded // (STEPS * length))
    return rows if rows * length <= MOST * padded else 0


def _pack(sizes: np.ndarray, length: int) -> list[np.ndarray]:
    """`pack_examples` of the rows that have tokens."""
    present = np.flatnonzero(sizes)
    return [present[members] for members in pack_examples(sizes[present].tolist(), length)]
