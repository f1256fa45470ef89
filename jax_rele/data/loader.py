"""Batches by Grain: shuffled by seed and epoch, endless, and exactly resumable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grain
import jax
import numpy as np

from jax_rele.data.encoding import pad

Arrays = dict[str, Any]
"""A nested dict of arrays with the same number of rows."""


class _Rows:
    """Random access to the rows of a nested dict of arrays, as Grain wants it."""

    def __init__(self, arrays: Arrays):
        self.arrays = arrays

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.arrays)[0])

    def __getitem__(self, index: int) -> Arrays:
        return jax.tree.map(lambda array: array[index], self.arrays)

    def __repr__(self) -> str:
        # Grain compares this with what a checkpoint was written with.
        return f"rows({len(self)})"


def batches(
    arrays: Arrays, batch_size: int, seed: int, transform: Callable[[Arrays], Arrays] | None = None
) -> grain.DatasetIterator:
    """An endless iterator of batches; its state is saved with the model (`get_state`, `set_state`).

    Every epoch is a new shuffle of all rows, and a batch may span two epochs, so no row is dropped or repeated within
    one epoch and every batch has the same shape.

    Args:
      arrays: rows, all of this process.
      batch_size: rows per batch.
      seed: of the shuffles.
      transform: applied to each batch.
    """
    dataset = grain.MapDataset.source(_Rows(arrays)).shuffle(seed=seed).repeat().batch(batch_size)
    if transform is not None:
        dataset = dataset.map(transform)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


def group_by_query(queries: Sequence[str], labelled: Sequence[bool], size: int) -> np.ndarray:
    """Deals the pairs of each query into groups of at most `size`, its labelled pairs spread over them evenly.

    Args:
      queries: the query of each pair.
      labelled: whether the pair has a human label.
      size: pairs per group.

    Returns:
      [groups, size] int row numbers, every row once, -1 for empty places.
    """
    members: dict[str, tuple[list[int], list[int]]] = {}
    for row, (query, has_label) in enumerate(zip(queries, labelled)):
        members.setdefault(query, ([], []))[0 if has_label else 1].append(row)
    groups = []
    for with_label, without in members.values():
        rows = with_label + without
        count = -(-len(rows) // size)
        groups += [rows[start::count] for start in range(count)]
    return pad(groups, size, -1, np.int64).reshape(-1, size)


def take_groups(arrays: Arrays, groups: np.ndarray) -> Arrays:
    """Gathers rows into [groups, size, ...] arrays and adds `mask` [groups, size]: False for empty places."""
    gathered = jax.tree.map(lambda array: array[np.maximum(groups, 0)], arrays)
    return {**gathered, "mask": groups >= 0}


def flatten_groups(batch: Arrays) -> Arrays:
    """A batch of groups -> a batch of pairs: [B, size, ...] becomes [B * size, ...].

    Adds `segments` [B * size] int32, equal for the pairs of one group, and `segments_mask`: whether a pair has company.
    """
    groups, size = batch["mask"].shape
    flat = jax.tree.map(lambda array: array.reshape(groups * size, *array.shape[2:]), batch)
    company = batch["mask"].sum(axis=1, keepdims=True) > 1
    return {
        **flat,
        "segments": np.repeat(np.arange(groups, dtype=np.int32), size),
        "segments_mask": (batch["mask"] & company).reshape(-1),
    }
