"""Rows of tokens: padding them, and packing several examples into one, each with its segment number and positions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

MIN_BATCHES = 4
"""Batches that a padded length must fill in one call to justify its own compilation."""


def fewer_lengths(lengths: Sequence[int], least: int) -> np.ndarray:
    """[N] padded lengths, where those of fewer than `least` members move up if the next is at most twice as long.

    Reading some padding costs less than another batch or another compilation.
    """
    lengths_of = np.array(lengths, np.int64)
    sizes, counts = np.unique(lengths_of, return_counts=True)
    for index, (size, larger) in enumerate(itertools.pairwise(sizes)):
        if counts[index] < least and larger <= 2 * size:
            lengths_of[lengths_of == size] = larger
            counts[index + 1] += counts[index]
    return lengths_of


def pad(rows: Sequence[Sequence[int]], length: int, value: int, dtype=np.int32) -> np.ndarray:
    """Ragged rows -> [N, length], cut or filled up with `value` on the right."""
    array = np.full((len(rows), length), value, dtype)
    for row, target in zip(rows, array):
        target[: min(len(row), length)] = row[:length]
    return array


def pack_examples(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Deals examples into rows by best-fit decreasing, which takes at most some 11/9 of the fewest rows possible.

    Args:
      sizes: tokens of each example, from 1 to `length`.
      length: tokens of a row.

    Returns:
      For each row the numbers of its examples, the longest first. Every example is in one row, and equal sizes always
      give equal rows.

    Raises:
      ValueError: an example is empty or longer than a row.

    References:
      Johnson et al., "Worst-Case Performance Bounds for Simple One-Dimensional Packing Algorithms", SIAM Journal on
      Computing, 1974.
    """
    if len(sizes) and not 0 < min(sizes) <= max(sizes) <= length:
        raise ValueError(f"sizes must be from 1 to {length}, got {min(sizes)} to {max(sizes)}")
    rows: list[list[int]] = []
    rows_by_space: list[list[int]] = [[] for _ in range(length + 1)]  # rows by the tokens that they have left
    exists = np.zeros(length + 1, bool)  # whether there is a row with so many left
    for example in np.argsort(-np.asarray(sizes, np.int64), kind="stable").tolist():
        size = int(sizes[example])
        space = size + int(exists[size:].argmax())
        if exists[space]:
            row = rows_by_space[space].pop()
            exists[space] = bool(rows_by_space[space])
        else:
            space, row = length, len(rows)
            rows.append([])
        rows[row].append(example)
        rows_by_space[space - size].append(row)
        exists[space - size] = True
    return rows


def lay_out(
    examples: Sequence[Sequence[int]],
    weights: Sequence[Sequence[float]],
    rows: Sequence[Sequence[int]],
    length: int,
    pad_id: int,
) -> dict[str, np.ndarray]:
    """Rows for next-token training: tokens and their targets, shifted by one within each example, never across.

    An example of n tokens takes n - 1 positions: its last token is a target only.

    Args:
      examples: token ids.
      weights: weight of the loss on each token; an example's first is not predicted and its weight not used.
      rows: for each row the numbers of its examples, as `pack_examples` gives them.
      length: tokens of a row.
      pad_id: fills rows up.

    Returns:
      Arrays of [rows, length]: `tokens`, `targets` int32; `targets_mask` bool, where the weight is not zero;
      `token_weights` float32; `segments` int32, 1 and up for a row's examples and 0 for padding; `positions` int32,
      counted from 0 in each segment.

    Raises:
      ValueError: the examples of a row are longer than it.
    """
    shape = (len(rows), length)
    tokens, targets = np.full(shape, pad_id, np.int32), np.full(shape, pad_id, np.int32)
    segments, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    token_weights = np.zeros(shape, np.float32)
    numbers = np.arange(length)
    for row, members in enumerate(rows):
        start = 0
        for segment, example in enumerate(members, 1):
            ids = examples[example]
            span = row, slice(start, start := start + len(ids) - 1)
            if start > length:
                raise ValueError(f"row {row} holds {start} tokens, more than {length}")
            tokens[span], targets[span] = ids[:-1], ids[1:]
            token_weights[span] = weights[example][1:]
            segments[span], positions[span] = segment, numbers[: len(ids) - 1]
    return {
        "tokens": tokens,
        "targets": targets,
        "targets_mask": token_weights > 0,
        "token_weights": token_weights,
        "segments": segments,
        "positions": positions,
    }
