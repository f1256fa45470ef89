"""Schedules, and what weight decay leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_rele import config
from jax_rele.training import learning_rate, make_optimizer


def rates(steps=100, **options):
    rate = learning_rate(config.OptimizationConfig(steps=steps, learning_rate=2.0, **options))
    return np.array([float(rate(step)) for step in range(steps + 1)])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_every_schedule_warms_up_to_the_peak(schedule):
    actual = rates(schedule=schedule, warmup_fraction=0.2)
    np.testing.assert_allclose(actual[:21], np.linspace(0, 2, 21), rtol=1e-6)
    assert actual.max() == actual[20] == 2
    assert rates(schedule=schedule, warmup_fraction=0.0)[1] == 2


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_a_schedule_falls_as_it_is_called(schedule):
    """To a tenth of the peak at the last step, along the curve."""
    actual, fraction = rates(schedule=schedule, warmup_fraction=0.2)[20:], np.linspace(0, 1, 81)
    expected = {
        "cosine": 0.2 + 1.8 * (1 + np.cos(np.pi * fraction)) / 2,
        "linear": 2 - 1.8 * fraction,
        "constant": np.full(81, 2.0),
    }
    np.testing.assert_allclose(actual, expected[schedule], rtol=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_a_run_of_warm_up_alone_never_exceeds_the_peak(schedule):
    np.testing.assert_allclose(rates(steps=4, schedule=schedule, warmup_fraction=1.0), [0, 0.5, 1, 1.5, 2])


def test_weight_decay_spares_norms_and_biases():
    tx = make_optimizer(config.OptimizationConfig(steps=9, learning_rate=3e-3, weight_decay=0.5, warmup_fraction=0.0))
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "norm": {"scale": jnp.ones(2)}}
    state = tx.init(params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    for _ in range(3):
        updates, state = tx.update(zeros, state, params)
        params = optax.apply_updates(params, updates)
    assert float(params["kernel"].max()) < 1
    assert float(params["bias"].min()) == float(params["norm"]["scale"].min()) == 1
