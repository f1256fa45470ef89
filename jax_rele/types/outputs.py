"""What models return."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax


@partial(jax.tree_util.register_dataclass)
@dataclass(frozen=True)
class StudentOutputs:
    """What a student returns; the losses read the fields by name, None where a student has no such head.

    Attributes:
      logits: [B, C] label logits.
      verdict_logits: [B, D, V].
      token_logits: [B, L, 1 + D] evidence tags; 0 is "no evidence", 1 + d is dimension d.
      attention: [B, L] what the first token attends to in the last layer, mean over the heads; sums to 1.
      representation: [B, W] the pair as the heads read it (cross-encoder).
      augmented_representation: [B, W] the same for the pair read together with its rationale, where that was given.
      augmented_logits: [B, C] label logits from that.
      latent: [B, R] what the latent-reasoning extractor makes of the pair.
      query_embedding, item_embedding: [B, E] (two-tower); [B, L, E] by token, zeros for padding, with late interaction.
      query_views, item_views: [B, D, K] unit vectors, an embedding's view on each dimension.
    """

    logits: jax.Array
    verdict_logits: jax.Array | None = None
    token_logits: jax.Array | None = None
    attention: jax.Array | None = None
    representation: jax.Array | None = None
    augmented_representation: jax.Array | None = None
    augmented_logits: jax.Array | None = None
    latent: jax.Array | None = None
    query_embedding: jax.Array | None = None
    item_embedding: jax.Array | None = None
    query_views: jax.Array | None = None
    item_views: jax.Array | None = None


@partial(jax.tree_util.register_dataclass)
@dataclass(frozen=True)
class DecoderOutputs:
    """What the teacher's decoder returns. Logits are never formed here: `hidden @ output_embedding.T` where needed.

    Attributes:
      hidden: [B, L, E] final-norm hidden states.
      output_embedding: [vocabulary, E].
    """

    hidden: jax.Array
    output_embedding: jax.Array
