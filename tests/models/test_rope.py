"""Rotary positions against the papers' equations."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jax_rele.models import Rope, rotary

HEAD_DIM = 64
PLAIN = 10_000.0 ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)


def test_plain_frequencies_are_those_of_the_paper():
    np.testing.assert_allclose(Rope().frequencies(HEAD_DIM), PLAIN, rtol=3e-7)


def test_linear_divides_positions():
    x = np.random.default_rng(0).standard_normal((1, 5, 2, HEAD_DIM), np.float32)
    stretched = rotary(x, jnp.array([[0, 4, 8, 12, 400]]), Rope(kind="linear", factor=4.0))
    np.testing.assert_allclose(stretched, rotary(x, jnp.array([[0, 1, 2, 3, 100]]), Rope()), atol=1e-5)


def test_llama3_keeps_short_wavelengths_divides_long_ones_and_fades_between():
    rope = Rope(kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_length=512)
    wavelengths, frequencies = 2 * math.pi / PLAIN, rope.frequencies(HEAD_DIM)
    short, long = wavelengths < 512 / 4, wavelengths > 512 / 1
    np.testing.assert_allclose(frequencies[short], PLAIN[short], rtol=1e-6)
    np.testing.assert_allclose(frequencies[long], PLAIN[long] / 8, rtol=1e-6)
    between = ~short & ~long
    assert between.any()
    assert np.all((frequencies[between] < PLAIN[between]) & (frequencies[between] > PLAIN[between] / 8))


def test_yarn_fades_with_the_logarithm_of_the_turns_over_the_old_context():
    """Places are linear in that logarithm, so without truncation the ramp is too."""
    rope = Rope(kind="yarn", factor=4.0, original_length=4096, beta_fast=16.0, beta_slow=2.0, truncate=False)
    turns = 4096 * PLAIN / (2 * math.pi)
    unstretched = np.clip(np.log(turns / 2) / np.log(16 / 2), 0, 1)
    assert 0 < unstretched[np.argmin(np.abs(unstretched - 0.5))] < 1
    np.testing.assert_allclose(
        rope.frequencies(HEAD_DIM), unstretched * PLAIN + (1 - unstretched) * PLAIN / 4, rtol=1e-5
    )


def test_truncated_yarn_fades_between_whole_places():
    rope = Rope(kind="yarn", factor=4.0, original_length=4096)
    turns = 4096 * PLAIN / (2 * math.pi)
    low, high = np.flatnonzero(turns > 32)[-1], np.flatnonzero(turns < 1)[0]
    unstretched = np.clip(1 - (np.arange(HEAD_DIM // 2) - low) / (high - low), 0, 1)
    np.testing.assert_allclose(
        rope.frequencies(HEAD_DIM), unstretched * PLAIN + (1 - unstretched) * PLAIN / 4, rtol=1e-5
    )


def test_yarn_scales_queries_and_keys():
    assert Rope(kind="yarn", factor=4.0, original_length=64).scale == pytest.approx(0.1 * math.log(4) + 1)
    assert Rope(kind="yarn", factor=4.0, original_length=64, attention_factor=1.5).scale == 1.5
    assert Rope(kind="llama3", factor=4.0, original_length=64).scale == 1.0
    x = np.ones((1, 3, 1, HEAD_DIM), np.float32)
    scaled = rotary(x, jnp.arange(3)[None], Rope(kind="yarn", factor=1.0, original_length=64, attention_factor=1.5))
    np.testing.assert_allclose(scaled, 1.5 * rotary(x, jnp.arange(3)[None], Rope()), atol=1e-6)


def test_scores_depend_on_the_distance_alone():
    query, key = np.random.default_rng(1).standard_normal((2, 1, 1, 1, HEAD_DIM), np.float32)

    def score(at, distance):
        return (rotary(query, jnp.array([[at]]), Rope()) * rotary(key, jnp.array([[at - distance]]), Rope())).sum()

    np.testing.assert_allclose(score(7, 5), score(105, 5), rtol=1e-4)
    assert abs(score(7, 5) - score(7, 6)) > 1e-2
