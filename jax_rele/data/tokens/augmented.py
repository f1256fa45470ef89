"""Texts beside pairs, e.g. rationales, as inputs of the students' encoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from jax_rele.data.tokens.encoding import cross_rows, pad, tower_rows
from jax_rele.types import Item, Pair


def text_rows(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int) -> list[list[int]]:
    """Token ids of each text as the tokenizer writes one, e.g. `[CLS] text [SEP]`, at most `length`, not padded."""
    return tower_rows(tokenizer, [Pair("", text, Item("", "")) for text in texts], (), length, 2)[0]


def encode_augmented(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    texts: Sequence[str],
    fields: Sequence[str],
    query_length: int,
    item_length: int,
    text_length: int,
) -> dict[str, np.ndarray]:
    """The cross-encoder's inputs with a text behind each pair: `[CLS] query [SEP] item [SEP] text [SEP]`.

    Returns:
      `tokens`, `token_types` [N, query_length + item_length + text_length] int32 and `valid` bool. The text has the
      item's token type; one that is too long loses its end.
    """
    rows, types = cross_rows(tokenizer, pairs, fields, query_length, item_length)
    for row, kinds, text in zip(rows, types, text_rows(tokenizer, texts, text_length + 1)):
        row += text[1:]
        kinds += [1] * (len(text) - 1)
    length = query_length + item_length + text_length
    return {
        "tokens": pad(rows, length, tokenizer.pad_token_id),
        "token_types": pad(types, length, 0),
        "valid": pad([[True] * len(row) for row in rows], length, False, bool),
    }
