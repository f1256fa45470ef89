"""The confidence of a teacher."""

import jax
import numpy as np
import scipy.stats

from jax_rele import losses

confidence = jax.jit(losses.confidence)


def test_confidence_is_the_entropy_that_is_missing():
    probs = np.random.default_rng(0).dirichlet(np.ones(5), (4, 3))
    expected = 1 - scipy.stats.entropy(probs, base=5, axis=-1)
    np.testing.assert_allclose(confidence(probs), expected, rtol=1e-5, atol=1e-6)


def test_confidence_is_a_weight():
    """From 0 to 1 and not a rounding error more, for zeros as well; NaN stays to be seen."""
    uniform = np.full((1, 7), 1 / 7, np.float32)
    result = np.concatenate([confidence(x) for x in (np.eye(7), uniform, np.full((1, 7), np.nan))])
    assert (result[:7] == 1.0).all()
    assert 0.0 <= result[7] < 1e-6
    assert np.isnan(result[8])
    assert np.isfinite(jax.jit(jax.grad(lambda x: losses.confidence(x).sum()))(np.eye(7))).all()
