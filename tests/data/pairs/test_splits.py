"""No query in two splits, whatever the order of the rows."""

import hashlib
import random
import re
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_rele.data.pairs.splits import assign_splits, long_tail
from jax_rele.errors import UserError
from jax_rele.names import SPLITS
from jax_rele.text import text_key
from jax_rele.types import Item, Pair

SPLIT_OF_60_20_20 = (0.6, 0.2, 0.2)


def pair(pair_id, query, title="t", **fields):
    return Pair(str(pair_id), query, Item(str(pair_id), title), **fields)


@st.composite
def data_sets(draw):
    """Pairs of a few dozen queries in several spellings."""
    bases = draw(st.lists(st.text("ab ß1", min_size=1, max_size=6), min_size=10, max_size=40))
    spell = st.sampled_from([str, str.upper, lambda query: f" {query}  ", lambda query: query.replace(" ", "\u3000 ")])
    labels = draw(st.lists(st.sampled_from([None, "E", "S", "I"]), min_size=len(bases), max_size=len(bases)))
    return [pair(i, draw(spell)(base), label=label) for i, (base, label) in enumerate(zip(bases, labels))]


def split_of(pairs):
    return {pair.pair_id: pair.split for pair in pairs}


def try_assign(pairs, fractions=SPLIT_OF_60_20_20, seed=0):
    try:
        return assign_splits(pairs, fractions, seed)
    except UserError as error:
        message = str(error)
    assert "split is empty" in message
    return None


@given(data_sets(), st.integers(0, 3), st.randoms())
def test_a_partition_by_query_that_ignores_the_order_of_rows(pairs, seed, shuffler):
    assigned = try_assign(pairs, seed=seed)
    shuffled = shuffler.sample(pairs, len(pairs))
    if assigned is None:
        assert try_assign(shuffled, seed=seed) is None
        return
    assert [replace(pair, split=None) for pair in assigned] == pairs
    of_query = defaultdict(set)
    for each in assigned:
        of_query[text_key(each.query)].add(each.split)
    assert all(len(splits) == 1 for splits in of_query.values())
    assert set.union(*of_query.values()) == set(SPLITS)
    counts = Counter(next(iter(splits)) for splits in of_query.values())
    for split, fraction in zip(SPLITS, SPLIT_OF_60_20_20):
        assert abs(counts[split] - fraction * len(of_query)) <= 1
    assert split_of(assigned) == split_of(assign_splits(shuffled, SPLIT_OF_60_20_20, seed))


@given(data_sets(), st.data())
def test_given_splits_are_kept_and_spread_over_their_query(pairs, data):
    query_split = {}
    for i in data.draw(st.sets(st.integers(0, len(pairs) - 1), max_size=8)):
        split = query_split.setdefault(text_key(pairs[i].query), data.draw(st.sampled_from(SPLITS)))
        pairs[i] = replace(pairs[i], split=split)
    assigned = try_assign(pairs)
    if assigned is not None:
        lacking = set(SPLITS) - set(query_split.values())
        for each in assigned:
            given_split = query_split.get(text_key(each.query), each.split)
            assert each.split == given_split or (given_split == "train" and each.split in lacking)
        assert assign_splits(assigned, SPLIT_OF_60_20_20, 0) == assigned


@given(st.integers(2, 40), st.sampled_from([("validation",), ("test",), ("validation", "test")]), st.randoms())
def test_what_is_not_given_is_taken_out_of_train(n_train, lacking, shuffler):
    given_splits = [split for split in SPLITS if split not in lacking]
    pairs = [pair(f"{split}{i}", f"{split} {i}", split=split) for split in given_splits for i in range(n_train)]
    assigned = try_assign(pairs, (0.5, 0.2, 0.3))
    fractions = dict(zip(SPLITS, (0.5, 0.2, 0.3)))
    if assigned is None:
        assert n_train < 6
        return
    counts = Counter(each.split for each, before in zip(assigned, pairs) if before.split == "train")
    for split in ("train", *lacking):
        expected = n_train * fractions[split] / (0.5 + sum(fractions[name] for name in lacking))
        assert abs(counts[split] - expected) <= 1
    assert all(each.split == before.split for each, before in zip(assigned, pairs) if before.split != "train")
    again = assign_splits(shuffler.sample(pairs, len(pairs)), (0.5, 0.2, 0.3), 0)
    assert split_of(again) == split_of(assigned)


def test_queries_without_a_split_are_divided_beside_given_ones():
    """By the order of a list: each stratum by hash, strata interleaved, cut at the shares."""
    pairs = [pair(i, f"q{i}", label="ES"[i % 3 == 0]) for i in range(50)]
    hashes = {each.query: hashlib.blake2b(f"7 {each.query}".encode()).digest() for each in pairs}
    positions = []
    for label in "ES":
        queries = sorted((each.query for each in pairs if each.label == label), key=hashes.get)
        positions += [((rank + 0.5) / len(queries), hashes[query], query) for rank, query in enumerate(queries)]
    order = [query for *_, query in sorted(positions)]
    expected = dict(zip(order, ["train"] * 30 + ["validation"] * 10 + ["test"] * 10))
    assert {each.query: each.split for each in assign_splits(pairs, SPLIT_OF_60_20_20, 7)} == expected


def test_strata_are_divided_alike():
    labels = ["E"] * 160 + ["S"] * 150 + ["I"] * 130 + ["C"] * 37
    random.Random(0).shuffle(labels)
    assigned = assign_splits([pair(i, f"q{i}", label=label) for i, label in enumerate(labels)], (0.7, 0.1, 0.2), seed=3)
    counts = Counter((each.split, each.label) for each in assigned)
    for split, fraction in zip(SPLITS, (0.7, 0.1, 0.2)):
        for label, total in Counter(labels).items():
            assert abs(counts[split, label] - fraction * total) <= 2


def test_the_stratum_is_that_of_the_smallest_pair_id():
    pairs = [pair(f"{i}b", f"q{i}", label="I") for i in range(30)]
    first = [pair(f"{i}a", f"q{i}", label="E" if i < 10 else "S") for i in range(30)]
    assigned = assign_splits(pairs + first, SPLIT_OF_60_20_20, 0)
    counts = Counter(each.split for each in assigned if each.label == "E")
    assert counts == {"train": 6, "validation": 2, "test": 2}


def test_seeds_differ():
    pairs = [pair(i, f"q{i}") for i in range(60)]
    assert split_of(assign_splits(pairs, SPLIT_OF_60_20_20, 0)) != split_of(assign_splits(pairs, SPLIT_OF_60_20_20, 1))


def test_leakage_names_query_splits_and_pairs():
    pairs = [
        pair(0, "red shoe"),
        pair(1, "Red  Shoe", split="train"),
        pair(2, "x", split="validation"),
        pair(3, "ｒｅｄ shoe ", split="test"),
    ]
    message = r"the query 'red shoe' is in two splits: test \(pair_id '3'\) and train \(pair_id '1'\)"
    for order in (pairs, pairs[::-1]):
        with pytest.raises(UserError, match=message):
            assign_splits(order, SPLIT_OF_60_20_20, 0)


def test_an_empty_split_is_refused():
    pairs = [pair(i, f"q{i}") for i in range(3)]
    with pytest.raises(UserError, match=r"the test split is empty: 3 of 3 queries .*data\.splits\.test"):
        assign_splits(pairs, (0.5, 0.5, 0.0), 0)
    given_splits = [pair(1, "a", split="validation"), pair(2, "b", split="test")]
    with pytest.raises(UserError, match="the train split is empty: all 2 queries bring a split"):
        assign_splits(given_splits, SPLIT_OF_60_20_20, 0)
    given_splits = [pair(1, "a", split="train"), pair(2, "b", split="test")]
    with pytest.raises(UserError, match="the validation split is empty: all 2 queries bring a split"):
        assign_splits(given_splits, (0.5, 0.0, 0.5), 0)
    with pytest.raises(UserError, match="the train split is empty"):
        assign_splits([], SPLIT_OF_60_20_20, 0)


@pytest.mark.parametrize("fractions", [(0.5, 0.2, 0.2), (1.2, -0.1, -0.1), (0.5, 0.5), (float("nan"), 0.5, 0.5)])
def test_fractions_must_be_shares(fractions):
    with pytest.raises(UserError, match=r"must lie in \[0, 1\] and sum to 1"):
        assign_splits([pair(1, "a")], fractions, 0)


def test_long_tail_by_given_frequency():
    pairs = [pair(i, "q", query_frequency=frequency) for i, frequency in enumerate([0, 5, 6])]
    assert long_tail(pairs, 5).tolist() == [True, True, False]
    assert long_tail([], 5).shape == (0,)
    assert long_tail([], 5).dtype == bool


def test_a_mark_of_the_data_decides():
    marks = [None, True, False, None, True]
    frequencies = [0, 9, 0, 9, None]
    pairs = [pair(i, "q", query_frequency=f, long_tail=m) for i, (f, m) in enumerate(zip(frequencies, marks))]
    assert long_tail(pairs, 5).tolist() == [True, True, False, False, True]
    pairs = [replace(each, query_frequency=None, split="train") for each in pairs]
    pairs[1] = replace(pairs[1], query="r")
    assert long_tail(pairs, 0).tolist() == [False, True, False, False, True]
    assert long_tail(pairs, 1).tolist() == [True, True, False, True, True]


word_lists = st.lists(st.sampled_from(["ab", "Ab", "c", "d", "-"]), min_size=1, max_size=3).map(" ".join)


@settings(max_examples=50)
@given(st.lists(st.tuples(word_lists, word_lists, st.sampled_from(SPLITS)), min_size=1, max_size=15), st.integers(0, 3))
def test_long_tail_by_the_rarest_word(rows, max_frequency):
    pairs = [pair(i, query, title, split=split) for i, (query, title, split) in enumerate(rows)]
    pairs[0] = replace(pairs[0], split="train", query_frequency=1)  # one of several frequencies is not enough
    pairs.append(pair("last", "zz", split="test"))
    texts = {("q", each.query.lower()) for each in pairs if each.split == "train"}
    texts |= {("t", each.item.title.lower()) for each in pairs if each.split == "train"}
    expected = []
    for each in pairs:
        query_words = re.findall("[a-z]+", each.query.lower())
        counts = [sum(word in text.replace("-", " ").split() for _, text in texts) for word in query_words]
        expected.append(min(counts, default=0) <= max_frequency)
    assert np.array_equal(long_tail(pairs, max_frequency), expected)


def test_long_tail_needs_a_training_split():
    with pytest.raises(ValueError, match="call assign_splits first"):
        long_tail([pair(1, "a")], 1)
