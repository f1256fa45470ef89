"""Preferences -> rows for training: the two texts of a preference always stand in one row."""

from __future__ import annotations

from collections.abc import Sequence

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
    *,
    reference_log_probs: np.ndarray | None = None,
) -> dict[str, PyTree]:
    """Rows whose texts are in turn the chosen and the rejected one of a preference, each after its prompt.

    As both are in one row, micro-batches, devices and hosts can share the rows and compare what is to be compared.

    Args:
      prompts: token ids, one prompt for each of N preferences.
      chosen, rejected: the two completions.
      pad_id: fills rows up.
      pack_to: tokens of a row that holds several preferences; 0 for one preference a row.
      reference_log_probs: [N, 2] of the chosen and the rejected text by the reference.

    Returns:
      `inputs`: `tokens`, `segments` and `positions` [rows, length]; `targets` and `targets_mask`, True at the tokens of
      completions; `sequence_ids` [rows, length]; where a row has P preferences at most, `preferences` [rows, P] int32,
      their numbers and -1 for none, and `preferences_mask`; and with references `reference_chosen_log_probs` and
      `reference_rejected_log_probs` [rows, P] float32.

    Raises:
      ValueError: a preference is longer than `pack_to`, or one has no reference.
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
    rows: dict[str, PyTree] = {
        "inputs": {name: arrays[name] for name in ("tokens", "segments", "positions")},
        **{name: arrays[name] for name in ("targets", "targets_mask")},
        "sequence_ids": arrays["segments"],
        "preferences": preferences,
        "preferences_mask": preferences >= 0,
    }
    if reference_log_probs is not None:
        references = np.asarray(reference_log_probs, np.float32)
        if references.shape != (len(sizes), 2):
            raise ValueError(f"reference_log_probs must be [{len(sizes)}, 2], got {list(references.shape)}")
        missing = np.flatnonzero(~np.isfinite(references).all(-1))
        if len(missing):
            raise ValueError(f"preference {missing[0]} has no log-probabilities by the reference; compute them first")
        for side, name in enumerate(("reference_chosen_log_probs", "reference_rejected_log_probs")):
            rows[name] = np.where(preferences >= 0, references[preferences, side], np.float32(0.0))
    return rows
