"""The interaction-based student: query and item in one sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from transformers import PreTrainedTokenizerBase

from jax_rele.data.tokens.student_inputs import cross_rows
from jax_rele.models.encoder import Encoder, EncoderConfig, dense
from jax_rele.models.packed_rows import Packing
from jax_rele.students.base import BatchSpec, InputSpec, RaggedInputs, TokenArray, traced_heads
from jax_rele.students.dimension_pooling import DimensionPooling
from jax_rele.types import VERDICTS, Pair, PyTree, StudentOutputs


class CrossEncoder(nn.Module):
    """Interaction-based student: `[CLS] query [SEP] item [SEP]` through one encoder.

    Attributes:
      encoder: shape of the encoder.
      labels: number of relevance grades (C).
      dimensions: number of dimensions (D).
      latent_width: R, of the latent-reasoning extractor: a vector that is trained towards the rationale's embedding.
        It is an input of the heads, in serving too (after LRKD, arXiv 2601.21611). 0: none.
      verdict_pooling: the verdict on a dimension is read from the `pooled` vector alone, or from the `tokens` too, with
        attention of the dimension's own.
    """

    encoder: EncoderConfig
    labels: int
    dimensions: int
    latent_width: int = 0
    verdict_pooling: Literal["tokens", "pooled"] = "tokens"

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
        if self.verdict_pooling == "tokens":
            self.verdict_tokens = DimensionPooling(self.dimensions, len(VERDICTS), dtype)
        self.evidence_head = dense(1 + self.dimensions, ("embed", "head"), "evidence_head", dtype)

    def __call__(
        self,
        tokens: jax.Array,
        token_types: jax.Array,
        valid: jax.Array,
        *,
        augmented: Mapping[str, PyTree] | None = None,
        packing: Packing | None = None,
        deterministic: bool = True,
    ) -> StudentOutputs:
        """Scores pairs.

        Args:
          tokens, token_types: [B, L] int; type 0 is the query, 1 the item.
          valid: [B, L] bool; False for padding.
          augmented: `tokens`, `token_types` and `valid` [B, La] of the same pairs followed by their rationales; only in
            training, where a loss compares how the student reads both. It may have a `packing` too.
          packing: how the encoder packs the rows in training, see `models.packed_rows`; None: not at all.
          deterministic: False turns on dropout (rng `dropout`).

        Returns:
          `StudentOutputs` with logits [B, C], verdict_logits [B, D, V], token_logits [B, L, 1 + D], without a packing
          attention [B, L], representation [B, W], and where there are such latent [B, R], augmented_representation and
          augmented_logits.
        """
        attention = None
        if packing is None:
            x, weights = self.reader(tokens, token_types, valid, deterministic=deterministic, attention=True)
            attention = weights[-1]
        else:
            x = cast(jax.Array, self.reader(tokens, token_types, valid, deterministic=deterministic, packing=packing))
        representation, latent = self._represent(x, valid, deterministic)
        logits, verdict_logits = self._apply_heads(representation, x, valid)
        augmented_representation = augmented_logits = None
        if augmented is not None:
            parts = (augmented[name] for name in ("tokens", "token_types", "valid"))
            packing = augmented.get("packing")
            y = cast(jax.Array, self.reader(*parts, deterministic=deterministic, packing=packing))
            augmented_representation, _ = self._represent(y, augmented["valid"], deterministic)
            augmented_logits, _ = self._apply_heads(augmented_representation, y, augmented["valid"])
        return StudentOutputs(
            logits=logits,
            verdict_logits=verdict_logits,
            token_logits=self.evidence_head(x),
            attention=attention,
            representation=representation,
            augmented_representation=augmented_representation,
            augmented_logits=augmented_logits,
            latent=latent,
        )

    @property
    def embeds(self) -> bool:
        """Whether query and item have embeddings of their own."""
        return False

    @nn.nowrap
    def tokenize(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pairs: Sequence[Pair],
        spec: InputSpec,
        losses: list[np.ndarray] | None = None,
    ) -> RaggedInputs:
        """`tokens` and `token_types` of each pair, not padded."""
        tokens, types = cross_rows(tokenizer, pairs, spec.fields, spec.query_length, spec.item_length, losses)
        return {"tokens": tokens, "token_types": types}

    @nn.nowrap
    def batch_spec(self, spec: InputSpec) -> BatchSpec:
        """The arrays of a padded batch."""
        length = spec.query_length + spec.item_length
        return {
            "tokens": TokenArray(length, np.int32, is_token=True),
            "token_types": TokenArray(length, np.int32),
            "valid": TokenArray(length, bool),
        }

    @nn.nowrap
    def dummy_inputs(self) -> dict[str, PyTree]:
        """Inputs of the smallest shape, for initialisation and for tracing; with `augmented`, as in training."""
        ids, valid = jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool)
        inputs: dict[str, PyTree] = {"tokens": ids, "token_types": ids, "valid": valid}
        return {**inputs, "augmented": dict(inputs)}

    @property
    def heads(self) -> frozenset[str]:
        """The fields of `StudentOutputs` that the student can fill in training."""
        return traced_heads(self)

    def _apply_heads(self, representation: jax.Array, x: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Label logits [B, C] and verdict logits [B, D, V].

        The label logits depend on the verdict probabilities too, so that verdict losses also train the label.
        """
        verdict_logits = self.verdict_head(representation).reshape(-1, self.dimensions, len(VERDICTS))
        if self.verdict_pooling == "tokens":
            verdict_logits += self.verdict_tokens(x, valid)
        verdicts = jax.nn.softmax(verdict_logits.astype(jnp.float32)).reshape(representation.shape[0], -1)
        return self.label_head(representation) + self.label_of_verdicts(verdicts), verdict_logits

    def _represent(self, x: jax.Array, valid: jax.Array, deterministic: bool) -> tuple[jax.Array, jax.Array | None]:
        """The heads' input [B, W], and the latent that is part of it [B, R]."""
        pooled = self.dropout(self.reader.pool(x), deterministic=deterministic)
        if not self.latent_width:
            return pooled, None
        scores = jnp.where(valid, self.latent_scores(x)[..., 0].astype(jnp.float32), -jnp.inf)
        summary = jnp.einsum("bl,blw->bw", jax.nn.softmax(scores), x)
        latent = self.latent_down(nn.gelu(self.latent_up(summary)))
        return pooled + self.latent_fusion(latent), latent
