"""Batches by Grain: what a process reads of the examples of each step, exactly resumable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grain
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jax_rele.data.batches.packed_rows import ColumnPath, PackedInputs, pack_rows, row_length
from jax_rele.data.batches.sampler import Order, Stream, shuffle_streams
from jax_rele.data.tokens.token_cache import Columns, Ragged, take_rows
from jax_rele.types import PyTree

STEPS = 1 << 40
"""More steps than any run has."""

Arrays = dict[str, PyTree]
"""A nested dict of arrays with the same number of rows."""

Read = Callable[[np.ndarray, np.ndarray], Arrays]
"""(numbers of all examples of a batch, indices in the batch to read) -> their arrays."""


def batches(read: Read, examples: Order, indices: np.ndarray | None = None) -> grain.DatasetIterator:
    """An iterator over one process's part of every batch.

    Together the processes read exactly the batch that a single process would read, and the iterator's state
    (`get_state`, `set_state`) is the step number in every process: a run resumes with any number of processes.

    Args:
      read: see `rows` and `Groups`.
      examples: which are in which batch.
      indices: those of a batch to read, see `training.local_row_indices`; None for all.
    """
    indices = np.arange(examples.width) if indices is None else indices
    steps = grain.MapDataset.range(STEPS if examples.steps is None else examples.steps)
    read_step = steps.map(lambda step: read(examples.batch(step), indices))
    return iter(read_step.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


def shuffled(count: int, batch_size: int, seed: int, epochs: int | None = None) -> Order:
    """Batches of `batch_size` of `count` examples, see `shuffle_streams`."""
    return shuffle_streams([Stream(np.arange(count), (batch_size,))], seed, epochs=epochs)


def rows(arrays: Arrays) -> Read:
    """Examples that are rows of arrays, for orders without end, which have no padding."""
    return lambda numbers, indices: jax.tree.map(lambda array: array[numbers[indices]], arrays)


@dataclass(frozen=True)
class Groups:
    """Examples that are groups of pairs, e.g. of one query. A `Read`.

    Attributes:
      columns: a row per pair.
      members: [G, size] int, the pairs of each group, -1 for padding.
      buckets: [G] int, in which of the `lengths` each group fits, from 1 on; None: all are read at full length.
      lengths: how many lengths there are.
      packed: which inputs are packed too; None for none.
    """

    columns: Columns
    members: np.ndarray
    buckets: np.ndarray | None = None
    lengths: int = 1
    packed: PackedInputs | None = None

    def __call__(self, numbers: np.ndarray, indices: np.ndarray) -> Arrays:
        """A batch of pairs, see `flatten_groups`, padded to the shortest length that all of the batch fits in.

        Beside each input NAME`valid` that is packed it has NAME`packing`, where the batch fits.
        """
        members, bucket = self.members_of(numbers[indices]), self.bucket(numbers)
        batch = take_rows(self.columns, np.maximum(members, 0), lambda full: bucket_length(full, bucket, self.lengths))
        batch = flatten_groups({**batch, "mask": members >= 0}, indices)
        if self.packed is None:
            return batch
        flat = flatten_dict(batch)
        for (*parents, name), packing in self._packings(numbers, indices, bucket).items():
            flat[(*parents, name.replace("valid", "packing"))] = packing
        return unflatten_dict(flat)

    def members_of(self, numbers: np.ndarray) -> np.ndarray:
        """[B, size] the pairs of the groups of these numbers, -1 for padding."""
        return np.where((numbers >= 0)[:, None], self.members[np.maximum(numbers, 0)], -1)

    def bucket(self, numbers: np.ndarray) -> int:
        """The length bucket of a batch: of the whole one, as every process must pad alike."""
        present = numbers[numbers >= 0]
        return self.lengths if self.buckets is None or not len(present) else int(self.buckets[present].max())

    def row_lengths(self, path: ColumnPath, numbers: np.ndarray) -> np.ndarray:
        """[B x size] the tokens of each pair of a batch in a column, 0 for padding."""
        column, members = ragged_columns(self.columns)[path], self.members_of(numbers).reshape(-1)
        return np.where(members >= 0, column.lengths(np.maximum(members, 0)), 0)

    def _packings(self, numbers: np.ndarray, indices: np.ndarray, bucket: int) -> dict[ColumnPath, Arrays]:
        """The rows of these groups of each packing of a batch. Whether a batch fits is asked of the whole one."""
        packings: dict[ColumnPath, Arrays] = {}
        if self.packed is None:
            return packings
        parts, size = self.packed.parts, self.members.shape[1]
        own = (indices[:, None] * size + np.arange(size)).reshape(-1)
        shards = np.unique(own // (len(numbers) * size // parts.shards))
        own_parts = (shards[:, None] * parts.micro_batches + np.arange(parts.micro_batches)).reshape(-1)
        for path, rows in self.packed.rows.items():
            if not rows[bucket - 1]:
                continue
            full = ragged_columns(self.columns)[path].length
            packing = pack_rows(
                self.row_lengths(path, numbers),
                bucket_length(full, bucket, self.lengths),
                rows[bucket - 1],
                row_length(full, self.packed.length),
                parts,
            )
            if packing is not None:
                packings[path] = {"source": packing["source"][own_parts], "target": packing["target"][own]}
        return packings


def ragged_columns(columns: Columns) -> dict[ColumnPath, Ragged]:
    """The `valid` columns of a dataset's inputs, by path."""
    flat = flatten_dict(columns)
    return {path: x for path, x in flat.items() if path[-1].endswith("valid") and isinstance(x, Ragged)}


def bucket_length(full: int, bucket: int, lengths: int) -> int:
    """Tokens of the rows of bucket 1 to `lengths`: as many equal steps up to the full length, in multiples of 8."""
    return full if bucket >= lengths else min(full, -(-full * bucket // lengths // 8) * 8)


def bucket_of(tokens: np.ndarray, full: int, lengths: int) -> np.ndarray:
    """The first bucket, from 1 on, that rows of so many tokens fit in."""
    limits = [bucket_length(full, bucket, lengths) for bucket in range(1, lengths + 1)]
    return np.searchsorted(limits, tokens) + 1


def group_by_query(
    queries: Sequence[object] | np.ndarray, labelled: Sequence[bool] | np.ndarray, size: int
) -> np.ndarray:
    """Deals the pairs of each query into groups of at most `size`, its labelled pairs spread over them evenly.

    Args:
      queries: the query of each pair, or a hash of it.
      labelled: whether the pair has a human label.
      size: pairs per group.

    Returns:
      [groups, size] int row numbers, every row once, -1 for padding; in the order of each query's first row.
    """
    if not len(queries):
        return np.zeros((0, size), np.int64)
    _, first, query = np.unique(np.asarray(queries), return_index=True, return_inverse=True)
    order = np.lexsort((~np.asarray(labelled, bool), first[query]))  # stable: rows in order, labelled ones first
    query = query[order]
    begins = np.flatnonzero(np.r_[True, query[1:] != query[:-1]])
    pairs = np.diff(np.r_[begins, len(query)])
    groups = -(-pairs // size)
    number = np.arange(len(query)) - np.repeat(begins, pairs)
    base = np.repeat(np.cumsum(groups) - groups, pairs)
    groups_of_rows = np.full((groups.sum(), size), -1, np.int64)
    groups_of_rows[base + number % np.repeat(groups, pairs), number // np.repeat(groups, pairs)] = order
    return groups_of_rows


def flatten_groups(batch: Arrays, indices: np.ndarray | None = None) -> Arrays:
    """A batch of groups -> a batch of pairs: [B, size, ...] becomes [B * size, ...].

    Adds `segments` [B * size] int32, for the pairs of one group its index in the whole batch (`indices`; None where
    this is the whole batch), and `segments_mask`: whether the group has more than one pair.
    """
    groups, size = batch["mask"].shape
    flat = jax.tree.map(lambda array: array.reshape(groups * size, *array.shape[2:]), batch)
    has_others = batch["mask"].sum(axis=1, keepdims=True) > 1
    return {
        **flat,
        "segments": np.repeat(np.arange(groups) if indices is None else indices, size).astype(np.int32),
        "segments_mask": (batch["mask"] & has_others).reshape(-1),
    }


def row_count(rows: int, most: int, parts: int = 1) -> int:
    """Rows of a batch that holds `rows`: a power of four, or `most`; a multiple of `parts`."""
    count = 1
    while count < rows:
        count *= 4
    return -(-min(count, most) // parts) * parts
