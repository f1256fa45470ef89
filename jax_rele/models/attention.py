"""Attention in several implementations; a mask is a specification that becomes an array only where one is needed.

| implementation | devices | what it stores beside queries, keys and values |
|---|---|---|
| `xla` | anywhere | scores and weights of a block of queries: [B, H, max(32, Lq / 8), Lk] in float32 |
| `cudnn` | NVIDIA GPUs | one float32 a query and head; with segments a 16-bit [B, 1, L, L] mask and its gradient |
| `splash` | TPUs | one float32 a query and head |

All skip blocks that causality rules out, `xla` where positions are indices. Blocks outside the window are skipped by
`splash` always, by `cudnn` where there are no segments, by `xla` never. `xla` takes every mask; the others take
the masks of training and scoring, where positions are indices, and refuse the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import chex
import jax
import jax.numpy as jnp

from jax_rele.errors import UserError
from jax_rele.models.splash import splash_attention

Implementation = Literal["xla", "cudnn", "splash"]

_MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)
"""The score of a pair that the mask rules out; finite, so that a query without keys does not give NaN."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["query_positions", "key_positions", "query_segments", "key_segments", "key_valid", "window"],
    meta_fields=["causal"],
)
@dataclass(frozen=True)
class Mask:
    """The keys that a query may attend to: those that every field allows.

    Attributes:
      causal: a key's position must not be after the query's.
      window: a query sees only the keys less than this many positions before it or, where the mask is not causal
        (`xla` only), on either side of it; an int, or a traced int32 scalar where layers differ (`xla` only). None or
        0: no limit.
      query_positions: [B, Lq] int. None: positions are indices; within a segment that allows the same keys as positions
        that start anew.
      key_positions: [B, Lk] or [1, Lk] int, or None likewise.
      query_segments: [B, Lq] int, or None. A query sees only keys of its own segment.
      key_segments: [B, Lk] int, or None.
      key_valid: [B, Lk] bool; False for padding. None: all are valid.
    """

    causal: bool = False
    window: int | jax.Array | None = None
    query_positions: jax.Array | None = None
    key_positions: jax.Array | None = None
    query_segments: jax.Array | None = None
    key_segments: jax.Array | None = None
    key_valid: jax.Array | None = None

    @property
    def segments(self) -> tuple[jax.Array, jax.Array] | None:
        """Segments of the queries and of the keys."""
        if self.query_segments is None or self.key_segments is None:
            return None
        return self.query_segments, self.key_segments

    def dense(self, query_length: int, key_length: int) -> jax.Array | None:
        """[B or 1, 1, Lq, Lk] (or broadcastable) bool, or None where everything may attend to everything."""
        allowed = None
        window = None if isinstance(self.window, int) and self.window == 0 else self.window
        if self.causal or window is not None:
            query = jnp.arange(query_length)[None] if self.query_positions is None else self.query_positions
            key = jnp.arange(key_length)[None] if self.key_positions is None else self.key_positions
            distance = query[:, None, :, None] - key[:, None, None, :]
            if self.causal:
                allowed = distance >= 0
            if window is not None:
                near = (jnp.abs(distance) < window) | (jnp.asarray(window) == 0)
                allowed = near if allowed is None else allowed & near
        if self.segments is not None:
            query_segments, key_segments = self.segments
            same = query_segments[:, None, :, None] == key_segments[:, None, None, :]
            allowed = same if allowed is None else allowed & same
        if self.key_valid is not None:
            valid = self.key_valid[:, None, None, :]
            allowed = valid if allowed is None else allowed & valid
        return allowed


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask, implementation: Implementation = "xla"
) -> jax.Array:
    """Scaled dot-product attention with grouped key and value heads; softmax in float32.

    The tests run `splash` on CPUs by Pallas's interpreter and compile it for TPU topologies; they lower `cudnn` for the
    `cuda` platform. No test runs either on its own hardware.

    Args:
      query: [B, Lq, H, head_dim].
      key, value: [B, Lk, K, head_dim], where K divides H.
      mask: the keys that each query sees.
      implementation: see the table above.

    Returns:
      [B, Lq, H, head_dim].

    Raises:
      ValueError: `cudnn` or `splash` cannot express the mask.
      UserError: `cudnn` or `splash` does not support the devices, dtype or head size.
    """
    chex.assert_rank([query, key, value], 4)
    chex.assert_equal_shape([key, value])
    if implementation == "xla":
        by_index = mask.causal and mask.query_positions is None and mask.key_positions is None
        key, value = key.transpose(0, 2, 3, 1), value.transpose(0, 2, 1, 3)
        return _blocks(query, key, value, mask.dense(query.shape[1], key.shape[3]), by_index)
    window = _static_window(mask, implementation, query.shape[1], key.shape[1])
    if implementation == "cudnn":
        return _cudnn(query, key, value, mask, window)
    return splash_attention(query, key, value, window, mask.segments)


def attention_over_heads(query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask) -> jax.Array:
    """`attention` by `xla`, of keys [B, K, head_dim, Lk] and values [B, K, Lk, head_dim]: as a cache holds them."""
    chex.assert_rank([query, key, value], 4)
    return _blocks(query, key, value, mask.dense(query.shape[1], key.shape[3]), False)


@partial(jax.checkpoint, prevent_cse=False, static_argnums=(4,))
def _blocks(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, causal_by_index: bool
) -> jax.Array:
    """Attention by blocks of queries, each with the keys up to its end where causality is by index.

    Keys are [B, K, head_dim, Lk], values [B, K, Lk, head_dim].
    The backward pass computes scores and weights again, so that none are stored from layer to layer.
    """
    batch, length, heads, width = query.shape
    keys = key.shape[3]
    # At most 8 blocks; 32 queries keep a block's scores in a CPU's cache.
    # A symbolic length, as `jax.export` has, is one block.
    size = max(32, -(-length // 8)) if isinstance(length, int) else length
    query = query.reshape(batch, length, key.shape[1], -1, width).transpose(0, 2, 3, 1, 4)
    if mask is not None:
        mask = jnp.broadcast_to(mask, (*mask.shape[:2], length, keys))[:, :, None]
    blocks = []
    for start in range(0, length, size) if isinstance(length, int) else (0,):
        end = min(start + size, length) if isinstance(length, int) else length
        seen = min(end, keys) if causal_by_index else keys
        scores = jnp.einsum(
            "bkgqd,bkds->bkgqs", query[..., start:end, :], key[..., :seen], preferred_element_type=jnp.float32
        )
        scores *= width**-0.5
        if mask is not None:
            scores = jnp.where(mask[..., start:end, :seen], scores, _MASKED)
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
        y = jnp.einsum(
            "bkgqs,bksd->bkgqd", weights.astype(value.dtype), value[:, :, :seen], preferred_element_type=jnp.float32
        )
        blocks.append((y / weights.sum(axis=-1, keepdims=True)).astype(value.dtype))
    return jnp.concatenate(blocks, axis=3).transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, width)


def _static_window(mask: Mask, implementation: str, query_length: int, key_length: int) -> int:
    """The window, 0 for none. Raises ValueError where only `xla` can do the mask."""
    for name in ("query_positions", "key_positions", "key_valid"):
        if getattr(mask, name) is not None:
            raise ValueError(f"{implementation} attention cannot do a mask with {name}; use xla")
    if not mask.causal:
        raise ValueError(f"{implementation} attention is causal, the mask is not; use xla")
    needs = f"{implementation} attention needs"
    if query_length != key_length:
        raise ValueError(f"{needs} as many keys ({key_length}) as queries ({query_length}); use xla")
    if isinstance(mask.window, jax.Array):
        raise ValueError(f"{needs} one window for all layers, known when it is traced; use xla")
    # A window as long as the row masks nothing.
    return mask.window if mask.window and mask.window < key_length else 0


def _cudnn(query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask, window: int) -> jax.Array:
    backend, head_dim = jax.default_backend(), query.shape[-1]
    if backend != "gpu":
        raise UserError(f"attention: cudnn needs an NVIDIA GPU, not {backend}; set teacher.attention to xla")
    if query.dtype not in (jnp.bfloat16, jnp.float16):
        raise UserError(f"attention: cudnn takes 16-bit numbers, not {query.dtype}; set teacher.dtype to bfloat16")
    if head_dim % 8 or head_dim > 256:
        raise UserError(
            f"attention: cudnn takes heads whose size is a multiple of 8 up to 256, not {head_dim}; "
            "set teacher.attention to xla"
        )
    attend = partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn")
    # The backward pass needs an even length. Causality masks the key that is added.
    length, odd = query.shape[1], query.shape[1] % 2
    query, key, value = (jnp.pad(x, ((0, 0), (0, odd), (0, 0), (0, 0))) for x in (query, key, value))
    if mask.segments is None:
        return attend(query, key, value, local_window_size=(window - 1, 0) if window else None)[:, :length]
    # JAX's public interface to cuDNN has no segments, so they are a mask. It includes the window, because cuDNN before
    # 9.10.2 takes no window beside a mask. `is_causal` is set too, so that blocks above the diagonal are skipped.
    dense = mask.dense(length, length)
    assert dense is not None  # A causal mask is an array.
    dense = jnp.pad(dense, ((0, 0), (0, 0), (0, odd), (0, odd)), constant_values=True)
    return attend(query, key, value, mask=dense)[:, :length]
