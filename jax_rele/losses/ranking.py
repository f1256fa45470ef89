"""Losses on the order of the items of one query.

The batch holds pairs of many queries; those of one query have the same number in `segments`. The score of a pair is its
expected gain, :math:`\\sum_c p_c g_c`. Every function here compares all pairs with all: memory and time are O(B²).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import rax
from jax.typing import ArrayLike

from jax_rele.losses.elements import blank, check_integers, check_shapes, element_mask, one_hot


def in_list(segments: ArrayLike, where: ArrayLike | None = None) -> jax.Array:
    """Whether a pair has at least one valid partner: another pair of its query in the batch.

    Args:
      segments: [B] integers, equal for the pairs of one query.
      where: bool mask of the valid pairs, broadcastable to [B].

    Returns:
      [B] bool; False for an invalid pair. As the mask of a ranking loss it makes the mean run over lists alone.

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
    members = _members(segments, mask)

    def log_softmax(scores):
        scores = scores / temperature
        return scores - jax.nn.logsumexp(jnp.broadcast_to(scores, members.shape), axis=-1, where=members)

    log_p, log_q = log_softmax(teacher), log_softmax(student)
    return blank(partners.any(-1), temperature**2 * jnp.exp(log_p) * (log_p - log_q))


def ranknet(
    logits: ArrayLike,
    label_probs: ArrayLike,
    gains: ArrayLike,
    segments: ArrayLike,
    where: ArrayLike | None = None,
    *,
    temperature: float | jax.Array = 1.0,
) -> jax.Array:
    r"""Cross entropy of the teacher's preferences between the pairs of one query under the student's.

    With :math:`s` the expected gain under the softmax of the logits, :math:`t` the teacher's, and :math:`P_i` the valid
    partners of pair :math:`i`, which are the other valid pairs of its query:

    .. math::
      \ell_i = -\frac{T^2}{|P_i|} \sum_{j \in P_i} \left(p_{ij} \log q_{ij} + (1 - p_{ij}) \log (1 - q_{ij})\right),
      \qquad p_{ij} = \sigma\!\left(\frac{t_i - t_j}{T}\right), \quad q_{ij} = \sigma\!\left(\frac{s_i - s_j}{T}\right)

    Its least value is :math:`T^2` times the mean entropy of the teacher's preferences. Expected gains lie in the range
    of `gains`, usually [0, 1], so a :math:`T` well below 1 is needed for preferences that are clear.

    Args:
      logits: [B, C] label logits of the student.
      label_probs: [B, C] label distribution of the teacher.
      gains: [C] the worth of each label.
      segments: [B] integers, equal for the pairs of one query.
      where: bool mask, broadcastable to [B]. A masked pair is nobody's partner; its element is 0, without gradient.
      temperature: :math:`T > 0`.

    Returns:
      [B] float32 elements, in nats times :math:`T^2`; 0 for a pair without a valid partner (see `in_list`).

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_rele import losses
      >>> logits, label_probs = jnp.zeros((3, 2)), jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
      >>> losses.ranknet(logits, label_probs, gains=jnp.array([1.0, 0.0]), segments=jnp.array([7, 7, 8])).round(3)
      Array([0.693, 0.693, 0.   ], dtype=float32)

    References:
      Burges et al., `Learning to Rank using Gradient Descent <https://doi.org/10.1145/1102351.1102363>`_, 2005; Hinton
      et al., `Distilling the Knowledge in a Neural Network <https://arxiv.org/abs/1503.02531>`_, 2015 (:math:`T^2`).
    """
    student, teacher, segments, mask = _scores("ranknet", logits, label_probs, gains, segments, where)
    partners = _partners(segments, mask)
    s, t = ((scores[:, None] - scores[None, :]) / temperature for scores in (student, teacher))
    total = jnp.where(partners, jax.nn.softplus(s) - jax.nn.sigmoid(t) * s, 0.0).sum(-1)
    return temperature**2 * total / jnp.maximum(partners.sum(-1), 1)


def pairwise_logistic(
    logits: ArrayLike,
    labels: ArrayLike,
    gains: ArrayLike,
    segments: ArrayLike,
    where: ArrayLike | None = None,
    *,
    temperature: ArrayLike = 1.0,
) -> jax.Array:
    r"""Logistic loss of each labelled pair against the worse ones of its query: `rax.pairwise_logistic_loss`.

    With :math:`s` the expected gain under the softmax of the logits, and :math:`W_i` the valid pairs of the same query
    whose label has a smaller gain than that of pair :math:`i`:

    .. math::
      \ell_i = \frac{1}{|W_i|} \sum_{j \in W_i} \log \left(1 + \exp \left(-\frac{s_i - s_j}{T}\right)\right)

    Args:
      logits: [B, C] label logits of the student.
      labels: [B] integer labels.
      gains: [C] the worth of each label.
      segments: [B] integers, equal for the pairs of one query.
      where: bool mask, broadcastable to [B]. A masked pair is in no comparison; its element is 0, without gradient.
      temperature: :math:`T > 0`, the margin that counts as clear. Expected gains lie in the range of `gains`, usually
        [0, 1], so it should be well below 1.

    Returns:
      [B] float32 elements, in nats; 0 for a pair without a worse one; NaN for an unmasked label outside [0, C).

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_rele import losses
      >>> logits, gains = jnp.zeros((3, 2)), jnp.array([1.0, 0.0])
      >>> losses.pairwise_logistic(logits, jnp.array([0, 1, 1]), gains, segments=jnp.array([7, 7, 8])).round(3)
      Array([0.693, 0.   , 0.   ], dtype=float32)

    References:
      Burges et al., `Learning to Rank using Gradient Descent <https://doi.org/10.1145/1102351.1102363>`_, 2005;
      Jagerman et al., `Rax: Composable Learning-to-Rank using JAX <https://doi.org/10.1145/3534678.3539065>`_, 2022.
      There a list has the mean over all its comparisons; here an item has the mean over its own.
    """
    student, relevance, members, mask = _labelled("pairwise_logistic", logits, labels, gains, segments, where)
    comparisons = rax.pairwise_logistic_loss(
        student / temperature, relevance, segments=members.argmax(-1), reduce_fn=None
    ).reshape(members.shape)
    worse = members & (relevance[:, None] > relevance[None, :])
    elements = comparisons.sum(-1) / jnp.maximum(worse.sum(-1), 1)
    # Nothing is worse than NaN, which would pass for a pair without comparison.
    return blank(mask, jnp.where(jnp.isnan(relevance), jnp.nan, elements))


def listwise_softmax(
    logits: ArrayLike,
    labels: ArrayLike,
    gains: ArrayLike,
    segments: ArrayLike,
    where: ArrayLike | None = None,
    *,
    temperature: ArrayLike = 1.0,
) -> jax.Array:
    r"""Cross entropy of the gains of a query's labelled items under a softmax over them: `rax.softmax_loss`.

    With :math:`s` the expected gain under the softmax of the logits and :math:`N_i` the valid pairs of the query of
    pair :math:`i`, itself among them:

    .. math::
      \ell_i = -\frac{1}{|N_i|} \sum_{j \in N_i} g_{y_j} \log \frac{\exp(s_j / T)}{\sum_{k \in N_i} \exp(s_k / T)}

    Each pair bears an equal share of its list's loss, so that the elements of one query sum to it.

    Args:
      logits: [B, C] label logits of the student.
      labels: [B] integer labels.
      gains: [C] the worth :math:`g` of each label; not negative.
      segments: [B] integers, equal for the pairs of one query.
      where: bool mask, broadcastable to [B]. A masked pair is in no list; its element is 0, without gradient.
      temperature: :math:`T > 0`. Expected gains lie in the range of `gains`, usually [0, 1], so it should be well below
        1 to tell the items apart.

    Returns:
      [B] float32 elements, in nats; 0 for a pair without a valid partner (see `in_list`); NaN in a list with an
      unmasked label outside [0, C).

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_rele import losses
      >>> logits, gains = jnp.zeros((3, 2)), jnp.array([1.0, 0.0])
      >>> losses.listwise_softmax(logits, jnp.array([0, 1, 1]), gains, segments=jnp.array([7, 7, 8])).round(3)
      Array([0.347, 0.347, 0.   ], dtype=float32)

    References:
      Bruch et al., `An Analysis of the Softmax Cost Function for Learning to Rank
      <https://doi.org/10.1145/3341981.3344221>`_, 2019; Jagerman et al., `Rax: Composable Learning-to-Rank using JAX
      <https://doi.org/10.1145/3534678.3539065>`_, 2022.
    """
    student, relevance, members, mask = _labelled("listwise_softmax", logits, labels, gains, segments, where)
    # rax gives the loss of a list to its first item.
    lists = rax.softmax_loss(student / temperature, relevance, segments=members.argmax(-1), reduce_fn=None)
    return blank(mask, jnp.where(members, lists, 0.0).sum(-1) / members.sum(-1))


def _scores(loss, logits, label_probs, gains, segments, where):
    """Checked arguments as student's and teacher's scores [B], finite where masked, segments [B] and mask [B]."""
    check_shapes(
        loss, logits=(logits, "BC"), label_probs=(label_probs, "BC"), gains=(gains, "C"), segments=(segments, "B")
    )
    check_integers(loss, segments=segments)
    segments = jnp.asarray(segments)
    mask = element_mask(where, segments.shape)
    teacher = blank(mask, jnp.asarray(label_probs, jnp.float32))
    return _student(logits, gains, mask), _expected(teacher, gains), segments, mask


def _labelled(loss, logits, labels, gains, segments, where):
    """Checked arguments as student's scores [B], gains of the labels [B], who is in whose list [B, B] and mask [B].

    A masked pair is the only member of its own list, and finite.
    """
    check_shapes(loss, logits=(logits, "BC"), labels=(labels, "B"), gains=(gains, "C"), segments=(segments, "B"))
    check_integers(loss, labels=labels, segments=segments)
    segments = jnp.asarray(segments)
    mask = element_mask(where, segments.shape)
    relevance = _expected(one_hot(blank(mask, labels), jnp.shape(logits)[-1]), gains)
    return _student(logits, gains, mask), relevance, _members(segments, mask), mask


def _student(logits, gains, mask):
    return _expected(jax.nn.softmax(blank(mask, jnp.asarray(logits, jnp.float32))), gains)


def _expected(probs, gains):
    # A sum, not a matrix product: TPUs and GPUs round the operands of a product.
    return (probs * jnp.asarray(gains, jnp.float32)).sum(-1)


def _partners(segments, mask):
    """[B, B] bool: whether i and j are two valid pairs of one query."""
    same = (segments[:, None] == segments[None, :]) & mask[:, None] & mask[None, :]
    return same & ~jnp.eye(len(segments), dtype=bool)


def _members(segments, mask):
    """[B, B] bool: partners and the pair itself, so that no list is empty, not even that of a masked pair."""
    return _partners(segments, mask) | jnp.eye(len(segments), dtype=bool)
