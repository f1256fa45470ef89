"""One entry to attention; a mask is a small spec that becomes an array only where an implementation needs one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import chex
import jax
import jax.numpy as jnp


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["query_positions", "key_positions", "key_valid"],
    meta_fields=["causal"],
)
@dataclass(frozen=True)
class Mask:
    """Which keys a query may attend to.

    Attributes:
      causal: a key's position must not be after the query's. Needs both positions.
      query_positions: [B, Lq] int, or None.
      key_positions: [B, Lk] or [1, Lk] int, or None.
      key_valid: [B, Lk] bool; False for padding. None: all are valid.
    """

    causal: bool = False
    query_positions: jax.Array | None = None
    key_positions: jax.Array | None = None
    key_valid: jax.Array | None = None

    def dense(self) -> jax.Array | None:
        """[B, 1, Lq, Lk] (or broadcastable) bool, or None where everything may attend to everything."""
        allowed = None
        if self.causal:
            allowed = self.key_positions[:, None, None, :] <= self.query_positions[:, None, :, None]
        if self.key_valid is not None:
            valid = self.key_valid[:, None, None, :]
            allowed = valid if allowed is None else allowed & valid
        return allowed


def rotary(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
    """Rotary position embedding (Su et al., arXiv 2104.09864), halves rotated as in Llama and Qwen.

    Args:
      x: [B, L, H, head_dim], head_dim even.
      positions: [B, L] int.
      theta: base of the frequencies.
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def attention(query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask) -> jax.Array:
    """Scaled dot-product attention with grouped key and value heads; softmax in float32.

    Args:
      query: [B, Lq, H, head_dim].
      key, value: [B, Lk, K, head_dim], where K divides H.
      mask: which keys each query sees.

    Returns:
      [B, Lq, H, head_dim].
    """
    chex.assert_rank([query, key, value], 4)
    chex.assert_equal_shape([key, value])
    return jax.nn.dot_product_attention(query, key, value, mask=mask.dense(), implementation="xla")
