"""Losses on what a rationale says: the verdict on every dimension, the tokens that are its evidence, where to look."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jax_rele.losses.elements import blank, check_integers, check_shapes, element_mask, is_zero, one_hot, times_log


def verdict_cross_entropy(
    verdict_logits: ArrayLike, verdict_probs: ArrayLike, where: ArrayLike | None = None, *, hard: bool = False
) -> jax.Array:
    r"""Cross entropy of the teacher's verdicts under the softmax of the student's verdict logits.

    .. math::
      \ell_{bd} = -\sum_v p_{bdv} \log \mathrm{softmax}(z_{bd})_v

    Its least value is the entropy of the teacher's verdict; with `hard` it is 0.

    Args:
      verdict_logits: [B, D, V] verdict logits :math:`z` of the student.
      verdict_probs: [B, D, V] verdict distribution :math:`p` of the teacher; one-hot for a parsed rationale. NaN where
        the teacher gave no verdict, which the mask must cover.
      where: bool mask, broadcastable to [B, D]. A masked element is 0 and passes no gradient.
      hard: whether the target is the most probable verdict alone.

    Returns:
      [B, D] float32 elements, in nats.

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
    if hard:
        # The most probable of NaN would be a verdict like any other.
        unknown = jnp.isnan(teacher).any(-1, keepdims=True)
        teacher = jnp.where(unknown, jnp.nan, one_hot(teacher.argmax(-1), teacher.shape[-1]))
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


def attention_to_evidence(
    attention: ArrayLike,
    evidence_tags: ArrayLike,
    evidence_tags_mask: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""KL divergence of the student's attention from the uniform distribution over the tokens that are evidence.

    With :math:`M_b` the tokens whose tag is known and :math:`E_b \subseteq M_b` those that are evidence of any
    dimension:

    .. math::
      \ell_b = \frac{1}{|E_b|} \sum_{l \in E_b} \left(\log \frac{1}{|E_b|} - \log \tilde a_{bl}\right),
      \qquad \tilde a_{bl} = a_{bl} \Big/ \sum_{l' \in M_b} a_{bl'}

    Attention is compared within the tokens of known tags: what rests on the others, the special tokens among them, is
    neither asked for nor punished. The masks are of two shapes: tokens are left out by `evidence_tags_mask`, which
    `combine` gives as an argument and does not apply to the elements, and pairs by `where`.

    Args:
      attention: [B, L] attention :math:`a` of the student, not negative.
      evidence_tags: [B, L] integer tags: 0 for a token that is no evidence, 1 + d for dimension d.
      evidence_tags_mask: [B, L] bool, the tokens whose tag is known; all where None.
      where: bool mask, broadcastable to [B]. A masked element is 0 and passes no gradient.

    Returns:
      [B] float32 elements, in nats; 0 for a pair without evidence. Attention of 0 counts as the least normal float32.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_rele import losses
      >>> attention = jnp.array([[0.6, 0.1, 0.1, 0.2], [0.6, 0.1, 0.1, 0.2]])
      >>> evidence_tags = jnp.array([[0, 2, 1, 0], [0, 0, 0, 0]])
      >>> known = jnp.array([[False, True, True, True]] * 2)
      >>> losses.attention_to_evidence(attention, evidence_tags, known).round(3)
      Array([0.693, 0.   ], dtype=float32)

    References:
      Mathew et al., `HateXplain <https://arxiv.org/abs/2012.10289>`_, 2020 (attention of the last layer taught by
      human rationales, through a cross entropy).
    """
    name = "attention_to_evidence"
    check_shapes(name, attention=(attention, "BL"), evidence_tags=(evidence_tags, "BL"))
    check_integers(name, evidence_tags=evidence_tags)
    if evidence_tags_mask is not None:
        check_shapes(name, attention=(attention, "BL"), evidence_tags_mask=(evidence_tags_mask, "BL"))
    mask = element_mask(where, jnp.shape(evidence_tags)[:1])
    known = element_mask(evidence_tags_mask, jnp.shape(evidence_tags), name="evidence_tags_mask") & mask[:, None]
    evidence = known & (jnp.asarray(evidence_tags) > 0)
    attention = blank(known, jnp.asarray(attention, jnp.float32))
    size = jnp.maximum(evidence.sum(-1), 1)

    def log(x):
        return jnp.log(jnp.where(is_zero(x), jnp.finfo(jnp.float32).tiny, x))

    mean_log = blank(evidence, log(attention)).sum(-1) / size
    return blank(evidence.any(-1), log(attention.sum(-1)) - jnp.log(size) - mean_log)
