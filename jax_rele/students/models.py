"""The two deployable students: `CrossEncoder` reads query and item together, `TwoTower` reads them apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

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
      latent_width: R, of the latent-reasoning extractor: it sums the pair up in a vector that is trained towards the
        embedding of the teacher's rationale and that the heads read too, also when the student is served (after LRKD,
        arXiv 2601.21611). 0: none.
    """

    encoder: EncoderConfig
    labels: int
    dimensions: int
    latent_width: int = 0

    def setup(self):
        width, dtype = self.encoder.width, self.encoder.dtype
        self.reader = Encoder(self.encoder, name="encoder")
        self.dropout = nn.Dropout(self.encoder.dropout)
        if self.latent_width:
            self.latent_scores = dense(1, ("embed", "head"), "latent_scores", dtype)
            self.latent_up = dense(width, ("embed", "embed_out"), "latent_up", dtype)
            self.latent_down = dense(self.latent_width, ("embed", "embedding"), "latent_down", dtype)
            self.latent_fusion = dense(width, ("embedding", "embed"), "latent_fusion", dtype)
        self.label_head = dense(self.labels, ("embed", "head"), "label_head", dtype)
        self.label_of_verdicts = dense(self.labels, ("dimension", "head"), "label_of_verdicts", dtype)
        self.verdict_head = dense(self.dimensions * len(VERDICTS), ("embed", "head"), "verdict_head", dtype)
        self.evidence_head = dense(1 + self.dimensions, ("embed", "head"), "evidence_head", dtype)

    def __call__(
        self,
        tokens: jax.Array,
        token_types: jax.Array,
        valid: jax.Array,
        *,
        augmented: Mapping[str, jax.Array] | None = None,
        deterministic: bool = True,
    ) -> StudentOutputs:
        """Judges pairs.

        Args:
          tokens, token_types: [B, L] int; type 0 is the query, 1 the item.
          valid: [B, L] bool; False for padding.
          augmented: `tokens`, `token_types` and `valid` [B, La] of the same pairs followed by their rationales; only in
            training, where a loss compares how the student reads both.
          deterministic: False turns on dropout (rng `dropout`).

        Returns:
          `StudentOutputs` with logits [B, C], verdict_logits [B, D, V], token_logits [B, L, 1 + D], attention [B, L],
          representation [B, W], and where there are such latent [B, R], augmented_representation and augmented_logits.
        """
        x, attention = self.reader(tokens, token_types, valid, deterministic=deterministic, attention=True)
        representation, latent = self._represent(x, valid, deterministic)
        logits, verdict_logits = self._judge(representation)
        augmented_representation = augmented_logits = None
        if augmented is not None:
            y = self.reader(**augmented, deterministic=deterministic)
            augmented_representation, _ = self._represent(y, augmented["valid"], deterministic)
            augmented_logits, _ = self._judge(augmented_representation)
        return StudentOutputs(
            logits=logits,
            verdict_logits=verdict_logits,
            token_logits=self.evidence_head(x),
            attention=attention[-1],
            representation=representation,
            augmented_representation=augmented_representation,
            augmented_logits=augmented_logits,
            latent=latent,
        )

    def _judge(self, representation: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Label logits [B, C] and verdict logits [B, D, V]. The label follows from the verdicts too, so that what
        teaches the student to compare attributes teaches it to judge."""
        verdict_logits = self.verdict_head(representation).reshape(-1, self.dimensions, len(VERDICTS))
        verdicts = jax.nn.softmax(verdict_logits.astype(jnp.float32)).reshape(len(representation), -1)
        return self.label_head(representation) + self.label_of_verdicts(verdicts), verdict_logits

    def _represent(self, x: jax.Array, valid: jax.Array, deterministic: bool) -> tuple[jax.Array, jax.Array | None]:
        """What the heads read [B, W], and the latent in it [B, R]."""
        pooled = self.dropout(self.reader.pool(x), deterministic=deterministic)
        if not self.latent_width:
            return pooled, None
        scores = jnp.where(valid, self.latent_scores(x)[..., 0].astype(jnp.float32), -jnp.inf)
        summary = jnp.einsum("bl,blw->bw", jax.nn.softmax(scores), x)
        latent = self.latent_down(nn.gelu(self.latent_up(summary)))
        return pooled + self.latent_fusion(latent), latent


class TwoTower(nn.Module):
    """Representation-based student: query and item are encoded apart, so items can be encoded offline.

    Everything that `compare` needs follows from what `encode` gives; the verdict on a dimension compares the two
    embeddings' linear views on that dimension. The label logits follow from the embeddings by one of three heads:

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
      towers: `shared`: both sides read with the same weights; `separate`: each has its own.
      distinguish_sides: whether the sides have different token types. Shared weights that were trained without them
        do better without.
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
            self.readers = (Encoder(self.encoder, name="encoder"),) * 2
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
            # The first grade is the best one: it starts out rising with the cosine, the others falling.
            slope = nn.with_logical_partitioning(
                lambda _, shape: jnp.full(shape, -4.0 / (shape[0] - 1), jnp.float32).at[0].set(4.0), ("head",)
            )
            self.label_slope = self.param("label_slope", slope, (self.labels,))
            self.label_bias = self.param("label_bias", nn.with_logical_partitioning(zeros, ("head",)), (self.labels,))
        verdict_init = nn.with_logical_partitioning(
            nn.initializers.lecun_normal(in_axis=1, out_axis=2, batch_axis=0), ("dimension", "embedding", "head")
        )
        shape = (self.dimensions, 2 * self.view_width + 1, len(VERDICTS))
        self.verdict_kernel = self.param("verdict_kernel", verdict_init, shape)
        bias_init = nn.with_logical_partitioning(zeros, ("dimension", "head"))
        self.verdict_bias = self.param("verdict_bias", bias_init, (self.dimensions, len(VERDICTS)))

    def encode(self, tokens: jax.Array, valid: jax.Array, side: int, *, deterministic: bool = True) -> jax.Array:
        """[B, L] tokens of one side (0 queries, 1 items) -> [B, E]; [B, L, E], zeros for padding, for `maxsim`."""
        types = jnp.full_like(tokens, side if self.distinguish_sides else 0)
        x = self.readers[side](tokens, types, valid, deterministic=deterministic)
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
        """Judges pairs of what `encode` gave; row i of `query` with row i of `item`."""
        if self.head == "maxsim":
            logits = late_interaction(query, item)[:, None] * self.label_slope + self.label_bias
            whole = _unit(query.sum(axis=1)), _unit(item.sum(axis=1))
        else:
            chex.assert_equal_shape([query, item])
            whole = query, item
            if self.head == "mlp":
                features = jnp.concatenate([query, item, jnp.abs(query - item), query * item], axis=-1)
                logits = self.mlp_down(nn.gelu(self.mlp_up(features)))
            else:
                logits = jnp.sum(query * item, axis=-1, keepdims=True) * self.label_slope + self.label_bias
        u, v = (_unit(self.views(x).reshape(-1, self.dimensions, self.view_width)) for x in whole)
        # Of the size of 1 whatever the width, or the products would hardly tell anything at first.
        both, scale = u * v, self.view_width**0.5
        features = [scale**2 * both, scale * jnp.abs(u - v), scale * both.sum(axis=-1, keepdims=True)]
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
        """Judges pairs.

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
