"""Temperature, reliability table and calibration error against their definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from jax_rele.evaluation import apply_temperature, ece, fit_temperature, reliability


def loss(probs, labels):
    return -np.log(probs[np.arange(len(labels)), labels]).mean()


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
def test_the_temperature_that_made_the_labels_is_found(true):
    rng = np.random.default_rng(0)
    logits = 2.0 * rng.normal(size=(20_000, 4))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    assert fit_temperature(softmax(logits * true, axis=1), labels) == pytest.approx(true, rel=0.05)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.floats(0.1, 5.0))
@settings(max_examples=50)
def test_no_other_temperature_is_likelier(seed, size, sharpness):
    rng = np.random.default_rng(seed)
    probs = softmax(sharpness * rng.normal(size=(size, 3)), axis=1)
    labels = rng.integers(0, 3, size)
    fitted = loss(apply_temperature(probs, fit_temperature(probs, labels)), labels)
    for temperature in np.geomspace(0.05, 20.0, 60):
        assert fitted <= loss(apply_temperature(probs, temperature), labels) + 1e-6


def test_temperatures_limits():
    probs = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    np.testing.assert_allclose(apply_temperature(probs, 1.0), probs, rtol=1e-12)
    np.testing.assert_allclose(apply_temperature(probs, 1e6), np.full((2, 3), 1 / 3), atol=1e-5)
    np.testing.assert_allclose(apply_temperature(probs, 1e-3), [[1, 0, 0], [0, 0, 1]], atol=1e-12)
    assert np.isfinite(apply_temperature(np.eye(3), 2.0)).all()
    assert fit_temperature(probs, np.array([0, 2])) == pytest.approx(0.05, rel=1e-3)
    assert fit_temperature(probs, np.array([2, 1])) == pytest.approx(20.0, rel=1e-3)
    assert fit_temperature(np.full((4, 3), 1 / 3), np.array([0, 1, 2, 0])) == 1.0


def test_bad_calls_are_refused():
    with pytest.raises(ValueError, match="positive"):
        apply_temperature(np.eye(2), 0.0)
    with pytest.raises(ValueError, match="no pairs"):
        fit_temperature(np.zeros((0, 2)), np.zeros(0, int))


forecasts = st.lists(
    st.tuples(st.one_of(st.floats(0.0, 1.0), st.sampled_from([0.0, 1.0, 1 / 15, 0.2])), st.booleans()),
    min_size=1,
    max_size=60,
)


@given(forecasts)
def test_reliability_counts_every_pair_once_in_its_bin(cases):
    p, outcome = np.array([case[0] for case in cases]), np.array([case[1] for case in cases])
    table = reliability(p, outcome)
    assert table["count"].sum() == len(p)
    some = table["count"] > 0
    assert np.isnan(table["mean_p"][~some]).all()
    assert (table["mean_p"][some] >= table["lower"][some] - 1e-9).all()
    assert (table["mean_p"][some] <= table["upper"][some] + 1e-9).all()
    assert (table["count"][some] * table["rate"][some]).sum() == pytest.approx(outcome.sum())


@given(forecasts)
def test_ece_is_the_weighted_gap_of_the_reliability_table(cases):
    p, outcome = np.array([case[0] for case in cases]), np.array([case[1] for case in cases])
    table = reliability(p, outcome)
    some = table["count"] > 0
    gaps = np.abs(table["mean_p"] - table["rate"])[some]
    assert ece(p, outcome)[0] == pytest.approx((table["count"][some] * gaps).sum() / len(p), abs=1e-12)


@given(forecasts, st.integers(0, 2**32 - 1))
def test_ece_of_counts_is_that_of_the_repeated_pairs(cases, seed):
    p, outcome = np.array([case[0] for case in cases]), np.array([case[1] for case in cases])
    counts = np.random.default_rng(seed).integers(0, 3, (2, len(p)))
    for value, count in zip(ece(p, outcome, counts), counts):
        if count.sum():
            assert value == pytest.approx(ece(np.repeat(p, count), np.repeat(outcome, count))[0], abs=1e-12)
        else:
            assert np.isnan(value)


def test_ece_by_hand():
    assert ece(np.array([1.0, 1.0, 0.0, 0.0]), np.array([True, False, False, False]))[0] == pytest.approx(0.25)
    assert ece(np.array([0.5, 0.5]), np.array([True, False]))[0] == pytest.approx(0.0)
