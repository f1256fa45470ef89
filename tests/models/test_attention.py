"""The one entry to attention against the formula."""

import numpy as np
import pytest

from jax_rele.models import Mask, attention, rotary

RNG = np.random.default_rng(0)


def formula(q, k, v, allowed):
    out = np.zeros_like(q)
    group = q.shape[2] // k.shape[2]
    for b, i, h in np.ndindex(q.shape[:3]):
        scores = np.where(allowed[b, i], k[b, :, h // group] @ q[b, i, h] / np.sqrt(q.shape[-1]), -np.inf)
        weights = np.exp(scores - scores.max())
        out[b, i, h] = weights @ v[b, :, h // group] / weights.sum()
    return out


@pytest.mark.parametrize("kind", ["causal", "padding", "both", "all"])
def test_equals_the_formula(kind):
    q, k, v = RNG.normal(size=(2, 5, 4, 8)), *RNG.normal(size=(2, 2, 7, 2, 8))
    query_positions, key_positions = np.array([[2, 3, 4, 5, 6], [0, 1, 2, 3, 4]]), np.arange(7)[None]
    valid = np.array([[1, 1, 1, 1, 1, 0, 0], [1, 1, 0, 1, 1, 1, 1]], bool)
    allowed = np.ones((2, 5, 7), bool)
    mask = {}
    if kind in ("causal", "both"):
        allowed &= key_positions[:, None] <= query_positions[..., None]
        mask |= {"causal": True, "query_positions": query_positions, "key_positions": key_positions}
    if kind in ("padding", "both"):
        allowed &= valid[:, None]
        mask["key_valid"] = valid
    ours = attention(*(x.astype(np.float32) for x in (q, k, v)), Mask(**mask))
    np.testing.assert_allclose(ours, formula(q, k, v, allowed), atol=1e-5)


def test_rotary_scores_depend_on_the_distance_alone():
    q, k = RNG.normal(size=(2, 1, 1, 1, 16)).astype(np.float32)

    def score(i, j):
        at = (rotary(x, np.array([[p]]), 10_000.0) for x, p in ((q, i), (k, j)))
        return float(np.sum(np.prod([np.asarray(x) for x in at], axis=0)))

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)
    assert abs(score(7, 3) - score(7, 4)) > 1e-3
