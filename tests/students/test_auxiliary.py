"""The gradient of an auxiliary task: never against the main one's, never longer, and nothing else is changed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_rele.students.auxiliary import auxiliary_branch


def gradient(main, auxiliary):
    """What x receives where the two tasks have these gradients."""

    def loss(x):
        first, second = auxiliary_branch(x)
        return jnp.sum(first * main) + jnp.sum(second * auxiliary)

    return jax.grad(loss)(jnp.zeros_like(main))


def rows(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_auxiliary_gradient_is_no_longer_and_never_against(scale):
    main, auxiliary = rows(0, 64, 5, 8), scale * rows(1, 64, 5, 8)
    added = np.asarray(gradient(main, auxiliary) - main, np.float64).reshape(64, -1)
    m, a = (np.asarray(x, np.float64).reshape(64, -1) for x in (main, auxiliary))
    norm = np.linalg.norm(m, axis=1)
    assert (np.linalg.norm(added, axis=1) <= norm * (1 + 1e-5)).all()
    assert ((added * m).sum(axis=1) >= -1e-5 * norm**2).all()
    # By the formulas, in float64.
    p = a - np.minimum((a * m).sum(1, keepdims=True), 0) / (m * m).sum(1, keepdims=True) * m
    expected = p * np.minimum(1.0, norm / np.linalg.norm(p, axis=1))[:, None]
    np.testing.assert_allclose(added, expected, atol=1e-5)


def test_a_short_gradient_along_the_main_one_is_added_as_it_is():
    main = rows(0, 4, 8)
    np.testing.assert_allclose(gradient(main, 0.5 * main), 1.5 * main, rtol=1e-6)


def test_a_row_without_a_main_gradient_learns_from_the_auxiliary_task():
    main, auxiliary = rows(0, 4, 8).at[1].set(0.0), 10 * rows(1, 4, 8)
    result = gradient(main, auxiliary)
    np.testing.assert_array_equal(result[1], auxiliary[1])
    assert not np.array_equal(result[0], main[0] + auxiliary[0])


def test_a_task_alone_is_not_changed():
    main, nothing = rows(0, 4, 8), jnp.zeros((4, 8))
    np.testing.assert_array_equal(gradient(main, nothing), main)
    np.testing.assert_array_equal(gradient(nothing, nothing), nothing)


def test_opposite_gradients_leave_the_main_one():
    main = rows(0, 4, 8)
    result = gradient(main, -5 * main)
    assert np.isfinite(result).all()
    np.testing.assert_allclose(result, main, rtol=1e-5, atol=1e-5)
