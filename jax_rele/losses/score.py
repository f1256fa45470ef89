"""Losses on the label distribution of a pair: against the human label and against the teacher's score."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jax_rele.losses.elements import blank, check_integers, check_shapes, element_mask, is_zero, one_hot, times_log


def cross_entropy(
    logits: ArrayLike, labels: ArrayLike, where: ArrayLike | None = None, *, label_smoothing: float | jax.Array = 0.0
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


def ordinal_cross_entropy(logits: ArrayLike, labels: ArrayLike, where: ArrayLike | None = None) -> jax.Array:
    r"""Binary cross entropies of the questions "is the label at most k?", which know that the grades are in order.

    With :math:`F_{bk} = \sum_{c \le k} \mathrm{softmax}(z_b)_c` the cumulative probability of a grade:

    .. math::
      \ell_b = -\sum_{k=0}^{C-2} \left([y_b \le k] \log F_{bk} + [y_b > k] \log (1 - F_{bk})\right)

    A mistake by two grades fails two questions. With two grades this is the cross entropy.

    Args:
      logits: [B, C] label logits :math:`z`, the grades in order.
      labels: [B] integer labels :math:`y`.
      where: bool mask, broadcastable to [B]. A masked element is 0 and passes no gradient.

    Returns:
      [B] float32 elements, in nats; NaN for an unmasked label outside [0, C).

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_rele import losses
      >>> logits = jnp.array([[9.0, 0.0, 0.0]] * 3)  # sure of the first grade
      >>> losses.ordinal_cross_entropy(logits, jnp.array([0, 1, 2])).round()
      Array([ 0.,  8., 17.], dtype=float32)

    References:
      Frank and Hall, `A Simple Approach to Ordinal Classification
      <https://doi.org/10.1007/3-540-44795-4_13>`_, 2001. There every question has a model of its own; here one softmax
      answers all of them, so that the answers cannot contradict each other.
    """
    check_shapes("ordinal_cross_entropy", logits=(logits, "BC"), labels=(labels, "B"))
    check_integers("ordinal_cross_entropy", labels=labels)
    mask = element_mask(where, jnp.shape(labels))
    logits, labels = blank(mask, jnp.asarray(logits, jnp.float32)), blank(mask, labels)
    size = logits.shape[-1]
    thresholds, classes = jnp.arange(size - 1)[:, None], jnp.arange(size)
    # [B, C - 1, C]: the classes that give a question its right answer.
    right = (classes <= thresholds) == (labels[:, None, None] <= thresholds)
    log_right = jax.nn.logsumexp(jnp.broadcast_to(logits[:, None], right.shape), axis=-1, where=right)
    elements = (jax.nn.logsumexp(logits, axis=-1, keepdims=True) - log_right).sum(-1)
    return blank(mask, jnp.where((labels >= 0) & (labels < size), elements, jnp.nan))


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
    mask, log_student, log_teacher = _softened("score_kl", logits, label_probs, where, temperature)
    return blank(mask, temperature**2 * times_log(jnp.exp(log_teacher), log_teacher - log_student).sum(-1))


def reverse_kl(
    logits: ArrayLike,
    label_probs: ArrayLike,
    where: ArrayLike | None = None,
    *,
    temperature: ArrayLike = 1.0,
    epsilon: ArrayLike = 1e-6,
) -> jax.Array:
    r"""Reverse KL divergence: of the teacher's label distribution from the student's, both softened.

    .. math::
      \ell_b = T^2 \sum_c q_{bc} \left(\log q_{bc} - \log \tilde p_{bc}\right),
      \qquad q_b = \mathrm{softmax}(z_b / T), \quad
      \tilde p_{bc} = \max(p_{bc}, \epsilon)^{1/T} \big/ \sum_{c'} \max(p_{bc'}, \epsilon)^{1/T}

    It asks the student to put no mass where the teacher has none, and lets it leave out what the teacher holds
    possible; the forward divergence (`score_kl`) asks for the opposite.

    Args:
      logits: [B, C] label logits :math:`z` of the student.
      label_probs: [B, C] label distribution :math:`p` of the teacher.
      where: bool mask, broadcastable to [B]. A masked element is 0 and passes no gradient.
      temperature: :math:`T > 0`; above 1 it softens both distributions.
      epsilon: the least probability of the teacher. A smaller one is raised to it, as the divergence from a zero is
        infinite.

    Returns:
      [B] float32 elements, in nats times :math:`T^2`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_rele import losses
      >>> logits = jnp.zeros((2, 2))
      >>> losses.reverse_kl(logits, jnp.array([[0.5, 0.5], [0.9, 0.1]])).round(2)
      Array([0.  , 0.51], dtype=float32)

    References:
      Gu et al., `MiniLLM: Knowledge Distillation of Large Language Models <https://arxiv.org/abs/2306.08543>`_, 2023.
    """
    mask, log_student, log_teacher = _softened("reverse_kl", logits, label_probs, where, temperature, epsilon)
    return blank(mask, temperature**2 * (jnp.exp(log_student) * (log_student - log_teacher)).sum(-1))


def jensen_shannon(
    logits: ArrayLike, label_probs: ArrayLike, where: ArrayLike | None = None, *, temperature: ArrayLike = 1.0
) -> jax.Array:
    r"""Jensen-Shannon divergence between the label distributions of student and teacher, both softened.

    .. math::
      \ell_b = \frac{T^2}{2} \sum_c \left(\tilde p_{bc} \log \frac{\tilde p_{bc}}{m_{bc}}
      + q_{bc} \log \frac{q_{bc}}{m_{bc}}\right), \qquad m = \frac{\tilde p + q}{2}

    with :math:`q_b = \mathrm{softmax}(z_b / T)` and :math:`\tilde p` as in `score_kl`. Symmetric, and never more than
    :math:`T^2 \log 2`, so that a few pairs on which the two disagree wholly do not outweigh the rest.

    Args:
      logits: [B, C] label logits :math:`z` of the student.
      label_probs: [B, C] label distribution :math:`p` of the teacher; zeros are allowed.
      where: bool mask, broadcastable to [B]. A masked element is 0 and passes no gradient.
      temperature: :math:`T > 0`; above 1 it softens both distributions.

    Returns:
      [B] float32 elements, in nats times :math:`T^2`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_rele import losses
      >>> logits = jnp.array([[0.0, 0.0], [-99.0, 99.0]])
      >>> losses.jensen_shannon(logits, jnp.array([[0.5, 0.5], [1.0, 0.0]])).round(3)
      Array([0.   , 0.693], dtype=float32)

    References:
      Lin, `Divergence Measures Based on the Shannon Entropy <https://doi.org/10.1109/18.61115>`_, 1991; Agarwal et al.,
      `On-Policy Distillation of Language Models <https://arxiv.org/abs/2306.13649>`_, 2023 (as a distillation loss).
    """
    mask, log_student, log_teacher = _softened("jensen_shannon", logits, label_probs, where, temperature)
    log_mixture = jnp.logaddexp(log_student, log_teacher) - jnp.log(2.0)
    from_teacher = times_log(jnp.exp(log_teacher), log_teacher - log_mixture)
    from_student = jnp.exp(log_student) * (log_student - log_mixture)
    return blank(mask, temperature**2 / 2 * (from_teacher + from_student).sum(-1))


def soft_cross_entropy(
    logits: ArrayLike, label_probs: ArrayLike, where: ArrayLike | None = None, *, temperature: ArrayLike = 1.0
) -> jax.Array:
    r"""Cross entropy of the teacher's label distribution under the student's, both softened.

    .. math::
      \ell_b = -T^2 \sum_c \tilde p_{bc} \log \mathrm{softmax}(z_b / T)_c

    with :math:`\tilde p` as in `score_kl`, whose gradient by the student it shares. Its least value is not 0 but
    :math:`T^2` times the entropy of :math:`\tilde p`.

    Args:
      logits: [B, C] label logits :math:`z` of the student.
      label_probs: [B, C] label distribution :math:`p` of the teacher; zeros are allowed and contribute 0.
      where: bool mask, broadcastable to [B]. A masked element is 0 and passes no gradient.
      temperature: :math:`T > 0`; above 1 it softens both distributions.

    Returns:
      [B] float32 elements, in nats times :math:`T^2`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_rele import losses
      >>> losses.soft_cross_entropy(jnp.array([[2.0, 0.0]]), jnp.array([[0.75, 0.25]])).round(2)
      Array([0.63], dtype=float32)

    References:
      Hinton et al., `Distilling the Knowledge in a Neural Network <https://arxiv.org/abs/1503.02531>`_, 2015.
    """
    mask, log_student, log_teacher = _softened("soft_cross_entropy", logits, label_probs, where, temperature)
    return blank(mask, -(temperature**2) * times_log(jnp.exp(log_teacher), log_student).sum(-1))


def logit_mse(
    logits: ArrayLike, label_probs: ArrayLike, where: ArrayLike | None = None, *, epsilon: ArrayLike = 1e-6
) -> jax.Array:
    r"""Mean squared error of the logits, each centred over the labels.

    .. math::
      \ell_b = \frac{1}{C} \sum_c \left((z_{bc} - \bar z_b) - (t_{bc} - \bar t_b)\right)^2,
      \qquad t_{bc} = \log \max(p_{bc}, \epsilon)

    The teacher is given by its probabilities, which tell its logits but for a constant; hence the centring, of which
    the softmax takes no notice either.

    Args:
      logits: [B, C] label logits :math:`z` of the student.
      label_probs: [B, C] label distribution :math:`p` of the teacher.
      where: bool mask, broadcastable to [B]. A masked element is 0 and passes no gradient.
      epsilon: the least probability of the teacher. A smaller one is raised to it, as the logit of a zero is infinite.
        Unlike in a divergence, what the teacher holds improbable weighs as much as the rest, so this number matters.

    Returns:
      [B] float32 elements.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_rele import losses
      >>> label_probs = jnp.array([[0.5, 0.5], [0.5, 0.5]])
      >>> losses.logit_mse(jnp.array([[7.0, 7.0], [1.0, -1.0]]), label_probs)
      Array([0., 1.], dtype=float32)

    References:
      Ba and Caruana, `Do Deep Nets Really Need to be Deep? <https://arxiv.org/abs/1312.6184>`_, 2013. Logits of the
      teacher itself are compared there, without centring.
    """
    check_shapes("logit_mse", logits=(logits, "BC"), label_probs=(label_probs, "BC"))
    mask = element_mask(where, jnp.shape(logits)[:1])
    student = blank(mask, jnp.asarray(logits, jnp.float32))
    teacher = jnp.log(jnp.maximum(blank(mask, jnp.asarray(label_probs, jnp.float32)), epsilon))
    error = student - teacher
    return blank(mask, ((error - error.mean(-1, keepdims=True)) ** 2).mean(-1))


def _softened(loss, logits, label_probs, where, temperature, epsilon=None):
    """Mask [B], and the softened log-probabilities [B, C] of student and teacher, finite where masked.

    Without `epsilon` the teacher's zeros stay zeros, of logarithm -inf.
    """
    check_shapes(loss, logits=(logits, "BC"), label_probs=(label_probs, "BC"))
    mask = element_mask(where, jnp.shape(logits)[:1])
    student = blank(mask, jnp.asarray(logits, jnp.float32))
    # Before the division: a compiler that fuses it with log_softmax's own subtraction rounds once less there, and of
    # huge logits it leaves differences from the maximum whose exponentials overflow.
    student -= jax.lax.stop_gradient(student.max(-1, keepdims=True))
    log_student = jax.nn.log_softmax(student / temperature)
    # Masked rows are filled with ones: a row of zeros has no softmax.
    probs = jnp.where(mask[:, None], jnp.asarray(label_probs, jnp.float32), 1.0)
    if epsilon is not None:
        probs = jnp.maximum(probs, epsilon)
    zero = is_zero(probs)
    log_teacher = jax.nn.log_softmax(jnp.where(zero, -jnp.inf, jnp.log(jnp.where(zero, 1.0, probs)) / temperature))
    return mask, log_student, log_teacher
