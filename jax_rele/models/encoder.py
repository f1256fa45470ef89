"""The students' encoder: bidirectional, of the BERT, RoBERTa, DistilBERT and ModernBERT families, in one module.

The config holds all differences of the families. Layers are stacked by `nn.scan`; windows and rotary frequencies, which
can differ between layers, are scanned with them.
Sources: Devlin et al., BERT, arXiv 1810.04805; Liu et al., RoBERTa, arXiv 1907.11692; Sanh et al., DistilBERT, arXiv
1910.01108; Warner et al., ModernBERT, arXiv 2412.13663.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jax_rele.models.attention import Mask, attention
from jax_rele.models.packed_rows import Packing, pack, unpack
from jax_rele.models.rope import Rope, rotate

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]

ACTIVATIONS: Mapping[Activation, Callable[[jax.Array], jax.Array]] = {
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_tanh": partial(nn.gelu, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
}


@dataclass(frozen=True)
class EncoderConfig:
    """Shape and computation of an encoder. The defaults are those of BERT.

    Attributes:
      vocab_size: rows of the word table.
      max_length: tokens of the longest text. The position table has `max_length + position_offset` rows.
      layers, width, heads, mlp_width: sizes; `width` is a multiple of `heads`.
      token_types: rows of the token-type table; 0 for none.
      dropout: rate while training, of embeddings and of the outputs of attention and feed-forward.
      norm_eps: of the layer norms.
      dtype: of activations; norms, softmax and rotations are computed in float32.
      param_dtype: of parameters.
      family: its `model_type` in the Hugging Face form, which decides the names of the weights.
      activation: of the feed-forward.
      position_offset: where > 0, positions count a row's valid tokens from this number on, and padding has the number
        before it, as in RoBERTa. 0: positions are indices.
      prenorm: norms precede attention and feed-forward, and one follows the last layer. False: they follow.
      gated: the feed-forward's activation is multiplied by a second projection (Shazeer, arXiv 2002.05202).
      attention_bias, mlp_bias, norm_bias: whether these have biases.
      rope_thetas: for each layer the base of its rotary frequencies; () for a table of positions.
      windows: for each layer w > 0 where a token sees only those less than w positions away, 0 where it sees all; ()
        where every layer sees all.
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
    param_dtype: jnp.dtype = jnp.float32
    family: str = "bert"
    activation: Activation = "gelu"
    position_offset: int = 0
    prenorm: bool = False
    gated: bool = False
    attention_bias: bool = True
    mlp_bias: bool = True
    norm_bias: bool = True
    rope_thetas: tuple[float, ...] = ()
    windows: tuple[int, ...] = ()

    def __post_init__(self):
        for name in ("rope_thetas", "windows"):
            if getattr(self, name) and len(getattr(self, name)) != self.layers:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {self.layers} layers")


def dense(
    features: int, axes: tuple[str, str], name: str, dtype=jnp.float32, param_dtype=jnp.float32, bias: bool = True
) -> nn.Dense:
    """A linear map whose kernel and bias have logical axes."""
    return nn.Dense(
        features,
        use_bias=bias,
        kernel_init=nn.with_logical_partitioning(nn.initializers.xavier_uniform(), axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, axes[1:]),
        dtype=dtype,
        param_dtype=param_dtype,
        name=name,
    )


def layer_norm(config: EncoderConfig, name: str) -> nn.LayerNorm:
    # The backward pass stores the input alone and computes the norm again.
    return nn.remat(nn.LayerNorm, prevent_cse=False)(
        config.norm_eps,
        use_bias=config.norm_bias,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("embed",)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("embed",)),
        # E[x^2] - E[x]^2 loses digits where one feature is far larger than the others, as in trained encoders.
        use_fast_variance=False,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        name=name,
    )


class EncoderBlock(nn.Module):
    """One layer, in the (carry, out) form of `nn.scan`.

    The carry is the residual stream and, with `prenorm`, also its norm, which the next layer's attention reads. So
    every layer has the same parameters, though in ModernBERT no norm precedes the first attention and one follows the
    last layer.
    """

    config: EncoderConfig

    @nn.compact
    def __call__(self, carry, mask: Mask, positions, deterministic: bool, first: bool, window, frequencies):
        config, mask = self.config, dataclasses.replace(mask, window=window)
        x, y = carry if config.prenorm else (carry, carry)
        linear = partial(dense, dtype=config.dtype, param_dtype=config.param_dtype)

        def dropout(y):
            return nn.Dropout(config.dropout)(y, deterministic=deterministic)

        query, key, value = (
            linear(config.width, ("embed", "heads"), name, bias=config.attention_bias)(y).reshape(
                *x.shape[:2], config.heads, -1
            )
            for name in ("query", "key", "value")
        )
        if frequencies is not None:
            query, key = rotate(query, positions, frequencies), rotate(key, positions, frequencies)
        y = attention(query, key, value, mask).reshape(x.shape)
        x = x + dropout(linear(config.width, ("heads", "embed"), "output", bias=config.attention_bias)(y))
        if config.prenorm:
            y = layer_norm(config, "mlp_norm")(x)
        else:
            y = x = layer_norm(config, "attention_norm")(x)
        up = linear(config.mlp_width, ("embed", "mlp"), "up", bias=config.mlp_bias)(y)
        # As with the norms, only the inputs are stored.
        activate = jax.checkpoint(ACTIVATIONS[config.activation], prevent_cse=False)
        if config.gated:
            gate = linear(config.mlp_width, ("embed", "mlp"), "gate", bias=config.mlp_bias)(y)
            up = activate(gate) * up
        else:
            up = activate(up)
        x = x + dropout(linear(config.width, ("mlp", "embed"), "down", bias=config.mlp_bias)(up))
        carry = (x, layer_norm(config, "next_norm")(x)) if config.prenorm else layer_norm(config, "mlp_norm")(x)
        carry = nn.with_logical_constraint(carry, ("batch", "length", "embed_activation"))
        return carry, first_attention(query, key, mask) if first else None


def first_attention(query: jax.Array, key: jax.Array, mask: Mask) -> jax.Array:
    """[B, L] float32: the attention of each row's first token, mean over the heads."""
    scores = jnp.einsum("bhd,bkhd->bhk", query[:, 0], key, preferred_element_type=jnp.float32)
    scores *= query.shape[-1] ** -0.5
    allowed = mask.dense(1, key.shape[1])
    assert allowed is not None  # The mask has `key_valid`.
    return nn.softmax(jnp.where(allowed[:, :, 0], scores, jnp.finfo(jnp.float32).min), axis=-1).mean(axis=1)


class Encoder(nn.Module):
    """Tokens -> one vector per token."""

    config: EncoderConfig

    def setup(self):
        config = self.config

        def table(name, rows, axis):
            init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (axis, "embed"))
            return self.param(name, init, (rows, config.width), config.param_dtype)

        self.words = table("word_embedding", config.vocab_size, "vocab")
        if not config.rope_thetas:
            self.positions = table("position_embedding", config.max_length + config.position_offset, "position")
        if config.token_types:
            self.types = table("token_type_embedding", config.token_types, "token_type")
        self.norm = layer_norm(config, "embedding_norm")
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.scan(
            EncoderBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast, 0, 0),
            length=config.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(config, name="layers")
        self.pooler = dense(config.width, ("embed", "embed_out"), "pooler", config.dtype, config.param_dtype)

    def __call__(
        self,
        tokens: jax.Array,
        token_types: jax.Array,
        valid: jax.Array,
        *,
        deterministic: bool = True,
        attention: bool = False,
        packing: Packing | None = None,
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Runs the encoder. The outputs of valid tokens depend neither on padding nor on how rows are packed.

        Args:
          tokens: [B, L] int, L at most `max_length`.
          token_types: [B, L] int. Encoders without a type table ignore them; types beyond the table use its last row
            (RoBERTa has one row).
          valid: [B, L] bool; False for padding.
          deterministic: False turns on dropout (rng `dropout`).
          attention: also return the attention of the first token.
          packing: where the layers read each token, of fewer rows; see `packed_rows`. Not with `attention`.

        Returns:
          [B, L, width], with `packing` zeros where it leaves a token out; with `attention` also [layers, B, L] float32,
          the softmax of the first token's query over the keys, mean over the heads.
        """
        chex.assert_rank(tokens, 2)
        chex.assert_equal_shape([tokens, token_types, valid])
        config = self.config
        if tokens.shape[1] > config.max_length:
            raise ValueError(f"{tokens.shape[1]} tokens, but the encoder has {config.max_length} positions")
        numbers = jnp.arange(tokens.shape[1])[None]
        if config.position_offset:
            numbers = jnp.cumsum(valid, axis=1, dtype=jnp.int32) * valid + config.position_offset - 1
        mask = Mask(key_valid=valid)
        if packing is not None:
            if attention:
                raise ValueError("the attention of the first token is that of padded rows; leave out the packing")
            (tokens, token_types, numbers), segments = pack(packing, tokens, token_types, numbers)
            mask = Mask(query_segments=segments, key_segments=segments)
            mask = dataclasses.replace(mask, query_positions=numbers, key_positions=numbers)
        x = jnp.take(self.words, tokens, axis=0)
        if not config.rope_thetas:
            by_index = packing is None and not config.position_offset
            x += self.positions[None, : tokens.shape[1]] if by_index else jnp.take(self.positions, numbers, axis=0)
        if config.token_types:
            x += jnp.take(self.types, jnp.minimum(token_types, config.token_types - 1), axis=0)
        x = self.dropout(self.norm(x.astype(config.dtype)), deterministic=deterministic)
        windows = jnp.array(config.windows, jnp.int32) if any(config.windows) else None
        frequencies = None
        if config.rope_thetas:
            head_dim = config.width // config.heads
            frequencies = np.stack([Rope(theta).frequencies(head_dim) for theta in config.rope_thetas])
        carry = (x, x) if config.prenorm else x
        carry, weights = self.layers(carry, mask, numbers, deterministic, attention, windows, frequencies)
        hidden = carry[1] if config.prenorm else carry
        if packing is not None:
            hidden = unpack(packing, hidden)
        return (hidden, weights) if attention else hidden

    def pool(self, hidden: jax.Array) -> jax.Array:
        """BERT's pooler: tanh of a linear map of the first token, [B, L, width] -> [B, width].

        Its parameters `pooler` exist only where `init` called this or the weights include them.
        """
        return nn.tanh(self.pooler(hidden[:, 0]))
