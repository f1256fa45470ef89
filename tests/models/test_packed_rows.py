"""An encoder whose layers read packed rows computes what it computes of padded ones, and no text reads another."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_rele.config import MeshConfig
from jax_rele.data.batches.packed_rows import Parts, pack_rows
from jax_rele.models import Encoder
from jax_rele.models.packed_rows import pack, unpack
from jax_rele.models.partitioning import use
from jax_rele.training import make_mesh, shard_batch

from .test_encoder import CONFIGS, random_variables

LENGTH, ROWS, PACKED = 14, 8, 24


def inputs_of(lengths, seed=0, parts=1, rows=6):
    """Tokens, types and valid [B, L] of rows of these lengths, and their packing."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 40, (len(lengths), LENGTH)).astype(np.int32)
    types = (np.arange(LENGTH) >= rng.integers(0, LENGTH, (len(lengths), 1))).astype(np.int32)
    valid = np.arange(LENGTH) < np.array(lengths)[:, None]
    packing = pack_rows(np.array(lengths), LENGTH, rows, PACKED, Parts(parts, 1, 1))
    assert packing is not None
    return (tokens, types, valid), packing


def at_valid(x, valid):
    return np.where(valid[..., None], x, 0)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", CONFIGS)
def test_packed_rows_give_the_outputs_and_gradients_of_padded_ones(name, parts):
    config = CONFIGS[name]
    model, variables = Encoder(config), random_variables(config)
    inputs, packing = inputs_of([14, 3, 9, 1, 11, 5, 7, 2], parts=parts, rows=6 // parts)
    weights = np.random.default_rng(3).normal(size=(ROWS, LENGTH, config.width)).astype(np.float32)

    @jax.jit
    def run(variables, packing):
        def loss(variables):
            hidden = model.apply(variables, *inputs, packing=packing)
            return jnp.sum(jnp.where(inputs[2][..., None], hidden, 0) * weights), hidden

        return jax.grad(loss, has_aux=True)(variables)

    (padded_grads, padded), (packed_grads, packed) = run(variables, None), run(variables, packing)
    np.testing.assert_allclose(packed, at_valid(padded, inputs[2]), atol=1e-5)
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(padded_grads), jax.tree.leaves(packed_grads)):
        scale = max(1.0, float(np.abs(one).max()))
        np.testing.assert_allclose(other / scale, one / scale, atol=1e-5, err_msg=jax.tree_util.keystr(path))


@pytest.fixture(scope="module", params=CONFIGS)
def encoder(request):
    config = dataclasses.replace(CONFIGS[request.param], layers=2, rope_thetas=CONFIGS[request.param].rope_thetas[:2],
                                 windows=CONFIGS[request.param].windows[:2])  # fmt: skip
    model, variables = Encoder(config), random_variables(config)
    return jax.jit(lambda *inputs, packing: model.apply(variables, *inputs, packing=packing))


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, LENGTH), min_size=ROWS, max_size=ROWS),
    changed=st.integers(0, ROWS - 1),
    seed=st.integers(0, 9),
)
def test_no_text_reads_another(encoder, lengths, changed, seed):
    (tokens, types, valid), packing = inputs_of(lengths, seed)
    before = encoder(tokens, types, valid, packing=packing)
    other = tokens.copy()
    other[changed] = (other[changed] + 1 + np.arange(LENGTH)) % 40
    after = encoder(other, types, valid, packing=packing)
    unchanged = np.arange(ROWS) != changed
    np.testing.assert_array_equal(np.asarray(before)[unchanged], np.asarray(after)[unchanged])
    assert np.abs(np.asarray(before)[changed] - np.asarray(after)[changed]).max() > 1e-4
    # What stands in padding is not read at all.
    noise = np.where(valid, tokens, (tokens + 1) % 40)
    np.testing.assert_array_equal(before, encoder(noise, types, valid, packing=packing))


def test_rows_that_are_left_out_are_zeros_and_have_no_gradient():
    _, packing = inputs_of([5, 0, 14, 0])
    x = jax.random.normal(jax.random.key(0), (*packing["source"].shape[1:], 3))
    y, pull = jax.vjp(lambda x: unpack(packing, x), x)
    assert not np.asarray(y)[[1, 3]].any()
    assert not np.asarray(y)[0, 5:].any()
    assert np.asarray(y)[0, :5].all()
    # The gradient by gathering is that of a plain gather.
    cotangent = jax.random.normal(jax.random.key(1), y.shape)
    target = packing["target"]

    def plain(x):
        rows = jnp.where((target >= 0)[..., None], x.reshape(-1, 3)[jnp.maximum(target, 0)], 0)
        return (rows * cotangent).sum()

    np.testing.assert_allclose(pull(cotangent)[0], jax.grad(plain)(x), atol=1e-6)


def test_integers_and_segments_of_packed_tokens():
    _, packing = inputs_of([10, 14, 9])
    numbers = np.arange(LENGTH)[None]
    (columns, rows), segments = pack(packing, numbers, np.arange(3)[:, None] * np.ones((1, LENGTH), np.int32))
    assert columns.shape == segments.shape == packing["source"].shape[1:]
    for row, length in enumerate([10, 14, 9]):
        there = np.asarray(segments) == row + 1
        assert np.asarray(columns)[there].tolist() == list(range(length))
        assert (np.asarray(rows)[there] == row).all()
    assert (np.asarray(segments) > 0).sum() == 33


def test_the_attention_of_the_first_token_needs_padded_rows():
    inputs, packing = inputs_of([3] * ROWS)
    with pytest.raises(ValueError, match="leave out the packing"):
        Encoder(CONFIGS["bert"]).apply(random_variables(CONFIGS["bert"]), *inputs, packing=packing, attention=True)


def test_devices_pack_their_own_rows_and_send_no_more_than_padded_ones():
    mesh = make_mesh(MeshConfig(data=4, fsdp=2), jax.devices()[:8])
    config, length = CONFIGS["bert"], LENGTH
    model, variables = Encoder(config), random_variables(config)
    inputs, packing = inputs_of([*range(1, 9)] * 4, parts=8, rows=2)
    sharded = shard_batch({"inputs": inputs, "packing": packing}, mesh)

    def loss(variables, batch, packed):
        packing = batch["packing"] if packed else None
        hidden = model.apply(variables, *batch["inputs"], packing=packing)
        return jnp.where(batch["inputs"][2][..., None], hidden, 0).astype(jnp.float32).mean()

    texts, results = {}, {}
    for packed in (False, True):
        with use(mesh):
            step = jax.jit(jax.value_and_grad(loss), static_argnums=2).lower(variables, sharded, packed).compile()
        texts[packed] = step.as_text()
        results[packed] = step(variables, sharded)
    kinds = r" (all-[a-z]+|collective-[a-z]+|reduce-scatter)[a-z-]*\("
    assert set(re.findall(kinds, texts[True])) == set(re.findall(kinds, texts[False])) == {"all-reduce"}
    assert f"[2,{PACKED},{config.mlp_width}]" in texts[True]
    assert f"[4,{length},{config.mlp_width}]" not in texts[True]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), results[True], results[False])
