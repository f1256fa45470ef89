"""Which examples are in which batch: arithmetic on step numbers, the same in every process."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

import grain
import numpy as np


@dataclass(frozen=True)
class Stream:
    """Examples that are shuffled and repeated apart from others.

    Attributes:
      members: numbers of the examples; at least one.
      counts: how many of them are in the batch of each step.
      cycle: so many of the last counts are repeated for all later steps.
    """

    members: np.ndarray
    counts: tuple[int, ...]
    cycle: int = 1

    def __post_init__(self):
        if not len(self.members) or min(self.counts, default=-1) < 0 or not any(self.counts):
            raise ValueError(f"a stream needs members, and counts that are not all 0, got {self.counts[:9]}")
        if not 0 < self.cycle <= len(self.counts):
            raise ValueError(f"a cycle must be of 1 to {len(self.counts)} counts, got {self.cycle}")

    @cached_property
    def _sums(self) -> list[int]:
        return [0, *accumulate(self.counts)]

    def before(self, step: int) -> int:
        """Examples in the batches before a step."""
        known, sums = len(self.counts), self._sums
        if step <= known:
            return sums[step]
        cycles, rest = divmod(step - known, self.cycle)
        head = known - self.cycle
        return sums[-1] + cycles * (sums[-1] - sums[head]) + sums[head + rest] - sums[head]


@dataclass(frozen=True)
class Order:
    """The numbers of the examples of every batch.

    Attributes:
      batch: step, from 0 -> [width] int64; -1 for padding.
      width: examples of a batch.
      steps: batches; None: without end.
    """

    batch: Callable[[int], np.ndarray]
    width: int
    steps: int | None


CYCLE = 100
"""Steps after which the counts repeat where a fraction is not a whole number of examples."""


def count_streams(fractions: Sequence[float], width: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Counts of two streams that fill batches of `width`, and how many of the last ones are repeated (`Stream.cycle`).

    The first stream fills `fractions[step]` of the batch, the last fraction from then on. Rounding errors are carried
    over from batch to batch, so the mixture is never more than one example off, and in the long run by less than 1 in
    100 x width; but every batch has at least one example of the first.
    """
    last = fractions[-1] * width
    cycle = 1 if abs(last - round(last)) < 1e-9 else CYCLE
    step_fractions = np.asarray([*fractions[:-1], *[fractions[-1]] * cycle], np.float64)
    total = np.concatenate([[0.0], np.cumsum(step_fractions * width)])
    first = np.clip(np.diff(np.floor(total + 0.5 - 1e-9)).astype(int), 1, width)
    return tuple(first.tolist()), tuple((width - first).tolist()), cycle


def shuffle_streams(
    streams: Sequence[Stream], seed: int, *, sizes: np.ndarray | None = None, window: int = 1, epochs: int | None = None
) -> Order:
    """A new shuffle of every stream in each of its epochs, every example once.

    Without `epochs` the streams never end, and a batch may span two epochs: nothing is dropped, and nothing is
    repeated within an epoch. With `epochs` every stream ends after so many, and the last batches are filled up with -1.
    Batch t depends on the arguments and t alone.

    Args:
      streams: the examples; a batch holds those of the first stream, then those of the second, and so on.
      seed: of the shuffles. The order of a stream does not depend on the streams after it.
      sizes: of every example, by its number; larger than 1 `window`s deal examples of like size into the same batch.
      window: steps whose examples are dealt by size; the order of the batches in a window is drawn again.
      epochs: how often every example comes; None for no end.
    """
    sources = [
        grain.MapDataset.range(len(stream.members)).shuffle(seed=seed + number).repeat()
        for number, stream in enumerate(streams)
    ]
    ends = None if epochs is None else [epochs * len(stream.members) for stream in streams]
    steps = None if ends is None else max(map(_steps_to, streams, ends))
    # Where the counts change, they are those of streams that fill each other up.
    longest = max(len(stream.counts) for stream in streams)
    width = max(sum(stream.before(t + 1) - stream.before(t) for stream in streams) for t in range(longest))

    def numbers(which: int, start: int, stop: int) -> np.ndarray:
        stop = stop if ends is None else min(stop, ends[which])
        indices = [sources[which][index] for index in range(start, stop)]
        return streams[which].members[np.asarray(indices, np.int64)]

    @lru_cache(maxsize=2)
    def window_batches(number: int) -> list[list[np.ndarray]]:
        """For each step of a window the examples of each stream."""
        first = number * window
        last = first + window if steps is None else min(first + window, steps)
        # The end of the last epoch leaves gaps, which must stay in the last batch.
        final = steps is not None and last == steps
        ranks = np.arange(last - first) if final else np.random.default_rng([seed, number]).permutation(last - first)
        batches: list[list[np.ndarray]] = [[] for _ in range(last - first)]
        for which, stream in enumerate(streams):
            selected = numbers(which, stream.before(first), stream.before(last))
            if sizes is not None:
                selected = selected[np.argsort(sizes[selected], kind="stable")]
            start = 0
            for index in ranks:
                count = stream.before(first + index + 1) - stream.before(first + index)
                batches[index].append(selected[start : start + count])
                start += count
        return batches

    def batch(step: int) -> np.ndarray:
        if window > 1:
            parts = window_batches(step // window)[step % window]
        else:
            parts = [
                numbers(which, stream.before(step), stream.before(step + 1)) for which, stream in enumerate(streams)
            ]
        selected = np.concatenate(parts)
        return np.concatenate([selected, np.full(width - len(selected), -1, np.int64)])

    return Order(batch, width, steps)


def _steps_to(stream: Stream, end: int) -> int:
    """The first step before which there are `end` examples of a stream."""
    if not any(stream.counts[-stream.cycle :]) and stream.before(len(stream.counts)) < end:
        raise ValueError("a stream whose counts end in zeros never ends")
    return bisect_left(range(1 << 62), end, key=stream.before)
