"""Losses on the order of the items of one query.

The batch holds pairs of many queries; those of one query have the same number in `segments`. The score of a pair is its
expected gain, :math:`\\sum_c p_c g_c`. Every function here compares all pairs with all: memory and time are O(B²).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jax_rele.losses.elements import blank, check_integers, check_shapes, element_mask


def in_list(segments: ArrayLike, where: ArrayLike | None = None) -> jax.Array:
    """Whether a pair has at least one valid partner: another pair of its query in the batch.

    Args:
      segments: [B] integers, equal for the pairs of one query.
      where: bool mask of the valid pairs, broadcastable to [B].

    Returns:
      [B] bool; False for an invalid pair. As the mask of a ranking loss it makes the mean run over lists alone.

    Raises:
      AssertionError: at trace time, for shapes that do not agree or segments that are not integers.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_rele import losses
      >>> losses.in_list(jnp.array([7, 7, 8, 9, 9]), where=jnp.array([True, True, True, True, False]))
      Array([ True,  True, False, False, False], dtype=bool)
    """
    check_shapes("in_list", segments=(segments, "B"))
    check_integers("in_list", segments=segments)
    segments = jnp.asarray(segments)
    return _partners(segments, element_mask(where, segments.shape)).any(-1)


def margin_mse(
    logits: ArrayLike,
    label_probs: ArrayLike,
    gains: ArrayLike,
    segments: ArrayLike,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Squared error of the margins between the pairs of one query: student's score margins against the teacher's.

    With :math:`s` the expected gain under the softmax of the logits, :math:`t` the teacher's, and :math:`P_i` the valid
    partners of pair :math:`i`, which are the other valid pairs of its query:

    .. math::
      \ell_i = \frac{1}{|P_i|} \sum_{j \in P_i} \left((s_i - s_j) - (t_i - t_j)\right)^2

    Args:
      logits: [B, C] label logits of the student.
      label_probs: [B, C] label distribution of the teacher.
      gains: [C] the worth of each label.
      segments: [B] integers, equal for the pairs of one query.
      where: bool mask, broadcastable to [B]. A masked pair is nobody's partner; its element is 0, without gradient.

    Returns:
      [B] float32 elements; 0 for a pair without a valid partner (see `in_list`).

    Raises:
      AssertionError: at trace time, for shapes that do not agree or segments that are not integers.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_rele import losses
      >>> logits = jnp.zeros((3, 2))
      >>> label_probs = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
      >>> losses.margin_mse(logits, label_probs, gains=jnp.array([1.0, 0.0]), segments=jnp.array([7, 7, 8]))
      Array([1., 1., 0.], dtype=float32)

    References:
      Hofstätter et al., `Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge Distillation
      <https://arxiv.org/abs/2010.02666>`_, 2020. There the scores are raw and each query has one positive and one
      negative; here they are expected gains and every pair of pairs counts.
    """
    student, teacher, segments, mask = _scores("margin_mse", logits, label_probs, gains, segments, where)
    error = student - teacher
    partners = _partners(segments, mask)
    total = jnp.where(partners, (error[:, None] - error[None, :]) ** 2, 0.0).sum(-1)
    return total / jnp.maximum(partners.sum(-1), 1)


def listwise_kl(
    logits: ArrayLike,
    label_probs: ArrayLike,
    gains: ArrayLike,
    segments: ArrayLike,
    where: ArrayLike | None = None,
    *,
    temperature: ArrayLike = 1.0,
) -> jax.Array:
    r"""KL divergence between two softmaxes over the items of a query: the student's from the teacher's.

    With :math:`s` the expected gain under the softmax of the logits, :math:`t` the teacher's, and both softmaxes taken
    over the valid pairs of one query:

    .. math::
      \ell_i = T^2\, p_i \left(\log p_i - \log q_i\right),
      \qquad p = \mathrm{softmax}(t / T), \quad q = \mathrm{softmax}(s / T)

    The elements of one query sum to :math:`T^2` times its KL divergence; a single element may be negative. Expected
    gains lie in the range of `gains`, usually [0, 1], so a :math:`T` well below 1 is needed to tell the items apart.

    Args:
      logits: [B, C] label logits of the student.
      label_probs: [B, C] label distribution of the teacher.
      gains: [C] the worth of each label.
      segments: [B] integers, equal for the pairs of one query.
      where: bool mask, broadcastable to [B]. A masked pair is in no list; its element is 0, without gradient.
      temperature: :math:`T > 0`.

    Returns:
      [B] float32 elements, in nats times :math:`T^2`; 0 for a pair without a valid partner (see `in_list`).

    Raises:
      AssertionError: at trace time, for shapes that do not agree or segments that are not integers.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_rele import losses
      >>> logits = jnp.array([[0.0, 9.0], [9.0, 0.0], [0.0, 0.0]])
      >>> label_probs = jnp.array([[0.5, 0.5], [0.5, 0.5], [1.0, 0.0]])
      >>> gains, segments = jnp.array([1.0, 0.0]), jnp.array([7, 7, 8])
      >>> losses.listwise_kl(logits, label_probs, gains, segments, temperature=0.5).round(3)
      Array([ 0.179, -0.071,  0.   ], dtype=float32)

    References:
      Cao et al., `Learning to Rank: From Pairwise Approach to Listwise Approach
      <https://www.microsoft.com/en-us/research/publication/learning-to-rank-from-pairwise-approach-to-listwise-approach/>`_,
      2007 (top-one probabilities); Hinton et al., `Distilling the Knowledge in a Neural Network
      <https://arxiv.org/abs/1503.02531>`_, 2015 (temperature).
    """
    student, teacher, segments, mask = _scores("listwise_kl", logits, label_probs, gains, segments, where)
    partners = _partners(segments, mask)
    # A masked pair is the only member of its own list, so that no list is empty and every logarithm is finite.
    members = partners | jnp.eye(len(segments), dtype=bool)

    def log_softmax(scores):
        scores = scores / temperature
        return scores - jax.nn.logsumexp(jnp.broadcast_to(scores, members.shape), axis=-1, where=members)

    log_p, log_q = log_softmax(teacher), log_softmax(student)
    return blank(partners.any(-1), temperature**2 * jnp.exp(log_p) * (log_p - log_q))


def _scores(loss, logits, label_probs, gains, segments, where):
    """Checked arguments as student's and teacher's scores [B], finite where masked, segments [B] and mask [B]."""
    check_shapes(
        loss, logits=(logits, "BC"), label_probs=(label_probs, "BC"), gains=(gains, "C"), segments=(segments, "B")
    )
    check_integers(loss, segments=segments)
    segments = jnp.asarray(segments)
    mask = element_mask(where, segments.shape)
    gains = jnp.asarray(gains, jnp.float32)
    student = jax.nn.softmax(blank(mask, jnp.asarray(logits, jnp.float32)))
    teacher = blank(mask, jnp.asarray(label_probs, jnp.float32))
    # A sum, not a matrix product: TPUs and GPUs round the operands of a product.
    return (student * gains).sum(-1), (teacher * gains).sum(-1), segments, mask


def _partners(segments, mask):
    """[B, B] bool: whether i and j are two valid pairs of one query."""
    same = (segments[:, None] == segments[None, :]) & mask[:, None] & mask[None, :]
    return same & ~jnp.eye(len(segments), dtype=bool)
