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
from jax_rele.models.packed_rows import Packing
from jax_rele.students.auxiliary import auxiliary_branch
from jax_rele.students.base import BatchSpec, InputSpec, RaggedInputs, TokenArray, traced_heads
from jax_rele.students.dimension_pooling import DimensionPooling
from jax_rele.types import VERDICTS, Pair, PyTree, StudentOutputs

GATE_BIAS = -3.0
"""Added to the gates' logits: an untrained student, whose views say nothing, scores by its text vectors."""


class TwoTower(nn.Module):
    """Representation-based student: query and item are encoded separately, so items can be encoded offline.

    `compare` reads the outputs of `encode` alone. The verdict on a dimension compares the two sides' unit vectors for
    that dimension, their "views". With `verdict_pooling` `tokens` a view is read from the tokens, with attention of the
    dimension's own, and is part of the embedding:

        query: [text vector, g_1 view_1, ..., g_D view_D]        item: [text vector, view_1, ..., view_D]

    with gates g_d in (0, 1) that say how much the query cares for the dimension. So verdicts are learnt without bending
    the text vector, and the score gains from them. Only verdict and view terms train the views: by a recipe without
    them they stay random, and the gates learn to leave them out. With `pooled` views are linear projections of the text
    vector, which alone is the embedding. What the views teach the encoder is limited by what the text vector does
    (`auxiliary_branch`), or verdicts would bend the geometry of pretrained embeddings (docs/studies/esci_open_llm.md).

    The label logits are computed from the embeddings by one of three heads:

    - `cosine`: affine in their inner product, each grade with a learned scale, so an index that finds the items of
      largest inner product finds the most relevant ones. All items have embeddings of the same length where
      `normalize` is True, so that their cosines give the same order;
    - `mlp`: a layer over (u, v, |u - v|, u * v) (as in InferSent, arXiv 1705.02364), for scoring a short list;
    - `maxsim`: affine in the late interaction of token vectors (ColBERT, arXiv 2004.12832), the mean over the query's
      tokens of the best cosine with a token of the item. Embeddings are the token vectors, from which the views are
      read too.

    Attributes:
      encoder: shape of the encoder.
      labels: number of relevance grades (C).
      dimensions: number of dimensions (D).
      embedding_width: of the text vector's projection; 0: no projection, it is as wide as the encoder.
      view_width: width of a dimension's view (K).
      towers: `shared`: both sides use the same weights; `separate`: each has its own.
      distinguish_sides: whether the sides have different token types. False for pretrained
        encoders, which did not learn such types.
      pooling: an embedding is the `mean` of the tokens or the `first` token.
      normalize: whether the text vector has unit length.
      head: `cosine`, `mlp` or `maxsim`.
      verdict_pooling: `tokens` or `pooled`.
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
    verdict_pooling: Literal["tokens", "pooled"] = "tokens"

    def setup(self):
        dtype = self.encoder.dtype
        if self.towers == "shared":
            self.readers: Sequence[Encoder] = (Encoder(self.encoder, name="encoder"),) * 2
        else:
            self.readers = tuple(Encoder(self.encoder, name=f"{side}_encoder") for side in ("query", "item"))
        if self.embedding_width:
            self.projection = dense(self.embedding_width, ("embed", "embedding"), "projection", dtype)
        if self.verdict_pooling == "tokens":
            self.token_views = DimensionPooling(self.dimensions, self.view_width + 1, dtype)  # the last one is the gate
        else:
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

    def encode(
        self,
        tokens: jax.Array,
        valid: jax.Array,
        side: int,
        *,
        packing: Packing | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Embeddings of one side (0 queries, 1 items): [B, L] -> [B, E]; for `maxsim` [B, L, E], zeros for padding."""
        types = jnp.full_like(tokens, side if self.distinguish_sides else 0)
        x = cast(jax.Array, self.readers[side](tokens, types, valid, deterministic=deterministic, packing=packing))
        weights = valid[..., None].astype(x.dtype)
        views: jax.Array | None = None
        if self.verdict_pooling == "tokens" and self.head != "maxsim":
            x, x_of_views = auxiliary_branch(x)
            views = self._views_of_tokens(x_of_views, valid)
            views = (views * self._gates(x, valid) if side == 0 else views).reshape(x.shape[0], -1)
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
        text = _unit(x) if self.normalize else x
        return text if views is None else jnp.concatenate([text, views], axis=-1)

    def compare(self, query: jax.Array, item: jax.Array) -> StudentOutputs:
        """Scores pairs of outputs of `encode`: row i of `query` with row i of `item`."""
        if self.verdict_pooling == "tokens" and self.head != "maxsim":  # `encode` has read the views from a branch
            u, v = self._views(query), self._views(item)
        else:
            (query, of_query), (item, of_item) = auxiliary_branch(query), auxiliary_branch(item)
            u, v = self._views(of_query), self._views(of_item)
        if self.head == "maxsim":
            logits = late_interaction(query, item)[:, None] * self.label_slope + self.label_bias
        else:
            chex.assert_equal_shape([query, item])
            if self.head == "mlp":
                both = jnp.concatenate([query, item, jnp.abs(query - item), query * item], axis=-1)
                logits = self.mlp_down(nn.gelu(self.mlp_up(both)))
            else:
                logits = self._inner_product(query, item, u, v)[:, None] * self.label_slope + self.label_bias
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

    def _inner_product(self, query: jax.Array, item: jax.Array, u: jax.Array, v: jax.Array) -> jax.Array:
        """[B], of embeddings with the views `u` and `v`.

        Its gradient trains text vectors and gates, not the views, which few labels would fit to noise.
        """
        if self.verdict_pooling == "pooled":
            return jnp.sum(query * item, axis=-1)
        width = self.dimensions * self.view_width
        gates = _norm(query[:, -width:].reshape(u.shape))
        similarity = jax.lax.stop_gradient((u * v).sum(axis=-1))
        return jnp.sum(query[:, :-width] * item[:, :-width], axis=-1) + (gates * similarity).sum(axis=-1)

    def _views(self, embedding: jax.Array) -> jax.Array:
        """[B, D, K] unit vectors, from an output of `encode`."""
        if self.verdict_pooling == "pooled":
            pooled = _unit(embedding.sum(axis=1)) if self.head == "maxsim" else embedding
            return _unit(self.views(pooled).reshape(-1, self.dimensions, self.view_width))
        if self.head == "maxsim":
            return self._views_of_tokens(embedding, jnp.any(embedding != 0, axis=-1))
        # The gates are positive, so that unit vectors are the views again.
        views = embedding[:, -self.dimensions * self.view_width :]
        return _unit(views.reshape(-1, self.dimensions, self.view_width))

    def _views_of_tokens(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        """[B, D, K] unit vectors, from token vectors [B, L, W]."""
        return _unit(self.token_views(x, valid)[..., :-1])

    def _gates(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        """[B, D, 1] in (0, 1), from token vectors [B, L, W]."""
        return jax.nn.sigmoid(self.token_views(x, valid)[..., -1:] + GATE_BIAS)

    def __call__(
        self,
        query_tokens: jax.Array,
        query_valid: jax.Array,
        item_tokens: jax.Array,
        item_valid: jax.Array,
        *,
        query_packing: Packing | None = None,
        item_packing: Packing | None = None,
        deterministic: bool = True,
    ) -> StudentOutputs:
        """Scores pairs.

        Args:
          query_tokens, query_valid: [B, Lq].
          item_tokens, item_valid: [B, Li].
          query_packing, item_packing: how the encoder packs each side's rows in training, see `models.packed_rows`;
            None: not at all.
          deterministic: False turns on dropout (rng `dropout`).

        Returns:
          `StudentOutputs` with logits [B, C], verdict_logits [B, D, V], both embeddings and both sides' views.
        """
        query = self.encode(query_tokens, query_valid, 0, packing=query_packing, deterministic=deterministic)
        item = self.encode(item_tokens, item_valid, 1, packing=item_packing, deterministic=deterministic)
        return self.compare(query, item)

    @property
    def embeds(self) -> bool:
        """Whether query and item have embeddings of their own."""
        return True

    @nn.nowrap
    def tokenize(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pairs: Sequence[Pair],
        spec: InputSpec,
        losses: list[np.ndarray] | None = None,
    ) -> RaggedInputs:
        """`query_tokens` and `item_tokens` of each pair, not padded."""
        queries, items = tower_rows(tokenizer, pairs, spec.fields, spec.query_length, spec.item_length, losses)
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
    def heads(self) -> frozenset[str]:
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


def _norm(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(x**2, axis=-1) + 1e-12)


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-12)
