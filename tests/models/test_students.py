"""The students: what may and may not change their answers, and items encoded offline."""

from functools import partial

import flax
import jax
import numpy as np
import pytest
from flax import linen as nn

from jax_rele.models import CrossEncoder, EncoderConfig, TwoTower

CONFIG = EncoderConfig(vocab_size=40, max_length=20, layers=2, width=32, heads=4, mlp_width=48)
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(3, 40, (4, 12)).astype(np.int32)
VALID = np.arange(12) < np.array([12, 7, 9, 10])[:, None]
TYPES = (np.arange(12) >= 5).astype(np.int32)[None].repeat(4, 0)
QUERY, QUERY_VALID = TOKENS[:, :6], VALID[:, :6]


def ready(model, *inputs):
    """A compiled apply over fixed random variables."""
    variables = jax.jit(lambda rng: nn.unbox(model.init(rng, *inputs)))(jax.random.key(0))
    return jax.jit(partial(model.apply, variables), static_argnames=("method", "deterministic", "token_type"))


@pytest.fixture(scope="module")
def cross():
    return ready(CrossEncoder(CONFIG, labels=4, dimensions=3), TOKENS, TYPES, VALID)


@pytest.fixture(scope="module")
def towers():
    model = TwoTower(CONFIG, labels=4, dimensions=3, embedding_width=16, view_width=8)
    return ready(model, QUERY, QUERY_VALID, TOKENS, VALID)


def test_shapes_of_the_heads(cross, towers):
    out = cross(TOKENS, TYPES, VALID)
    assert (out.logits.shape, out.verdict_logits.shape, out.token_logits.shape) == ((4, 4), (4, 3, 3), (4, 12, 4))
    out = towers(QUERY, QUERY_VALID, TOKENS, VALID)
    assert (out.logits.shape, out.verdict_logits.shape, out.query_embedding.shape) == ((4, 4), (4, 3, 3), (4, 16))
    assert out.token_logits is None


def test_padding_does_not_matter(cross, towers):
    other = np.where(VALID, TOKENS, 1)
    a, b = (cross(tokens, TYPES, VALID) for tokens in (TOKENS, other))
    np.testing.assert_allclose(a.logits, b.logits, atol=1e-6)
    np.testing.assert_allclose(np.where(VALID[..., None], a.token_logits - b.token_logits, 0), 0, atol=1e-6)
    longer = np.pad(TOKENS, ((0, 0), (0, 5))), np.pad(VALID, ((0, 0), (0, 5)))
    a = towers(QUERY, QUERY_VALID, TOKENS, VALID)
    b = towers(QUERY, QUERY_VALID, *longer)
    np.testing.assert_allclose(a.logits, b.logits, atol=1e-6)


def test_rows_do_not_see_each_other(cross):
    order = np.array([2, 0, 3, 1])
    a = cross(TOKENS, TYPES, VALID).logits[order]
    b = cross(TOKENS[order], TYPES[order], VALID[order]).logits
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_items_encoded_offline_give_the_same_answers(towers):
    whole = towers(QUERY, QUERY_VALID, TOKENS, VALID)
    items = towers(TOKENS, VALID, token_type=1, method="encode")
    queries = towers(QUERY, QUERY_VALID, token_type=0, method="encode")
    apart = towers(queries, items, method="compare")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole, apart)
    np.testing.assert_allclose(np.linalg.norm(items, axis=-1), 1, atol=1e-5)


def test_a_fresh_two_tower_ranks_by_cosine(towers):
    rng = np.random.default_rng(1)
    u, v = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in rng.normal(size=(2, 64, 16)))
    logits = np.asarray(towers(u, v, method="compare").logits)
    best = np.exp(logits[:, 0]) / np.exp(logits).sum(-1)
    np.testing.assert_array_equal(np.argsort(best), np.argsort((u * v).sum(-1)))


def test_dropout_needs_its_rng_and_changes_the_answer(cross):
    noisy = cross(TOKENS, TYPES, VALID, deterministic=False, rngs={"dropout": jax.random.key(0)})
    assert np.abs(noisy.logits - cross(TOKENS, TYPES, VALID).logits).max() > 1e-3
    with pytest.raises(flax.errors.InvalidRngError):
        cross(TOKENS, TYPES, VALID, deterministic=False)


def test_too_long_a_text_is_refused(cross):
    long = np.ones((1, 21), np.int32)
    with pytest.raises(ValueError, match="21 tokens, but the encoder has 20 positions"):
        cross(long, long, long > 0)
