"""A frozen base in 8 or 4 bits under adapters of full precision (QLoRA, Dettmers et al., arXiv 2305.14314).

The kernels of a decoder's projections become `qwix.QArray`s, pytrees that `apply`, `jit`, `nn.scan`, shardings and
checkpoints treat like arrays. Embeddings, norms and biases are unchanged. A kernel is dequantized where it is used,
layer by layer, so that at most one layer of it is in memory in full precision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from types import ModuleType
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from jax_rele.errors import UserError
from jax_rele.types import Params, PyTree

Kind = Literal["int8", "nf4"]
"""`int8`: round to 255 even steps, one float32 scale an output channel; 8 bits a weight. `nf4`: the 16 levels of 4-bit
NormalFloat, one bfloat16 scale a tile of an output channel's weights; 4.25 bits a weight."""

TILE = 64
"""Most weights of an output channel with one scale in `nf4`, as in the paper."""


def quantize_params(params: Params, kind: Kind) -> dict[str, PyTree]:
    """Quantizes the projections of a decoder.

    Args:
      params: nested dict of arrays or `jax.ShapeDtypeStruct`s. Quantized kernels are sharded as the kernels are.
      kind: the format.

    Returns:
      A new tree of arrays or shapes, with a `qwix.QArray` for the kernel [layers, in, out] of each `*_proj`.

    Raises:
      UserError: qwix is not installed.
    """

    def walk(tree, name):
        if not isinstance(tree, Mapping):
            return tree
        return {
            key: quantize_kernel(value, kind) if key == "kernel" and name.endswith("_proj") else walk(value, key)
            for key, value in tree.items()
        }

    return walk(params, "")


def quantize_kernel(kernel: jax.Array | jax.ShapeDtypeStruct, kind: Kind) -> PyTree:
    """[layers, in, out] or [in, out], an array or its shape -> a `qwix.QArray` of arrays or shapes."""
    shapes = jax.eval_shape(partial(_quantize, kind=kind), kernel)
    sharding = getattr(kernel, "sharding", None)

    def sharding_of(leaf):
        return _follow(sharding, leaf.shape) if isinstance(sharding, NamedSharding) else sharding

    if isinstance(kernel, jax.ShapeDtypeStruct):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding_of(x)), shapes)
    out_shardings = jax.tree.map(sharding_of, shapes) if isinstance(sharding, NamedSharding) else None
    return jax.jit(_quantize, static_argnames="kind", out_shardings=out_shardings)(kernel, kind=kind)


def _follow(sharding: NamedSharding, shape: tuple[int, ...]) -> NamedSharding:
    """The kernel's sharding for an array of as many axes; an axis that the devices do not divide is not split."""
    parts = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec, *[None] * (len(shape) - len(sharding.spec))))
    axes = []
    for axis, size in zip(parts.spec, shape):
        names = (axis,) if isinstance(axis, str) else axis or ()
        axes.append(axis if size % math.prod(sharding.mesh.shape[name] for name in names) == 0 else None)
    return NamedSharding(sharding.mesh, PartitionSpec(*axes))


def _quantize(kernel, kind):
    qwix = load_qwix()

    def one(kernel):
        kernel = kernel.astype(jnp.float32)
        if kind == "int8":
            return qwix.quantize(kernel, jnp.int8, channelwise_axes=(1,))
        tile = math.gcd(kernel.shape[0], TILE)
        return qwix.quantize(kernel, "nf4", channelwise_axes=(1,), tiled_axes={0: tile}, scale_dtype=jnp.bfloat16)

    # One layer after another: qwix flattens the array that it quantizes, which gathers a sharded kernel.
    return jax.lax.map(one, kernel) if kernel.ndim == 3 else one(kernel)


def is_quantized(kernel: PyTree) -> bool:
    """Whether a kernel is a `qwix.QArray`."""
    return hasattr(kernel, "qvalue")


def dequantize(kernel: PyTree, dtype: DTypeLike) -> jax.Array:
    """The kernel [..., in, out] of a `qwix.QArray`, computed in float32."""
    # `qwix.dequantize` flattens, which gathers a sharded kernel on every device.
    values = kernel.qvalue
    if kernel.qtype == "nf4":
        values = _nf4_levels()[values.astype(jnp.int32)]
    *layers, tiles, out = kernel.scale.shape
    tiled = values.astype(jnp.float32).reshape(*layers, tiles, -1, out)
    return (tiled * kernel.scale.astype(jnp.float32)[..., None, :]).reshape(kernel.qvalue.shape).astype(dtype)


def _nf4_levels() -> jax.Array:
    """[16] float32, ascending from -1 to 1."""
    qwix = load_qwix()
    codes = jnp.arange(16, dtype=jnp.uint4)
    return qwix.dequantize(qwix.QArray(codes, jnp.ones(1, jnp.float32), qtype="nf4"))


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[..., in] times [in, out] of the same dtype; both products of the backward pass read that dtype too.

    A CPU multiplies bfloat16 in hardware only where the result is float32. On other devices a sum over a sharded axis
    would send twice the bytes in float32, so the result has the dtype of `x`.
    """
    return _contract(x, kernel, ((x.ndim - 1,), (0,)))


def _contract(left: jax.Array, right: jax.Array, axes: tuple[tuple[int, ...], tuple[int, ...]]) -> jax.Array:
    def narrow(left, right):
        return jax.lax.dot_general(left, right, (axes, ((), ())))

    def wide(left, right):
        return jax.lax.dot_general(left, right, (axes, ((), ())), preferred_element_type=jnp.float32).astype(left.dtype)

    if left.dtype != jnp.bfloat16:
        return narrow(left, right)
    return jax.lax.platform_dependent(left, right, cpu=wide, default=narrow)


def _product_forward(x, kernel):
    return product(x, kernel), (x, kernel)


def _product_backward(residuals, cotangent):
    x, kernel = residuals
    leading = tuple(range(x.ndim - 1))
    return _contract(cotangent, kernel, ((cotangent.ndim - 1,), (1,))), _contract(x, cotangent, (leading, leading))


product.defvjp(_product_forward, _product_backward)


def multiply(x: jax.Array, kernel: PyTree) -> jax.Array:
    """[..., in] times a kernel [in, out], quantized or not, in the dtype of `x`."""
    if not is_quantized(kernel):
        return product(x, kernel.astype(x.dtype))
    # The backward pass dequantizes again; otherwise the kernels of all layers would be saved for it in full.
    return jax.checkpoint(lambda x, kernel: x @ dequantize(kernel, x.dtype), prevent_cse=False)(x, kernel)


def dequantize_params(params: Params, dtype: DTypeLike) -> dict[str, PyTree]:
    """Parameters with every kernel dequantized to `dtype`, e.g. to merge adapters into them."""
    return jax.tree.map(
        lambda leaf: dequantize(leaf, dtype) if is_quantized(leaf) else leaf, params, is_leaf=is_quantized
    )


def to_checkpoint(params: PyTree) -> PyTree:
    """A tree of arrays or shapes that Orbax can save: its unsigned 4-bit numbers are reinterpreted as signed ones."""
    return _recast(params, jnp.uint4, jnp.int4)


def from_checkpoint(params: PyTree) -> PyTree:
    """The inverse of `to_checkpoint`."""
    return _recast(params, jnp.int4, jnp.uint4)


def _recast(params, old, new):
    def leaf(x):
        if x.dtype != old:
            return x
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, new, sharding=x.sharding)
        return jax.lax.bitcast_convert_type(x, new)

    return jax.tree.map(leaf, params)


def stored_bytes(params: PyTree) -> int:
    """Bytes of a tree of arrays or shapes on an accelerator. CPUs store a 4-bit number in a byte."""

    def bits(dtype):
        return (jnp.finfo if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo)(dtype).bits

    return sum(math.prod(leaf.shape) * bits(leaf.dtype) for leaf in jax.tree.leaves(params)) // 8


def load_qwix() -> ModuleType:
    """The package that quantizes. Raises UserError where it is not installed."""
    try:
        import qwix
    except ImportError:
        raise UserError(
            'teacher.quantize: needs the package qwix; run pip install "jax_rele[quant]", or set it to none'
        ) from None
    return qwix
