"""Losses on what a rationale says: the verdict on every dimension, and the tokens that are its evidence."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jax_rele.losses.elements import blank, check_integers, check_shapes, element_mask, one_hot, times_log


def verdict_cross_entropy(
    verdict_logits: ArrayLike, verdict_probs: ArrayLike, where: ArrayLike | None = None
) -> jax.Array:
    r"""Cross entropy of the teacher's verdicts under the softmax of the student's verdict logits.

    .. math::
      \ell_{bd} = -\sum_v p_{bdv} \log \mathrm{softmax}(z_{bd})_v

    Its least value is the entropy of the teacher's verdict.

    Args:
      verdict_logits: [B, D, V] verdict logits :math:`z` of the student.
      verdict_probs: [B, D, V] verdict distribution :math:`p` of the teacher; one-hot for a parsed rationale. NaN where
        the teacher gave no verdict, which the mask must cover.
      where: bool mask, broadcastable to [B, D]. A masked element is 0 and passes no gradient.

    Returns:
      [B, D] float32 elements, in nats.

    Raises:
      AssertionError: at trace time, for shapes that do not agree.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_rele import losses
      >>> verdict_logits = jnp.zeros((1, 2, 3))
      >>> verdict_probs = jnp.array([[[1.0, 0.0, 0.0], [jnp.nan, jnp.nan, jnp.nan]]])
      >>> losses.verdict_cross_entropy(verdict_logits, verdict_probs, where=jnp.array([[True, False]])).round(2)
      Array([[1.1, 0. ]], dtype=float32)
    """
    check_shapes("verdict_cross_entropy", verdict_logits=(verdict_logits, "BDV"), verdict_probs=(verdict_probs, "BDV"))
    mask = element_mask(where, jnp.shape(verdict_logits)[:-1])
    log_student = jax.nn.log_softmax(blank(mask, jnp.asarray(verdict_logits, jnp.float32)))
    teacher = blank(mask, jnp.asarray(verdict_probs, jnp.float32))
    return blank(mask, -times_log(teacher, log_student).sum(-1))


def evidence_tagging(token_logits: ArrayLike, evidence_tags: ArrayLike, where: ArrayLike | None = None) -> jax.Array:
    r"""Cross entropy of each token's evidence tag under the softmax of its logits.

    .. math::
      \ell_{bl} = -\log \mathrm{softmax}(z_{bl})_{y_{bl}}

    Args:
      token_logits: [B, L, 1 + D] tag logits :math:`z`.
      evidence_tags: [B, L] integer tags :math:`y`: 0 for a token that is no evidence, 1 + d for dimension d.
      where: bool mask, broadcastable to [B, L]. A masked element is 0 and passes no gradient.

    Returns:
      [B, L] float32 elements, in nats; NaN for an unmasked tag outside [0, 1 + D).

    Raises:
      AssertionError: at trace time, for shapes that do not agree or tags that are not integers.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_rele import losses
      >>> token_logits = jnp.zeros((1, 3, 4)).at[0, 0, 2].set(9.0)
      >>> losses.evidence_tagging(token_logits, jnp.array([[2, 0, 0]]), where=jnp.array([[True, True, False]])).round(3)
      Array([[0.   , 1.386, 0.   ]], dtype=float32)
    """
    check_shapes("evidence_tagging", evidence_tags=(evidence_tags, "BL"), token_logits=(token_logits, "BLK"))
    check_integers("evidence_tagging", evidence_tags=evidence_tags)
    mask = element_mask(where, jnp.shape(evidence_tags))
    log_probs = jax.nn.log_softmax(blank(mask, jnp.asarray(token_logits, jnp.float32)))
    targets = one_hot(blank(mask, evidence_tags), log_probs.shape[-1])
    return blank(mask, -times_log(targets, log_probs).sum(-1))
