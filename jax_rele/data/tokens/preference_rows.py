"""Preferences -> rows for training: the two texts of a preference always stand in one row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from jax_rele.data.tokens.packing import lay_out, pack_examples
from jax_rele.data.tokens.prompts import Answer
from jax_rele.types import PyTree


def preference_rows(
    prompts: Sequence[Sequence[int]],
    chosen: Sequence[Answer],
    rejected: Sequence[Answer],
    pad_id: int,
    pack_to: int = 0,
) -> dict[str, PyTree]:
    """Rows whose texts are in turn the chosen and the rejected one of a preference, each after its prompt.

    As both are in one row, micro-batches, devices and hosts can share the rows and compare what is to be compared.

    Args:
      prompts: token ids, one prompt for each of N preferences.
      chosen, rejected: the two completions.
      pad_id: fills rows up.
      pack_to: tokens of a row that holds several preferences; 0 for one preference a row.

    Returns:
      `inputs`: `tokens`, `segments` and `positions` [rows, length]; `targets` and `targets_mask` [rows, length], True
      at the tokens of completions; and, where a row has P preferences at most, `preferences` [rows, P] int32, their
      numbers and -1 for none. Beside them `preferences` again, and `preferences_mask`.

    Raises:
      ValueError: a preference is longer than `pack_to`.
    """
    examples = [
        [*prompt, *answer.ids] for prompt, *sides in zip(prompts, chosen, rejected, strict=True) for answer in sides
    ]
    weights = [
        [0.0] * len(prompt) + [1.0] * len(answer.ids)
        for prompt, *sides in zip(prompts, chosen, rejected, strict=True)
        for answer in sides
    ]
    sizes = [len(first) + len(second) - 2 for first, second in zip(examples[::2], examples[1::2])]
    groups = pack_examples(sizes, pack_to) if pack_to else [[number] for number in range(len(sizes))]
    length = pack_to or -(-max(sizes, default=1) // 8) * 8
    sequences = [[2 * number + side for number in group for side in (0, 1)] for group in groups]
    arrays = lay_out(examples, weights, sequences, length, pad_id)
    preferences = np.full((len(groups), max(map(len, groups), default=1)), -1, np.int32)
    for row, group in zip(preferences, groups):
        row[: len(group)] = group
    names = ("tokens", "segments", "positions", "targets", "targets_mask")
    return {
        "inputs": {**{name: arrays[name] for name in names}, "preferences": preferences},
        "preferences": preferences,
        "preferences_mask": preferences >= 0,
    }


def with_references(rows: Mapping[str, PyTree], reference_log_probs: np.ndarray) -> dict[str, PyTree]:
    """Rows of preferences with the log-probabilities of their texts by the reference.

    Args:
      rows: what `preference_rows` returned for N preferences.
      reference_log_probs: [N, 2] of the chosen and the rejected text.

    Returns:
      The rows, with `reference_chosen_log_probs` and `reference_rejected_log_probs` [rows, P] float32.

    Raises:
      ValueError: a preference has no reference.
    """
    numbers = rows["preferences"]
    references, count = np.asarray(reference_log_probs, np.float32), numbers.max(initial=-1) + 1
    if references.shape != (count, 2):
        raise ValueError(f"reference_log_probs must be [{count}, 2], got {list(references.shape)}")
    missing = np.flatnonzero(~np.isfinite(references).all(-1))
    if len(missing):
        raise ValueError(f"preference {missing[0]} has no log-probabilities by the reference; compute them first")
    columns = {
        name: np.where(numbers >= 0, references[numbers, side], np.float32(0.0))
        for side, name in enumerate(("reference_chosen_log_probs", "reference_rejected_log_probs"))
    }
    return {**rows, **columns}
