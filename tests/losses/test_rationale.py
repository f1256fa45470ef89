"""Attention and its two masks."""

import jax
import numpy as np

from jax_rele import losses

B, L = 6, 8
loss = jax.jit(losses.attention_to_evidence)
summed = jax.jit(jax.value_and_grad(lambda *inputs: losses.attention_to_evidence(*inputs).sum()))


def make(seed=0):
    rng = np.random.default_rng(seed)
    tags, known = rng.integers(3, size=(B, L)), rng.random((B, L)) < 0.7
    known[0], tags[1] = False, 0
    return rng.dirichlet(np.ones(L), B).astype(np.float32), tags, known


def test_tokens_of_unknown_tag_do_not_matter():
    """Neither what they hold nor how much of the attention they take."""
    attention, tags, known = make()
    elements = loss(attention, tags, known)
    poisoned, strayed = np.where(known, attention, np.nan), np.where(known, tags, 7)
    np.testing.assert_array_equal(loss(poisoned, strayed, known), elements)
    np.testing.assert_allclose(
        losses.attention_to_evidence(0.1 * attention, tags, known), elements, rtol=1e-5, atol=1e-6
    )
    _, gradient = summed(poisoned, tags, known)
    assert np.isfinite(gradient).all()
    assert not gradient[~known].any()


def test_a_pair_without_evidence_is_zero():
    attention, tags, known = make()
    without = ~(known & (tags > 0)).any(-1)
    assert without[:2].all()
    assert not loss(attention, tags, known)[without].any()
    assert not summed(attention, tags, known)[1][without].any()


def test_a_step_downhill_moves_attention_to_the_evidence():
    _, tags, known = make()
    evidence = known & (tags > 0)

    @jax.jit
    @jax.grad
    def uphill(scores):
        return losses.attention_to_evidence(jax.nn.softmax(scores), tags, known).sum()

    downhill = -uphill(np.zeros((B, L), np.float32))
    for row in np.flatnonzero(evidence.any(-1) & (known & ~evidence).any(-1)):
        assert downhill[row][evidence[row]].min() > 0 > downhill[row][known[row] & ~evidence[row]].max()
