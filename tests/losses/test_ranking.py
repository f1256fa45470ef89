"""What holds of ranking losses alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rax
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_rele import losses

B, C = 8, 3
GAINS = np.array([1.0, 0.4, 0.0], np.float32)
in_list, margin_mse, listwise_kl, ranknet = (
    jax.jit(f) for f in (losses.in_list, losses.margin_mse, losses.listwise_kl, losses.ranknet)
)
pairwise_logistic, listwise_softmax = jax.jit(losses.pairwise_logistic), jax.jit(losses.listwise_softmax)

batches = st.tuples(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 3), min_size=B, max_size=B).map(np.array),
    st.lists(st.booleans(), min_size=B, max_size=B).map(np.array),
)


def scores(seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(B, C)).astype(np.float32), rng.dirichlet(np.ones(C), B).astype(np.float32)


def random_labels(seed):
    return np.random.default_rng(seed + 1).integers(C, size=B)


@settings(max_examples=50)
@given(batches)
def test_in_list_counts_valid_partners(batch):
    _, segments, valid = batch
    partners = [sum(valid & (segments == segment)) - 1 for segment in segments]
    np.testing.assert_array_equal(in_list(segments, valid), valid & (np.array(partners) > 0))
    np.testing.assert_array_equal(in_list(segments), [sum(segments == s) > 1 for s in segments])


@settings(max_examples=30)
@given(batches)
def test_a_pair_without_partner_is_zero(batch):
    seed, segments, valid = batch
    alone = ~np.asarray(in_list(segments, valid))
    logits, label_probs = scores(seed)
    for loss in (margin_mse, listwise_kl, ranknet):
        assert not np.asarray(loss(logits, label_probs, GAINS, segments, valid))[alone].any()
    for loss in (pairwise_logistic, listwise_softmax):
        assert not np.asarray(loss(logits, random_labels(seed), GAINS, segments, valid))[alone].any()


@settings(max_examples=30)
@given(batches, st.floats(0.05, 5.0))
def test_lists_sum_to_their_divergence(batch, temperature):
    seed, segments, valid = batch
    logits, label_probs = scores(seed)
    elements = np.asarray(listwise_kl(logits, label_probs, GAINS, segments, valid, temperature=temperature))
    student, teacher = scipy.special.softmax(logits.astype(float), axis=-1) @ GAINS, label_probs.astype(float) @ GAINS
    for segment in set(segments[valid].tolist()):
        members = valid & (segments == segment)
        p, q = (scipy.special.softmax(s[members] / temperature) for s in (teacher, student))
        divergence = temperature**2 * scipy.special.rel_entr(p, q).sum()
        np.testing.assert_allclose(elements[members].sum(), divergence, rtol=1e-4, atol=1e-5)


@settings(max_examples=30)
@given(batches, st.floats(0.05, 5.0))
def test_elements_sum_to_what_rax_says_of_each_list(batch, temperature):
    """Of one list at a time, by rax's mask and not by its segments."""
    seed, segments, valid = batch
    (logits, _), labels = scores(seed), random_labels(seed)
    arguments = logits, labels, GAINS, segments, valid
    by_pair = np.asarray(pairwise_logistic(*arguments, temperature=temperature), np.float64)
    by_list = np.asarray(listwise_softmax(*arguments, temperature=temperature), np.float64)
    student, gains = jax.nn.softmax(logits) @ GAINS / temperature, GAINS[labels]
    for segment in set(segments[valid].tolist()):
        members = valid & (segments == segment)
        worse = np.array([(gains[members] < gain).sum() for gain in gains])
        expected = pair_sum(student, gains, members), list_sum(student, gains, members)
        actual = (by_pair * worse)[members].sum(), by_list[members].sum()
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


pair_sum = jax.jit(lambda s, g, members: rax.pairwise_logistic_loss(s, g, where=members, reduce_fn=jnp.sum))
list_sum = jax.jit(lambda s, g, members: rax.softmax_loss(s, g, where=members, reduce_fn=jnp.sum))


@pytest.mark.parametrize("loss", [margin_mse, listwise_kl, ranknet])
def test_only_differences_within_a_query_matter(loss):
    """A teacher that is more generous by a constant on every item of a query asks the same of the student."""
    segments = jnp.array([5, 5, 5, 9, 9, 9, 9, 2])
    logits, label_probs = scores(0)
    generous = 0.5 * label_probs
    stingy = generous + np.array([0.0, 0.0, 0.5], np.float32)
    generous = generous + np.array([0.5, 0.0, 0.0], np.float32)
    np.testing.assert_allclose(
        loss(logits, stingy, GAINS, segments), loss(logits, generous, GAINS, segments), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("loss", [margin_mse, listwise_kl, ranknet, pairwise_logistic, listwise_softmax])
def test_gradient_ranks_the_items(loss):
    """One step downhill from an undecided student raises the item that the teacher prefers over its partner."""
    label_probs = jnp.array([[0.9, 0.1, 0.0], [0.1, 0.1, 0.8]])
    taught = label_probs.argmax(-1) if loss in (pairwise_logistic, listwise_softmax) else label_probs
    downhill = jax.jit(jax.grad(lambda logits: loss(logits, taught, GAINS, jnp.array([1, 1])).sum()))
    gradient = downhill(jnp.zeros((2, C)))
    gained = jax.nn.softmax(-gradient) @ GAINS
    assert gained[0] > gained[1]
