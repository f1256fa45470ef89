"""The loss of reinforcement learning on groups of samples, and the advantages that it reads."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jax_rele.losses.elements import blank, check_shapes, element_mask

FAR = 20.0
"""Differences of log-probabilities count up to this many nats: their exponentials stay finite."""


def grpo(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    reference_log_probs: ArrayLike,
    advantages: ArrayLike,
    where: ArrayLike | None = None,
    *,
    clip: float | jax.Array = 0.2,
    kl_weight: float | jax.Array = 0.04,
) -> jax.Array:
    r"""Group-relative policy optimisation: a clipped policy gradient for each token, and a pull to the reference.

    .. math::
      \ell_{bl} = -\min\left(\rho_{bl} A_{bl}, \mathrm{clip}(\rho_{bl}, 1 - \epsilon, 1 + \epsilon) A_{bl}\right)
      + \beta \left(e^{\delta_{bl}} - \delta_{bl} - 1\right), \qquad
      \rho = e^{\log p - \log p^{old}}, \quad \delta = \log p^{ref} - \log p

    The second part estimates the divergence from the reference without bias; its terms are never negative. Differences
    of more than 20 nats count as 20.

    Args:
      log_probs: [B, L] log-probabilities :math:`\log p` of the sampled tokens.
      old_log_probs: [B, L] those by the model that drew the samples; they pass no gradient.
      reference_log_probs: [B, L] those by the reference; they pass no gradient.
      advantages: [B, L] :math:`A`, that of each token's sample, see `group_advantages`; they pass no gradient.
      where: bool mask, broadcastable to [B, L]. A masked element is 0 and passes no gradient.
      clip: :math:`\epsilon`, how far a token's probability may move before it teaches nothing more.
      kl_weight: :math:`\beta`.

    Returns:
      [B, L] float32 elements.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_rele import losses
      >>> log_probs, advantages = jnp.log(jnp.array([[0.5, 0.9]])), jnp.array([[1.0, 1.0]])
      >>> losses.grpo(log_probs, jnp.log(jnp.array([[0.5, 0.6]])), log_probs, advantages).round(3)
      Array([[-1. , -1.2]], dtype=float32)

    References:
      Shao et al., `DeepSeekMath <https://arxiv.org/abs/2402.03300>`_, 2024, equations 3 and 4. There every sample's
      tokens are averaged first; a mean over the elements weighs all tokens alike, as in `DAPO
      <https://arxiv.org/abs/2503.14476>`_, 2025.
    """
    arrays = {
        "log_probs": log_probs,
        "old_log_probs": old_log_probs,
        "reference_log_probs": reference_log_probs,
        "advantages": advantages,
    }
    check_shapes("grpo", **{name: (array, "BL") for name, array in arrays.items()})
    mask = element_mask(where, jnp.shape(log_probs))
    ours, *others = (blank(mask, jnp.asarray(array, jnp.float32)) for array in arrays.values())
    old, reference, advantage = map(jax.lax.stop_gradient, others)
    ratio = jnp.exp(jnp.clip(ours - old, -FAR, FAR))
    gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)
    away = jnp.clip(reference - ours, -FAR, FAR)
    return blank(mask, -gain + kl_weight * (jnp.expm1(away) - away))


def group_advantages(rewards: ArrayLike, *, scale: bool = True) -> jax.Array:
    r"""How much better each sample is than the others of its group.

    .. math::
      A_{gs} = \frac{r_{gs} - \bar r_g}{\sigma_g + 10^{-4}}

    Args:
      rewards: [G, S] rewards :math:`r` of S samples for each of G prompts.
      scale: whether to divide by the group's standard deviation :math:`\sigma` (with S - 1), as the paper does; without
        it prompts on which samples differ little count less (`Dr. GRPO <https://arxiv.org/abs/2503.20783>`_).

    Returns:
      [G, S] float32; 0 where all samples of a group have one reward.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_rele import losses
      >>> losses.group_advantages(jnp.array([[1.0, 0.0], [1.0, 1.0]])).round(3)
      Array([[ 0.707, -0.707],
             [ 0.   ,  0.   ]], dtype=float32)
    """
    check_shapes("group_advantages", rewards=(rewards, "GS"))
    rewards = jnp.asarray(rewards, jnp.float32)
    differences = rewards - rewards.mean(axis=1, keepdims=True)
    # All equal up to rounding is equal.
    differences = jnp.where(jnp.ptp(rewards, axis=1, keepdims=True) > 0, differences, 0.0)
    return differences / (rewards.std(axis=1, ddof=1, keepdims=True) + 1e-4) if scale else differences
