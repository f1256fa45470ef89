"""Plans which rows share a prefix and in which batches they are read, on the host."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from jax_rele.data.batches.loader import row_count
from jax_rele.data.tokens.packing import MIN_BATCHES
from jax_rele.teacher.kv_cache import bucket, buckets, common_prefix, shared_base


@dataclass(frozen=True)
class Batch:
    """Rows that are read in one call.

    Attributes:
      rows: [n] row indices.
      parents: [n] for each row the index of its prefix in the window.
      length: padded tokens of a row without its prefix.
    """

    rows: np.ndarray
    parents: np.ndarray
    length: int


@dataclass(frozen=True)
class Window:
    """Prefixes that are in memory at once, and the batches that continue them.

    Attributes:
      prefixes: tokens after the plan's base; at most one is empty.
      length: padded tokens of a prefix; 0 where rows continue the base itself.
      batches: the rows that continue the prefixes.
    """

    prefixes: tuple[tuple[int, ...], ...]
    length: int
    batches: tuple[Batch, ...]


@dataclass(frozen=True)
class Plan:
    """How rows are read.

    Attributes:
      base: the common prefix of all rows, read once; empty where it is too short to matter.
      windows: in the order in which they are read.
      batch_size: padded rows of every batch.
      padded_tokens: tokens that the model reads, padding included.
    """

    base: tuple[int, ...]
    windows: tuple[Window, ...]
    batch_size: int
    padded_tokens: int


def make_plan(
    rows: Sequence[Sequence[int]],
    groups: Sequence[Hashable],
    batch_size: int,
    parts: int = 1,
    heads: Sequence[Sequence[int]] | None = None,
) -> Plan:
    """Makes a plan in which every row occurs once.

    The rows of a group share the longest prefix of their tokens that leaves each at least one; where the padding of
    such short pieces costs more than sharing saves, whole rows are read instead.

    Args:
      rows: token ids, at least one a row.
      groups: for each row a key, e.g. its query; rows of equal key likely share a prefix.
      batch_size: most rows of a batch and prefixes of a window, a multiple of `parts`.
      parts: devices over which the rows of a batch are divided.
      heads: of each row its first tokens, of which at least the last is read in the row's own batch; by default all.
    """
    heads = rows if heads is None else heads
    base = shared_base(heads)
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    shared = {
        row: tuple(common_prefix([heads[row] for row in group])[len(base) :])
        for group in members.values()
        if len(group) > 1
        for row in group
    }
    plans = [
        _arrange(rows, base, [prefixes.get(row, ()) for row in range(len(rows))], batch_size, parts)
        for prefixes in (shared, {})
    ]
    return min(plans, key=lambda plan: plan.padded_tokens)


def _arrange(
    rows: Sequence[Sequence[int]],
    base: tuple[int, ...],
    prefixes: Sequence[tuple[int, ...]],
    batch_size: int,
    parts: int,
) -> Plan:
    """The plan in which each row continues its entry of `prefixes`."""
    count = row_count(len(rows), batch_size, parts)
    sizes = buckets([len(prefix) for prefix in prefixes], MIN_BATCHES * count)
    windows, padded = [], bucket(len(base)) * parts
    for size in np.unique(sizes).tolist():
        members: dict[tuple[int, ...], list[int]] = {}
        for row in np.flatnonzero(sizes == size).tolist():
            members.setdefault(prefixes[row], []).append(row)
        distinct = list(members)
        for start in range(0, len(distinct), batch_size):
            cached = distinct[start : start + batch_size]
            parents = {row: index for index, prefix in enumerate(cached) for row in members[prefix]}
            batches = tuple(_batches(rows, parents, len(base), cached, count))
            if size:
                padded += row_count(len(cached), batch_size, parts) * size
            padded += sum(count * batch.length for batch in batches)
            windows.append(Window(tuple(cached) if size else (), size, batches))
    return Plan(base, tuple(windows), count, padded)


def _batches(rows, parents: dict[int, int], base: int, prefixes: Sequence[Sequence[int]], count: int) -> list[Batch]:
    """Batches of the rows of a window; rows of similar length share a batch."""
    inside = np.array(list(parents))
    lengths = buckets([len(rows[row]) - base - len(prefixes[parents[row]]) for row in parents], MIN_BATCHES * count)
    return [
        Batch(part, np.array([parents[row] for row in part.tolist()]), int(length))
        for length in np.unique(lengths)
        for part in np.split(inside[lengths == length], range(count, int((lengths == length).sum()), count))
    ]
