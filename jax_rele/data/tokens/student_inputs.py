"""Pairs, evidence and texts beside them -> arrays of token ids for the students' encoder."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from transformers import PreTrainedTokenizerBase

from jax_rele.data.tokens.text_loss import count_losses
from jax_rele.rationale.evidence import token_tags
from jax_rele.text import clean_text, clean_text_spans
from jax_rele.types import QUERY, Item, Pair, Span

TokenSources = list[tuple[str, tuple[int, int]]]
"""For each token the text that it comes from (`Span.source`) and its characters there."""


def _queries(pairs: Sequence[Pair]) -> list[list[tuple[str, str]]]:
    return [[(QUERY, pair.query)] for pair in pairs]


def _items(pairs: Sequence[Pair], fields: Sequence[str]) -> list[list[tuple[str, str]]]:
    return [list(pair.item.texts(fields)) for pair in pairs]


def _joined(sides: Sequence[Sequence[tuple[str, str]]]) -> list[str]:
    """The texts of each side, cleaned and joined by spaces, as they are tokenized."""
    return [" ".join(clean_text(text) for _, text in side) for side in sides]


def read_texts(pairs: Sequence[Pair], fields: Sequence[str]) -> list[tuple[str, str]]:
    """The texts of query and item of each pair, cleaned, those of the item joined by spaces."""
    return list(zip(_joined(_queries(pairs)), _joined(_items(pairs, fields))))


def _tokenize(tokenizer: PreTrainedTokenizerBase, sides: Sequence[Sequence[tuple[str, str]]], **options: bool):
    """The encoding of each side: its (source, text) parts, cleaned and joined by spaces, without special tokens."""
    joined = _joined(sides)
    if not joined:
        return {"input_ids": [], "offset_mapping": []}
    unread = {"return_attention_mask": False, "return_token_type_ids": False}
    return tokenizer(joined, add_special_tokens=False, verbose=False, **unread, **options)


def _ids(tokenizer: PreTrainedTokenizerBase, sides: Sequence[Sequence[tuple[str, str]]]) -> list[list[int]]:
    # A sentencepiece vocabulary finds its pieces wherever a text spells them out, `</s>` too: sellers forge no markers.
    unknown = tokenizer.pad_token_id if tokenizer.unk_token_id is None else tokenizer.unk_token_id
    special = {*tokenizer.all_special_ids} - {unknown}
    rows = _tokenize(tokenizer, sides)["input_ids"]
    return [
        ids if special.isdisjoint(ids) else [unknown if token in special else token for token in ids] for ids in rows
    ]


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
        rows = _ids(tokenizer, [[(QUERY, text)] for text in texts])
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


def _sources(tokenizer: PreTrainedTokenizerBase, sides: Sequence[Sequence[tuple[str, str]]]) -> list[TokenSources]:
    """Where the tokens of `_ids` come from."""
    rows = []
    for side, offsets in zip(sides, _tokenize(tokenizer, sides, return_offsets_mapping=True)["offset_mapping"]):
        begins = [0, *accumulate(len(clean_text(text)) + 1 for _, text in side)]
        spans = [clean_text_spans(text)[1] if clean_text(text) != text else None for _, text in side]
        row = []
        for start, end in offsets:
            # By its last character: a token may begin with the space before its word.
            index = bisect_right(begins, max(end - 1, start), hi=len(side)) - 1
            span = max(start - begins[index], 0), max(end - begins[index], 0)
            row.append((side[index][0], _original(spans[index], *span)))
        rows.append(row)
    return rows


def _original(spans: Sequence[tuple[int, int]] | None, start: int, end: int) -> tuple[int, int]:
    """The characters of a text that the characters [start, end) of the cleaned text stand for; None: the same."""
    if spans is None:
        return start, end
    covered = spans[start:end]
    return (covered[0][0], covered[-1][1]) if covered else (0, 0)


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


def _budget(markers: Sequence[Sequence[int]], query_length: int, item_length: int) -> int:
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


def _cut_lengths(queries: Sequence[list], items: Sequence[list], budget: int) -> list[tuple[int, int]]:
    """How many tokens of each pair are kept, by `longest_first`."""
    return [longest_first(len(query), len(item), budget) for query, item in zip(queries, items)]


def identities(pairs: Sequence[Pair], fields: Sequence[str]) -> list[str]:
    """A text of each pair that is another one where its query or a field of its item is."""
    return ["\n".join([pair.query, *(text for _, text in pair.item.texts(fields))]) for pair in pairs]


def _pair_sources(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    fields: Sequence[str],
    query_length: int,
    item_length: int,
) -> tuple[list[list[int]], list[tuple[TokenSources, TokenSources]]]:
    """The markers of a pair, and where the tokens of each pair's query and item in `cross_rows` come from."""
    markers = pair_markers(tokenizer, 2)
    budget = _budget(markers, query_length, item_length)
    queries, items = (_sources(tokenizer, side) for side in (_queries(pairs), _items(pairs, fields)))
    lengths = _cut_lengths(queries, items, budget)
    return markers, [(query[:m], item[:n]) for query, item, (m, n) in zip(queries, items, lengths)]


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
    queries, items = (_ids(tokenizer, side) for side in (_queries(pairs), _items(pairs, fields)))
    if losses is not None:
        lengths = [(min(len(query), most[0]), min(len(item), most[1])) for query, item in zip(queries, items)]
        texts = read_texts(pairs, fields)
        losses.append(count_losses(tokenizer, queries, items, lengths, texts, identities(pairs, fields)))
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
    budget = _budget(markers, query_length, item_length)
    rows, types = [], []
    queries, items = (_ids(tokenizer, side) for side in (_queries(pairs), _items(pairs, fields)))
    lengths = _cut_lengths(queries, items, budget)
    if losses is not None:
        texts = read_texts(pairs, fields)
        losses.append(count_losses(tokenizer, queries, items, lengths, texts, identities(pairs, fields)))
    for query, item, (m, n) in zip(queries, items, lengths):
        rows.append([*before, *query[:m], *between, *item[:n], *after])
        first = len(before) + m + len(between)
        types.append([0] * first + [1] * (len(rows[-1]) - first))
    return rows, types


def evidence_rows(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    evidence: Sequence[Sequence[Span]],
    dimensions: Sequence[str],
    fields: Sequence[str],
    query_length: int,
    item_length: int,
) -> tuple[list[list[int]], list[list[int]]]:
    """The evidence tags of the cross-encoder's tokens, not padded.

    Returns:
      Rows of tags, 0 for none and 1 + d for dimension d, and of masks, 1 for tokens of the texts.
    """
    markers, sources = _pair_sources(tokenizer, pairs, fields, query_length, item_length)
    before, between, after = ([0] * len(ids) for ids in markers)
    tags, masks = [], []
    for (query, item), spans in zip(sources, evidence):
        tags.append([*before, *_tags(query, spans, dimensions), *between, *_tags(item, spans, dimensions), *after])
        masks.append([*before, *[1] * len(query), *between, *[1] * len(item), *after])
    return tags, masks


def decode_evidence(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    tags: np.ndarray | Sequence[np.ndarray],
    dimensions: Sequence[str],
    fields: Sequence[str],
    query_length: int,
    item_length: int,
) -> tuple[tuple[Span, ...], ...]:
    """The spans that evidence tags mark: the inverse of `evidence_rows`, at the precision of tokens.

    Returns:
      For each pair its spans, in order; neighbouring tokens with one tag in one text are one span.
    """
    (before, between, _), sources = _pair_sources(tokenizer, pairs, fields, query_length, item_length)
    spans = []
    for (query, item), row in zip(sources, tags):
        item_start = len(before) + len(query) + len(between)
        both = [(query, row[len(before) :]), (item, row[item_start:])]
        spans.append(tuple(sorted(span for tokens, part in both for span in _merge_tags(tokens, part, dimensions))))
    return tuple(spans)


def _merge_tags(tokens: TokenSources, tags: np.ndarray, dimensions: Sequence[str]) -> list[Span]:
    spans: list[Span] = []
    previous = 0
    for (source, (start, end)), tag in zip(tokens, tags):
        if tag:
            dimension = dimensions[tag - 1]
            if tag == previous and spans[-1].source == source:
                start = spans.pop().start
            spans.append(Span(source, start, end, dimension))
        previous = tag
    return spans


def _tags(tokens: TokenSources, spans: Sequence[Span], dimensions: Sequence[str]) -> list[int]:
    tags = [0] * len(tokens)
    for source in dict.fromkeys(source for source, _ in tokens):
        indices = [index for index, (name, _) in enumerate(tokens) if name == source]
        source_tags = token_tags(spans, source, [tokens[index][1] for index in indices], dimensions)
        for index, tag in zip(indices, source_tags):
            tags[index] = tag
    return tags


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
