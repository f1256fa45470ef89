"""Operations of programs against formulas written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st
from jax.experimental import pallas

from jax_rele.models import Decoder, DecoderConfig, LoraSpec
from jax_rele.plan.flops import flops

LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_DIM, MLP = 3, 32, 4, 2, 8, 48
BATCH, LENGTH = 2, 16
TOKENS = BATCH * LENGTH
DOWN = LAYERS * MLP * WIDTH
"""Weights of the last product of the blocks."""
WEIGHTS = LAYERS * (2 * WIDTH * HEADS * HEAD_DIM + 2 * WIDTH * KV_HEADS * HEAD_DIM + 2 * WIDTH * MLP) + DOWN
ATTENTION = LAYERS * 2 * (2 * BATCH * LENGTH * LENGTH * HEADS * HEAD_DIM)
"""Scores, and their product with the values."""
AGAIN = ATTENTION
"""The backward pass of `xla` attention computes both once more, whatever is kept of the rest."""
FORWARD = 2 * WEIGHTS * TOKENS + ATTENTION
sizes = st.integers(1, 7)


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


def decoder(remat="none", lora=None):
    model = Decoder(DecoderConfig(64, LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_DIM, MLP, remat=remat, lora=lora))
    tokens = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    variables = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), tokens))
    return model, variables, tokens


def hidden_sum(model, tokens):
    def total(learns, frozen, tokens):
        return model.apply({**learns, **frozen}, tokens).hidden.sum()

    return jax.grad(total)


@given(b=sizes, m=sizes, k=sizes, n=sizes)
def test_a_product_takes_two_operations_for_each_pair(b, m, k, n):
    assert flops(lambda x, y: jnp.einsum("bmk,bkn->bmn", x, y), shape(b, m, k), shape(b, k, n)) == 2 * b * m * k * n
    # Two contracted axes.
    assert flops(lambda x, y: jnp.einsum("bmk,bmk->", x, y), shape(b, m, k), shape(b, m, k)) == 2 * b * m * k


@given(features=sizes, kernel=sizes, out=sizes)
def test_a_convolution(features, kernel, out):
    def convolve(x, w):
        return jax.lax.conv_general_dilated(x, w, (1,), "VALID")

    assert flops(convolve, shape(2, features, 20), shape(out, features, kernel)) == (
        2 * 2 * out * (20 - kernel + 1) * features * kernel
    )


def test_a_scan_counts_as_often_as_it_runs_and_a_condition_by_its_costliest_branch():
    w = shape(4, 4)

    def scan(x, w):
        return jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=10)[0]

    def condition(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ w @ w, lambda x: x @ w, x)

    one = 2 * 4 * 4 * 4
    assert flops(scan, w, w) == 10 * one
    assert flops(jax.jit(scan), w, w) == 10 * one
    assert flops(jax.jit(condition), w, w) == 2 * one
    assert flops(lambda x, w: jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ w, x), w, w) == one


def test_what_nothing_reads_counts_nothing():
    assert flops(lambda x: (x @ x, x.sum())[1], shape(8, 8)) == 0


def test_a_kernel_cannot_be_counted():
    def double(x):
        def kernel(x, y):
            y[:] = 2 * x[:]

        return pallas.pallas_call(kernel, out_shape=shape(8), interpret=True)(x)

    with pytest.raises(ValueError, match="pallas_call"):
        flops(double, shape(8))


def test_the_decoder_reads():
    model, variables, tokens = decoder()
    assert sum(x.size for x in jax.tree.leaves(variables["params"]["layers"]) if x.ndim == 3) == WEIGHTS
    assert flops(lambda v, t: model.apply(v, t).hidden, variables, tokens) == FORWARD


def test_the_decoder_learns_for_three_times_what_it_reads_for():
    model, variables, tokens = decoder()
    assert flops(hidden_sum(model, tokens), variables, {}, tokens) == 3 * FORWARD + AGAIN


def test_recomputed_blocks_count_again_less_their_last_product():
    model, variables, tokens = decoder(remat="full")
    assert flops(hidden_sum(model, tokens), variables, {}, tokens) == 4 * FORWARD - 2 * DOWN * TOKENS + AGAIN


def test_adapters_save_the_gradients_of_the_base():
    rank = 4
    adapters = LAYERS * rank * (2 * (WIDTH + HEADS * HEAD_DIM) + 2 * (WIDTH + KV_HEADS * HEAD_DIM) + 3 * (WIDTH + MLP))
    model, variables, tokens = decoder(lora=LoraSpec(rank, 8.0))
    assert sum(x.size for x in jax.tree.leaves(variables["lora"])) == adapters
    learns, frozen = {"lora": variables["lora"]}, {"params": variables["params"]}
    # Forward and backward through the base, attention thrice, adapters thrice.
    expected = 2 * 2 * WEIGHTS * TOKENS + 3 * ATTENTION + AGAIN + 3 * 2 * adapters * TOKENS
    assert flops(hidden_sum(model, tokens), learns, frozen, tokens) == expected


def test_real_arrays_serve_as_well_as_shapes():
    x = np.zeros((3, 4), np.float32)
    assert flops(lambda x: x @ x.T, x) == 2 * 3 * 4 * 3
