"""Losses on preferences: from log-probabilities of whole texts, where one of two is better, or each is good or bad.

A text's log-probability is the sum over its tokens, given its prompt: `losses.sequence_log_probs`. The reference is
the model before the training; its log-probabilities do not change and can be computed once.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jax_rele.losses.elements import blank, check_integers, check_shapes, element_mask

_SUREST = -1e-6
"""The greatest log-probability whose odds are finite to float32 and well away from rounding."""


def dpo(
    chosen_log_probs: ArrayLike,
    rejected_log_probs: ArrayLike,
    reference_chosen_log_probs: ArrayLike,
    reference_rejected_log_probs: ArrayLike,
    where: ArrayLike | None = None,
    *,
    beta: float | jax.Array = 0.1,
    label_smoothing: float | jax.Array = 0.0,
) -> jax.Array:
    r"""Direct preference optimisation: the logistic loss of the difference in implicit reward.

    The implicit reward of a text is :math:`\beta (\log p - \log p^{ref})`. With :math:`+` the chosen text and :math:`-`
    the rejected one:

    .. math::
      \Delta_b = (\log p_b^+ - \log p_b^{ref+}) - (\log p_b^- - \log p_b^{ref-}), \qquad
      \ell_b = -(1 - \alpha) \log \sigma(\beta \Delta_b) - \alpha \log \sigma(-\beta \Delta_b)

    Args:
      chosen_log_probs, rejected_log_probs: [B] log-probabilities :math:`\log p` of the two texts.
      reference_chosen_log_probs, reference_rejected_log_probs: [B] those of the reference.
      where: bool mask, broadcastable to [B]. A masked element is 0 and passes no gradient.
      beta: how much a difference counts; the smaller, the further the model may go from the reference.
      label_smoothing: the probability :math:`\alpha` that a preference is the wrong way round, below 0.5 (cDPO).

    Returns:
      [B] float32 elements, in nats.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_rele import losses
      >>> chosen, rejected, reference = jnp.array([-9.0, -5.0]), jnp.array([-9.0, -25.0]), jnp.array([-9.0, -15.0])
      >>> losses.dpo(chosen, rejected, reference, reference).round(3)
      Array([0.693, 0.127], dtype=float32)

    References:
      Rafailov et al., `Direct Preference Optimization <https://arxiv.org/abs/2305.18290>`_, 2023, equation 7; Mitchell,
      `A note on DPO with noisy preferences <https://ericmitchell.ai/cdpo.pdf>`_, 2023 (label smoothing).
    """
    references = reference_chosen_log_probs, reference_rejected_log_probs
    mask, delta = _delta("dpo", chosen_log_probs, rejected_log_probs, *references, where)
    likely, unlikely = jax.nn.softplus(-beta * delta), jax.nn.softplus(beta * delta)
    return blank(mask, (1 - label_smoothing) * likely + label_smoothing * unlikely)


def dpo_hinge(
    chosen_log_probs: ArrayLike,
    rejected_log_probs: ArrayLike,
    reference_chosen_log_probs: ArrayLike,
    reference_rejected_log_probs: ArrayLike,
    where: ArrayLike | None = None,
    *,
    beta: float | jax.Array = 0.1,
) -> jax.Array:
    r"""Hinge loss of the difference in implicit reward: a preference that is clear enough teaches nothing more.

    .. math::
      \ell_b = \max(0, 1 - \beta \Delta_b), \qquad
      \Delta_b = (\log p_b^+ - \log p_b^{ref+}) - (\log p_b^- - \log p_b^{ref-})

    Args:
      chosen_log_probs, rejected_log_probs: [B] log-probabilities :math:`\log p` of the two texts.
      reference_chosen_log_probs, reference_rejected_log_probs: [B] those of the reference.
      where: bool mask, broadcastable to [B]. A masked element is 0 and passes no gradient.
      beta: how much a difference counts.

    Returns:
      [B] float32 elements.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_rele import losses
      >>> chosen, rejected, reference = jnp.array([-9.0, -5.0]), jnp.array([-9.0, -25.0]), jnp.array([-9.0, -15.0])
      >>> losses.dpo_hinge(chosen, rejected, reference, reference)
      Array([1., 0.], dtype=float32)

    References:
      Liu et al., `Statistical Rejection Sampling Improves Preference Optimization
      <https://arxiv.org/abs/2309.06657>`_, 2023, section 3.3; Zhao et al., `SLiC-HF <https://arxiv.org/abs/2305.10425>`_,
      2023, which has the hinge without a reference.
    """
    references = reference_chosen_log_probs, reference_rejected_log_probs
    mask, delta = _delta("dpo_hinge", chosen_log_probs, rejected_log_probs, *references, where)
    return blank(mask, jax.nn.relu(1 - beta * delta))


def ipo(
    chosen_log_probs: ArrayLike,
    rejected_log_probs: ArrayLike,
    reference_chosen_log_probs: ArrayLike,
    reference_rejected_log_probs: ArrayLike,
    chosen_lengths: ArrayLike,
    rejected_lengths: ArrayLike,
    where: ArrayLike | None = None,
    *,
    beta: float | jax.Array = 0.1,
) -> jax.Array:
    r"""Identity preference optimisation: the difference is to reach a margin, and not to grow for ever.

    .. math::
      \ell_b = \left(\Delta_b - \frac{1}{2 \beta}\right)^2, \qquad \Delta_b = \frac{\log p_b^+ - \log p_b^{ref+}}{n_b^+}
      - \frac{\log p_b^- - \log p_b^{ref-}}{n_b^-}

    The division by the lengths :math:`n` is not in the paper's text; its authors have confirmed it to TRL. Lengths of 1
    leave it out.

    Args:
      chosen_log_probs, rejected_log_probs: [B] log-probabilities :math:`\log p` of the two texts.
      reference_chosen_log_probs, reference_rejected_log_probs: [B] those of the reference.
      chosen_lengths, rejected_lengths: [B] integers, the tokens :math:`n` of the two texts; 0 counts as 1.
      where: bool mask, broadcastable to [B]. A masked element is 0 and passes no gradient.
      beta: strength of the pull to the reference, :math:`\tau` in the paper.

    Returns:
      [B] float32 elements.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_rele import losses
      >>> chosen, rejected, reference = jnp.array([-9.0, -5.0]), jnp.array([-9.0, -25.0]), jnp.array([-9.0, -15.0])
      >>> lengths = jnp.array([4, 4])
      >>> losses.ipo(chosen, rejected, reference, reference, lengths, lengths)
      Array([25.,  0.], dtype=float32)

    References:
      Azar et al., `A General Theoretical Paradigm to Understand Learning from Human Preferences
      <https://arxiv.org/abs/2310.12036>`_, 2023, equation 17.
    """
    references = reference_chosen_log_probs, reference_rejected_log_probs
    lengths = chosen_lengths, rejected_lengths
    mask, delta = _delta("ipo", chosen_log_probs, rejected_log_probs, *references, where, lengths)
    return blank(mask, (delta - 1 / (2 * beta)) ** 2)


def kto(
    log_probs: ArrayLike,
    reference_log_probs: ArrayLike,
    desirable: ArrayLike,
    kl: ArrayLike,
    where: ArrayLike | None = None,
    *,
    beta: float | jax.Array = 0.1,
    desirable_weight: float | jax.Array = 1.0,
    undesirable_weight: float | jax.Array = 1.0,
) -> jax.Array:
    r"""Kahneman-Tversky optimisation: from texts that are each good or bad, without pairs.

    .. math::
      \ell_b = \begin{cases}
      \lambda_D \left(1 - \sigma(\beta (r_b - z_b))\right) & \text{desirable} \\
      \lambda_U \left(1 - \sigma(\beta (z_b - r_b))\right) & \text{undesirable}
      \end{cases}, \qquad r_b = \log p_b - \log p_b^{ref}, \quad z_b = \max(0, \mathrm{KL}_b)

    Args:
      log_probs, reference_log_probs: [B] log-probabilities of the texts by the model, and by the reference.
      desirable: [B] bool, whether a text is a good one.
      kl: [B], an estimate of the divergence of the model from the reference; it passes no gradient. The paper's is one
        for all: the mean of :math:`r` over texts of the batch that are read with the prompts of others. That mean is
        the caller's: taken over a micro-batch it is another number than over the whole batch.
      where: bool mask, broadcastable to [B]. A masked element is 0 and passes no gradient.
      beta: how averse to risk; the smaller, the further the model may go from the reference.
      desirable_weight, undesirable_weight: :math:`\lambda_D` and :math:`\lambda_U`. The paper wants their ratio such
        that :math:`\lambda_D n_D / \lambda_U n_U` lies in [1, 3/2], with :math:`n` the numbers of examples.

    Returns:
      [B] float32 elements, from 0 to the weight.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_rele import losses
      >>> log_probs, reference_log_probs = jnp.array([-5.0, -5.0, -9.0]), jnp.array([-25.0, -25.0, -9.0])
      >>> losses.kto(log_probs, reference_log_probs, jnp.array([True, False, True]), jnp.zeros(3)).round(2)
      Array([0.12, 0.88, 0.5 ], dtype=float32)

    References:
      Ethayarajh et al., `KTO: Model Alignment as Prospect Theoretic Optimization <https://arxiv.org/abs/2402.01306>`_,
      2024, equation 8.
    """
    names = {"log_probs": log_probs, "reference_log_probs": reference_log_probs, "desirable": desirable, "kl": kl}
    check_shapes("kto", **{name: (array, "B") for name, array in names.items()})
    shape = jnp.shape(log_probs)
    mask, good = element_mask(where, shape), element_mask(desirable, shape, "desirable")
    ratios = _blanked(mask, log_probs) - _blanked(mask, reference_log_probs)
    divergence = jax.lax.stop_gradient(jnp.maximum(_blanked(mask, kl), 0.0))
    advantage = jnp.where(good, ratios - divergence, divergence - ratios)
    weight = jnp.where(good, desirable_weight, undesirable_weight)
    return blank(mask, weight * jax.nn.sigmoid(-beta * advantage))


def orpo(
    chosen_log_probs: ArrayLike,
    rejected_log_probs: ArrayLike,
    chosen_lengths: ArrayLike,
    rejected_lengths: ArrayLike,
    where: ArrayLike | None = None,
    *,
    beta: float | jax.Array = 0.1,
) -> jax.Array:
    r"""Odds-ratio preference optimisation: supervised training on the chosen text, and odds against the rejected one.

    .. math::
      \ell_b = -m_b^+ - \beta \log \sigma\left(o(m_b^+) - o(m_b^-)\right), \qquad
      m_b^\pm = \log p_b^\pm / n_b^\pm, \quad o(m) = \log \frac{e^m}{1 - e^m}

    There is no reference. In the odds a mean log-probability above -1e-6 counts as -1e-6.

    Args:
      chosen_log_probs, rejected_log_probs: [B] log-probabilities :math:`\log p` of the two texts.
      chosen_lengths, rejected_lengths: [B] integers, the tokens :math:`n` of the two texts; 0 counts as 1.
      where: bool mask, broadcastable to [B]. A masked element is 0 and passes no gradient.
      beta: weight of the odds ratio, :math:`\lambda` in the paper.

    Returns:
      [B] float32 elements, in nats.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_rele import losses
      >>> chosen, rejected, lengths = jnp.array([-4.0, -4.0]), jnp.array([-4.0, -40.0]), jnp.array([4, 4])
      >>> losses.orpo(chosen, rejected, lengths, lengths).round(3)
      Array([1.069, 1.   ], dtype=float32)

    References:
      Hong et al., `ORPO: Monolithic Preference Optimization without Reference Model
      <https://arxiv.org/abs/2403.07691>`_, 2024, equations 6 and 7.
    """
    lengths = chosen_lengths, rejected_lengths
    mask, (chosen, rejected) = _means("orpo", chosen_log_probs, rejected_log_probs, lengths, where)
    return blank(mask, -chosen + beta * jax.nn.softplus(_log_odds(rejected) - _log_odds(chosen)))


def simpo(
    chosen_log_probs: ArrayLike,
    rejected_log_probs: ArrayLike,
    chosen_lengths: ArrayLike,
    rejected_lengths: ArrayLike,
    where: ArrayLike | None = None,
    *,
    beta: float | jax.Array = 2.0,
    margin: float | jax.Array = 1.0,
) -> jax.Array:
    r"""Simple preference optimisation: the reward is the mean log-probability of a token, without a reference.

    .. math::
      \ell_b = -\log \sigma\left(\beta \left(\frac{\log p_b^+}{n_b^+} - \frac{\log p_b^-}{n_b^-}\right) - \gamma\right)

    Args:
      chosen_log_probs, rejected_log_probs: [B] log-probabilities :math:`\log p` of the two texts.
      chosen_lengths, rejected_lengths: [B] integers, the tokens :math:`n` of the two texts; 0 counts as 1.
      where: bool mask, broadcastable to [B]. A masked element is 0 and passes no gradient.
      beta: the scale of the reward.
      margin: :math:`\gamma`, by how much the chosen text's reward is to be greater.

    Returns:
      [B] float32 elements, in nats.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_rele import losses
      >>> chosen, rejected, lengths = jnp.array([-4.0, -4.0]), jnp.array([-4.0, -40.0]), jnp.array([4, 4])
      >>> losses.simpo(chosen, rejected, lengths, lengths).round(2)
      Array([1.31, 0.  ], dtype=float32)

    References:
      Meng et al., `SimPO: Simple Preference Optimization with a Reference-Free Reward
      <https://arxiv.org/abs/2405.14734>`_, 2024, equation 6.
    """
    lengths = chosen_lengths, rejected_lengths
    mask, (chosen, rejected) = _means("simpo", chosen_log_probs, rejected_log_probs, lengths, where)
    return blank(mask, jax.nn.softplus(margin - beta * (chosen - rejected)))


def _delta(loss, chosen, rejected, reference_chosen, reference_rejected, where, lengths=None):
    """The mask, and the difference of the log-ratios, each over its length where there are `lengths`."""
    _check_pairs(loss, chosen, rejected, lengths, reference_chosen, reference_rejected)
    mask = element_mask(where, jnp.shape(chosen))
    sides = [
        _blanked(mask, array) - _blanked(mask, reference)
        for array, reference in ((chosen, reference_chosen), (rejected, reference_rejected))
    ]
    if lengths is not None:
        sides = [side / _sizes(mask, length) for side, length in zip(sides, lengths)]
    return mask, sides[0] - sides[1]


def _means(loss, chosen, rejected, lengths, where):
    """The mask, and the mean log-probabilities of a token of each side."""
    _check_pairs(loss, chosen, rejected, lengths)
    mask = element_mask(where, jnp.shape(chosen))
    return mask, [_blanked(mask, side) / _sizes(mask, length) for side, length in zip((chosen, rejected), lengths)]


def _check_pairs(loss, chosen, rejected, lengths, *references):
    arrays = {"chosen_log_probs": chosen, "rejected_log_probs": rejected}
    arrays |= dict(zip(("reference_chosen_log_probs", "reference_rejected_log_probs"), references))
    counts = {} if lengths is None else dict(zip(("chosen_lengths", "rejected_lengths"), lengths))
    check_shapes(loss, **{name: (array, "B") for name, array in {**arrays, **counts}.items()})
    check_integers(loss, **counts)


def _blanked(mask, array):
    return blank(mask, jnp.asarray(array, jnp.float32))


def _sizes(mask, lengths):
    return jnp.maximum(blank(mask, lengths), 1).astype(jnp.float32)


def _log_odds(log_probs):
    """log(p / (1 - p)) from log p."""
    log_probs = jnp.minimum(log_probs, _SUREST)
    # Either form alone loses digits at one end.
    near_one = log_probs > -0.6931472
    by_expm1 = jnp.log(-jnp.expm1(jnp.where(near_one, log_probs, -1.0)))
    by_log1p = jnp.log1p(-jnp.exp(jnp.where(near_one, -1.0, log_probs)))
    return log_probs - jnp.where(near_one, by_expm1, by_log1p)
