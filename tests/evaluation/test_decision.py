"""The fitted bias is a coordinate-wise optimum of macro-F1, found the same way every time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_rele.evaluation import decide, decision, fit_bias, metrics


def macro_f1(probs, labels, bias):
    return metrics.macro_f1(decide(probs, bias), labels, np.ones((1, len(labels))))[0]


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1.0, 3.0]), st.sampled_from([3, 20, 60]))
@settings(max_examples=40)
def test_no_change_of_one_coordinate_is_better(made_up, seed, skill, size):
    labels = np.random.default_rng(seed).choice(4, size, p=[0.6, 0.2, 0.15, 0.05])
    probs = made_up(labels, skill, seed)
    bias = fit_bias(probs, labels)
    best = macro_f1(probs, labels, bias)
    assert best >= macro_f1(probs, labels, np.zeros(4)) - 1e-9
    for label in range(4):
        for value in np.linspace(-8.0, 8.0, 41):
            other = bias.copy()
            other[label] = value
            assert macro_f1(probs, labels, other) <= best + 1e-9


def test_a_rare_class_is_won_back():
    """The model ranks the rare class well but never gives it the greatest probability."""
    labels = np.array([0] * 30 + [1] * 6)
    rare = np.where(labels == 1, 0.3, 0.1)
    probs = np.stack([1.0 - rare, rare], axis=1)
    assert set(decide(probs, np.zeros(2))) == {0}
    np.testing.assert_array_equal(decide(probs, fit_bias(probs, labels)), labels)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_of_equally_good_biases_of_a_class_the_smallest_is_taken(seed):
    """Macro-F1 is constant between the points at which a pair's decision flips, so one bias for each gap is enough."""
    rng = np.random.default_rng(seed)
    logs, labels = np.log(rng.dirichlet(np.ones(3), 8)), rng.integers(0, 3, 8)
    flips = np.sort(logs[:, 1:].max(axis=1) - logs[:, 0])
    biases = [flips[0] - 1.0, *(flips[1:] + flips[:-1]) / 2.0, flips[-1] + 1.0, 0.0]
    scores = np.array([macro_f1(np.exp(logs), labels, [bias, 0.0, 0.0]) for bias in biases])
    best = [abs(bias) for bias, score in zip(biases, scores) if score > scores.max() - 1e-9]
    assert abs(decision._best_coordinate(logs, labels, np.zeros(3), 0)) == pytest.approx(min(best), abs=1e-12)


def test_good_decisions_need_no_bias():
    probs = np.array([[0.9, 0.1], [0.1, 0.9], [0.8, 0.2], [0.2, 0.8]])
    np.testing.assert_array_equal(fit_bias(probs, np.array([0, 1, 0, 1])), [0.0, 0.0])


def test_the_order_of_pairs_does_not_matter(made_up):
    labels = np.random.default_rng(3).integers(0, 4, 50)
    probs = made_up(labels, 1.0, 3)
    order = np.random.default_rng(4).permutation(50)
    np.testing.assert_array_equal(fit_bias(probs, labels), fit_bias(probs[order], labels[order]))


def test_scores_that_differ_by_little_still_get_a_useful_bias():
    labels = np.array([0] * 10 + [1] * 10)
    probs = np.full((20, 2), 0.5) + np.where(labels == 1, 1e-6, 0.0)[:, None] * [-1, 1] + [0.01, -0.01]
    np.testing.assert_array_equal(decide(probs, fit_bias(probs, labels)), labels)


def test_degenerate_input():
    assert fit_bias(np.full((5, 3), 1 / 3), np.array([2, 2, 2, 1, 0]))[2] > 0
    assert np.isfinite(fit_bias(np.eye(3), np.array([0, 1, 2]))).all()
    with pytest.raises(ValueError, match="no pairs"):
        fit_bias(np.zeros((0, 3)), np.zeros(0, int))
