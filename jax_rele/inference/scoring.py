"""Distributions over a few words at given places of a text, as the teacher's scores of labels and verdicts."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from jax_rele.models import Decoder


@partial(jax.jit, static_argnames=("model",))
def word_probs(
    model: Decoder, variables: dict, tokens: jax.Array, places: jax.Array, words: jax.Array, exists: jax.Array
) -> jax.Array:
    """P(word | text before it), normalised over the words of a choice and told by their first tokens.

    Computed from the last hidden state against just those rows of the output embedding; [B, L, vocabulary] is never
    formed.

    Args:
      model: the decoder.
      variables: `params`, and `lora` where adapters are to be used.
      tokens: [B, L] int, padded on the right.
      places: [B, S] int, the place of each word; the hidden state before it is read. At least 1.
      words: [S, K] int, first token of each word.
      exists: [S, K] bool, False where a choice has fewer than K words.

    Returns:
      [B, S, K] float32; 0 for words that do not exist.
    """
    out = model.apply(variables, tokens)
    hidden = jnp.take_along_axis(out.hidden, (places - 1)[..., None], axis=1)
    logits = jnp.einsum("bse,ske->bsk", hidden, out.output_embedding[words]).astype(jnp.float32)
    return jax.nn.softmax(logits, axis=-1, where=exists[None])
