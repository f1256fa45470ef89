"""The representation-based student: one embedding for the query and one for the item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from transformers import PreTrainedTokenizerBase

from jax_rele.data.tokens.student_inputs import tower_rows
from jax_rele.models.encoder import Encoder, EncoderConfig, dense
from jax_rele.students.base import BatchSpec, InputSpec, RaggedInputs, TokenArray, traced_heads
from jax_rele.types import VERDICTS, Pair, PyTree, StudentOutputs


class TwoTower(nn.Module):
    """Representation-based student: query and item are encoded separately, so items can be encoded offline.

    `compare` reads the outputs of `encode` alone. The verdict on a dimension compares linear projections ("views") of
    the two embeddings for that dimension. The label logits are computed from the embeddings by one of three heads:

    - `cosine`: affine in their cosine, each grade with a learned scale, so an index that finds the nearest items finds
      the most relevant ones;
    - `mlp`: a layer over (u, v, |u - v|, u * v) (as in InferSent, arXiv 1705.02364), for scoring a short list;
    - `maxsim`: affine in the late interaction of token vectors (ColBERT, arXiv 2004.12832), the mean over the query's
      tokens of the best cosine with a token of the item.

    Attributes:
      encoder: shape of the encoder.
      labels: number of relevance grades (C).
      dimensions: number of dimensions (D).
      embedding_width: E, of the projection; 0: no projection, E is the encoder's width.
      view_width: width of a dimension's view (K).
      towers: `shared`: both sides use the same weights; `separate`: each has its own.
      distinguish_sides: whether the sides have different token types. Pretrained weights that never saw
        them are better without.
      pooling: an embedding is the `mean` of the tokens or the `first` token.
      normalize: whether embeddings have unit length; otherwise the cosine is an inner product.
      head: `cosine`, `mlp` or `maxsim`.
    """

    encoder: EncoderConfig
    labels: int
    dimensions: int
    embedding_width: int
    view_width: int
    towers: Literal["shared", "separate"] = "shared"
    distinguish_sides: bool = True
    pooling: Literal["mean", "first"] = "mean"
    normalize: bool = True
    head: Literal["cosine", "mlp", "maxsim"] = "cosine"

    def setup(self):
        dtype = self.encoder.dtype
        if self.towers == "shared":
            self.readers: Sequence[Encoder] = (Encoder(self.encoder, name="encoder"),) * 2
        else:
            self.readers = tuple(Encoder(self.encoder, name=f"{side}_encoder") for side in ("query", "item"))
        if self.embedding_width:
            self.projection = dense(self.embedding_width, ("embed", "embedding"), "projection", dtype)
        self.views = dense(self.dimensions * self.view_width, ("embedding", "head"), "views", dtype)
        zeros = nn.initializers.zeros
        if self.head == "mlp":
            width = self.embedding_width or self.encoder.width
            self.mlp_up = dense(width, ("embedding", "mlp"), "mlp_up")
            self.mlp_down = dense(self.labels, ("mlp", "head"), "mlp_down")
        else:
            # The first grade is the best one: its slope starts positive, the others' negative.
            slope = nn.with_logical_partitioning(
                lambda _, shape: jnp.full(shape, -4.0 / (shape[0] - 1), jnp.float32).at[0].set(4.0), ("head",)
            )
            bias = nn.with_logical_partitioning(zeros, ("head",))
            self.label_slope = cast(jax.Array, self.param("label_slope", slope, (self.labels,)))
            self.label_bias = cast(jax.Array, self.param("label_bias", bias, (self.labels,)))
        verdict_init = nn.with_logical_partitioning(
            nn.initializers.lecun_normal(in_axis=1, out_axis=2, batch_axis=0), ("dimension", "embedding", "head")
        )
        shape = (self.dimensions, 2 * self.view_width + 1, len(VERDICTS))
        self.verdict_kernel = self.param("verdict_kernel", verdict_init, shape)
        bias_init = nn.with_logical_partitioning(zeros, ("dimension", "head"))
        bias_shape = (self.dimensions, len(VERDICTS))
        self.verdict_bias = cast(jax.Array, self.param("verdict_bias", bias_init, bias_shape))

    def encode(self, tokens: jax.Array, valid: jax.Array, side: int, *, deterministic: bool = True) -> jax.Array:
        """[B, L] tokens of one side (0 queries, 1 items) -> [B, E]; [B, L, E], zeros for padding, for `maxsim`."""
        types = jnp.full_like(tokens, side if self.distinguish_sides else 0)
        x = cast(jax.Array, self.readers[side](tokens, types, valid, deterministic=deterministic))
        weights = valid[..., None].astype(x.dtype)
        if self.head == "maxsim":
            x = x * weights
        elif self.pooling == "mean":
            x = (x * weights).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1.0)
        else:
            x = x[:, 0]
        if self.embedding_width:
            x = self.projection(x)
        x = x.astype(jnp.float32)
        if self.head == "maxsim":
            return _unit(x) * valid[..., None]
        return _unit(x) if self.normalize else x

    def compare(self, query: jax.Array, item: jax.Array) -> StudentOutputs:
        """Scores pairs of outputs of `encode`: row i of `query` with row i of `item`."""
        if self.head == "maxsim":
            logits = late_interaction(query, item)[:, None] * self.label_slope + self.label_bias
            pooled = _unit(query.sum(axis=1)), _unit(item.sum(axis=1))
        else:
            chex.assert_equal_shape([query, item])
            pooled = query, item
            if self.head == "mlp":
                both = jnp.concatenate([query, item, jnp.abs(query - item), query * item], axis=-1)
                logits = self.mlp_down(nn.gelu(self.mlp_up(both)))
            else:
                logits = jnp.sum(query * item, axis=-1, keepdims=True) * self.label_slope + self.label_bias
        u, v = (_unit(self.views(x).reshape(-1, self.dimensions, self.view_width)) for x in pooled)
        # Scaled so that features have a magnitude of about 1 whatever the width; the products alone would be tiny.
        product, scale = u * v, self.view_width**0.5
        features = [scale**2 * product, scale * jnp.abs(u - v), scale * product.sum(axis=-1, keepdims=True)]
        return StudentOutputs(
            logits=logits,
            verdict_logits=jnp.einsum("bdf,dfv->bdv", jnp.concatenate(features, axis=-1), self.verdict_kernel)
            + self.verdict_bias,
            query_embedding=query,
            item_embedding=item,
            query_views=u,
            item_views=v,
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
        """Scores pairs.

        Args:
          query_tokens, query_valid: [B, Lq].
          item_tokens, item_valid: [B, Li].
          deterministic: False turns on dropout (rng `dropout`).

        Returns:
          `StudentOutputs` with logits [B, C], verdict_logits [B, D, V], both embeddings and both sides' views.
        """
        query = self.encode(query_tokens, query_valid, 0, deterministic=deterministic)
        item = self.encode(item_tokens, item_valid, 1, deterministic=deterministic)
        return self.compare(query, item)

    @property
    def embeds(self) -> bool:
        """Whether query and item have embeddings of their own."""
        return True

    @nn.nowrap
    def tokenize(self, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], spec: InputSpec) -> RaggedInputs:
        """`query_tokens` and `item_tokens` of each pair, not padded."""
        queries, items = tower_rows(tokenizer, pairs, spec.fields, spec.query_length, spec.item_length)
        return {"query_tokens": queries, "item_tokens": items}

    @nn.nowrap
    def batch_spec(self, spec: InputSpec) -> BatchSpec:
        """The arrays of a padded batch."""
        arrays = {}
        for side, length in (("query", spec.query_length), ("item", spec.item_length + 1)):
            arrays[f"{side}_tokens"] = TokenArray(length, np.int32, is_token=True)
            arrays[f"{side}_valid"] = TokenArray(length, bool)
        return arrays

    @nn.nowrap
    def dummy_inputs(self) -> dict[str, PyTree]:
        """Inputs of the smallest shape, for initialisation and for tracing."""
        ids, valid = jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool)
        return {"query_tokens": ids, "query_valid": valid, "item_tokens": ids, "item_valid": valid}

    @property
    def heads(self) -> set[str]:
        """The fields of `StudentOutputs` that the student can fill in training."""
        return traced_heads(self)


def late_interaction(query: jax.Array, item: jax.Array) -> jax.Array:
    """MaxSim (ColBERT, arXiv 2004.12832): the mean over the query's tokens of the best inner product with an item's.

    Args:
      query: [B, Lq, E] unit token vectors, zeros for padding.
      item: [B, Li, E] likewise.

    Returns:
      [B], in [-1, 1].
    """
    queries, items = (jnp.any(x != 0, axis=-1) for x in (query, item))
    similarity = jnp.einsum("bqe,bie->bqi", query, item)
    best = jnp.where(items[:, None], similarity, -1.0).max(axis=-1)
    return jnp.where(queries, best, 0.0).sum(axis=-1) / jnp.maximum(queries.sum(axis=-1), 1)


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-12)
