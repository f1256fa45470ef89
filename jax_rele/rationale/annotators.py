"""Who writes rationales: the annotator protocol, and an annotator made of rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from jax_rele.rationale.agreement import agree, verdict
from jax_rele.rationale.gazetteer import Gazetteers, build_gazetteers, lookup
from jax_rele.rationale.vocabulary import PREPOSITIONS, STOP_WORDS, is_version, patterns
from jax_rele.rationale.words import Word, content, key, longest_first, runs, words
from jax_rele.types import Comparison, Item, Pair, Rationale

MAX_VALUE_LENGTH = 80
"""Characters. What is longer in a column or an attribute is prose, no value."""


class Annotator(Protocol):
    """Anything that explains pairs."""

    def annotate(self, pairs: Sequence[Pair]) -> list[Rationale]:
        """One rationale per pair, in order."""
        ...


@dataclass(frozen=True)
class RuleAnnotator:
    """Explains pairs by rules: deterministic, without a model or a network.

    Query attributes are the human tags of the query where it has them, whatever its item. Otherwise known phrases,
    sizes, ages and model numbers are found in the query, longest first; what is left before the first preposition is
    what the query looks for, its category.

    Item attributes come from the item's column and its attributes of that name, else from its title. They do not depend
    on the query, save that the query's values (of its category, at least the last word) that stand in the title are
    values of the item too, and that values that agree with the query, then those that can be compared with it, are
    listed first; `max_values` are kept.

    The label is the pair's own.
    """

    gazetteers: Gazetteers
    max_values: int = 3

    @classmethod
    def fit(
        cls, pairs: Iterable[Pair], dimensions: Sequence[str], tag_map: Mapping[str, str], *, max_values: int = 3
    ) -> RuleAnnotator:
        """An annotator that knows the phrases of training pairs; see `build_gazetteers` for the arguments."""
        return cls(build_gazetteers(pairs, dimensions, tag_map), max_values)

    def annotate(self, pairs: Sequence[Pair]) -> list[Rationale]:
        """One rationale per pair, in order, with a comparison for each dimension."""
        return [self._annotate(pair) for pair in pairs]

    def _annotate(self, pair: Pair) -> Rationale:
        asked = query_attributes(pair, self.gazetteers)
        stated = item_attributes(pair.item, self.gazetteers)
        title = words(pair.item.title)
        comparisons = []
        for dimension in self.gazetteers.dimensions:
            query_values, item_values = asked[dimension], stated[dimension]
            # A title names other brands (`case for iPhone`) and other colors than the columns do.
            if dimension not in ("brand", "color") or not item_values:
                in_title = _occurrences(pair.item.title, title, query_values, dimension)
                item_values = _distinct((*item_values, *in_title))
            item_values = self._keep(dimension, query_values, item_values)
            comparisons.append(
                Comparison(dimension, query_values, item_values, verdict(dimension, query_values, item_values))
            )
        return Rationale(tuple(comparisons), pair.label)

    def _keep(self, dimension: str, query_values: Sequence[str], item_values: Sequence[str]) -> tuple[str, ...]:
        def distance(value: str) -> int:
            agreements = {agree(dimension, asked, value) for asked in query_values}
            return 0 if True in agreements else 1 if False in agreements else 2

        return tuple(sorted(item_values, key=distance)[: self.max_values])


def query_attributes(pair: Pair, gazetteers: Gazetteers) -> dict[str, tuple[str, ...]]:
    """The values of each dimension that a query asks for, as they are written in the query."""
    if pair.tags is not None:
        values = [(gazetteers.tag_map.get(tag.type), _plain(tag.text)) for tag in pair.tags]
    else:
        query_words = words(pair.query)
        values = [
            (dimension, pair.query[query_words[start].start : query_words[end - 1].end])
            for start, end, dimension in _query_phrases(query_words, gazetteers)
        ]
    return _by_dimension(values, gazetteers)


def item_attributes(item: Item, gazetteers: Gazetteers) -> dict[str, tuple[str, ...]]:
    """The values of each dimension that an item states, whatever the query."""
    values = [("brand", item.brand), ("category", item.category)]
    for name, value in item.attributes:
        values += [(dimension, value) for dimension in gazetteers.dimensions if key(dimension) == key(name)]
    values = [(dimension, value.strip()) for dimension, value in values if 0 < len(value.strip()) <= MAX_VALUE_LENGTH]
    values += [(dimension, value) for dimension, value in _phrases(item.color, gazetteers) if dimension == "color"]
    columns = {dimension for dimension, _ in values}
    values += [(dimension, value) for dimension, value in _phrases(item.title, gazetteers) if dimension not in columns]
    return _by_dimension(values, gazetteers)


def _query_phrases(query_words: Sequence[Word], gazetteers: Gazetteers) -> list[tuple[int, int, str | None]]:
    """The [start, end) word positions and the dimension of what a query asks for."""
    phrases = _known_phrases(query_words, gazetteers.query, gazetteers.dimensions)
    if "category" in gazetteers.dimensions:
        known = [phrase for phrase in phrases if phrase[2] == "category"]
        phrases = [phrase for phrase in phrases if phrase[2] != "category"]
        phrases += _category(query_words, phrases, known, gazetteers)
    return phrases


def _category(
    query_words: Sequence[Word], others: list, known: list, gazetteers: Gazetteers
) -> list[tuple[int, int, str]]:
    """What the query looks for: words that nothing else explains, before the first preposition.

    Of those, the last unbroken run that holds a known category, else the last run. From the known category (or the last
    word) the phrase grows to the left as long as catalogue titles hold its words side by side.
    """
    explained = {p for start, end, _ in others for p in range(start, end)}
    inside = {p for start, end, _ in known for p in range(start, end)}
    audience = {start for start, _, dimension in others if dimension == "audience"}
    unexplained: list[range] = []
    for position, word in enumerate(query_words):
        if position in explained:
            continue
        if word.norm in PREPOSITIONS and position not in inside:
            if unexplained and position + 1 not in audience:
                break
        elif (word.norm in STOP_WORDS or not word.norm[0].isalpha()) and position not in inside:
            continue
        elif unexplained and unexplained[-1].stop == position:
            unexplained[-1] = range(unexplained[-1].start, position + 1)
        else:
            unexplained.append(range(position, position + 1))
    if not unexplained:
        return []
    known_starts = {start for start, _, _ in known}
    run = next((run for run in reversed(unexplained) if known_starts.intersection(run)), unexplained[-1])
    head = max(known_starts.intersection(run), default=None)
    start = run[-1] if head is None else head
    while (
        start > run[0]
        and run.stop - start < 3
        and (query_words[start - 1].norm, query_words[start].norm) in gazetteers.neighbors
    ):
        start -= 1
    if head is None:
        start = min(start, max(run[0], run[-1] - 1))
    return [(start, run.stop, "category")]


def _known_phrases(
    text_words: Sequence[Word], table: Mapping[str, str | None], dimensions: Sequence[str]
) -> list[tuple[int, int, str | None]]:
    """Known phrases and patterns, longest first; a model's name takes the version that follows it along."""
    hits = lookup(text_words, table) + [hit for hit in patterns(text_words) if hit[2] in dimensions]
    phrases: list[tuple[int, int, str | None]] = []
    for start, end, dimension in longest_first(hits):
        if phrases and start < phrases[-1][1]:
            continue
        while (
            dimension == "model" and end < len(text_words) and is_version(text_words[end].norm, text_words[start:end])
        ):
            end += 1
        phrases.append((start, end, dimension))
    return phrases


def _phrases(text: str, gazetteers: Gazetteers) -> list[tuple[str | None, str]]:
    text_words = words(text)
    phrases = _known_phrases(text_words, gazetteers.title, gazetteers.dimensions)
    return [(dimension, text[text_words[s].start : text_words[e - 1].end]) for s, e, dimension in phrases]


def _occurrences(text: str, text_words: Sequence[Word], values: Sequence[str], dimension: str) -> list[str]:
    """The first occurrence of each value; of a category that does not occur, its last word's."""
    result = []
    for value in values:
        span = next(runs(text_words, key(value)), None)
        if span is None and dimension == "category" and (parts := words(value)):
            span = next(runs(text_words, parts[-1].norm), None)
        if span is not None:
            result.append(text[text_words[span[0]].start : text_words[span[1] - 1].end])
    return result


def _plain(text: str) -> str:
    """A tag's text without leading articles and `for`."""
    text_words = content(words(text))
    return text[text_words[0].start :].strip() if text_words else text.strip()


def _by_dimension(values: Iterable[tuple[str | None, str]], gazetteers: Gazetteers) -> dict[str, tuple[str, ...]]:
    values = list(values)
    return {name: _distinct([value for other, value in values if other == name]) for name in gazetteers.dimensions}


def _distinct(values: Iterable[str]) -> tuple[str, ...]:
    first: dict[str, str] = {}
    for value in values:
        if value:
            first.setdefault(key(value) or value, value)
    return tuple(first.values())
