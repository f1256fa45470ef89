"""Crossed pairs: new, deterministic, and lexical ones that BM25 agrees with."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_rele.data import assign_splits, cross, normalise_query, read_pairs
from jax_rele.data.splits import words
from jax_rele.types import Item, Pair, Tag

LABEL_MAP = {"E": "Exact", "S": "Substitute", "C": "Complement", "I": "Irrelevant"}


@pytest.fixture(scope="module")
def train():
    pairs, _ = read_pairs("sample", label_map=LABEL_MAP, label_names=tuple(LABEL_MAP.values()))
    return [pair for pair in assign_splits(pairs, (0.6, 0.2, 0.2), 0) if pair.split == "train"]


@pytest.fixture(scope="module")
def catalogue(train):
    return [pair.item for pair in train]


def bm25(query, catalogue):
    """BM25 as Lucene has it, k1 = 1.5, b = 0.75, in float64."""
    texts = [words(" ".join((item.title, item.brand, item.color, item.category))) for item in catalogue]
    lengths = np.array([len(text) for text in texts], float)
    scores = np.zeros(len(texts))
    for word in words(query):
        counts = np.array([text.count(word) for text in texts], float)
        n = (counts > 0).sum()
        idf = np.log1p((len(texts) - n + 0.5) / (n + 0.5))
        scores += idf * counts / (counts + 1.5 * (0.25 + 0.75 * lengths / lengths.mean()))
    return scores


small_items = st.lists(
    st.builds(Item, st.sampled_from("abcdefgh"), st.text("xyz -", max_size=5), brand=st.just("") | st.just("x")),
    max_size=10,
)
small_pairs = st.lists(
    st.builds(
        Pair,
        st.uuids().map(str),
        st.sampled_from(["x", "X", " x ", "x y", "Y  z", "y z"]),
        st.builds(Item, st.sampled_from("abcdefgh"), st.just("x")),
        tags=st.none() | st.just((Tag("x", "kind"),)),
    ),
    max_size=8,
    unique_by=lambda pair: pair.pair_id,
)


@settings(max_examples=60)
@given(small_pairs, small_items, st.integers(0, 6), st.integers(0, 2), st.floats(0, 1), st.randoms())
def test_crossed_pairs_are_new_complete_and_independent_of_order(
    pairs, catalogue, per_query, seed, lexical_share, shuffler
):
    crossed = cross(pairs, catalogue, per_query, seed, lexical_share=lexical_share)
    judged = defaultdict(set)
    for pair in pairs:
        judged[normalise_query(pair.query)].add(pair.item.id)
    chosen = defaultdict(list)
    for pair in crossed:
        assert pair.item in catalogue
        assert (pair.label, pair.split) == (None, "train")
        assert pair.pair_id.startswith("x-")
        chosen[normalise_query(pair.query)].append(pair.item.id)
    for query, ids in judged.items():
        free = {item.id for item in catalogue} - ids
        assert len(set(chosen[query])) == len(chosen[query]) == min(per_query, len(free))
        assert set(chosen[query]) <= free
    assert len({pair.pair_id for pair in crossed}) == len(crossed)
    again = cross(
        shuffler.sample(pairs, len(pairs)),
        shuffler.sample(catalogue, len(catalogue)),
        per_query,
        seed,
        lexical_share=lexical_share,
    )
    assert again == crossed


def test_lexical_items_are_the_best_by_bm25(train, catalogue):
    crossed = cross(train, catalogue, 3, 0, lexical_share=1.0)
    by_query = defaultdict(list)
    for pair in crossed:
        by_query[normalise_query(pair.query)].append(pair.item.id)
    positions = {item.id: i for i, item in enumerate(catalogue)}
    compared = 0
    for pair in train[:60]:
        scores = bm25(pair.query, catalogue)
        judged = [one.item.id for one in train if normalise_query(one.query) == normalise_query(pair.query)]
        scores[[positions[i] for i in judged]] = -1.0
        best = np.sort(scores)[::-1][:3]
        if best[-1] > 0:
            # float32 against float64: the scores agree, items of the same score may stand for each other
            found = sorted((scores[positions[i]] for i in by_query[normalise_query(pair.query)]), reverse=True)
            np.testing.assert_allclose(found, best, rtol=1e-5)
            compared += 1
    assert compared > 30


def test_the_share_of_lexical_items(train, catalogue):
    def overlapping(crossed):
        return np.mean([bool({*words(pair.query)} & {*words(pair.item.title)}) for pair in crossed])

    none, half, full = (cross(train[:40], catalogue, 4, 0, lexical_share=share) for share in (0.0, 0.5, 1.0))
    assert overlapping(none) + 0.2 < overlapping(half) < overlapping(full) - 0.2
    shared = {pair.pair_id for pair in half} & {pair.pair_id for pair in full}
    assert len(shared) >= 0.5 * len(half) * 0.9


def test_random_items_are_spread_and_depend_on_the_seed(train, catalogue):
    first, second = (cross(train, catalogue, 4, seed, lexical_share=0.0) for seed in (0, 1))
    assert {pair.pair_id for pair in first} != {pair.pair_id for pair in second}
    counts = Counter(pair.item.id for pair in first)
    # 4 draws an item on average: uniform draws stay far from 20 and reach nearly all items
    assert max(counts.values()) < 20
    assert len(counts) > 0.9 * len({item.id for item in catalogue})


def test_a_query_keeps_the_spelling_and_tags_of_its_tagged_pair():
    items = [Item(name, "red shoe") for name in "abc"]
    pairs = [
        Pair("2", "RED shoe", items[1], locale="us", tags=(Tag("RED", "color"),), query_frequency=3),
        Pair("1", "red shoe", items[0]),
    ]
    (crossed,) = cross(pairs, items, 5, 0)
    assert (crossed.query, crossed.tags, crossed.locale, crossed.query_frequency, crossed.item) == (
        "RED shoe",
        (Tag("RED", "color"),),
        "us",
        3,
        items[2],
    )


@pytest.mark.parametrize(("per_query", "share"), [(-1, 0.5), (1, 1.5), (1, -0.1), (1, float("nan"))])
def test_impossible_arguments(per_query, share):
    with pytest.raises(ValueError, match="need per_query >= 0"):
        cross([], [], per_query, 0, lexical_share=share)
