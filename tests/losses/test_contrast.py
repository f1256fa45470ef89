"""Who is whose positive and negative."""

import jax
import numpy as np
import pytest

from jax_rele import losses

B, D, K, V = 8, 2, 5, 3
view_contrast, rationale_contrast = jax.jit(losses.view_contrast), jax.jit(losses.rationale_contrast)


def make(seed=0):
    rng = np.random.default_rng(seed)
    views = rng.normal(size=(2, B, D, K)).astype(np.float32)
    views /= np.linalg.norm(views, axis=-1, keepdims=True)
    return *views, rng.dirichlet(np.ones(V), (B, D)).astype(np.float32), np.arange(B) // 4


def test_a_masked_verdict_is_as_good_as_an_absent_one():
    """The mask of elements: nobody's negative, on its dimension alone."""
    query, item, verdicts, segments = make()
    mask = np.random.default_rng(1).random((B, D)) < 0.6
    absent = np.where(mask[..., None], verdicts, np.float32([0, 0, 1]))
    masked = view_contrast(query, item, np.where(mask[..., None], verdicts, np.nan), segments, mask)
    np.testing.assert_allclose(masked, view_contrast(query, item, absent, segments), rtol=1e-6)
    assert not np.allclose(masked, view_contrast(query, item, verdicts, segments), rtol=1e-3)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_verdicts_of_one_kind_ask_for_nothing(kind):
    query, item, _, segments = make()
    verdicts = np.broadcast_to(np.eye(V, dtype=np.float32)[kind], (B, D, V))
    assert not view_contrast(query, item, verdicts, segments).any()


def test_a_step_downhill_parts_match_from_mismatch():
    query, item, _, segments = make()
    verdicts = np.eye(V, dtype=np.float32)[np.tile([[0], [1], [2], [0]], (B // 4, D))]

    def loss(item):
        return view_contrast(query, item, verdicts, segments, temperature=0.5).sum()

    moved = (query * -jax.grad(loss)(item)).sum(-1)  # along each pair's own query
    assert (moved[::4] > 0).all()
    assert not moved[2::4].any()
    first = np.repeat(query[::4], 4, axis=0)  # both queries have matches; the mismatch leaves the first of them
    gradient = jax.grad(lambda item: view_contrast(query, item, verdicts, segments)[::4].sum())(item)
    assert ((first * gradient).sum(-1)[1::4] > 0).all()


def test_masked_rows_are_nobodys_negative():
    rng = np.random.default_rng(0)
    plain, augmented = rng.normal(size=(2, B, K)).astype(np.float32)
    mask = np.arange(B) == 3
    np.testing.assert_allclose(rationale_contrast(plain, augmented, mask), 0.0, atol=1e-6)


def test_a_representation_of_zeros_has_a_finite_gradient():
    rng = np.random.default_rng(0)
    augmented = rng.normal(size=(B, K)).astype(np.float32)
    gradient = jax.grad(lambda plain: rationale_contrast(plain, augmented).sum())(np.zeros((B, K), np.float32))
    assert np.isfinite(gradient).all()
