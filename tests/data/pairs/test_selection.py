"""Hard and clean pairs: what each model's predictions leave out."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jax_rele.data.pairs.selection import left_out

LABELS = np.array([0, 1, 2, 1])


def certain(*labels):
    """A model that is sure of these labels; None: it says nothing of the pair."""
    return np.array([[np.nan] * 3 if label is None else np.eye(3)[label] for label in labels])


def test_each_model_leaves_out_what_it_is_asked_for():
    wrong, right = certain(0, 0, 0, 0), certain(0, 1, 1, 1)
    disputed = np.array([[0.4, 0.3, 0.3], [0.2, 0.3, 0.5], [0.3, 0.3, 0.4], [0.45, 0.4, 0.15]])
    assert {name: rows.tolist() for name, rows in left_out(LABELS, wrong_by=wrong).items()} == {
        "unpredicted": [False] * 4,
        "easy": [True, False, False, False],
    }
    assert left_out(LABELS, right_by=right)["not_learnt"].tolist() == [False, False, True, False]
    assert left_out(LABELS, undisputed_by=disputed)["disputed"].tolist() == [False, True, False, False]
    assert left_out(LABELS, undisputed_by=disputed, dispute=0.45)["disputed"].tolist() == [False, True, False, True]


def test_a_pair_is_counted_once_and_one_without_a_prediction_is_left_out():
    reasons = left_out(LABELS, wrong_by=certain(0, None, 0, 0), right_by=certain(1, 1, 1, 1))
    assert reasons["unpredicted"].tolist() == [False, True, False, False]
    assert reasons["easy"].tolist() == [True, False, False, False]
    assert reasons["not_learnt"].tolist() == [False, False, True, False]
    assert np.sum(list(reasons.values()), axis=0).max() == 1


def test_without_a_model_nothing_is_left_out():
    assert left_out(LABELS) == {}


@given(st.lists(st.tuples(*[st.integers(0, 2)] * 4), min_size=1, max_size=20))
def test_of_certain_models_the_rest_is_what_the_first_gets_wrong_and_the_others_right(rows):
    labels, first, second, third = np.array(rows).T
    models = {"wrong_by": certain(*first), "right_by": certain(*second), "undisputed_by": certain(*third)}
    reasons = left_out(labels, **models)
    selected = ~np.any(list(reasons.values()), axis=0)
    np.testing.assert_array_equal(selected, (first != labels) & (second == labels) & (third == labels))
