"""A frozen base in 8 or 4 bits under adapters of full precision (QLoRA, Dettmers et al., arXiv 2305.14314).

The kernels of a decoder's projections become `qwix.QArray`s, pytrees that go wherever arrays go: through `apply`,
`jit`, `nn.scan`, shardings and checkpoints. Embeddings, norms and biases stay as they are. A kernel is restored where
it is used, layer by layer, so that no more than one layer of it is ever there in full.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jax_rele.errors import UserError

Kind = Literal["int8", "nf4"]
"""`int8`: round to 255 even steps, one float32 scale an output channel; 8 bits a weight. `nf4`: the 16 levels of 4-bit
NormalFloat, one bfloat16 scale a tile of an output channel's weights; 4.25 bits a weight."""

TILE = 64
"""Most weights of an output channel that share a scale in `nf4`, as in the paper."""


def quantize_params(params: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """Quantizes the projections of a decoder.

    Args:
      params: nested dict of parameters, arrays or `jax.ShapeDtypeStruct`s. Kernels on a mesh give quantized kernels
        that are sharded likewise.
      kind: how.

    Returns:
      A new tree of the same kind of leaves. In place of the kernel [layers, in, out] of each `*_proj` there is a
      `qwix.QArray`.

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


def quantize_kernel(kernel: jax.Array | jax.ShapeDtypeStruct, kind: Kind) -> Any:
    """[layers, in, out] or [in, out], an array or the shape of one -> the same as a `qwix.QArray`."""
    shapes = jax.eval_shape(partial(_quantize, kind=kind), kernel)
    sharding = getattr(kernel, "sharding", None)
    split = isinstance(sharding, NamedSharding)
    out_shardings = jax.tree.map(lambda leaf: _follow(sharding, leaf.shape) if split else sharding, shapes)
    if isinstance(kernel, jax.ShapeDtypeStruct):
        return jax.tree.map(
            lambda leaf, leaf_sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf_sharding),
            shapes,
            out_shardings,
        )
    return jax.jit(_quantize, static_argnames="kind", out_shardings=out_shardings if split else None)(kernel, kind=kind)


def _follow(sharding: NamedSharding, shape: tuple[int, ...]) -> NamedSharding:
    """The kernel's sharding for an array of as many axes: an axis that is too short to split is not."""
    parts = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec, *[None] * (len(shape) - len(sharding.spec))))
    axes = []
    for axis, size in zip(parts.spec, shape):
        names = (axis,) if isinstance(axis, str) else axis or ()
        axes.append(axis if size % math.prod(sharding.mesh.shape[name] for name in names) == 0 else None)
    return NamedSharding(sharding.mesh, PartitionSpec(*axes))


def _quantize(kernel, kind):
    qwix = _qwix()

    def one(kernel):
        kernel = kernel.astype(jnp.float32)
        if kind == "int8":
            return qwix.quantize(kernel, jnp.int8, channelwise_axes=(1,))
        tile = math.gcd(kernel.shape[0], TILE)
        return qwix.quantize(kernel, "nf4", channelwise_axes=(1,), tiled_axes={0: tile}, scale_dtype=jnp.bfloat16)

    # One layer after another, because qwix flattens what it quantizes, which gathers a kernel that is sharded.
    return jax.lax.map(one, kernel) if kernel.ndim == 3 else one(kernel)


def is_quantized(kernel: Any) -> bool:
    """Whether a kernel is a `qwix.QArray`."""
    return hasattr(kernel, "qvalue")


def dequantize(kernel: Any, dtype: Any) -> jax.Array:
    """The kernel [..., in, out] that a `qwix.QArray` stands for, computed in float32."""
    # What `qwix.dequantize` does, but that flattens: a sharded kernel would be gathered on every device.
    values = kernel.qvalue
    if kernel.qtype == "nf4":
        values = _nf4_levels()[values.astype(jnp.int32)]
    *layers, tiles, out = kernel.scale.shape
    tiled = values.astype(jnp.float32).reshape(*layers, tiles, -1, out)
    return (tiled * kernel.scale.astype(jnp.float32)[..., None, :]).reshape(kernel.qvalue.shape).astype(dtype)


def _nf4_levels() -> jax.Array:
    """[16] float32, ascending from -1 to 1."""
    qwix = _qwix()
    codes = jnp.arange(16, dtype=jnp.uint4)
    return qwix.dequantize(qwix.QArray(codes, jnp.ones(1, jnp.float32), qtype="nf4"))


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[..., in] times [in, out] of the same dtype; both products of the backward pass read that dtype too.

    A CPU multiplies bfloat16 in hardware where the result is float32, and slowly otherwise. Devices that sum over a
    sharded axis would send twice the bytes for it, so elsewhere the result is made in the dtype of `x`.
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


def multiply(x: jax.Array, kernel: Any) -> jax.Array:
    """[..., in] times a kernel [in, out], quantized or not, in the dtype of `x`."""
    if not is_quantized(kernel):
        return product(x, kernel.astype(x.dtype))
    # The backward pass restores the kernel once more. Otherwise those of all layers would be kept for it in full.
    return jax.checkpoint(lambda x, kernel: x @ dequantize(kernel, x.dtype), prevent_cse=False)(x, kernel)


def dequantize_params(params: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """Parameters with every kernel restored in `dtype`, e.g. to merge adapters into them."""
    return jax.tree.map(
        lambda leaf: dequantize(leaf, dtype) if is_quantized(leaf) else leaf, params, is_leaf=is_quantized
    )


def to_checkpoint(params: Any) -> Any:
    """The tree as Orbax can save it, which has no unsigned 4-bit numbers: the same bits with a sign. Also of shapes."""
    return _recast(params, jnp.uint4, jnp.int4)


def from_checkpoint(params: Any) -> Any:
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


def stored_bytes(params: Any) -> int:
    """Bytes of a tree of arrays or shapes on an accelerator. CPUs keep a 4-bit number in a byte."""

    def bits(dtype):
        return (jnp.finfo if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo)(dtype).bits

    return sum(math.prod(leaf.shape) * bits(leaf.dtype) for leaf in jax.tree.leaves(params)) // 8


def check_available() -> None:
    """Raises UserError where the package that quantizes is not installed."""
    _qwix()


def _qwix():
    try:
        import qwix
    except ImportError:
        raise UserError(
            'teacher.quantize: needs the package qwix; run pip install "jax_rele[quant]", or set it to none'
        ) from None
    return qwix
