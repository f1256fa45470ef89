"""The protocol of annotators, which write rationales, and an annotator of rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from jax_rele.rationale.agreement import verdict
from jax_rele.rationale.gazetteer import Gazetteers, build_gazetteers, lookup
from jax_rele.rationale.vocabulary import PREPOSITIONS, STOP_WORDS, is_version, patterns
from jax_rele.rationale.words import Word, content, key, longest_first, runs, words
from jax_rele.types import VERDICTS, Comparison, Item, Pair, Rationale

MAX_VALUE_LENGTH = 80
"""Characters of the longest text of a column or an attribute that is a value; longer text is prose."""


_Phrase: TypeAlias = tuple[int, int, str | None]
"""The [start, end) word positions of a phrase, and its dimension."""

_Value: TypeAlias = tuple[str | None, str]
"""A dimension and a value."""

_RANKS = {name: rank for rank, name in enumerate(VERDICTS)}


class Annotator(Protocol):
    """Anything that explains pairs."""

    def annotate(self, pairs: Sequence[Pair]) -> list[Rationale]:
        """One rationale per pair, in order."""
        ...


@dataclass(frozen=True)
class RuleAnnotator:
    """Explains pairs by rules: deterministic, without a model or a network.

    Query attributes are the human tags of the query where it has them. Otherwise known phrases, sizes, ages and model
    numbers are looked up in the query, longest first; the remaining words before the first preposition are its
    category.

    Item attributes come from the item's column and its attributes of that name, else from its title. They do not depend
    on the query, with two exceptions: values of the query (of its category, at least the last word) that occur in the
    title are values of the item too; and of more than `max_values` values those that agree with the query are kept
    first, then those that can be compared with it.

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
            ranks = {value: _RANKS[verdict(dimension, query_values, (value,))] for value in item_values}
            item_values = tuple(sorted(item_values, key=ranks.__getitem__)[: self.max_values])
            comparisons.append(
                Comparison(dimension, query_values, item_values, verdict(dimension, query_values, item_values))
            )
        return Rationale(tuple(comparisons), pair.label)


def query_attributes(pair: Pair, gazetteers: Gazetteers) -> dict[str, tuple[str, ...]]:
    """The values of each dimension that a query asks for, as they are written in the query."""
    if pair.tags is not None:
        return _by_dimension([(gazetteers.tag_map.get(tag.type), _plain(tag.text)) for tag in pair.tags], gazetteers)
    query_words = words(pair.query)
    phrases = _query_phrases(query_words, gazetteers)
    values = [(dimension, _text(pair.query, query_words[start:end])) for start, end, dimension in phrases]
    return _by_dimension(values, gazetteers)


def item_attributes(item: Item, gazetteers: Gazetteers) -> dict[str, tuple[str, ...]]:
    """The values of each dimension that an item states, whatever the query."""
    stated: list[_Value] = [("brand", item.brand), ("category", item.category)]
    for name, value in item.attributes:
        stated += [(dimension, value) for dimension in gazetteers.dimensions if key(dimension) == key(name)]
    values = [(dimension, value.strip()) for dimension, value in stated if 0 < len(value.strip()) <= MAX_VALUE_LENGTH]
    values += [(dimension, value) for dimension, value in _phrases(item.color, gazetteers) if dimension == "color"]
    columns = {dimension for dimension, _ in values}
    values += [(dimension, value) for dimension, value in _phrases(item.title, gazetteers) if dimension not in columns]
    return _by_dimension(values, gazetteers)


def _query_phrases(query_words: Sequence[Word], gazetteers: Gazetteers) -> list[_Phrase]:
    """The phrases of what a query asks for."""
    phrases = _known_phrases(query_words, gazetteers.query, gazetteers.dimensions)
    if "category" in gazetteers.dimensions:
        known = [phrase for phrase in phrases if phrase[2] == "category"]
        phrases = [phrase for phrase in phrases if phrase[2] != "category"]
        phrases += _category(query_words, phrases, known, gazetteers)
    return phrases


def _category(
    query_words: Sequence[Word], others: Sequence[_Phrase], known: Sequence[_Phrase], gazetteers: Gazetteers
) -> list[_Phrase]:
    """The category: words that are not in `others`, before the first preposition.

    Of those, the last unbroken run with a known category, else the last run. From the known category (or the last word)
    the phrase is extended to the left while its words are adjacent in a title of the catalogue.
    """
    explained, inside = ({p for start, end, _ in spans for p in range(start, end)} for spans in (others, known))
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
    norms = [word.norm for word in query_words]
    while start > run[0] and run.stop - start < 3 and (norms[start - 1], norms[start]) in gazetteers.neighbors:
        start -= 1
    if head is None:
        start = min(start, max(run[0], run[-1] - 1))
    return [(start, run.stop, "category")]


def _known_phrases(
    text_words: Sequence[Word], table: Mapping[str, str | None], dimensions: Sequence[str]
) -> list[_Phrase]:
    """Known phrases and patterns, longest first; a model's name includes the version that follows it."""
    hits = lookup(text_words, table) + [hit for hit in patterns(text_words) if hit[2] in dimensions]
    phrases: list[_Phrase] = []
    for start, end, dimension in longest_first(hits):
        if phrases and start < phrases[-1][1]:
            continue
        while dimension == "model" and text_words[end:] and is_version(text_words[end].norm, text_words[start:end]):
            end += 1
        phrases.append((start, end, dimension))
    return phrases


def _phrases(text: str, gazetteers: Gazetteers) -> list[_Value]:
    text_words = words(text)
    phrases = _known_phrases(text_words, gazetteers.title, gazetteers.dimensions)
    return [(dimension, _text(text, text_words[start:end])) for start, end, dimension in phrases]


def _occurrences(text: str, text_words: Sequence[Word], values: Sequence[str], dimension: str) -> list[str]:
    """The first occurrence of each value; of a category that does not occur, its last word's."""
    result = []
    for value in values:
        span = next(runs(text_words, key(value)), None)
        if span is None and dimension == "category" and (parts := words(value)):
            span = next(runs(text_words, parts[-1].norm), None)
        if span is not None:
            result.append(_text(text, text_words[slice(*span)]))
    return result


def _text(text: str, run: Sequence[Word]) -> str:
    """The part of a text from the first to the last word of a run."""
    return text[run[0].start : run[-1].end]


def _plain(text: str) -> str:
    """A tag's text without leading articles and `for`."""
    text_words = content(words(text))
    return text[text_words[0].start :].strip() if text_words else text.strip()


def _by_dimension(values: Sequence[_Value], gazetteers: Gazetteers) -> dict[str, tuple[str, ...]]:
    return {name: _distinct([value for other, value in values if other == name]) for name in gazetteers.dimensions}


def _distinct(values: Iterable[str]) -> tuple[str, ...]:
    first: dict[str, str] = {}
    for value in values:
        if value:
            first.setdefault(key(value) or value, value)
    return tuple(first.values())
