"""Sampled answers -> rows for training on their rewards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jax_rele.data.tokens.packing import lay_out, pack_examples
from jax_rele.types import PyTree


def policy_rows(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    decided: Sequence[Sequence[bool]],
    advantages: Sequence[float],
    pad_id: int,
    length: int,
) -> dict[str, PyTree]:
    """Packed rows of prompts and answers, in which the tokens that the model decided count.

    Args:
      prompts: token ids.
      answers: the token ids of one sampled answer for each prompt.
      decided: for each token of an answer whether the model had a choice.
      advantages: of each answer.
      pad_id: fills rows up.
      length: tokens of a row, no fewer than the longest example takes.

    Returns:
      `inputs`: `tokens`, `segments` and `positions`; beside them `targets`, `targets_mask`, True at the tokens that
      count, and `advantages` [rows, length] float32, that of each such token's answer.

    Raises:
      ValueError: an example is longer than a row.
    """
    examples = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    counts = [[0.0] * len(prompt) + [*map(float, each)] for prompt, each in zip(prompts, decided, strict=True)]
    rows = pack_examples([len(example) - 1 for example in examples], length)
    arrays = lay_out(examples, counts, rows, length, pad_id)
    spread = [[float(advantage)] * len(example) for advantage, example in zip(advantages, examples, strict=True)]
    of_tokens = lay_out(examples, spread, rows, length, pad_id)["token_weights"]
    return {
        "inputs": {name: arrays[name] for name in ("tokens", "segments", "positions")},
        "targets": arrays["targets"],
        "targets_mask": arrays["targets_mask"],
        "advantages": np.where(arrays["targets_mask"], of_tokens, np.float32(0.0)),
    }
