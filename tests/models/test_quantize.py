"""The quantized base: its error, its bytes, and that a decoder over it is the decoder over the restored kernels."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from flax import linen as nn
from jax.sharding import PartitionSpec

from jax_rele import config
from jax_rele.errors import UserError
from jax_rele.models import Decoder, DecoderConfig, LoraSpec, merge
from jax_rele.models.partitioning import shardings
from jax_rele.models.quantize import (
    dequantize,
    dequantize_params,
    from_checkpoint,
    multiply,
    product,
    quantize_kernel,
    quantize_params,
    stored_bytes,
    to_checkpoint,
)
from jax_rele.training import make_mesh
from jax_rele.training.checkpoint import load_variables, save_variables
from jax_rele.training.sharding import use

KINDS = ["int8", "nf4"]
CONFIG = DecoderConfig(
    vocab_size=50, layers=3, width=128, heads=4, kv_heads=4, head_dim=32, mlp_width=128,
    lora=LoraSpec(4, 8.0, targets="(q|down)_proj"),
)  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 50, (4, 9))
NF4 = np.ravel(
    [
        [-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0],
        [0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0],
    ]
)
"""The levels of appendix E of the paper."""


@pytest.fixture(scope="module")
def variables():
    variables = jax.jit(lambda rng: nn.unbox(Decoder(CONFIG).init(rng, TOKENS)))(jax.random.key(0))
    noise = np.random.default_rng(1)
    return {**variables, "lora": jax.tree.map(lambda x: x + 0.1 * noise.normal(size=x.shape), variables["lora"])}


@pytest.fixture(scope="module")
def quantized(variables):
    return {kind: quantize_params(variables["params"], kind) for kind in KINDS}


@pytest.fixture(scope="module")
def kernel():
    return 0.05 * np.random.default_rng(1).normal(size=(3, 128, 40)).astype(np.float32)


@jax.jit
def hidden(params, lora):
    return Decoder(CONFIG).apply({"params": params} | ({"lora": lora} if lora else {}), TOKENS).hidden


@jax.jit
def value_and_grad(params, lora):
    weights = np.cos(np.arange(TOKENS.size * CONFIG.width)).reshape(*TOKENS.shape, -1)
    return jax.value_and_grad(lambda lora: (hidden(params, lora) * weights).mean())(lora)


def shapes_of(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


# ---- a kernel


def test_int8_is_within_half_a_step_of_every_channel(kernel):
    quantized = quantize_kernel(kernel, "int8")
    step = np.abs(kernel).max(1, keepdims=True) / 127
    assert np.all(np.abs(dequantize(quantized, jnp.float32) - kernel) <= 0.505 * step)
    assert quantized.qvalue.dtype == jnp.int8


def test_nf4_takes_the_nearest_level_of_every_tile(kernel):
    quantized = quantize_kernel(kernel, "nf4")
    tiles = kernel.reshape(3, 2, 64, 40).astype(np.float64)
    scale = np.abs(tiles).max(2, keepdims=True)
    nearest = np.argmin(np.abs(tiles[..., None] / scale[..., None] - NF4), -1)
    expected = (NF4[nearest] * scale).reshape(kernel.shape)
    # The scales are kept in bfloat16.
    np.testing.assert_allclose(dequantize(quantized, jnp.float32), expected, rtol=2**-8, atol=1e-9)
    assert quantized.qvalue.dtype == jnp.uint4


@pytest.mark.parametrize("kind", KINDS)
def test_qwix_reads_the_arrays_as_we_do(kernel, kind):
    quantized = quantize_kernel(kernel, kind)
    theirs = qwix.dequantize(quantized.astype(jnp.float32))
    np.testing.assert_allclose(dequantize(quantized, jnp.float32), theirs, rtol=1e-6)


def test_nf4_tiles_fit_a_width_that_64_does_not_divide():
    kernel = np.random.default_rng(2).normal(size=(80, 6)).astype(np.float32)
    quantized = quantize_kernel(kernel, "nf4")
    assert quantized.scale.shape == (5, 6)
    assert np.abs(dequantize(quantized, jnp.float32) - kernel).max() < 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_the_backward_pass_keeps_no_restored_kernel(kind):
    """Beside the quantized kernels the gradient needs one restored layer at a time, not all of them."""
    layers, width = 12, 256
    kernels = quantize_kernel(np.random.default_rng(0).normal(size=(layers, width, width)).astype(np.float32), kind)

    def temporary(product):
        def loss(x):
            return jnp.sum(jax.lax.scan(lambda x, kernel: (jnp.tanh(product(x, kernel)), None), x, kernels)[0])

        return jax.jit(jax.grad(loss)).lower(jnp.ones((8, width))).compile().memory_analysis().temp_size_in_bytes

    every_layer = 4 * layers * width * width
    assert temporary(multiply) < every_layer / 2
    assert temporary(lambda x, kernel: x @ dequantize(kernel, x.dtype)) > every_layer


# ---- a decoder


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_over_it_is_the_one_over_the_restored_kernels(variables, quantized, kind):
    params, lora = quantized[kind], variables["lora"]
    restored = dequantize_params(params, jnp.float32)
    assert jax.tree.map(jnp.shape, restored) == jax.tree.map(jnp.shape, variables["params"])
    assert params["embedding"] is variables["params"]["embedding"]
    got, expected = value_and_grad(params, lora), value_and_grad(restored, lora)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, expected)
    error = np.abs(hidden(params, lora) - hidden(variables["params"], lora)).mean()
    assert 0 < error < {"int8": 0.05, "nf4": 0.5}[kind]


def test_bytes_are_a_quarter_and_an_eighth_and_the_scales(variables, quantized):
    blocks = variables["params"]["layers"]
    kernels = [
        blocks[module][name]["kernel"] for module in ("attention", "mlp") for name in blocks[module] if "proj" in name
    ]
    assert len(kernels) == 7
    weights, channels = sum(x.size for x in kernels), sum(x.shape[0] * x.shape[2] for x in kernels)
    rest = stored_bytes(variables["params"]) - 4 * weights
    assert stored_bytes(quantized["int8"]) == rest + weights + 4 * channels
    assert stored_bytes(quantized["nf4"]) == rest + weights / 2 + 2 * weights / 64


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_mesh_it_is_sharded_like_the_kernels_and_computes_the_same(variables, quantized, kind):
    mesh = make_mesh(config.MeshConfig(data=1, fsdp=4, tensor=2))
    boxed = {"params": jax.eval_shape(lambda rng: Decoder(CONFIG).init(rng, TOKENS), jax.random.key(0))["params"]}
    params = jax.device_put(variables["params"], shardings(boxed, mesh)["params"])
    split = quantize_params(params, kind)
    kernel = split["layers"]["attention"]["q_proj"]["kernel"]
    assert kernel.qvalue.sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    # int8 has one scale for the axis that fsdp splits, nf4 two, fewer than its devices: neither can be split.
    assert kernel.scale.sharding.spec == PartitionSpec(None, None, "tensor")
    assert shapes_of(split) == quantize_params(shapes_of(params), kind)
    with use(mesh):
        sharded = hidden(split, variables["lora"])
    np.testing.assert_allclose(sharded, hidden(quantized[kind], variables["lora"]), atol=1e-4)


def test_restoring_a_sharded_kernel_moves_nothing():
    mesh = make_mesh(config.MeshConfig(data=1, fsdp=4, tensor=2))
    sharding = jax.sharding.NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    quantized = quantize_kernel(jax.ShapeDtypeStruct((1024, 64), jnp.float32, sharding=sharding), "nf4")
    assert quantized.scale.sharding.spec == PartitionSpec("fsdp", "tensor")

    def moves(restore):
        text = jax.jit(restore, out_shardings=sharding).lower(quantized).compile().as_text()
        return any(name in text for name in ("all-gather", "all-to-all", "collective-permute", "all-reduce"))

    assert not moves(lambda kernel: dequantize(kernel, jnp.float32))
    assert moves(qwix.dequantize)  # why `dequantize` is not this


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_hold_it(variables, quantized, kind, tmp_path):
    save_variables(tmp_path / "base", {"params": to_checkpoint(quantized[kind])})
    target = to_checkpoint(quantize_params(shapes_of(variables["params"]), kind))
    loaded = from_checkpoint(load_variables(tmp_path / "base", {"params": target})["params"])
    assert jax.tree.structure(loaded) == jax.tree.structure(quantized[kind])
    jax.tree.map(np.testing.assert_array_equal, loaded, quantized[kind])


def test_adapters_merge_into_restored_kernels_alone(variables, quantized):
    with pytest.raises(ValueError, match="dequantize_params"):
        merge(quantized["int8"], variables["lora"], CONFIG.lora.scale)
    merged = merge(dequantize_params(quantized["int8"], jnp.float32), variables["lora"], CONFIG.lora.scale)
    np.testing.assert_allclose(hidden(merged, None), hidden(quantized["int8"], variables["lora"]), atol=1e-4)


def test_without_qwix_one_line_says_what_to_install(monkeypatch, kernel):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(UserError, match=r'^teacher.quantize: needs the package qwix; run .* "jax_rele\[quant\]"'):
        quantize_kernel(kernel, "int8")


# ---- products of kernels that are not quantized


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_product_and_its_gradients_are_those_of_the_formula(dtype):
    rng = np.random.default_rng(0)
    x, kernel, cotangent = (
        jnp.asarray(rng.normal(size=shape), dtype) for shape in ((2, 7, 512), (512, 24), (2, 7, 24))
    )
    y, back = jax.vjp(product, x, kernel)
    by_x, by_kernel = back(cotangent)
    x64, kernel64, slope64 = (np.asarray(array, np.float64) for array in (x, kernel, cotangent))
    # One rounding of a sum that is exact but for float32, however many terms it has.
    tolerance = {"rtol": 2**-8 if dtype == "bfloat16" else 1e-5, "atol": 1e-4}
    for result, expected in (
        (y, x64 @ kernel64),
        (by_x, slope64 @ kernel64.T),
        (by_kernel, np.einsum("bli,blo->io", x64, slope64)),
    ):
        assert result.dtype == dtype
        np.testing.assert_allclose(np.asarray(result, np.float64), expected, **tolerance)


def test_a_cpu_is_asked_for_float32_sums_of_bfloat16_and_a_tpu_is_not():
    x, kernel = jnp.zeros((8, 64), jnp.bfloat16), jnp.zeros((64, 32), jnp.bfloat16)

    def lowered(platform):
        step = jax.jit(jax.grad(lambda x, kernel: product(x, kernel).astype(jnp.float32).sum(), argnums=(0, 1)))
        return step.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()

    for platform, output_type in (("cpu", "f32"), ("tpu", "bf16")):
        products = [line for line in lowered(platform).splitlines() if "dot_general" in line]
        assert products
        assert all(line.rstrip().endswith(f"x{output_type}>") or f"x{output_type}> loc" in line for line in products)
