"""Candidates: never judged, in the proportions asked for, deterministic; lexical ones are those of BM25."""

import os
import subprocess
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_rele.data import assign_splits, candidates, read_pairs
from jax_rele.text import lexical_words, text_key
from jax_rele.types import Item, Pair, Tag

LABEL_MAP = {"E": "Exact", "S": "Substitute", "C": "Complement", "I": "Irrelevant"}


@pytest.fixture(scope="module")
def split():
    """The sample's pairs of all three splits."""
    pairs, _ = read_pairs("sample", label_map=LABEL_MAP, label_names=tuple(LABEL_MAP.values()))
    return assign_splits(pairs, (0.6, 0.2, 0.2), 0)


@pytest.fixture(scope="module")
def train(split):
    return [pair for pair in split if pair.split == "train"]


@pytest.fixture(scope="module")
def catalogue(train):
    return [pair.item for pair in train]


def by_query(pairs):
    """Normalised query -> the items of its pairs, in order."""
    groups = defaultdict(list)
    for pair in pairs:
        groups[text_key(pair.query)].append(pair.item)
    return groups


def bm25_scores(query, catalogue):
    """BM25 as Lucene has it, k1 = 1.5, b = 0.75, in float64."""
    texts = [lexical_words(" ".join((item.title, item.brand, item.color, item.category))) for item in catalogue]
    lengths = np.array([len(text) for text in texts], float)
    scores = np.zeros(len(texts))
    for word in lexical_words(query):
        counts = np.array([text.count(word) for text in texts], float)
        n = (counts > 0).sum()
        idf = np.log1p((len(texts) - n + 0.5) / (n + 0.5))
        scores += idf * counts / (counts + 1.5 * (0.25 + 0.75 * lengths / lengths.mean()))
    return scores


# tenths, so that their sum can be at most 1 exactly
fractions = (
    st.tuples(*[st.integers(0, 10)] * 3)
    .filter(lambda tenths: sum(tenths) <= 10)
    .map(lambda tenths: dict(zip(("bm25", "same_category", "same_brand"), (n / 10 for n in tenths), strict=True)))
)
small_items = st.builds(
    Item,
    st.sampled_from("abcdefgh"),
    st.text("xyz -", max_size=5),
    brand=st.sampled_from(["", "x", " X", "b"]),
    category=st.sampled_from(["", "shoe", "Shoe ", "hat"]),
)
small_pairs = st.lists(
    st.builds(
        Pair,
        st.uuids().map(str),
        st.sampled_from(["x", "X", " x ", "x y", "Y  z", "y z"]),
        small_items,
        label=st.sampled_from([None, "Exact"]),
        split=st.just("train"),
        tags=st.none() | st.just((Tag("x", "kind"),)),
    ),
    max_size=8,
    unique_by=lambda pair: pair.pair_id,
)


@settings(max_examples=100)
@given(small_pairs, st.lists(small_items, max_size=10), st.integers(0, 6), st.integers(0, 2), fractions, st.randoms())
def test_candidates_are_new_complete_and_independent_of_order(pairs, items, per_query, seed, fractions, shuffler):
    drawn = candidates(pairs, items, per_query, seed, **fractions)
    judged = {query: {item.id for item in group} for query, group in by_query(pairs).items()}
    chosen = {query: [item.id for item in group] for query, group in by_query(drawn).items()}
    assert chosen.keys() <= judged.keys()
    for query, ids in judged.items():
        free = {item.id for item in items} - ids
        item_ids = chosen.get(query, [])
        assert len(set(item_ids)) == len(item_ids) == min(per_query, len(free))
        assert set(item_ids) <= free
    for pair in drawn:
        assert pair.item in items
        assert (pair.label, pair.split) == (None, "train")
        assert pair.pair_id.startswith("x-")
    assert len({pair.pair_id for pair in drawn}) == len(drawn)
    mixed = (shuffler.sample(pairs, len(pairs)), shuffler.sample(items, len(items)))
    assert candidates(*mixed, per_query, seed, **fractions) == drawn


def ample(n_queries, fillers):
    """Judged pairs, and a catalogue that has 20 items of every source for each query and none of two sources."""
    pairs, items = [], [Item(f"f{n}", "filler") for n in range(fillers)]
    for i in range(n_queries):
        item = Item(f"judged{i}", "judged", brand=f"Brand {i}", category=f"KIND {i}")
        pairs.append(Pair(f"p{i}", f"query{i}", item, label="Exact", split="train"))
        items.append(item)
        for n in range(20):
            items.append(Item(f"bm25-{i}-{n}", f"the QUERY{i}"))
            items.append(Item(f"same_category-{i}-{n}", "of a kind", category=f" kind  {i}"))
            items.append(Item(f"same_brand-{i}-{n}", "of a brand", brand=f"brand {i} "))
    return pairs, items


@settings(max_examples=60)
@given(st.integers(1, 3), st.integers(0, 12), fractions, st.integers(0, 3))
def test_the_proportions_are_exact_where_the_sources_suffice(n_queries, per_query, fractions, seed):
    pairs, items = ample(n_queries, 20)
    tenths = [round(10 * fraction) for fraction in fractions.values()]
    tenths.append(10 - sum(tenths))
    counts = [n * per_query // 10 for n in tenths]
    by_remainder = sorted(range(4), key=lambda i: -(tenths[i] * per_query % 10))  # stable: ties by source
    for i in by_remainder[: per_query - sum(counts)]:
        counts[i] += 1
    drawn = by_query(candidates(pairs, items, per_query, seed, **fractions))
    for i, pair in enumerate(pairs):
        sources = [item.id.rpartition("-")[0] for item in drawn[pair.query]]
        assert len(sources) == per_query
        expected_sources = [f"{name}-{i}" for name, n in zip(fractions, counts, strict=False) for _ in range(n)]
        assert sources[: len(expected_sources)] == expected_sources


@pytest.mark.parametrize(
    ("per_query", "fractions", "counts"),
    [
        (10, (0.4, 0.2, 0.2), (4, 2, 2, 2)),
        (3, (0.5, 0.0, 0.0), (2, 0, 0, 1)),
        (5, (0.3, 0.3, 0.3), (2, 2, 1, 0)),
        (10, (0.0, 0.9, 0.1), (0, 9, 1, 0)),
        (20, (0.29, 0.0, 0.0), (6, 0, 0, 14)),
        (1, (0.2, 0.2, 0.2), (0, 0, 0, 1)),
    ],
)
def test_the_rest_is_drawn_from_all_items(per_query, fractions, counts):
    names = ("bm25", "same_category", "same_brand")
    pairs, items = ample(1, 20_000)  # so many fillers that a random draw is one of them
    drawn = candidates(pairs, items, per_query, 0, **dict(zip(names, fractions, strict=True)))
    source_counts = Counter(pair.item.id.partition("-")[0] for pair in drawn)
    assert (
        *(source_counts[name] for name in names),
        source_counts.total() - sum(source_counts[name] for name in names),
    ) == counts


def test_random_items_take_the_place_of_a_source_that_runs_out():
    judged = Pair("p", "boots", Item("j", "judged", category="hat"), split="train")
    items = [Item("k", "warm", category="Hat"), *(Item(f"f{n}", "filler", category="shoe") for n in range(9))]
    drawn = candidates([judged], items, 6, 0, bm25=0.5, same_category=0.5)
    assert drawn[0].item.id == "k"
    assert len({pair.item.id for pair in drawn}) == 6
    # no brand is no brand in common
    drawn = candidates([judged], [*items, Item("b", "x", brand="y")], 4, 0, bm25=0.0, same_brand=1.0)
    assert len(drawn) == 4
    assert drawn == candidates([judged], [*items, Item("b", "x", brand="y")], 4, 0, bm25=0.0)


def test_items_of_every_judged_category_are_drawn():
    judged = [Pair(f"p{n}", "boots", Item(f"j{n}", "judged", category=f"kind {n}"), split="train") for n in range(3)]
    items = [Item(f"i{kind}-{n}", "x", category=f"kind {kind}") for kind in range(5) for n in range(200)]
    drawn = candidates(judged, items, 300, 0, bm25=0.0, same_category=1.0)
    counts = Counter(pair.item.category for pair in drawn)
    assert counts.keys() == {"kind 0", "kind 1", "kind 2"}
    assert min(counts.values()) > 70  # uniform over the 600: 100 of each, give or take 7
    every = candidates(judged, items, 600, 0, bm25=0.0, same_category=1.0)
    assert {pair.item.id for pair in every} == {item.id for item in items if item.category in counts}


def test_every_process_makes_the_same_candidates():
    program = (
        "from jax_rele.data import candidates; from jax_rele.types import Item, Pair\n"
        "items = [Item(f'i{n}', f'w{n % 7}', brand=f'b{n % 9}', category=f'c{n % 5}') for n in range(200)]\n"
        "judged = [Pair(f'p{n}', f'w{n % 3} w4', items[n], split='train') for n in range(12)]\n"
        "for pair in candidates(judged, items, 12, 0, bm25=0.3, same_category=0.3, same_brand=0.3):\n"
        "    print(pair.pair_id)"
    )
    environments = ({**os.environ, "PYTHONHASHSEED": seed} for seed in "12")
    first, second = (
        subprocess.run([sys.executable, "-c", program], env=one, capture_output=True, text=True, check=True).stdout
        for one in environments
    )
    assert first == second
    assert len(first.splitlines()) == 3 * 12


def test_only_training_queries_get_candidates(split, train):
    train_queries = by_query(train)
    drawn = candidates(train, [pair.item for pair in train], 3, 0, bm25=0.4, same_category=0.3, same_brand=0.3)
    others = by_query(pair for pair in split if pair.split != "train")
    assert by_query(drawn).keys() == train_queries.keys()
    assert by_query(drawn).keys().isdisjoint(others)


def test_lexical_items_are_the_best_by_bm25(train, catalogue):
    drawn = by_query(candidates(train, catalogue, 3, 0, bm25=1.0))
    positions = {item.id: i for i, item in enumerate(catalogue)}
    compared = 0
    for pair in train[:60]:
        scores = bm25_scores(pair.query, catalogue)
        query = text_key(pair.query)
        scores[[positions[one.item.id] for one in train if text_key(one.query) == query]] = -1.0
        best = np.sort(scores)[::-1][:3]
        if best[-1] > 0:
            # float32 against float64: the scores agree, items of the same score may stand for each other
            scores_of_drawn = [scores[positions[item.id]] for item in drawn[query]]
            np.testing.assert_allclose(scores_of_drawn, best, rtol=1e-5)
            compared += 1
    assert compared > 30


def test_of_equal_scores_the_first_ids_count():
    items = [Item(f"i{n:03}", "shoe" if n % 2 else "red shoe") for n in range(300)]
    judged = [Pair("p", "shoe", items[3], split="train")]
    drawn = candidates(judged, items, 200, 0, bm25=1.0)
    shorter = [n for n in range(1, 300, 2) if n != 3]
    expected = shorter + list(range(0, 300, 2))[: 200 - len(shorter)]
    assert [pair.item.id for pair in drawn] == [f"i{n:03}" for n in expected]


def test_the_share_of_lexical_items(train, catalogue):
    def overlapping(drawn):
        return np.mean([bool({*lexical_words(pair.query)} & {*lexical_words(pair.item.title)}) for pair in drawn])

    none, half, full = (candidates(train[:40], catalogue, 4, 0, bm25=fraction) for fraction in (0.0, 0.5, 1.0))
    assert overlapping(none) + 0.2 < overlapping(half) < overlapping(full) - 0.2
    shared = {pair.pair_id for pair in half} & {pair.pair_id for pair in full}
    assert len(shared) >= 0.5 * len(half) * 0.9


def test_random_items_are_spread_and_depend_on_the_seed(train, catalogue):
    first, second = (candidates(train, catalogue, 4, seed, bm25=0.0) for seed in (0, 1))
    assert {pair.pair_id for pair in first} != {pair.pair_id for pair in second}
    counts = Counter(pair.item.id for pair in first)
    # 4 draws an item on average: uniform draws stay far from 20 and reach nearly all items
    assert max(counts.values()) < 20
    assert len(counts) > 0.9 * len({item.id for item in catalogue})


def test_a_query_keeps_the_spelling_and_tags_of_its_tagged_pair():
    items = [Item(name, "red shoe") for name in "abc"]
    pairs = [
        Pair("2", "RED shoe", items[1], locale="us", tags=(Tag("RED", "color"),), query_frequency=3, long_tail=True),
        Pair("1", "red shoe", items[0]),
    ]
    (pair,) = candidates(pairs, items, 5, 0)
    assert pair.split == "train"
    assert (pair.query, pair.tags, pair.locale, pair.query_frequency, pair.long_tail, pair.item) == (
        "RED shoe",
        (Tag("RED", "color"),),
        "us",
        3,
        True,
        items[2],
    )


@pytest.mark.parametrize(
    ("per_query", "fractions"),
    [
        (-1, {}),
        (1, {"bm25": 1.5}),
        (1, {"bm25": -0.1}),
        (1, {"bm25": float("nan")}),
        (1, {"bm25": 0.0, "same_brand": -0.1}),
        (1, {"bm25": 0.5, "same_category": 0.3, "same_brand": 0.3}),
    ],
)
def test_impossible_arguments(per_query, fractions):
    with pytest.raises(ValueError, match="need per_query >= 0"):
        candidates([], [], per_query, 0, **fractions)
