"""Phrases and their dimensions, learned from the tags of training queries and the training catalogue."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from jax_rele.rationale.vocabulary import MODIFIERS, PREPOSITIONS, VOCABULARY
from jax_rele.rationale.words import Word, join, key, words
from jax_rele.types import Item, Pair

MAX_WORDS = 6
"""Words of the longest phrase that is looked up."""


@dataclass(frozen=True)
class Gazetteers:
    """Known phrases, by their key.

    Attributes:
      dimensions: the dimensions that are compared, in order.
      tag_map: the dimension of each type of human tag; other types have none.
      query: the dimension of a phrase in a query; None for phrases known to have none.
      title: the dimension of a phrase in a title.
      neighbors: the normal forms of adjacent words of a title.
    """

    dimensions: tuple[str, ...]
    tag_map: Mapping[str, str]
    query: Mapping[str, str | None]
    title: Mapping[str, str]
    neighbors: frozenset[tuple[str, str]]


def build_gazetteers(pairs: Iterable[Pair], dimensions: Sequence[str], tag_map: Mapping[str, str]) -> Gazetteers:
    """Learns phrases from training pairs.

    A tagged phrase has the dimension that most queries tag it with (ties: the earlier of `dimensions`, no dimension
    last). A phrase without tags is looked up in the built-in vocabulary, then among the values of the catalogue's brand
    and category columns. A brand is left out where it occurs in titles of other brands as often as in its own.

    Args:
      pairs: training pairs; tags and items are read, labels are not.
      dimensions: the dimensions to compare, in order.
      tag_map: the dimension of each type of human tag. Phrases of other types, or of a dimension that is not in
        `dimensions`, are known to have none.
    """
    votes: dict[str, Counter] = defaultdict(Counter)
    items: dict[str, Item] = {}
    tagged = set()
    for pair in pairs:
        items.setdefault(pair.item.id, pair.item)
        if pair.tags is None or (pair.query, pair.tags) in tagged:
            continue
        tagged.add((pair.query, pair.tags))
        for tag in pair.tags:
            dimension = tag_map.get(tag.type)
            votes[key(tag.text)][dimension if dimension in dimensions else None] += 1
    rank = {dimension: position for position, dimension in enumerate((*dimensions, None))}
    query = {phrase: min(count, key=lambda name: (-count[name], rank[name])) for phrase, count in votes.items()}
    title = {phrase: dimension for phrase, dimension in query.items() if dimension not in (None, "brand")}
    for dimension in dimensions:
        for value in VOCABULARY.get(dimension, ()):
            query.setdefault(key(value), dimension)
            title.setdefault(key(value), dimension)
    for modifier in MODIFIERS:
        query.setdefault(key(modifier), None)
    for dimension in [name for name in dimensions if name in ("brand", "category")]:
        for phrase in _column_phrases(items.values(), dimension):
            query.setdefault(phrase, dimension)
            if dimension == "category":
                title.setdefault(phrase, dimension)
    for table in (query, title):
        # A preposition may be tagged alone, but it must still mark the end of the category.
        for word in ("", *PREPOSITIONS):
            table.pop(word, None)
    titles = ([word.norm for word in words(item.title)] for item in items.values())
    neighbors = frozenset(neighbor for norms in titles for neighbor in pairwise(norms))
    return Gazetteers(tuple(dimensions), dict(tag_map), query, title, neighbors)


def lookup(text_words: Sequence[Word], table: Mapping[str, str | None]) -> list[tuple[int, int, str | None]]:
    """The [start, end) word positions and the dimension of every known phrase, overlapping ones too."""
    hits = []
    for start in range(len(text_words)):
        joined = ""
        for end in range(start, min(start + MAX_WORDS, len(text_words))):
            joined = join((joined, text_words[end].norm)) if joined else text_words[end].norm
            if joined in table:
                hits.append((start, end + 1, table[joined]))
    return hits


def _column_phrases(items: Iterable[Item], column: str) -> list[str]:
    items = list(items)
    owners: dict[str, set[str]] = defaultdict(set)
    for item in items:
        if value := key(getattr(item, column)):
            owners[value].add(item.id)
    if column != "brand":
        return list(owners)
    elsewhere: Counter = Counter()
    for item in items:
        title_words = words(item.title)
        phrases = {join([w.norm for w in title_words[s:e]]) for s, e, _ in lookup(title_words, dict.fromkeys(owners))}
        elsewhere.update(phrase for phrase in phrases if item.id not in owners.get(phrase, ()))
    return [phrase for phrase, own in owners.items() if elsewhere[phrase] < len(own) and len(phrase) > 1]
