"""Low-rank adapters in a variable collection of their own.

`apply({"params": base, "lora": adapters}, ...)` runs the adapted model, `apply({"params": base}, ...)` the base.
Gradients, optimizer and checkpoints hold `lora` alone, so one base in memory serves any number of adapters.
Sources: Hu et al., LoRA, arXiv 2106.09685; Kalajdzievski, rsLoRA, arXiv 2312.03732.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from jax_rele.models.quantize import is_quantized, multiply
from jax_rele.types import Params, PyTree

COLLECTION = "lora"
PROJECTED = "projected"
"""Name of a projection's result, adapter included, for rematerialisation."""


@dataclass(frozen=True)
class LoraSpec:
    """Rank, scale and targets of the adapters: `x W + scale * x A B`.

    Attributes:
      rank: inner width r.
      alpha: the scale is alpha / r.
      dropout: rate on an adapter's input while training.
      targets: a regular expression; the projections whose whole name it matches get an adapter.
      rank_stabilized: rsLoRA; the scale is alpha / sqrt(r) instead.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: str = ".*"
    rank_stabilized: bool = False

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    def adapts(self, name: str) -> bool:
        """Whether the projection of this name gets an adapter."""
        return re.fullmatch(self.targets, name) is not None


@jax.custom_vjp
def low_rank(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """`x A B` in the precision of x: [..., in], [in, r], [r, out] -> [..., out].

    The gradient is explicit: with the narrow factor first no wide activation is transposed, which takes a third of an
    SFT step on CPUs, and the adapters' gradients have the adapters' precision.
    """
    return _low_rank_forward(x, a, b)[0]


def _low_rank_forward(x, a, b):
    narrow = x @ a.astype(x.dtype)
    return narrow @ b.astype(x.dtype), (x, narrow, a, b)


def _low_rank_backward(residuals, cotangent):
    x, narrow, a, b = residuals
    rows = tuple(range(x.ndim - 1))

    def over_rows(left, right):
        dimensions = (rows, rows), ((), ())
        return jax.lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32)

    by_narrow = cotangent @ b.astype(x.dtype).T
    # Without the barrier the compiler swaps the factors to save the transpose of the small result.
    by_a = jax.lax.optimization_barrier(over_rows(by_narrow, x)).T
    return by_narrow @ a.astype(x.dtype).T, by_a.astype(a.dtype), over_rows(narrow, cotangent).astype(b.dtype)


low_rank.defvjp(_low_rank_forward, _low_rank_backward)


class Projection(nn.Module):
    """A linear map, with an adapter where its name is a target and adapters are given.

    Attributes:
      features: output width.
      axes: logical names of the kernel's input and output axis.
      lora: the adapters' spec, or None.
      use_bias: whether a bias is added.
      param_dtype: of kernel and bias; adapters are float32.
    """

    features: int
    axes: tuple[str, str]
    lora: LoraSpec | None = None
    use_bias: bool = False
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """[..., in] -> [..., features]."""
        width = x.shape[-1]
        init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), self.axes)
        kernel: PyTree
        if self.has_variable("params", "kernel") and is_quantized(self.get_variable("params", "kernel")):
            kernel = self.get_variable("params", "kernel")
        else:
            kernel = self.param("kernel", init, (width, self.features), self.param_dtype)
        y = multiply(x, kernel)
        if self.use_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
            bias: PyTree = self.param("bias", zeros, (self.features,), self.param_dtype)
            y += bias.astype(x.dtype)
        if (
            self.lora is None
            or not self.lora.adapts(self.name or "")
            or not (self.is_initializing() or self.has_variable(COLLECTION, "a"))
        ):
            return checkpoint_name(y, PROJECTED)
        rank = self.lora.rank
        init_a = nn.with_logical_partitioning(nn.initializers.lecun_normal(), (self.axes[0], "lora_rank"))
        init_b = nn.with_logical_partitioning(nn.initializers.zeros, ("lora_rank", self.axes[1]))
        a = self.variable(COLLECTION, "a", lambda: init_a(self.make_rng("params"), (width, rank), jnp.float32))
        # B starts at zero, so that an untrained adapter is the identity.
        b = self.variable(COLLECTION, "b", lambda: init_b(self.make_rng("params"), (rank, self.features), jnp.float32))
        x = nn.Dropout(self.lora.dropout)(x, deterministic=deterministic)
        return checkpoint_name(y + self.lora.scale * low_rank(x, a.value, b.value), PROJECTED)


def split(variables: Params) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
    """(adapters, all other collections): the trained and the frozen variables."""
    frozen = dict(variables)
    adapters = {COLLECTION: frozen.pop(COLLECTION)} if COLLECTION in frozen else {}
    return adapters, frozen


def merge(params: Params, lora: Params, scale: float) -> dict[str, PyTree]:
    """Merges adapters into the base: every kernel becomes W + scale * A B.

    Args:
      params: nested dict of base parameters.
      lora: nested dict of adapters, `{"a", "b"}` where `params` has `{"kernel"}`.
      scale: `LoraSpec.scale`.

    Returns:
      A new tree of parameters; neither argument is changed.

    Raises:
      ValueError: a kernel is quantized.
    """
    if "a" in lora and "b" in lora and not isinstance(lora["a"], dict):
        kernel = params["kernel"]
        if is_quantized(kernel):
            raise ValueError("adapters merge into plain kernels: restore the base with `dequantize_params` first")
        delta = jnp.einsum("...ir,...ro->...io", lora["a"], lora["b"]) * scale
        return {**params, "kernel": (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)}
    return {key: merge(value, lora[key], scale) if key in lora else value for key, value in params.items()}
