"""Advantages within groups, and that the gradient of `grpo` is the policy gradient where nothing has moved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_rele import losses

REWARDS = np.array([[1.0, 0.0, 0.5], [0.2, 0.2, 0.2], [0.0, 0.0, 1.0]])


@pytest.mark.parametrize("scale", [True, False])
def test_advantages_are_differences_to_the_group(scale):
    advantages = np.asarray(losses.group_advantages(REWARDS, scale=scale))
    for rewards, row in zip(REWARDS, advantages):
        expected = rewards - rewards.mean()
        np.testing.assert_allclose(row, expected / (rewards.std(ddof=1) + 1e-4) if scale else expected, atol=1e-6)
    np.testing.assert_array_equal(advantages[1], 0.0)


def test_equal_rewards_that_rounding_separates_from_their_mean_have_no_advantage():
    assert not np.asarray(losses.group_advantages(np.full((3, 7), 0.1))).any()


def test_at_the_old_model_the_gradient_is_that_of_reinforce():
    rng = np.random.default_rng(0)
    log_probs, advantages = (jnp.asarray(rng.normal(size=(4, 5)), jnp.float32) for _ in range(2))

    def loss(log_probs, old):
        return losses.grpo(log_probs, old, log_probs, advantages, kl_weight=0.0).sum()

    np.testing.assert_allclose(jax.grad(loss)(log_probs, log_probs), -advantages, rtol=1e-6)


def test_what_has_moved_too_far_teaches_nothing_more():
    old, advantages = jnp.zeros((1, 4)), jnp.array([[1.0, 1.0, -1.0, -1.0]])
    moved = jnp.log(jnp.array([[1.3, 0.7, 1.3, 0.7]]))
    gradient = jax.grad(lambda x: losses.grpo(x, old, x, advantages, kl_weight=0.0).sum())(moved)
    np.testing.assert_allclose(gradient, [[0.0, -0.7, 1.3, 0.0]], rtol=1e-6)
