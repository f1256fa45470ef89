"""Low-rank adapters as a variable collection of their own.

`apply({"params": base, "lora": adapters}, ...)` runs the adapted model, `apply({"params": base}, ...)` the base.
Gradients, optimizer and checkpoints see `lora` alone, so one base in memory serves any number of adapters.
Source: Hu et al., LoRA, arXiv 2106.09685.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

COLLECTION = "lora"


@dataclass(frozen=True)
class LoraSpec:
    """Rank, scale and place of the adapters: `x W + (alpha / rank) * x A B` in the projections named by `targets`."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class Projection(nn.Module):
    """A linear map without bias that carries an adapter when its name is a target and adapters are given.

    Attributes:
      features: output width.
      axes: logical names of the kernel's input and output axis.
      lora: the adapters' spec, or None.
    """

    features: int
    axes: tuple[str, str]
    lora: LoraSpec | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """[..., in] -> [..., features]."""
        width = x.shape[-1]
        kernel = self.param(
            "kernel", nn.with_logical_partitioning(nn.initializers.lecun_normal(), self.axes), (width, self.features)
        )
        y = x @ kernel.astype(x.dtype)
        if self.lora is None or self.name not in self.lora.targets:
            return y
        if not (self.is_initializing() or self.has_variable(COLLECTION, "a")):
            return y
        rank = self.lora.rank
        init_a = nn.with_logical_partitioning(nn.initializers.lecun_normal(), (self.axes[0], "lora_rank"))
        init_b = nn.with_logical_partitioning(nn.initializers.zeros, ("lora_rank", self.axes[1]))
        a = self.variable(COLLECTION, "a", lambda: init_a(self.make_rng("params"), (width, rank), jnp.float32))
        # B starts at zero, so that an untrained adapter is the identity.
        b = self.variable(COLLECTION, "b", lambda: init_b(self.make_rng("params"), (rank, self.features), jnp.float32))
        x = nn.Dropout(self.lora.dropout)(x, deterministic=deterministic)
        return y + self.lora.scale * ((x @ a.value.astype(x.dtype)) @ b.value.astype(x.dtype))


def merge(params: Any, lora: Any, scale: float) -> Any:
    """Folds adapters into the base: every kernel becomes W + scale * A B.

    Args:
      params: nested dict of base parameters.
      lora: nested dict of adapters, `{"a", "b"}` where `params` has `{"kernel"}`.
      scale: `LoraSpec.scale`.

    Returns:
      A new tree of parameters; neither argument is changed.
    """
    if "a" in lora and "b" in lora and not isinstance(lora["a"], dict):
        kernel = params["kernel"]
        delta = jnp.einsum("...ir,...ro->...io", lora["a"], lora["b"]) * scale
        return {**params, "kernel": (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)}
    return {key: merge(value, lora[key], scale) if key in lora else value for key, value in params.items()}
