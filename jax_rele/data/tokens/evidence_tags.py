"""Evidence <-> tags of the cross-encoder's tokens."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, chain

import numpy as np
from transformers import PreTrainedTokenizerBase

from jax_rele.data.tokens.pair_texts import PairTexts, Side
from jax_rele.data.tokens.student_inputs import cut_lengths, pair_markers, token_budget
from jax_rele.rationale.evidence import token_tags
from jax_rele.text import clean_text_spans
from jax_rele.types import Pair, Span

TokenSources = list[tuple[str, tuple[int, int]]]
"""For each token the text that it comes from (`Span.source`) and its characters there."""


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

    Raises:
      ValueError: evidence for what is not in `dimensions`.
      UserError: the tokenizer does not say where its tokens stand in a text.
    """
    texts = PairTexts.of(tokenizer, pairs, fields)
    markers, lengths = _read_lengths(texts, query_length, item_length)
    before, between, after = ([0] * len(ids) for ids in markers)
    query_tags, item_tags = (
        _tags_of_side(side, evidence, [length[number] for length in lengths], dimensions)
        for number, side in enumerate((texts.queries, texts.items))
    )
    tags = [[*before, *query, *between, *item, *after] for query, item in zip(query_tags, item_tags)]
    masks = [[*before, *[1] * m, *between, *[1] * n, *after] for m, n in lengths]
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
    texts = PairTexts.of(tokenizer, pairs, fields)
    (before, between, _), lengths = _read_lengths(texts, query_length, item_length)
    spans = []
    for index, ((m, n), row) in enumerate(zip(lengths, tags)):
        item_start = len(before) + m + len(between)
        query, item = _sources(texts.queries, index)[:m], _sources(texts.items, index)[:n]
        both = [(query, row[len(before) :]), (item, row[item_start:])]
        spans.append(tuple(sorted(span for tokens, part in both for span in _merge_tags(tokens, part, dimensions))))
    return tuple(spans)


def _read_lengths(
    texts: PairTexts, query_length: int, item_length: int
) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """The markers of a pair, and how many tokens of each pair's query and item are read, as in `cross_rows`."""
    markers = pair_markers(texts.tokenizer, 2)
    budget = token_budget(markers, query_length, item_length)
    return markers, cut_lengths(texts.queries.ids, texts.items.ids, budget)


def _tags_of_side(
    side: Side, evidence: Sequence[Sequence[Span]], lengths: Sequence[int], dimensions: Sequence[str]
) -> list[list[int]]:
    """The tags of the first so many tokens of each text; see `token_tags`."""
    numbers = {dimension: number for number, dimension in enumerate(dimensions, 1)}
    # The characters of all texts one after the other: the tag of each, and the first of its part.
    starts = np.cumsum([0, *(len(text) + 1 for text in side.texts)])
    tag_at, part_at = np.zeros(starts[-1], np.int32), np.zeros(starts[-1], np.int64)
    offsets: list[list[tuple[int, int]]] = []
    apart: dict[int, list[int]] = {}
    for index, (parts, cleaned, spans, start) in enumerate(
        zip(side.parts, side.cleaned, evidence, starts[:-1].tolist())
    ):
        offsets.append([])
        if not lengths[index]:
            continue
        if any(text != read for (_, text), read in zip(parts, cleaned)):
            # Characters of the text are not those that are read.
            apart[index] = _tags(_sources(side, index)[: lengths[index]], spans, dimensions)
            continue
        begins: dict[str, tuple[int, int]] = {}
        for (source, text), read in zip(parts, cleaned):
            begins[source] = start, start + len(text) + 1  # with the space behind it, which a token may be
            part_at[start : start + len(read) + 1] = start
            start += len(read) + 1
        marked = False
        for span in spans:
            if span.source in begins:
                begin, end = begins[span.source]
                if span.dimension not in numbers:
                    raise ValueError(f"evidence for {span.dimension!r}, which is not one of {list(dimensions)}")
                tag_at[begin + span.start : min(begin + span.end, end)] = numbers[span.dimension]
                marked = True
        if marked:
            offsets[-1] = side.offsets(index)[: lengths[index]]
    counts = list(map(len, offsets))
    flat = np.fromiter(chain.from_iterable(chain.from_iterable(offsets)), np.int64, 2 * sum(counts)).reshape(-1, 2)
    flat += np.repeat(starts[:-1], counts)[:, None]
    tags = _majority(tag_at, part_at, *flat.T).tolist()
    rows, position = [], 0
    for index, (count, length) in enumerate(zip(counts, lengths)):
        rows.append(apart.get(index) or tags[position : position + count] or [0] * length)
        position += count
    return rows


def _majority(tag_at: np.ndarray, part_at: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The tag of most tagged characters of each token, 0 where none is; on a tie the one that comes first."""
    # A token may begin with the space before its word: it belongs to the part of its last character.
    starts = np.maximum(starts, part_at[np.maximum(ends - 1, starts)])
    present = starts < ends
    first, last = np.where(present, starts, 0), np.where(present, ends - 1, 0)
    changes = np.cumsum(np.diff(tag_at, prepend=tag_at[:1]) != 0)
    tags = np.where(present, tag_at[first], 0)
    for token in np.flatnonzero(changes[first] != changes[last]):
        inside = Counter(filter(None, tag_at[first[token] : last[token] + 1].tolist()))
        tags[token] = inside.most_common(1)[0][0] if inside else 0
    return tags


def _sources(side: Side, index: int) -> TokenSources:
    """Where the tokens of a text come from."""
    parts, cleaned = side.parts[index], side.cleaned[index]
    begins = [0, *accumulate(len(text) + 1 for text in cleaned)]
    spans = [clean_text_spans(text)[1] if read != text else None for (_, text), read in zip(parts, cleaned)]
    row = []
    for start, end in side.offsets(index):
        # By its last character: a token may begin with the space before its word.
        number = bisect_right(begins, max(end - 1, start), hi=len(parts)) - 1
        span = max(start - begins[number], 0), max(end - begins[number], 0)
        row.append((parts[number][0], _original(spans[number], *span)))
    return row


def _original(spans: Sequence[tuple[int, int]] | None, start: int, end: int) -> tuple[int, int]:
    """The characters of a text that the characters [start, end) of the cleaned text stand for; None: the same."""
    if spans is None:
        return start, end
    covered = spans[start:end]
    return (covered[0][0], covered[-1][1]) if covered else (0, 0)


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
