"""Losses on the label distribution of a pair: against the human label and against the teacher's score."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jax_rele.losses.elements import blank, check_integers, check_shapes, element_mask, is_zero, one_hot, times_log


def cross_entropy(
    logits: ArrayLike, labels: ArrayLike, where: ArrayLike | None = None, *, label_smoothing: ArrayLike = 0.0
) -> jax.Array:
    r"""Cross entropy of the labels under the softmax of the logits.

    .. math::
      \ell_b = -\sum_c \left((1 - \alpha)\,[c = y_b] + \alpha / C\right) \log \mathrm{softmax}(z_b)_c

    Args:
      logits: [B, C] label logits :math:`z`.
      labels: [B] integer labels :math:`y`.
      where: bool mask, broadcastable to [B]. A masked element is 0 and passes no gradient.
      label_smoothing: the share :math:`\alpha` of the target that is spread over all labels, from 0 to 1.

    Returns:
      [B] float32 elements, in nats; NaN for an unmasked label outside [0, C).

    Raises:
      AssertionError: at trace time, for shapes that do not agree or labels that are not integers.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_rele import losses
      >>> logits = jnp.array([[2.0, 0.0], [0.0, 0.0], [0.0, 9.0]])
      >>> losses.cross_entropy(logits, jnp.array([0, 1, -1]), where=jnp.array([True, True, False])).round(3)
      Array([0.127, 0.693, 0.   ], dtype=float32)

    References:
      Szegedy et al., `Rethinking the Inception Architecture for Computer Vision <https://arxiv.org/abs/1512.00567>`_,
      2015, section 7 (label smoothing).
    """
    check_shapes("cross_entropy", logits=(logits, "BC"), labels=(labels, "B"))
    check_integers("cross_entropy", labels=labels)
    mask = element_mask(where, jnp.shape(labels))
    log_probs = jax.nn.log_softmax(blank(mask, jnp.asarray(logits, jnp.float32)))
    size = log_probs.shape[-1]
    targets = (1 - label_smoothing) * one_hot(blank(mask, labels), size) + label_smoothing / size
    return blank(mask, -times_log(targets, log_probs).sum(-1))


def score_kl(
    logits: ArrayLike, label_probs: ArrayLike, where: ArrayLike | None = None, *, temperature: ArrayLike = 1.0
) -> jax.Array:
    r"""Forward KL divergence of the student's label distribution from the teacher's, both softened.

    .. math::
      \ell_b = T^2 \sum_c \tilde p_{bc} \left(\log \tilde p_{bc} - \log \mathrm{softmax}(z_b / T)_c\right),
      \qquad \tilde p_{bc} = p_{bc}^{1/T} \big/ \sum_{c'} p_{bc'}^{1/T}

    The teacher is given by its probabilities, not its logits; :math:`\tilde p` is what its logits over :math:`T` would
    have given. The factor :math:`T^2` keeps the size of the gradient when :math:`T` changes.

    Args:
      logits: [B, C] label logits :math:`z` of the student.
      label_probs: [B, C] label distribution :math:`p` of the teacher; zeros are allowed and contribute 0.
      where: bool mask, broadcastable to [B]. A masked element is 0 and passes no gradient.
      temperature: :math:`T > 0`; above 1 it softens both distributions.

    Returns:
      [B] float32 elements, in nats times :math:`T^2`.

    Raises:
      AssertionError: at trace time, for shapes that do not agree.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_rele import losses
      >>> logits = jnp.array([[0.0, 0.0], [0.0, 0.0]])
      >>> label_probs = jnp.array([[0.5, 0.5], [1.0, 0.0]])
      >>> losses.score_kl(logits, label_probs).round(3)
      Array([0.   , 0.693], dtype=float32)

    References:
      Hinton et al., `Distilling the Knowledge in a Neural Network <https://arxiv.org/abs/1503.02531>`_, 2015.
    """
    check_shapes("score_kl", logits=(logits, "BC"), label_probs=(label_probs, "BC"))
    mask = element_mask(where, jnp.shape(logits)[:1])
    log_student = jax.nn.log_softmax(blank(mask, jnp.asarray(logits, jnp.float32)) / temperature)
    # Masked rows are filled with ones: a row of zeros has no softmax.
    probs = jnp.where(mask[:, None], jnp.asarray(label_probs, jnp.float32), 1.0)
    zero = is_zero(probs)
    log_teacher = jax.nn.log_softmax(jnp.where(zero, -jnp.inf, jnp.log(jnp.where(zero, 1.0, probs)) / temperature))
    return blank(mask, temperature**2 * times_log(jnp.exp(log_teacher), log_teacher - log_student).sum(-1))
