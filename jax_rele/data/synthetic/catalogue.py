"""The catalogue and the pairs of the attribute world: words, items, queries and the hidden rule for the label.

`jax_rele.data.synthetic.attribute_world` describes the world, adds its teacher and writes the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

import numpy as np

from jax_rele.errors import UserError
from jax_rele.types import VERDICTS, Item, Pair

LABELS = ("Exact", "Substitute", "Complement", "Irrelevant")
DIMENSIONS = ("category", "brand", "color", "material", "size", "audience")
MATCH, MISMATCH, ABSENT = range(len(VERDICTS))

SIZES = (8, 6, 4, 4, 3, 3)
"""Values of each dimension."""
SYNONYMS = 2
"""Words of each value."""
FILLERS = 24
"""Words that mean nothing."""
QUERIES = 4000
"""Distinct queries in the world, the tail included."""
ITEMS = {"labelled": 6, "unlabelled": 4, "validation": 6, "test": 6}
"""Items judged for each query."""
HELD_OUT = {"validation": 100, "test": 300}
"""Queries of each split, half of them tail."""
KINDS = {"exact": 0.40, "substitute": 0.35, "complement": 0.10, "two_mismatches": 0.07, "other_category": 0.05}
"""What is drawn for an item, beside the rest: an item at random. The label always comes from the rule."""
SAME_WORD = 0.35
"""How often an item states a value that the query asks for in the query's own word."""
_QUERY_FILLERS, _TITLE_FILLERS = 2, 2
_D = len(DIMENSIONS)


@dataclass(frozen=True)
class Lexicon:
    """The words of a world in place of meaningless ones.

    Attributes:
      words: per dimension, as many values as `SIZES` says, frequent ones first, with `SYNONYMS` words each.
      fillers: `FILLERS` words that say nothing of a value.
      complements: of each category the one that goes with it.
      joiner: what stands between the words of a text.
    """

    words: tuple[tuple[tuple[str, ...], ...], ...]
    fillers: tuple[str, ...]
    complements: tuple[int, ...]
    joiner: str


@dataclass(frozen=True)
class World:
    """The values, their words, what belongs together, and what is asked for.

    Attributes:
      seed: of every draw.
      words: per dimension [values, SYNONYMS] words.
      fillers: [FILLERS] words.
      weights: per dimension [values] probabilities, falling with the index.
      complements: [categories] the category that goes with each one.
      query_values: [QUERIES, D] the value that each query asks for, -1 for none; queries of common values come first.
      asked: [QUERIES, D] which synonym it uses.
      queries: the texts.
      frequency: [QUERIES] how often each is typed; 1 in the tail.
      orders: the queries of each of `ITEMS` in the order in which pairs are made of them.
      joiner: what stands between the words of a text.
    """

    seed: int
    words: tuple[np.ndarray, ...]
    fillers: np.ndarray
    weights: tuple[np.ndarray, ...]
    complements: np.ndarray
    query_values: np.ndarray
    asked: np.ndarray
    queries: list[str] = field(repr=False)
    frequency: np.ndarray
    orders: dict[str, np.ndarray]
    joiner: str


@dataclass(frozen=True)
class Table:
    """Pairs as arrays.

    Attributes:
      world: what they are drawn from.
      name: one of `ITEMS`.
      query: [N] indices in `world.queries`.
      values: [N, D] the item's value on each dimension.
      synonyms: [N, D] which synonym its title uses.
      titles: N texts.
    """

    world: World
    name: str
    query: np.ndarray
    values: np.ndarray
    synonyms: np.ndarray
    titles: list[str] = field(repr=False)

    @cached_property
    def verdicts(self) -> np.ndarray:
        """[N, D] what a comparison of query and item yields, as indices in `VERDICTS`."""
        query_values = self.world.query_values[self.query]
        return np.where(query_values < 0, ABSENT, np.where(query_values == self.values, MATCH, MISMATCH))

    @cached_property
    def complementary(self) -> np.ndarray:
        """[N] bool: whether the item's category goes with the query's."""
        return self.world.complements[self.world.query_values[self.query, 0]] == self.values[:, 0]

    @cached_property
    def labels(self) -> np.ndarray:
        """[N] the label by the hidden rule, as indices in `LABELS`."""
        return rule(self.verdicts, self.complementary)

    @cached_property
    def pairs(self) -> list[Pair]:
        """The pairs; those of the table `unlabelled` have no label."""
        split = self.name if self.name in HELD_OUT else "train"
        return [
            Pair(
                pair_id=f"{self.name}-{row:05d}",
                query=self.world.queries[query],
                item=Item(id=f"{self.name}-item-{row:05d}", title=title),
                label=None if self.name == "unlabelled" else LABELS[label],
                split=split,
                query_frequency=int(self.world.frequency[query]),
            )
            for row, (query, title, label) in enumerate(zip(self.query, self.titles, self.labels))
        ]


def rule(verdicts: np.ndarray, complementary: np.ndarray) -> np.ndarray:
    """The hidden rule. [N, D] verdicts, the first the category's, and [N] bool -> [N] indices in `LABELS`."""
    mismatches = (verdicts[:, 1:] == MISMATCH).sum(axis=1)
    within = np.array([0, 1, 3])[np.minimum(mismatches, 2)]
    return np.where(verdicts[:, 0] == MISMATCH, np.where(complementary, 2, 3), within)


def make_world(seed: int = 0, lexicon: Lexicon | None = None) -> World:
    """The world of a seed, of meaningless words or those of a lexicon.

    Raises ValueError where the sizes above allow fewer distinct queries than `QUERIES`.
    """
    rng = rng_of(seed, "words")
    *words, fillers = np.split(_lexicon(rng), np.cumsum(SIZES) * SYNONYMS)
    words = [part.reshape(-1, SYNONYMS) for part in words]
    weights = [_zipf(size) for size in SIZES]
    # Every category goes with one other: its neighbour on a ring in random order.
    ring = rng.permutation(SIZES[0])
    complements = np.empty(SIZES[0], int)
    complements[ring] = np.roll(ring, 1)
    if lexicon is not None:
        words, fillers = [np.array(values) for values in lexicon.words], np.array(lexicon.fillers)
        complements = np.array(lexicon.complements)
    joiner = " " if lexicon is None else lexicon.joiner

    rng, draws = rng_of(seed, "queries"), 4 * QUERIES
    query_values = np.stack([_draw(rng.random(draws), weight) for weight in weights], axis=1)
    beside = 1 + (rng.random(draws) * 3).astype(int)
    ranks = rng.random((draws, _D - 1)).argsort(axis=1).argsort(axis=1)
    query_values[:, 1:] = np.where(ranks < beside[:, None], query_values[:, 1:], -1)
    asked = (rng.random((draws, _D)) * SYNONYMS).astype(int)
    # The same words in another order are no other query.
    _, first = np.unique(np.where(query_values < 0, -1, query_values * SYNONYMS + asked), axis=0, return_index=True)
    if len(first) < QUERIES:
        raise ValueError(f"only {len(first)} distinct queries were drawn, {QUERIES} are needed")
    selected = np.sort(first)[:QUERIES]
    query_values, asked = query_values[selected], asked[selected]
    log_lifts = [
        np.where(query_values[:, d] < 0, np.nan, np.log(weights[d] * SIZES[d])[query_values[:, d]]) for d in range(_D)
    ]
    common = np.argsort(-np.nanmean(log_lifts, axis=0), kind="stable")
    query_values, asked = query_values[common], asked[common]
    texts = _texts(rng.random((QUERIES, _width(_QUERY_FILLERS))), words, fillers, query_values, asked, joiner)

    # By Zipf's law; the rarer half is typed once.
    frequency = np.ceil(QUERIES / 2 / np.arange(1, QUERIES + 1)).astype(int)
    head, tail = (rng.permutation(np.flatnonzero((frequency == 1) == rare)) for rare in (False, True))
    orders, at = {}, 0
    for split, count in HELD_OUT.items():
        part = slice(at, at + count // 2)
        orders[split] = rng.permutation(np.concatenate([head[part], tail[part]]))
        at = part.stop
    training = np.sort(np.concatenate([head[at:], tail[at:]]))
    orders["unlabelled"] = rng.permutation(training)
    # Without replacement, each in proportion to its frequency (Efraimidis and Spirakis, 2006).
    orders["labelled"] = training[np.argsort(rng.exponential(size=len(training)) / frequency[training])]
    return World(
        *(seed, tuple(words), fillers, tuple(weights), complements, query_values, asked, texts),
        *(frequency, orders, joiner),
    )


def make_table(world: World, name: str, count: int) -> Table:
    """The first `count` pairs of a table; `name` is one of `ITEMS`.

    Raises:
      UserError: the world has not as many.
    """
    queries, items = world.orders[name], ITEMS[name]
    if count > len(queries) * items:
        raise UserError(f"{name}: this world has {len(queries) * items} such pairs, not {count}; ask for fewer")
    # A row of draws a pair, so that a longer table begins with the shorter one.
    u = rng_of(world.seed, name).random((count, 5 * _D + _width(_TITLE_FILLERS)))
    drawn, other, chance, free, same, (kind, *_), text = (
        part.T for part in np.split(u, np.cumsum([_D, _D, _D - 1, _D, _D, 1]), axis=1)
    )
    query = queries[np.arange(count) // items]
    query_values, asked = world.query_values[query], world.asked[query]
    at_random = np.stack([_draw(row, weight) for row, weight in zip(drawn, world.weights)], axis=1)
    values = np.where(query_values < 0, at_random, query_values)
    others = [_draw(row, weight, values[:, d]) for d, (row, weight) in enumerate(zip(other, world.weights))]

    kinds = np.array([*KINDS, "random"])[np.searchsorted(np.cumsum(list(KINDS.values())), kind, side="right")]
    # Ranks in random order of the dimensions that the query asks for beside the category, before those of the others.
    ranks = np.where(query_values[:, 1:] < 0, 2.0, chance.T).argsort(axis=1).argsort(axis=1)
    one_alone = (query_values[:, 1:] >= 0).sum(axis=1) == 1
    two = kinds == "two_mismatches"
    changes = np.where(kinds == "substitute", 1, np.where(two & ~one_alone, 2, 0))
    changed = np.concatenate(
        [((kinds == "other_category") | (two & one_alone))[:, None], ranks < changes[:, None]], axis=1
    )
    values = np.where(changed, np.stack(others, axis=1), values)
    values = np.where((kinds == "random")[:, None], at_random, values)
    values[:, 0] = np.where(kinds == "complement", world.complements[query_values[:, 0]], values[:, 0])

    elsewhere = (asked + 1 + (free.T * (SYNONYMS - 1)).astype(int)) % SYNONYMS
    synonyms = np.where(same.T < SAME_WORD, asked, elsewhere)
    synonyms = np.where(values == query_values, synonyms, (free.T * SYNONYMS).astype(int))
    titles = _texts(text.T, world.words, world.fillers, values, synonyms, world.joiner)
    return Table(world, name, query, values, synonyms, titles)


def rng_of(seed: int, name: str) -> np.random.Generator:
    """Draws of their own for each name."""
    return np.random.default_rng([seed, *name.encode()])


def _lexicon(rng: np.random.Generator) -> np.ndarray:
    """Distinct pronounceable words, as many as the world needs.

    All of one length, so that no word is two others written together, and none with a plural ending: a word of a
    rationale is found in a text exactly where it was written.
    """
    vowels, consonants, ends = "aeiou", "bdfgklmnprtvz", "klmnrt"
    syllables = np.array(["".join(letters) for letters in product(consonants, vowels, consonants, vowels, ends)])
    return rng.permutation(syllables)[: sum(SIZES) * SYNONYMS + FILLERS]


def _zipf(size: int) -> np.ndarray:
    weights = 1.0 / np.arange(1, size + 1)
    return weights / weights.sum()


def _draw(u: np.ndarray, weights: np.ndarray, excluded: np.ndarray | None = None) -> np.ndarray:
    """Values by their weights from uniform numbers [N], none of them that of `excluded` [N]."""
    ends = np.cumsum(weights)
    if excluded is not None:
        gap = weights[excluded]
        u = u * (1.0 - gap)
        u = np.where(u >= ends[excluded] - gap, u + gap, u)
    values = np.minimum(np.searchsorted(ends, u, side="right"), len(weights) - 1)
    if excluded is not None:
        # By rounding alone can it be the excluded one.
        values = np.where(values == excluded, (values + 1) % len(weights), values)
    return values


def _width(fillers: int) -> int:
    """Draws that a text with at most so many fillers takes: positions, fillers, and their number."""
    return _D + 2 * fillers + 1


def _texts(
    u: np.ndarray,
    words: Sequence[np.ndarray],
    fillers: np.ndarray,
    values: np.ndarray,
    synonyms: np.ndarray,
    joiner: str,
) -> list[str]:
    """A text a row: the words of its values (-1 for none) and some fillers, in random order.

    Args:
      u: [N, _width(most fillers)] uniform numbers.
      words, fillers, joiner: of the world.
      values, synonyms: [N, D] values and which synonym of each.
    """
    most = (u.shape[1] - _D - 1) // 2
    order = u[:, : _D + most].argsort(axis=1)
    extra = fillers[(u[:, _D + most : -1] * len(fillers)).astype(int)]
    stated = np.stack(
        [np.where(values[:, d] < 0, "", words[d][values[:, d], synonyms[:, d]]) for d in range(_D)], axis=1
    )
    extra = np.where(np.arange(most) < (u[:, -1:] * (most + 1)).astype(int), extra, "")
    rows = np.take_along_axis(np.concatenate([stated, extra], axis=1), order, axis=1)
    return [joiner.join(word for word in row if word) for row in rows.tolist()]
