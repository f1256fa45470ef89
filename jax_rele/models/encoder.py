"""The students' encoder: bidirectional, in the form of BERT (Devlin et al., arXiv 1810.04805)."""

from __future__ import annotations

from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from jax_rele.models.attention import Mask, attention


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of an encoder.

    Attributes:
      vocab_size, max_length, token_types: rows of the word, position and token-type tables.
      layers, width, heads, mlp_width: sizes; `width` is a multiple of `heads`.
      dropout: rate while training.
      norm_eps: of the layer norms.
      dtype: of activations; parameters are float32.
    """

    vocab_size: int
    max_length: int
    layers: int
    width: int
    heads: int
    mlp_width: int
    token_types: int = 2
    dropout: float = 0.1
    norm_eps: float = 1e-12
    dtype: jnp.dtype = jnp.float32


def dense(features: int, axes: tuple[str, str], name: str, dtype=jnp.float32) -> nn.Dense:
    """A linear map with bias, its kernel and bias labelled with logical axes."""
    return nn.Dense(
        features,
        kernel_init=nn.with_logical_partitioning(nn.initializers.xavier_uniform(), axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, axes[1:]),
        dtype=dtype,
        name=name,
    )


def layer_norm(config: EncoderConfig, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(
        config.norm_eps,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("embed",)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("embed",)),
        dtype=config.dtype,
        name=name,
    )


class Block(nn.Module):
    """One post-norm layer, in the (carry, out) form that `nn.scan` takes."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array, deterministic: bool):
        config = self.config
        heads = (*x.shape[:2], config.heads, config.width // config.heads)
        query, key, value = (
            dense(config.width, ("embed", "heads"), name, config.dtype)(x).reshape(heads)
            for name in ("query", "key", "value")
        )
        y = attention(query, key, value, Mask(key_valid=valid)).reshape(x.shape)
        y = dense(config.width, ("heads", "embed"), "output", config.dtype)(y)
        x = layer_norm(config, "attention_norm")(x + nn.Dropout(config.dropout)(y, deterministic=deterministic))
        y = nn.gelu(dense(config.mlp_width, ("embed", "mlp"), "up", config.dtype)(x), approximate=False)
        y = dense(config.width, ("mlp", "embed"), "down", config.dtype)(y)
        x = layer_norm(config, "mlp_norm")(x + nn.Dropout(config.dropout)(y, deterministic=deterministic))
        return nn.with_logical_constraint(x, ("batch", "length", "embed_activation")), None


class Encoder(nn.Module):
    """Tokens in, one vector per token out."""

    config: EncoderConfig

    @nn.compact
    def __call__(
        self, tokens: jax.Array, token_types: jax.Array, valid: jax.Array, *, deterministic: bool = True
    ) -> jax.Array:
        """Runs the encoder.

        Args:
          tokens: [B, L] int, L at most `max_length`.
          token_types: [B, L] int.
          valid: [B, L] bool; False for padding.
          deterministic: False turns on dropout (rng `dropout`).

        Returns:
          [B, L, width].
        """
        chex.assert_rank(tokens, 2)
        chex.assert_equal_shape([tokens, token_types, valid])
        config = self.config
        if tokens.shape[1] > config.max_length:
            raise ValueError(f"{tokens.shape[1]} tokens, but the encoder has {config.max_length} positions")

        def table(name, rows, axis):
            init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (axis, "embed"))
            return self.param(name, init, (rows, config.width))

        words = table("word_embedding", config.vocab_size, "vocab")
        positions = table("position_embedding", config.max_length, "position")
        types = table("token_type_embedding", config.token_types, "token_type")
        x = jnp.take(words, tokens, axis=0) + positions[None, : tokens.shape[1]] + jnp.take(types, token_types, axis=0)
        x = layer_norm(config, "embedding_norm")(x.astype(config.dtype))
        x = nn.Dropout(config.dropout)(x, deterministic=deterministic)
        layers = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=config.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(config, name="layers")
        x, _ = layers(x, valid, deterministic)
        return x
