"""Sampled answers -> rows for training on their rewards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jax_rele.data.tokens.packing import lay_out, pack_examples
from jax_rele.data.tokens.prompts import Answer
from jax_rele.types import PyTree

VALUES = ("query_values", "item_values")


def policy_rows(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Answer],
    advantages: Sequence[float],
    pad_id: int,
    length: int,
) -> dict[str, PyTree]:
    """Packed rows of prompts and answers, in which the tokens that the model decided count.

    Those are verdicts, labels, the tokens of values, and the one after a value, which ends it. What the grammar forces
    has no choice to learn.

    Args:
      prompts: token ids.
      answers: one sampled answer for each prompt.
      advantages: of each answer.
      pad_id: fills rows up.
      length: tokens of a row, no fewer than the longest example takes.

    Returns:
      `inputs`: `tokens`, `segments` and `positions`; beside them `targets`, `targets_mask`, True at the tokens that
      count, and `advantages` [rows, length] float32, that of each such token's answer.

    Raises:
      ValueError: an example is longer than a row.
    """
    examples = [[*prompt, *answer.ids] for prompt, answer in zip(prompts, answers, strict=True)]
    decided = [
        [0.0] * len(prompt) + [float(counts) for counts in decided_tokens(answer.kinds)]
        for prompt, answer in zip(prompts, answers)
    ]
    rows = pack_examples([len(example) - 1 for example in examples], length)
    arrays = lay_out(examples, decided, rows, length, pad_id)
    spread = [[float(advantage)] * len(example) for advantage, example in zip(advantages, examples, strict=True)]
    of_tokens = lay_out(examples, spread, rows, length, pad_id)["token_weights"]
    return {
        "inputs": {name: arrays[name] for name in ("tokens", "segments", "positions")},
        "targets": arrays["targets"],
        "targets_mask": arrays["targets_mask"],
        "advantages": np.where(arrays["targets_mask"], of_tokens, np.float32(0.0)),
    }


def decided_tokens(kinds: Sequence[str]) -> list[bool]:
    """Which tokens of an answer the model decides, from the kinds of their segments."""
    return [kind != "fixed" or before in VALUES for before, kind in zip(["fixed", *kinds], kinds)]
