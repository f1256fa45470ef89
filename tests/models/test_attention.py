"""The one entry to attention against the formula in float64, forward and backward, whatever computes it."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st

from jax_rele import config
from jax_rele.errors import UserError
from jax_rele.models import Decoder, DecoderConfig, LoraSpec, Mask, attention, splash
from jax_rele.training import make_mesh
from jax_rele.training.sharding import use

RNG = np.random.default_rng(0)
MASKS = ["causal", "segments", "window", "all"]
"""What the decoder uses: causality alone, with segments, with a window, and all three."""


def formula(q, k, v, weights, allowed):
    """Attention and the gradients of `sum(weights * attention)`, from the equations, in float64."""
    q, k, v, weights = (np.asarray(x, np.float64) for x in (q, k, v, weights))
    group, scale = q.shape[2] // k.shape[2], q.shape[-1] ** -0.5
    wide_k, wide_v = np.repeat(k, group, 2), np.repeat(v, group, 2)
    scores = np.where(allowed[:, None], np.einsum("bihd,bjhd->bhij", q, wide_k) * scale, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    dp = np.einsum("bihd,bjhd->bhij", weights, wide_v)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) * scale

    def narrow(x):
        return x.reshape(*k.shape[:3], group, -1).sum(3)

    return np.einsum("bhij,bjhd->bihd", p, wide_v), (
        np.einsum("bhij,bjhd->bihd", ds, wide_k),
        narrow(np.einsum("bhij,bihd->bjhd", ds, q)),
        narrow(np.einsum("bhij,bihd->bjhd", p, weights)),
    )


def example(kind, length, *, rows=2, heads=4, kv_heads=2, head_dim=16):
    """(query, key, value, weights of a sum), the mask, and [B, L, L] of the same mask by its definition."""
    q, weights = RNG.normal(size=(2, rows, length, heads, head_dim)).astype(np.float32)
    k, v = RNG.normal(size=(2, rows, length, kv_heads, head_dim)).astype(np.float32)
    i, j = np.indices((length, length))
    allowed = np.broadcast_to(i >= j, (rows, length, length))
    mask = Mask(causal=True)
    if kind in ("segments", "all"):
        segments = np.zeros((rows, length), np.int32)
        for row in segments:
            first, second, end = sorted(RNG.choice(np.arange(1, length), 3, replace=False))
            row[:first], row[first:second], row[second:end] = 1, 2, 3
        allowed = allowed & (segments[:, :, None] == segments[:, None, :])
        mask = dataclasses.replace(mask, query_segments=segments, key_segments=segments)
    if kind in ("window", "all"):
        allowed = allowed & (i - j < 7)
        mask = dataclasses.replace(mask, window=7)
    return (q, k, v, weights), mask, allowed


def run(arrays, mask, implementation):
    """Attention, and the gradients of its weighted sum."""

    @jax.jit
    def outputs(q, k, v, weights):
        def weighted(q, k, v):
            out = attention(q, k, v, mask, implementation)
            return (out.astype(jnp.float32) * weights).sum(), out

        grads, out = jax.grad(weighted, (0, 1, 2), has_aux=True)(q, k, v)
        return out, grads

    return jax.tree.map(lambda x: np.asarray(x, np.float32), outputs(*arrays))


def agree(ours, theirs, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance), ours, theirs)


@pytest.mark.parametrize(("kind", "length"), [*((kind, 40) for kind in MASKS), ("all", 301)])
def test_xla_equals_the_formula_forward_and_backward(kind, length):
    arrays, mask, allowed = example(kind, length)
    agree(run(arrays, mask, "xla"), formula(*arrays, allowed))


@pytest.mark.parametrize(("kind", "kv_heads"), [("causal", 1), ("segments", 4), ("window", 2), ("all", 2)])
def test_splash_equals_the_formula_over_several_blocks_forward_and_backward(monkeypatch, kind, kv_heads):
    monkeypatch.setattr(splash, "BLOCK", 128)
    arrays, mask, allowed = example(kind, 300, kv_heads=kv_heads)
    agree(run(arrays, mask, "splash"), formula(*arrays, allowed))


@pytest.mark.parametrize("kind", ["causal", "padding", "both", "all"])
def test_xla_also_takes_positions_and_padding(kind):
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
    np.testing.assert_allclose(ours, formula(q, k, v, q, allowed)[0], atol=1e-5)


@pytest.mark.parametrize("length", [9, 70])
@pytest.mark.parametrize("traced", [False, True])
def test_a_window_of_a_mask_that_is_not_causal_reaches_to_both_sides(length, traced):
    (q, k, v, weights), _, _ = example("causal", length)
    i, j = np.indices((length, length))
    valid = np.arange(length) < np.array([length, length - 3])[:, None]
    window = jnp.int32(5) if traced else 5
    allowed = (np.abs(i - j) < 5) & valid[:, None]
    # A query whose keys are all masked says nothing.
    weights = weights * allowed.any(-1)[..., None, None]
    ours = run((q, k, v, weights), Mask(window=window, key_valid=valid), "xla")
    theirs = formula(q, k, v, weights, allowed | ~allowed.any(-1, keepdims=True))
    agree((ours[0] * (weights != 0), ours[1]), (theirs[0] * (weights != 0), theirs[1]))
    assert Mask(window=0).dense(length, length) is None
    with pytest.raises(ValueError, match="causal, the mask is not"):
        attention(q, k, v, Mask(window=5), "splash")


@given(st.integers(1, 40_000))
def test_blocks_cover_any_length_with_little_to_spare(length):
    block, padded = splash.block_sizes(length)
    count = padded // block
    assert padded == block * count >= length
    assert block % splash.VECTOR_WIDTH == 0
    assert block <= splash.BLOCK
    assert (count - 1) * splash.BLOCK < length
    assert padded - length < count * splash.VECTOR_WIDTH


# ---- meshes and platforms


def test_on_a_mesh_each_device_runs_its_own_rows_and_heads():
    arrays, mask, allowed = example("all", 24, rows=4)
    with use(make_mesh(config.MeshConfig(data=2, fsdp=2, tensor=2))) as _:
        agree(run(arrays, mask, "splash"), formula(*arrays, allowed))
        rows = jax.sharding.PartitionSpec(("data", "fsdp"), None, "tensor")
        split = [jax.device_put(x, rows) for x in arrays[:3]]
        program = jax.jit(lambda q, k, v: attention(q, k, v, Mask(causal=True), "splash")).lower(*split).compile()
    assert not re.search("all-gather|all-reduce|all-to-all|collective-permute", program.as_text())
    assert program.output_shardings.spec == rows


def test_on_a_mesh_rows_that_do_not_divide_are_not_split():
    arrays, mask, allowed = example("segments", 24, rows=3)
    with use(make_mesh(config.MeshConfig(data=4, fsdp=1, tensor=2))):
        agree(run(arrays, mask, "splash"), formula(*arrays, allowed))


def test_heads_that_do_not_divide_over_the_mesh_are_refused_in_one_line():
    arrays, mask, _ = example("causal", 24, heads=8, kv_heads=2)
    message = "^mesh: 2 key and value heads do not divide over tensor = 4; change `mesh` in the config$"
    with use(make_mesh(config.MeshConfig(data=2, fsdp=1, tensor=4))), pytest.raises(UserError, match=message):
        attention(*arrays[:3], mask, "splash")


@pytest.mark.parametrize("kind", MASKS)
def test_a_program_lowered_for_a_tpu_on_a_cpu_holds_the_compiled_kernels(kind):
    arrays, mask, _ = example(kind, 40)
    grads = jax.jit(jax.grad(lambda q, k, v: attention(q, k, v, mask, "splash").sum(), (0, 1, 2)))
    kernels = {
        platform: grads.trace(*arrays[:3]).lower(lowering_platforms=(platform,)).as_text().count("tpu_custom_call")
        for platform in ("tpu", "cpu")
    }
    assert kernels == {"tpu": 3, "cpu": 0}  # forward, gradient of queries, gradient of keys and values


def test_a_decoder_computes_the_same_with_splash_on_packed_rows():
    shape = DecoderConfig(
        vocab_size=50, layers=2, width=32, heads=4, kv_heads=2, head_dim=8, mlp_width=48, windows=(6, 6),
        lora=LoraSpec(4, 8.0, targets="q_proj"),
    )  # fmt: skip
    tokens = RNG.integers(0, 50, (2, 20))
    segments = np.array([[1] * 8 + [2] * 9 + [0] * 3, [1] * 20])
    positions = np.array([[*range(8), *range(9), *range(3)], [*range(20)]])
    variables = nn.unbox(jax.jit(Decoder(shape).init)(jax.random.key(0), tokens))
    variables["lora"] = jax.tree.map(lambda x: x + 0.1, variables["lora"])

    def value_and_grad(implementation):
        @jax.jit
        def loss(lora):
            model = Decoder(dataclasses.replace(shape, attention=implementation))
            hidden = model.apply({**variables, "lora": lora}, tokens, positions, segments).hidden
            return (hidden * np.cos(np.arange(hidden.size)).reshape(hidden.shape)).mean()

        return jax.value_and_grad(loss)(variables["lora"])

    agree(value_and_grad("splash"), value_and_grad("xla"))


# ---- cudnn, as far as it goes without a GPU


@pytest.fixture
def gpu(monkeypatch):
    """The process believes that it has a GPU with cuDNN, which is enough to trace and lower for one."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)


@pytest.mark.parametrize("length", [40, 41])
@pytest.mark.parametrize("kind", MASKS)
def test_cudnn_lowers_to_flash_attention_forward_and_backward(gpu, kind, length):
    arrays, mask, _ = example(kind, length)
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in arrays[:3]]
    grads = jax.jit(jax.grad(lambda q, k, v: attention(q, k, v, mask, "cudnn").astype(jnp.float32).sum(), (0, 1, 2)))
    lowered = grads.trace(*arrays).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    name = "fmhaScaleBiasSoftmax" if kind in ("segments", "all") else "fmhaSoftmax"
    assert re.findall(r"__cudnn\$(\w+)", text) == [name, name + "Backward"]
    assert set(re.findall(r"mask_type\\22: \\22(\w+)", text)) == {"CAUSAL"}
    assert set(re.findall(r"sliding_window_length\\22: (\d+)", text)) == {"7" if kind == "window" else "0"}
    assert [out.shape for out in jax.tree.leaves(lowered.out_info)] == [x.shape for x in arrays]


@pytest.mark.parametrize("length", [40, 41])
@pytest.mark.parametrize("kind", MASKS)
def test_what_cudnn_is_asked_for_is_the_mask(gpu, monkeypatch, kind, length):
    """JAX's `xla` and `cudnn` take the same arguments: here the first computes what the second would be asked for."""
    asked = jax.nn.dot_product_attention
    monkeypatch.setattr(
        jax.nn,
        "dot_product_attention",
        lambda *args, implementation, **kwargs: asked(*args, **kwargs, implementation={"cudnn": "xla"}[implementation]),
    )
    arrays, mask, allowed = example(kind, length)
    arrays = [np.asarray(x, jnp.bfloat16) for x in arrays[:3]] + [arrays[3]]
    agree(run(arrays, mask, "cudnn"), formula(*arrays, allowed), tolerance=0.05)


def test_cudnn_on_other_hardware_dtypes_and_sizes_is_refused_in_one_line(monkeypatch):
    arrays, mask, _ = example("causal", 8, head_dim=12)
    with pytest.raises(UserError, match=r"^attention: cudnn needs an NVIDIA GPU, not cpu; .* xla$"):
        attention(*arrays[:3], mask, "cudnn")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(UserError, match=r"^attention: cudnn takes 16-bit numbers, not float32; .* bfloat16$"):
        attention(*arrays[:3], mask, "cudnn")
    with pytest.raises(UserError, match=r"^attention: cudnn takes heads .* multiple of 8 up to 256, not 12; .* xla$"):
        attention(*(jnp.asarray(x, jnp.bfloat16) for x in arrays[:3]), mask, "cudnn")
    with pytest.raises(UserError, match=r"^attention: splash is a kernel for TPUs; .* cudnn or xla$"):
        attention(*arrays[:3], mask, "splash")


# ---- masks that only xla can do


@pytest.mark.parametrize("implementation", ["cudnn", "splash"])
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Mask(causal=True, query_positions=np.arange(8)[None]), "query_positions"),
        (Mask(causal=True, key_positions=np.arange(8)[None]), "key_positions"),
        (Mask(causal=True, key_valid=np.ones((2, 8), bool)), "key_valid"),
        (Mask(), "is causal, the mask is not"),
        (Mask(causal=True, window=jnp.int32(3)), "one window for all layers"),
    ],
)
def test_a_mask_that_cannot_be_done_is_refused_by_name(implementation, mask, message):
    arrays, _, _ = example("causal", 8)
    with pytest.raises(ValueError, match=f"^{implementation} attention .*{message}.*; use xla$"):
        attention(*arrays[:3], mask, implementation)


@pytest.mark.parametrize("implementation", ["cudnn", "splash"])
def test_other_lengths_of_keys_than_of_queries_are_refused(implementation):
    (q, k, v, _), mask, _ = example("causal", 8)
    with pytest.raises(ValueError, match=r"as many keys \(8\) as queries \(5\)"):
        attention(q[:, :5], k, v, mask, implementation)
