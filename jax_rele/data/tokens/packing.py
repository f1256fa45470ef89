"""Rows of tokens: padding them, and packing several examples into one, each with its segment number and positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pad(rows: Sequence[Sequence[int]], length: int, value: int, dtype=np.int32) -> np.ndarray:
    """Ragged rows -> [N, length], cut or filled up with `value` on the right."""
    array = np.full((len(rows), length), value, dtype)
    for row, target in zip(rows, array):
        target[: min(len(row), length)] = row[:length]
    return array


def assign(sizes: Sequence[int], length: int) -> list[list[int]]:
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
    sizes = np.asarray(sizes, np.int64).reshape(-1)
    if len(sizes) and not 0 < sizes.min() <= sizes.max() <= length:
        raise ValueError(f"sizes must be from 1 to {length}, got {sizes.min()} to {sizes.max()}")
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(length + 1)]  # rows by the tokens that they have left
    exists = np.zeros(length + 1, bool)  # whether there is a row with so many left
    for example in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[example])
        room = size + int(exists[size:].argmax())
        if exists[room]:
            row = with_room[room].pop()
            exists[room] = bool(with_room[room])
        else:
            room, row = length, len(rows)
            rows.append([])
        rows[row].append(example)
        with_room[room - size].append(row)
        exists[room - size] = True
    return rows


def lay_out(
    examples: Sequence[Sequence[int]],
    weights: Sequence[Sequence[float]],
    rows: Sequence[Sequence[int]],
    length: int,
    pad_id: int,
) -> dict[str, np.ndarray]:
    """Rows for next-token training: tokens and their targets, shifted by one within each example, never across.

    An example of n tokens takes n - 1 places: its last token is a target only.

    Args:
      examples: token ids.
      weights: weight of the loss on each token; an example's first is not predicted and its weight not used.
      rows: for each row the numbers of its examples, as `assign` gives them.
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
            place = row, slice(start, start := start + len(ids) - 1)
            if start > length:
                raise ValueError(f"row {row} holds {start} tokens, more than {length}")
            tokens[place], targets[place] = ids[:-1], ids[1:]
            token_weights[place] = weights[example][1:]
            segments[place], positions[place] = segment, numbers[: len(ids) - 1]
    return {
        "tokens": tokens,
        "targets": targets,
        "targets_mask": token_weights > 0,
        "token_weights": token_weights,
        "segments": segments,
        "positions": positions,
    }
