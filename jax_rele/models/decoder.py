"""The teacher: a dense decoder language model of the Qwen2, Qwen3, Llama and Mistral families, in one module.

Pre-norm blocks with RMSNorm, rotary positions, grouped-query attention and SwiGLU. The config holds all differences of
the families. Layers are stacked by `nn.scan`, so compile time does not grow with depth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from jax_rele.models.attention import Implementation, Mask, attention, attention_over_heads
from jax_rele.models.lora import COLLECTION, PROJECTED, LoraSpec, Projection
from jax_rele.models.rope import Rope, rotary
from jax_rele.types import DecoderOutputs, Params

Remat = Literal["none", "dots", "full"]

POLICIES = {
    "dots": jax.checkpoint_policies.save_only_these_names(PROJECTED),
    "full": jax.checkpoint_policies.nothing_saveable,
}
"""What each kind of rematerialisation stores of a block for the backward pass."""


@dataclass(frozen=True)
class DecoderConfig:
    """Shape and computation of a decoder.

    Attributes:
      vocab_size: rows of the embedding table.
      layers, width, heads, kv_heads, head_dim, mlp_width: sizes; `heads` is a multiple of `kv_heads`.
      family: its `model_type` in the Hugging Face form, which decides the names of the weights.
      rope: the rotary frequencies.
      norm_eps: added to the mean square in RMSNorm.
      max_length: positions of the context, 0 where no limit is stated.
      tied: the output embedding is the input embedding.
      qkv_bias, output_bias, mlp_bias: biases of the projections.
      qk_norm: RMSNorm over each head of queries and keys.
      windows: for each layer the sliding window, 0 for full attention; () where every layer is full.
      attention: implementation of attention without a cache.
      remat: what the backward pass recomputes: nothing, all but the results of matrix products, or each block.
      lora: adapters, or None for none.
      dtype: of activations; norms, softmax and rotations are computed in float32.
      param_dtype: of parameters; adapters are float32.
    """

    vocab_size: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    family: str = "qwen3"
    rope: Rope = field(default_factory=Rope)
    norm_eps: float = 1e-6
    max_length: int = 0
    tied: bool = True
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = True
    windows: tuple[int, ...] = ()
    attention: Implementation = "xla"
    remat: Remat = "none"
    lora: LoraSpec | None = None
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32


# The backward pass of these stores the inputs alone: recomputing the rest takes less time than reading it.
@partial(jax.checkpoint, prevent_cse=False, static_argnums=(2,))
def _rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return (y * scale).astype(x.dtype)


@partial(jax.checkpoint, prevent_cse=False)
def _swish_gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    return nn.silu(gate) * up


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang & Sennrich, arXiv 1910.07467), computed in float32."""

    eps: float
    axis: str = "embed"
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.with_logical_partitioning(nn.initializers.ones, (self.axis,))
        scale = self.param("scale", init, (x.shape[-1],), self.param_dtype)
        return _rms_norm(x, scale, self.eps)


Cache = tuple[jax.Array, jax.Array]
"""Keys [layers, B, kv_heads, head_dim, T] and values [layers, B, kv_heads, T, head_dim] of all layers: as the matrix
products of attention read them, so that no step transposes them."""


CACHE_AXES = {
    "key": ("layers", "batch", "kv_heads", "head_dim", "length"),
    "value": ("layers", "batch", "kv_heads", "length", "head_dim"),
}
"""The axes of `Cache`, by the name in the collection `cache`."""


def cache_shapes(config: DecoderConfig, rows: int, length: int) -> dict[str, tuple[int, ...]]:
    """The shapes of `Cache` by name, for `rows` rows of `length` positions."""
    sizes = {"layers": config.layers, "batch": rows, "kv_heads": config.kv_heads}
    sizes |= {"head_dim": config.head_dim, "length": length}
    return {name: tuple(sizes[axis] for axis in axes) for name, axes in CACHE_AXES.items()}


def write_cache(cache: Cache, layer: jax.Array, key: jax.Array, value: jax.Array, positions: jax.Array) -> Cache:
    """Writes a layer's keys and values [B, L, kv_heads, head_dim] at the positions [B, L], which differ by row.

    Entries of padding after a row's end are masked by causality until the row's own tokens overwrite them.
    """
    rows, heads = jnp.arange(key.shape[0])[:, None, None], jnp.arange(key.shape[2])
    keys, values = cache
    at = positions[:, :, None]
    return (
        keys.at[layer, rows, heads, :, at].set(key, mode="drop"),
        values.at[layer, rows, heads, at].set(value, mode="drop"),
    )


def attend_to_cache(
    query: jax.Array,
    cache: Cache,
    layer: jax.Array,
    positions: jax.Array,
    window: int | jax.Array,
    lengths: Sequence[int],
    used: jax.Array | None,
) -> jax.Array:
    """Attention of queries [B, L, heads, head_dim] at `positions` [B, L] to a layer of the cache.

    Args:
      query, cache, layer, positions: see above.
      window: as in `Mask`.
      lengths: the first so many positions of the cache may be read, in ascending order.
      used: int, the index in `lengths` of the number that is read; no position may be at or beyond it. None: the last.
    """

    def read(length):
        key, value = (jax.lax.dynamic_index_in_dim(whole, layer, keepdims=False) for whole in cache)
        mask = Mask(causal=True, window=window, query_positions=positions, key_positions=jnp.arange(length)[None, :])
        return attention_over_heads(query, key[..., :length], value[:, :, :length], mask)

    if used is None:
        return read(lengths[-1])
    return jax.lax.switch(used, [partial(read, length) for length in lengths])


class Attention(nn.Module):
    """Causal grouped-query attention, over the cache where there is one.

    Attributes:
      config: the decoder's.
      lengths: see `attend_to_cache`.
    """

    config: DecoderConfig
    lengths: tuple[int, ...] = ()

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        segments: jax.Array | None,
        window: int | jax.Array,
        cache: Cache | None,
        layer: jax.Array,
        used: jax.Array | None,
        deterministic: bool,
    ) -> tuple[jax.Array, Cache | None]:
        config = self.config
        batch, length, _ = x.shape

        def project(name, heads, axis):
            width, axes = heads * config.head_dim, ("embed", axis)
            projection = Projection(width, axes, config.lora, config.qkv_bias, config.param_dtype, name=name)
            return projection(x, deterministic=deterministic).reshape(batch, length, heads, config.head_dim)

        query = project("q_proj", config.heads, "heads")
        key = project("k_proj", config.kv_heads, "kv_heads")
        value = project("v_proj", config.kv_heads, "kv_heads")
        if config.qk_norm:
            query = RMSNorm(config.norm_eps, "head_dim", config.param_dtype, name="q_norm")(query)
            key = RMSNorm(config.norm_eps, "head_dim", config.param_dtype, name="k_norm")(key)
        query, key = rotary(query, positions, config.rope), rotary(key, positions, config.rope)
        if cache is not None:
            cache = write_cache(cache, layer, key, value, positions)
            y = attend_to_cache(query, cache, layer, positions, window, self.lengths, used)
        else:
            mask = Mask(causal=True, window=window, query_segments=segments, key_segments=segments)
            y = attention(query, key, value, mask, config.attention)
        y = y.reshape(batch, length, config.heads * config.head_dim)
        project_out = Projection(
            config.width, ("heads", "embed"), config.lora, config.output_bias, config.param_dtype, name="o_proj"
        )
        return project_out(y, deterministic=deterministic), cache


class SwiGLU(nn.Module):
    """Gated feed-forward block (Shazeer, arXiv 2002.05202)."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        config = self.config

        def project(x, name, features, axes):
            projection = Projection(features, axes, config.lora, config.mlp_bias, config.param_dtype, name=name)
            return projection(x, deterministic=deterministic)

        gate = project(x, "gate_proj", config.mlp_width, ("embed", "mlp"))
        up = project(x, "up_proj", config.mlp_width, ("embed", "mlp"))
        return project(_swish_gated(gate, up), "down_proj", config.width, ("mlp", "embed"))


class DecoderBlock(nn.Module):
    """One layer, in the (carry, out) form of `nn.scan`."""

    config: DecoderConfig
    lengths: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, carry, positions, segments, used, deterministic, window, layer):
        config, (x, cache) = self.config, carry
        if window is None:
            window = config.windows[0] if config.windows else 0
        y = RMSNorm(config.norm_eps, param_dtype=config.param_dtype, name="input_norm")(x)
        attention = Attention(config, self.lengths, name="attention")
        y, cache = attention(y, positions, segments, window, cache, layer, used, deterministic)
        x = x + y
        y = RMSNorm(config.norm_eps, param_dtype=config.param_dtype, name="mlp_norm")(x)
        x = x + SwiGLU(config, name="mlp")(y, deterministic)
        return (nn.with_logical_constraint(x, ("batch", "length", "embed_activation")), cache), None


class Decoder(nn.Module):
    """A decoder language model as a pure function.

    `init` returns the collections `params` and, where the config has adapters, `lora`. With `cache_length` > 0 keys and
    values are in the collection `cache`, see `Cache`: apply with `mutable=["cache"]`, first to the prompts, then to the
    tokens that follow.

    Attributes:
      config: the shape.
      cache_length: positions of the key-value cache, 0 for none.
      cache_reads: attention reads the least of these numbers of positions that holds all in use, in ascending order and
        with `cache_length` as the last; () to read all.
    """

    config: DecoderConfig
    cache_length: int = 0
    cache_reads: tuple[int, ...] = ()

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        *,
        deterministic: bool = True,
    ) -> DecoderOutputs:
        """Runs the decoder.

        Args:
          tokens: [B, L] int. Padding belongs on the right, where causality hides it.
          positions: [B, L] int, by default 0 .. L - 1 in every row.
          segments: [B, L] int, or None where a row is one text. Tokens see those of their own segment; positions start
            anew in each. Not used with a cache.
          deterministic: False turns on the adapters' dropout (rng `dropout`).

        Returns:
          `DecoderOutputs` with [B, L, E] hidden states and the [vocabulary, E] output embedding.
        """
        chex.assert_rank(tokens, 2)
        config = self.config
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None, :], tokens.shape)

        def table(name):
            init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("vocab", "embed"))
            whole = self.param(name, init, (config.vocab_size, config.width), config.param_dtype)
            # Gathered over fsdp once, so that tokens and activations are not moved.
            return nn.with_logical_constraint(whole, ("vocab", "embed_activation"))

        embedding = table("embedding")
        output_embedding = embedding if config.tied else table("output_embedding")
        x = jnp.take(embedding, tokens, axis=0).astype(config.dtype)
        x = nn.with_logical_constraint(x, ("batch", "length", "embed_activation"))
        block = DecoderBlock
        if config.remat != "none":
            block = nn.remat(DecoderBlock, prevent_cse=False, static_argnums=(5,), policy=POLICIES[config.remat])
        # One window for all layers is static, which every implementation of attention takes; otherwise it is scanned.
        mixed = len(set(config.windows)) > 1
        window = jnp.array(config.windows, jnp.int32) if mixed else None
        reads = self.cache_reads or (self.cache_length,)
        used = jnp.searchsorted(jnp.array(reads), positions.max(), side="right") if len(reads) > 1 else None
        layers = nn.scan(
            block,
            variable_axes={"params": 0, COLLECTION: 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(*[nn.broadcast] * 4, 0 if mixed else nn.broadcast, 0),
            length=config.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(config, reads, name="layers")
        # The cache is carried from layer to layer, so that a step writes its tokens in place and copies no layer.
        shapes = cache_shapes(config, tokens.shape[0], self.cache_length) if self.cache_length else {}
        cached = [self.variable("cache", name, jnp.zeros, shape, config.dtype) for name, shape in shapes.items()]
        cache = tuple(variable.value for variable in cached) or None
        (x, cache), _ = layers((x, cache), positions, segments, used, deterministic, window, jnp.arange(config.layers))
        for variable, value in zip(cached, cache or ()):
            variable.value = value
        hidden = RMSNorm(config.norm_eps, param_dtype=config.param_dtype, name="final_norm")(x)
        return DecoderOutputs(hidden=hidden, output_embedding=output_embedding.astype(config.dtype))


def init_decoder(model: Decoder) -> Callable[[jax.Array], Params]:
    """rng -> the decoder's variables."""
    return lambda rng: model.init(rng, jnp.zeros((1, 8), jnp.int32))
