"""The two deployable students: `CrossEncoder` reads query and item together, `TwoTower` reads them apart."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from jax_rele.models.encoder import Encoder, EncoderConfig, dense
from jax_rele.types import VERDICTS, StudentOutputs


class CrossEncoder(nn.Module):
    """Interaction-based student: `[CLS] query [SEP] item [SEP]` through one encoder.

    Attributes:
      encoder: shape of the encoder.
      labels: number of relevance grades (C).
      dimensions: number of dimensions (D).
    """

    encoder: EncoderConfig
    labels: int
    dimensions: int

    @nn.compact
    def __call__(
        self, tokens: jax.Array, token_types: jax.Array, valid: jax.Array, *, deterministic: bool = True
    ) -> StudentOutputs:
        """Judges pairs.

        Args:
          tokens, token_types: [B, L] int; type 0 is the query, 1 the item.
          valid: [B, L] bool; False for padding.
          deterministic: False turns on dropout (rng `dropout`).

        Returns:
          `StudentOutputs` with logits [B, C], verdict_logits [B, D, V] and token_logits [B, L, 1 + D].
        """
        width, dtype = self.encoder.width, self.encoder.dtype
        x = Encoder(self.encoder, name="encoder")(tokens, token_types, valid, deterministic=deterministic)
        pooled = nn.tanh(dense(width, ("embed", "embed_out"), "pooler", dtype)(x[:, 0]))
        pooled = nn.Dropout(self.encoder.dropout)(pooled, deterministic=deterministic)
        verdicts = dense(self.dimensions * len(VERDICTS), ("embed", "head"), "verdict_head", dtype)(pooled)
        return StudentOutputs(
            logits=dense(self.labels, ("embed", "head"), "label_head", dtype)(pooled),
            verdict_logits=verdicts.reshape(-1, self.dimensions, len(VERDICTS)),
            token_logits=dense(1 + self.dimensions, ("embed", "head"), "evidence_head", dtype)(x),
        )


class TwoTower(nn.Module):
    """Representation-based student: query and item are encoded apart, so items can be encoded offline.

    Both towers share the encoder and are told apart by the token type. Everything that `compare` needs follows from the
    two embeddings: the label logits are affine in their cosine, so an index that finds the nearest items finds the most
    relevant ones; the verdict on a dimension compares the two embeddings' linear views on that dimension.

    Attributes:
      encoder: shape of the shared encoder.
      labels: number of relevance grades (C).
      dimensions: number of dimensions (D).
      embedding_width: E.
      view_width: width of a dimension's view.
    """

    encoder: EncoderConfig
    labels: int
    dimensions: int
    embedding_width: int
    view_width: int

    def setup(self):
        dtype = self.encoder.dtype
        self.tower = Encoder(self.encoder, name="encoder")
        self.projection = dense(self.embedding_width, ("embed", "embedding"), "projection", dtype)
        self.views = dense(self.dimensions * self.view_width, ("embedding", "head"), "views", dtype)
        head = nn.with_logical_partitioning(nn.initializers.zeros, ("head",))
        # The first grade is the best one: it starts out rising with the cosine, the others falling.
        slope = nn.with_logical_partitioning(
            lambda _, shape: jnp.where(jnp.arange(shape[0]) == 0, 4.0, -4.0 / (shape[0] - 1)), ("head",)
        )
        self.label_slope = self.param("label_slope", slope, (self.labels,))
        self.label_bias = self.param("label_bias", head, (self.labels,))
        verdict_init = nn.with_logical_partitioning(
            nn.initializers.lecun_normal(in_axis=1, out_axis=2, batch_axis=0), ("dimension", "embedding", "head")
        )
        shape = (self.dimensions, 2 * self.view_width + 1, len(VERDICTS))
        self.verdict_kernel = self.param("verdict_kernel", verdict_init, shape)
        bias_init = nn.with_logical_partitioning(nn.initializers.zeros, ("dimension", "head"))
        self.verdict_bias = self.param("verdict_bias", bias_init, (self.dimensions, len(VERDICTS)))

    def encode(self, tokens: jax.Array, valid: jax.Array, token_type: int, *, deterministic: bool = True) -> jax.Array:
        """[B, L] tokens of one side -> [B, E] unit vectors; `token_type` 0 for queries, 1 for items."""
        types = jnp.full_like(tokens, token_type)
        x = self.tower(tokens, types, valid, deterministic=deterministic)
        weights = valid[..., None].astype(x.dtype)
        mean = (x * weights).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1.0)
        embedding = self.projection(mean).astype(jnp.float32)
        return embedding * jax.lax.rsqrt(jnp.sum(embedding**2, axis=-1, keepdims=True) + 1e-12)

    def compare(self, query: jax.Array, item: jax.Array) -> StudentOutputs:
        """Judges pairs of [B, E] embeddings; row i of `query` with row i of `item`."""
        chex.assert_equal_shape([query, item])
        cosine = jnp.sum(query * item, axis=-1, keepdims=True)
        u, v = (self.views(x).reshape(-1, self.dimensions, self.view_width) for x in (query, item))
        features = jnp.concatenate([u * v, jnp.abs(u - v), jnp.sum(u * v, axis=-1, keepdims=True)], axis=-1)
        return StudentOutputs(
            logits=cosine * self.label_slope + self.label_bias,
            verdict_logits=jnp.einsum("bdf,dfv->bdv", features, self.verdict_kernel) + self.verdict_bias,
            query_embedding=query,
            item_embedding=item,
        )

    def __call__(
        self,
        query_tokens: jax.Array,
        query_valid: jax.Array,
        item_tokens: jax.Array,
        item_valid: jax.Array,
        *,
        deterministic: bool = True,
    ) -> StudentOutputs:
        """Judges pairs.

        Args:
          query_tokens, query_valid: [B, Lq].
          item_tokens, item_valid: [B, Li].
          deterministic: False turns on dropout (rng `dropout`).

        Returns:
          `StudentOutputs` with logits [B, C], verdict_logits [B, D, V] and both embeddings [B, E].
        """
        query = self.encode(query_tokens, query_valid, 0, deterministic=deterministic)
        item = self.encode(item_tokens, item_valid, 1, deterministic=deterministic)
        return self.compare(query, item)
