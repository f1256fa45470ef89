"""Which rows share a prefix, and in which batches they are read: decided on the host, before anything runs."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from jax_rele.teacher.kv_cache import WORTH, bucket, buckets, common_prefix, row_count, shared_base


@dataclass(frozen=True)
class Batch:
    """Rows that are read in one call.

    Attributes:
      rows: [n] which rows.
      parents: [n] the prefix of its window that each goes on from.
      length: padded tokens of what is left of a row behind its prefix.
    """

    rows: np.ndarray
    parents: np.ndarray
    length: int


@dataclass(frozen=True)
class Window:
    """Prefixes that are in memory at once, and the batches that go on from them.

    Attributes:
      prefixes: tokens behind the plan's base; at most one is empty.
      length: padded tokens of a prefix; 0 where rows go on from the base itself.
      batches: what is read behind them.
    """

    prefixes: tuple[tuple[int, ...], ...]
    length: int
    batches: tuple[Batch, ...]


@dataclass(frozen=True)
class Plan:
    """How rows are read.

    Attributes:
      base: the tokens that all rows begin with, read once; empty where they are too few to matter.
      windows: in the order in which they are read.
      batch_size: padded rows of every batch.
      padded_tokens: tokens that the model reads, padding included.
    """

    base: tuple[int, ...]
    windows: tuple[Window, ...]
    batch_size: int
    padded_tokens: int


def make_plan(rows: Sequence[Sequence[int]], groups: Sequence[Hashable], batch_size: int, parts: int = 1) -> Plan:
    """A plan in which every row occurs once.

    The rows of a group share the longest prefix of their tokens that leaves each at least one; where the padding of
    such short pieces costs more than sharing saves, whole rows are read instead.

    Args:
      rows: token ids, at least one a row.
      groups: for each row what it likely shares a prefix by, e.g. its query.
      batch_size: most rows of a batch and prefixes of a window, a multiple of `parts`.
      parts: devices over which the rows of a batch are divided.
    """
    base = shared_base(rows)
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    shared = {
        row: tuple(common_prefix([rows[row] for row in found])[len(base) :])
        for found in members.values()
        if len(found) > 1
        for row in found
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
    """The plan in which each row goes on from its own of `prefixes`."""
    count = row_count(len(rows), batch_size, parts)
    sizes = buckets([len(prefix) for prefix in prefixes], WORTH * count)
    windows, padded = [], bucket(len(base)) * parts
    for size in np.unique(sizes).tolist():
        members: dict[tuple[int, ...], list[int]] = {}
        for row in np.flatnonzero(sizes == size).tolist():
            members.setdefault(prefixes[row], []).append(row)
        distinct = list(members)
        for start in range(0, len(distinct), batch_size):
            held = distinct[start : start + batch_size]
            parents = {row: place for place, prefix in enumerate(held) for row in members[prefix]}
            batches = tuple(_batches(rows, parents, len(base), held, count))
            if size:
                padded += row_count(len(held), batch_size, parts) * size
            padded += sum(count * batch.length for batch in batches)
            windows.append(Window(tuple(held) if size else (), size, batches))
    return Plan(base, tuple(windows), count, padded)


def _batches(rows, parents: dict[int, int], base: int, prefixes: Sequence[Sequence[int]], count: int) -> list[Batch]:
    """The rows of a window, those of about the same length behind their prefixes together."""
    inside = np.array(list(parents))
    lengths = buckets([len(rows[row]) - base - len(prefixes[parents[row]]) for row in parents], WORTH * count)
    return [
        Batch(part, np.array([parents[row] for row in part.tolist()]), int(length))
        for length in np.unique(lengths)
        for part in np.split(inside[lengths == length], range(count, int((lengths == length).sum()), count))
    ]
