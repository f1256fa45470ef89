"""Pairs, and texts beside them -> rows of token ids for the students' encoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from jax_rele.data.tokens.pair_texts import PairTexts, Side
from jax_rele.data.tokens.text_loss import count_losses
from jax_rele.types import QUERY, Item, Pair


def unreadable_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], rows: Sequence[Sequence[int]] | None = None
) -> dict[int, str]:
    """Texts of which a model reads no known token: index -> what is wrong. A score of one would say nothing of it.

    Args:
      tokenizer: of the model.
      texts: N texts.
      rows: the tokens that are read of each, without markers; None where they are not known yet.
    """
    if rows is None:
        rows = Side(tokenizer, [[(QUERY, text)] for text in texts]).ids
    unknown = tokenizer.unk_token_id
    reasons = {}
    for index, (text, ids) in enumerate(zip(texts, rows)):
        if not ids:
            reasons[index] = f"{text!r:.60} has no tokens; give a text with letters or digits"
        # Punctuation is known to every tokenizer, as is the mark that sentencepiece writes before a word.
        elif unknown in ids and not any(
            token is not None and any(map(str.isalnum, token))
            for token in tokenizer.convert_ids_to_tokens(sorted({*ids} - {unknown}))
        ):
            reasons[index] = f"the model knows nothing of {text!r:.60}; ask a model of its language"
    return reasons


def unreadable_pairs(
    tokenizer: PreTrainedTokenizerBase,
    texts: tuple[Sequence[str], Sequence[str]],
    encoded: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]],
    *,
    embeds: bool,
) -> dict[int, tuple[str, str]]:
    """Pairs of which one text has no token that a student knows: index -> (its side, what is wrong), in order.

    Args:
      tokenizer: of the student.
      texts: the queries, and the texts of the items.
      encoded: what `tower_rows` returns for them if the student `embeds`, or `cross_rows`.
      embeds: whether query and item have embeddings of their own.
    """
    if embeds:
        before, after = map(len, pair_markers(tokenizer, 1))
        rows = [[row[before : len(row) - after] for row in side] for side in encoded]
    else:
        before, between, after = map(len, pair_markers(tokenizer, 2))
        items = [list(kinds).index(1) for kinds in encoded[1]]
        rows = [
            [row[before : item - between] for row, item in zip(encoded[0], items)],
            [row[item : len(row) - after] for row, item in zip(encoded[0], items)],
        ]
    queries, items_ = (unreadable_texts(tokenizer, side, ids) for side, ids in zip(texts, rows))
    reasons = {index: ("item", reason) for index, reason in items_.items()}
    reasons |= {index: ("query", reason) for index, reason in queries.items()}
    return dict(sorted(reasons.items()))


def pair_markers(tokenizer: PreTrainedTokenizerBase, texts: int) -> list[list[int]]:
    """The tokens that a tokenizer puts before, between and after one or two texts.

    They are `[CLS] A [SEP] B [SEP]` for BERT, `<s> A </s></s> B </s>` for RoBERTa. A tokenizer that puts none gets the
    former.
    """
    encoded = tokenizer(*["a"] * texts)
    markers: list[list[int]] = [[] for _ in range(texts + 1)]
    index = 0
    for token, side in zip(encoded["input_ids"], encoded.sequence_ids(0)):
        if side is None:
            markers[index].append(token)
        else:
            index = side + 1
    return markers if any(markers) else [[tokenizer.cls_token_id], *[[tokenizer.sep_token_id]] * texts]


def token_budget(markers: Sequence[Sequence[int]], query_length: int, item_length: int) -> int:
    """Tokens of query and item together beside the markers."""
    return max(query_length + item_length - sum(map(len, markers)), 0)


def longest_first(query: int, item: int, budget: int) -> tuple[int, int]:
    """How many of a pair's tokens are kept: the longer text loses its end, then both evenly.

    As the strategy `longest_first` of Hugging Face tokenizers, so that other programs read what the student was
    trained on.

    Args:
      query, item: tokens of the two texts.
      budget: most tokens of both.
    """
    short, long = sorted((query, item))
    if short + long > budget:
        if 2 * short > budget:
            short, long = budget // 2, budget - budget // 2
        else:
            long = budget - short
    return (short, long) if query <= item else (long, short)


def cut_lengths(queries: Sequence[list], items: Sequence[list], budget: int) -> list[tuple[int, int]]:
    """How many tokens of each pair are kept, by `longest_first`."""
    return [longest_first(len(query), len(item), budget) for query, item in zip(queries, items)]


def tower_rows(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    fields: Sequence[str],
    query_length: int,
    item_length: int,
    losses: list[np.ndarray] | None = None,
) -> tuple[list[list[int]], list[list[int]]]:
    """The two-tower's inputs before padding, as the tokenizer writes one text, e.g. `[CLS] text [SEP]`.

    What is lost is appended to `losses`, see `text_loss.count_losses`.

    Returns:
      The token ids of the queries, at most `query_length`, and of the items, at most `item_length` + 1. What is too
      long loses its end, not its markers.
    """
    before, after = pair_markers(tokenizer, 1)
    n_markers = len(before) + len(after)
    most = max(query_length - n_markers, 0), max(item_length + 1 - n_markers, 0)
    texts = PairTexts.of(tokenizer, pairs, fields)
    queries, items = texts.queries.ids, texts.items.ids
    if losses is not None:
        lengths = [(min(len(query), most[0]), min(len(item), most[1])) for query, item in zip(queries, items)]
        losses.append(count_losses(texts, lengths))
    return (
        [[*before, *ids[: most[0]], *after] for ids in queries],
        [[*before, *ids[: most[1]], *after] for ids in items],
    )


def cross_rows(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    fields: Sequence[str],
    query_length: int,
    item_length: int,
    losses: list[np.ndarray] | None = None,
) -> tuple[list[list[int]], list[list[int]]]:
    """The cross-encoder's inputs before padding, as the tokenizer writes a pair, e.g. `[CLS] query [SEP] item [SEP]`.

    What is lost is appended to `losses`, see `text_loss.count_losses`.

    Returns:
      The token ids of each pair, and their types: 0 up to the item, 1 from there on. A pair has at most `query_length`
      + `item_length` tokens; where it has more, the longer text loses its end, see `longest_first`.
    """
    before, between, after = markers = pair_markers(tokenizer, 2)
    budget = token_budget(markers, query_length, item_length)
    rows, types = [], []
    texts = PairTexts.of(tokenizer, pairs, fields)
    queries, items = texts.queries.ids, texts.items.ids
    lengths = cut_lengths(queries, items, budget)
    if losses is not None:
        losses.append(count_losses(texts, lengths))
    for query, item, (m, n) in zip(queries, items, lengths):
        rows.append([*before, *query[:m], *between, *item[:n], *after])
        first = len(before) + m + len(between)
        types.append([0] * first + [1] * (len(rows[-1]) - first))
    return rows, types


def text_rows(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int) -> list[list[int]]:
    """Token ids of each text as the tokenizer writes one, e.g. `[CLS] text [SEP]`, at most `length`, not padded."""
    return tower_rows(tokenizer, [Pair("", text, Item("", "")) for text in texts], (), length, 2)[0]


def augmented_rows(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    texts: Sequence[str],
    fields: Sequence[str],
    query_length: int,
    item_length: int,
    text_length: int,
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids and types with a text after each pair: `[CLS] query [SEP] item [SEP] text [SEP]`, not padded.

    The text has the item's token type; one that is longer than `text_length` tokens loses its end.
    """
    rows, types = cross_rows(tokenizer, pairs, fields, query_length, item_length)
    for row, kinds, text in zip(rows, types, text_rows(tokenizer, texts, text_length + 1)):
        row += text[1:]
        kinds += [1] * (len(text) - 1)
    return rows, types
