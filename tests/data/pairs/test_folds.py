"""Folds of queries: every pair is tested once, no query is on two sides, every fold looks like the whole."""

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jax_rele.data.pairs.splits import divide, divide_folds
from jax_rele.errors import UserError
from jax_rele.names import SPLITS

TRAIN, VALIDATION, TEST = range(len(SPLITS))
FRACTIONS = (0.6, 0.2, 0.2)


@st.composite
def tables(draw):
    """(queries, labels, ranks) of a few dozen rows, -1 for no label."""
    n_queries = draw(st.integers(4, 30))
    queries = list(range(n_queries)) + draw(st.lists(st.integers(0, n_queries - 1), max_size=30))
    labels = draw(st.lists(st.integers(-1, 2), min_size=len(queries), max_size=len(queries)))
    ranks = draw(st.permutations(range(len(queries))))
    # Keys of queries are hashes, so their order is not that of the rows.
    keys = np.random.default_rng(draw(st.integers(0, 5))).permutation(2**32 + np.arange(n_queries)).astype(np.uint64)
    return keys[queries], np.array(labels), np.array(ranks)


@given(tables(), st.integers(2, 6))
def test_every_pair_is_tested_once_and_no_query_is_in_two_splits(table, count):
    queries = table[0]
    assume(count <= len(set(queries)) - 2)
    splits = np.stack([divide_folds(*table, (number, count), (0.5, 0.5, 0.0)) for number in range(1, count + 1)])
    assert ((splits == TEST).sum(axis=0) == 1).all()
    for fold in splits:
        assert set(fold) == {TRAIN, VALIDATION, TEST}
        assert len({*zip(queries, fold)}) == len(set(queries))
    sizes = [len(set(queries[fold == TEST])) for fold in splits]
    assert max(sizes) - min(sizes) <= 1


@given(tables(), st.integers(2, 4), st.randoms())
def test_the_order_of_rows_does_not_matter(table, count, shuffler):
    assume(count <= len(set(table[0])) - 2)
    order = shuffler.sample(range(len(table[0])), len(table[0]))
    whole = divide_folds(*table, (2, count), (0.5, 0.5, 0.0))
    shuffled = divide_folds(*(column[order] for column in table), (2, count), (0.5, 0.5, 0.0))
    assert (whole[order] == shuffled).all()


def thousand(n_labels=3):
    rng = np.random.default_rng(0)
    queries = rng.permutation(2**40 + np.arange(1000)).astype(np.uint64)
    return queries, np.sort(rng.integers(0, n_labels, 1000)), np.arange(1000)


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_each_split_of_each_fold_has_the_labels_in_proportion(count):
    table = thousand()
    of_all = np.bincount(table[1])
    for number in range(1, count + 1):
        splits = divide_folds(*table, (number, count), FRACTIONS)
        sizes = np.bincount(splits)
        assert sizes[TRAIN] == pytest.approx(3 * sizes[VALIDATION], abs=3)
        for split in range(3):
            counts = np.bincount(table[1][splits == split], minlength=3)
            assert counts == pytest.approx(of_all * sizes[split] / 1000, abs=2)


def test_labelled_pairs_fall_into_every_fold_where_most_pairs_have_no_label():
    queries, _, ranks = thousand()
    labels = np.where(np.arange(1000) % 50 == 0, 0, -1)
    # Each query has a second row without a label, which comes first.
    table = np.r_[queries, queries], np.r_[np.full(1000, -1), labels], np.r_[ranks, ranks + 1000]
    tested = [(divide_folds(*table, (number, 5), FRACTIONS) == TEST) & (table[1] == 0) for number in range(1, 6)]
    assert [int(rows.sum()) for rows in tested] == [4] * 5


def test_the_last_fold_is_the_plain_split():
    queries, labels, ranks = thousand()
    plain = divide(queries, labels, ranks, np.full(1000, -1), FRACTIONS)
    assert (divide_folds(queries, labels, ranks, (5, 5), FRACTIONS) == plain).all()


def test_validation_splits_differ():
    table = thousand()
    validation = [divide_folds(*table, (number, 5), FRACTIONS) == VALIDATION for number in range(1, 6)]
    assert Counter(np.stack(validation).sum(axis=0).tolist()) == {1: 1000}


@pytest.mark.parametrize(
    ("fold", "fractions", "message"),
    [
        ((1, 1001), FRACTIONS, "1001 folds need as many queries, there are 1000; ask for fewer folds"),
        ((1, 2), (0.8, 0.0, 0.2), "the validation split is empty: fold 1 of 2 leaves 500 of 1000 queries"),
        ((1, 2), (0.0, 0.0, 1.0), "the train split is empty"),
    ],
)
def test_what_cannot_be_divided_is_one_line(fold, fractions, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        divide_folds(*thousand(), fold, fractions)
    assert "\n" not in str(error.value)
