"""The teacher: a decoder language model in the form of Qwen3 (arXiv 2505.09388).

Pre-norm blocks with RMSNorm, rotary positions, grouped-query attention with query and key norm, SwiGLU, tied
embeddings. Layers are stacked by `nn.scan`, so compile time does not grow with depth.
"""

from __future__ import annotations

from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from jax_rele.models.attention import Mask, attention, rotary
from jax_rele.models.lora import COLLECTION, LoraSpec, Projection
from jax_rele.types import DecoderOutputs


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of a decoder.

    Attributes:
      vocab_size: rows of the embedding table.
      layers, width, heads, kv_heads, head_dim, mlp_width: sizes; `heads` is a multiple of `kv_heads`.
      rope_theta: base of the rotary frequencies.
      norm_eps: added to the mean square in RMSNorm.
      remat: recompute each block's activations in the backward pass.
      lora: adapters, or None for none.
      dtype: of activations; parameters are float32.
    """

    vocab_size: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    remat: bool = False
    lora: LoraSpec | None = None
    dtype: jnp.dtype = jnp.float32


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang & Sennrich, arXiv 1910.07467), computed in float32."""

    eps: float
    axis: str = "embed"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, (self.axis,)), (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * scale).astype(x.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention; with `cache_length` it reads and writes the `cache` collection."""

    config: DecoderConfig
    cache_length: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, positions: jax.Array, deterministic: bool) -> jax.Array:
        config = self.config
        batch, length, _ = x.shape

        def project(name, heads, axis):
            y = Projection(heads * config.head_dim, ("embed", axis), config.lora, name=name)(
                x, deterministic=deterministic
            )
            return y.reshape(batch, length, heads, config.head_dim)

        query = RMSNorm(config.norm_eps, "head_dim", name="q_norm")(project("q_proj", config.heads, "heads"))
        key = RMSNorm(config.norm_eps, "head_dim", name="k_norm")(project("k_proj", config.kv_heads, "kv_heads"))
        value = project("v_proj", config.kv_heads, "kv_heads")
        query = rotary(query, positions, config.rope_theta)
        key = rotary(key, positions, config.rope_theta)
        key_positions = positions
        if self.cache_length:
            shape = (batch, self.cache_length, config.kv_heads, config.head_dim)
            rows = jnp.arange(batch)[:, None]
            cached_key = self.variable("cache", "key", jnp.zeros, shape, key.dtype)
            cached_value = self.variable("cache", "value", jnp.zeros, shape, value.dtype)
            # Rows are at different positions. What padding wrote behind a row's end is masked by causality until the
            # row's own tokens overwrite it.
            cached_key.value = cached_key.value.at[rows, positions].set(key, mode="drop")
            cached_value.value = cached_value.value.at[rows, positions].set(value, mode="drop")
            key, value = cached_key.value, cached_value.value
            key_positions = jnp.arange(self.cache_length)[None, :]
        mask = Mask(causal=True, query_positions=positions, key_positions=key_positions)
        y = attention(query, key, value, mask).reshape(batch, length, config.heads * config.head_dim)
        return Projection(config.width, ("heads", "embed"), config.lora, name="o_proj")(y, deterministic=deterministic)


class SwiGLU(nn.Module):
    """Gated feed-forward block (Shazeer, arXiv 2002.05202)."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        config = self.config
        gate = Projection(config.mlp_width, ("embed", "mlp"), config.lora, name="gate_proj")(
            x, deterministic=deterministic
        )
        up = Projection(config.mlp_width, ("embed", "mlp"), config.lora, name="up_proj")(x, deterministic=deterministic)
        return Projection(config.width, ("mlp", "embed"), config.lora, name="down_proj")(
            nn.silu(gate) * up, deterministic=deterministic
        )


class Block(nn.Module):
    """One layer, in the (carry, out) form that `nn.scan` takes."""

    config: DecoderConfig
    cache_length: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, positions: jax.Array, deterministic: bool):
        config = self.config
        y = RMSNorm(config.norm_eps, name="input_norm")(x)
        x = x + Attention(config, self.cache_length, name="attention")(y, positions, deterministic)
        y = RMSNorm(config.norm_eps, name="mlp_norm")(x)
        x = x + SwiGLU(config, name="mlp")(y, deterministic)
        x = nn.with_logical_constraint(x, ("batch", "length", "embed_activation"))
        return x, None


class Decoder(nn.Module):
    """A decoder language model as a pure function.

    `init` makes the collections `params` and, where the config has adapters, `lora`. With `cache_length` > 0 it keeps
    keys and values in the collection `cache`: apply with `mutable=["cache"]`, first on the prompts, then on one token a
    row.

    Attributes:
      config: the shape.
      cache_length: positions of the key-value cache, 0 for none.
    """

    config: DecoderConfig
    cache_length: int = 0

    @nn.compact
    def __call__(
        self, tokens: jax.Array, positions: jax.Array | None = None, *, deterministic: bool = True
    ) -> DecoderOutputs:
        """Runs the decoder.

        Args:
          tokens: [B, L] int. Padding belongs on the right, where causality hides it.
          positions: [B, L] int, by default 0 .. L - 1 in every row.
          deterministic: False turns on the adapters' dropout (rng `dropout`).

        Returns:
          `DecoderOutputs` with [B, L, E] hidden states and the [vocabulary, E] output embedding.
        """
        chex.assert_rank(tokens, 2)
        config = self.config
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None, :], tokens.shape)
        embedding = self.param(
            "embedding",
            nn.with_logical_partitioning(nn.initializers.normal(0.02), ("vocab", "embed")),
            (config.vocab_size, config.width),
        )
        x = jnp.take(embedding, tokens, axis=0).astype(config.dtype)
        block = nn.remat(Block, prevent_cse=False, static_argnums=(3,)) if config.remat else Block
        layers = nn.scan(
            block,
            variable_axes={"params": 0, COLLECTION: 0, "cache": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=config.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(config, self.cache_length, name="layers")
        x, _ = layers(x, positions, deterministic)
        return DecoderOutputs(
            hidden=RMSNorm(config.norm_eps, name="final_norm")(x), output_embedding=embedding.astype(config.dtype)
        )
