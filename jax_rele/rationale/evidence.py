"""Evidence: the spans of the query and of the item that hold a rationale's values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from jax_rele.rationale.words import key, longest_first, runs, words
from jax_rele.types import QUERY, Pair, Rationale, Span


def find_evidence(pair: Pair, rationale: Rationale, fields: Sequence[str]) -> tuple[Span, ...]:
    """Every occurrence of a value of the rationale in the texts of a pair.

    Query values are searched in the query, item values in each of the item's `fields`, names of `types.ITEM_FIELDS`. An
    occurrence is a run of whole words with the value's key (see `jax_rele.rationale.words`), so that case, spaces,
    accents and plurals do not matter. Offsets count the characters of the original text. A value that does not occur
    has no span.

    Spans of one source do not overlap: the one with more words wins, then the one whose dimension comes first in the
    rationale, then the one that comes first in the text.

    Returns:
      The spans, the query's first, then field by field, in text order.
    """
    sides = [(QUERY, pair.query, "query_values")]
    sides += [(field, text, "item_values") for field, text in pair.item.texts(fields)]
    spans = []
    for source, text, side in sides:
        text_words = words(text)
        hits = [
            (start, end, comparison.dimension)
            for comparison in rationale.comparisons
            for value in getattr(comparison, side)
            for start, end in runs(text_words, key(value))
        ]
        spans += [
            Span(source, text_words[start].start, text_words[end - 1].end, dimension)
            for start, end, dimension in longest_first(hits)
        ]
    return tuple(spans)


def token_tags(
    spans: Iterable[Span], source: str, offsets: Sequence[tuple[int, int]], dimensions: Sequence[str]
) -> list[int]:
    """The evidence tag of every token of one source's text.

    Args:
      spans: evidence; spans of other sources are ignored.
      source: the source whose text was tokenised.
      offsets: the characters [start, end) of each token in that text; empty ranges for special tokens.
      dimensions: the dimensions, in the order of the tags.

    Returns:
      One tag per token: 1 + the index of the dimension whose spans hold most of its characters (ties: the first in the
      text), 0 where none holds any.

    Raises:
      ValueError: a span of `source` is about a dimension that is not in `dimensions`.
    """
    tag_at: dict[int, int] = {}
    for span in spans:
        if span.source == source:
            if span.dimension not in dimensions:
                raise ValueError(f"evidence for {span.dimension!r}, which is not one of {list(dimensions)}")
            tag_at.update(dict.fromkeys(range(span.start, span.end), 1 + dimensions.index(span.dimension)))
    tags = []
    for start, end in offsets:
        inside = Counter(tag_at[position] for position in range(start, end) if position in tag_at)
        tags.append(inside.most_common(1)[0][0] if inside else 0)
    return tags
