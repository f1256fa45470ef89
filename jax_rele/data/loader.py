"""Batches by Grain: shuffled by seed and epoch, endless, and exactly resumable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grain
import jax
import numpy as np

from jax_rele.data.encoding import pad

STEPS = 1 << 40
"""No run takes so many."""

Arrays = dict[str, Any]
"""A nested dict of arrays with the same number of rows."""


def batches(
    arrays: Arrays,
    batch_size: int,
    seed: int,
    transform: Callable[[Arrays, np.ndarray], Arrays] | None = None,
    places: np.ndarray | None = None,
    streams: Sequence[tuple[np.ndarray, int]] | None = None,
) -> grain.DatasetIterator:
    """An endless iterator over one process's rows of every batch.

    Every epoch is a new shuffle of all rows, and a batch may span two epochs, so no row is dropped or repeated within
    one epoch and every batch has the same shape. Batch t depends on the rows, `batch_size`, the seed and t alone: what
    the processes read of it makes up the batch of a process that is alone, place by place, and the iterator's state
    (`get_state`, `set_state`) is t in every process, so a run goes on with any number of them.

    Args:
      arrays: rows, the same in every process.
      batch_size: rows per batch over all processes.
      seed: of the shuffles.
      transform: `(rows, places) -> rows`, applied to what is read of a batch; places [rows] are their numbers in it.
      places: the numbers in a batch of the rows to read, see `training.places_of_process`; None for all.
      streams: (row numbers, how many of a batch) of rows that are shuffled and repeated apart, one behind the other in
        every batch; what the first gives does not depend on the others. None: all rows are one stream.
    """
    places = np.arange(batch_size) if places is None else places
    if streams is None:
        streams = [(np.arange(len(jax.tree.leaves(arrays)[0])), batch_size)]
    if sum(count for _, count in streams) != batch_size:
        raise ValueError(f"the streams' shares of a batch {[count for _, count in streams]} must sum to {batch_size}")
    sources = [
        (rows, grain.MapDataset.range(len(rows)).shuffle(seed=seed + number).repeat().batch(count))
        for number, (rows, count) in enumerate(streams)
    ]

    def read(step: int) -> Arrays:
        numbers = np.concatenate([rows[source[step]] for rows, source in sources])[places]
        rows = jax.tree.map(lambda array: array[numbers], arrays)
        return rows if transform is None else transform(rows, places)

    steps = grain.MapDataset.range(STEPS)
    return iter(steps.map(read).to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


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


def split_streams(labelled: np.ndarray, count: int, share: float) -> list[tuple[np.ndarray, int]]:
    """Groups with and without labelled pairs as the streams of `batches`.

    Args:
      labelled: [groups] bool, whether a group holds a labelled pair.
      count: groups of a batch.
      share: of a batch that holds labelled pairs; all of it where every group does.
    """
    with_label, without = np.flatnonzero(labelled), np.flatnonzero(~labelled)
    if not len(without) or not len(with_label):
        return [(np.arange(len(labelled)), count)]
    first = min(max(1, round(share * count)), count)
    return [(with_label, first), *([(without, count - first)] if first < count else [])]


def flatten_groups(batch: Arrays, places: np.ndarray | None = None) -> Arrays:
    """A batch of groups -> a batch of pairs: [B, size, ...] becomes [B * size, ...].

    Adds `segments` [B * size] int32, for the pairs of one group its place in the whole batch (`places`; None where this
    is the whole), and `segments_mask`: whether a pair has company.
    """
    groups, size = batch["mask"].shape
    flat = jax.tree.map(lambda array: array.reshape(groups * size, *array.shape[2:]), batch)
    company = batch["mask"].sum(axis=1, keepdims=True) > 1
    return {
        **flat,
        "segments": np.repeat(np.arange(groups) if places is None else places, size).astype(np.int32),
        "segments_mask": (batch["mask"] & company).reshape(-1),
    }
