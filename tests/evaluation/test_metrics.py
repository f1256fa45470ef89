"""Each metric on weighted resamples against scikit-learn and SciPy on the pairs written out."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from jax_rele.evaluation import metrics


@st.composite
def resampled(draw):
    """Scores with many ties, labels, and counts of three resamples, of which some pairs occur in none."""
    size = draw(st.integers(2, 25))
    seed = draw(st.integers(0, 2**32 - 1))
    levels = draw(st.sampled_from([2, 4, 1000]))
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, levels, size) / levels,
        rng.integers(0, draw(st.integers(1, 4)), size),
        rng.integers(0, draw(st.sampled_from([2, 4])), (3, size)).astype(float),
    )


def check(values, counts, oracle, *arrays):
    """Compares [R] values with the oracle on the arrays with every pair repeated as often as it was drawn."""
    for value, count in zip(values, counts):
        expected = oracle(*(np.repeat(array, count.astype(int)) for array in arrays))
        if expected is None:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(expected, abs=1e-12)


def both_classes(metric):
    return lambda score, relevant: metric(relevant, score) if 0 < relevant.sum() < len(relevant) else None


@given(resampled())
def test_auc_is_that_of_the_repeated_pairs(case):
    score, labels, counts = case
    values = metrics.auc(score, labels == 0, counts)
    check(values, counts, both_classes(sklearn.metrics.roc_auc_score), score, labels == 0)


@given(resampled())
def test_average_precision_is_that_of_the_repeated_pairs(case):
    score, labels, counts = case
    values = metrics.average_precision(score, labels == 0, counts)
    check(values, counts, both_classes(sklearn.metrics.average_precision_score), score, labels == 0)


@given(resampled(), st.integers(0, 2**32 - 1))
def test_f1_is_that_of_the_repeated_pairs(case, seed):
    _, labels, counts = case
    decided = np.random.default_rng(seed).integers(0, 4, len(labels))

    def oracle(average):
        return lambda chosen, true: (
            sklearn.metrics.f1_score(true, chosen, average=average, zero_division=0.0) if len(true) else None
        )

    check(metrics.macro_f1(decided, labels, counts), counts, oracle("macro"), decided, labels)
    check(metrics.micro_f1(decided, labels, counts), counts, oracle("micro"), decided, labels)


@given(resampled())
def test_spearman_is_that_of_the_repeated_pairs(case):
    score, labels, counts = case
    gain = np.array([1.0, 0.1, 0.01, 0.0])[labels]

    def oracle(a, b):
        constant = len(a) == 0 or len(set(a)) == 1 or len(set(b)) == 1
        return None if constant else scipy.stats.spearmanr(a, b).statistic

    check(metrics.spearman(score, gain, counts), counts, oracle, score, gain)


@given(resampled(), st.integers(1, 8))
def test_ndcg_of_a_query_is_scikit_learns(case, n_queries):
    score, labels, _ = case
    gain = np.array([1.0, 0.1, 0.01, 0.0])[labels]
    query = np.random.default_rng(len(score)).integers(0, n_queries, len(score))
    values = metrics.query_ndcg(score, gain, query, n_queries)
    for index, value in enumerate(values):
        mine = query == index
        if mine.sum() < 2 or gain[mine].sum() == 0:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(sklearn.metrics.ndcg_score([gain[mine]], [score[mine]]), abs=1e-12)


def test_ndcg_by_hand():
    gain = np.array([0.0, 1.0, 0.1])
    value = metrics.query_ndcg(np.array([3.0, 2.0, 1.0]), gain, np.zeros(3, int), 1)
    ideal = 1.0 + 0.1 / np.log2(3.0)
    assert value[0] == pytest.approx((1.0 / np.log2(3.0) + 0.1 / 2.0) / ideal)


@given(resampled(), st.randoms(use_true_random=False))
def test_ndcg_does_not_depend_on_the_order_of_input(case, random):
    score, labels, _ = case
    gain, query = np.array([1.0, 0.1, 0.01, 0.0])[labels], np.arange(len(score)) // 5
    order = list(range(len(score)))
    random.shuffle(order)
    count = int(query.max()) + 1
    np.testing.assert_allclose(
        metrics.query_ndcg(score[order], gain[order], query[order], count),
        metrics.query_ndcg(score, gain, query, count),
        atol=1e-12,
    )


def test_weighted_mean_leaves_out_what_is_undefined():
    values = np.array([1.0, np.nan, 3.0])
    counts = np.array([[1.0, 5.0, 1.0], [0.0, 4.0, 2.0], [0.0, 1.0, 0.0]])
    np.testing.assert_array_equal(metrics.weighted_mean(values, counts), [2.0, 3.0, np.nan])


def test_no_pairs_are_undefined_and_do_not_crash():
    nothing, counts = np.zeros(0), np.ones((2, 0))
    for values in (
        metrics.auc(nothing, nothing, counts),
        metrics.average_precision(nothing, nothing, counts),
        metrics.macro_f1(nothing, nothing, counts),
        metrics.micro_f1(nothing, nothing, counts),
        metrics.spearman(nothing, nothing, counts),
    ):
        np.testing.assert_array_equal(values, [np.nan, np.nan])
    assert metrics.query_ndcg(nothing, nothing, nothing.astype(int), 0).shape == (0,)
