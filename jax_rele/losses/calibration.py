"""What keeps probabilities honest: a score of the student's, and how sure the teacher was of its own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import jax.scipy.special
from jax.typing import ArrayLike

from jax_rele.losses.elements import blank, check_shapes, element_mask, is_zero


def brier(logits: ArrayLike, label_probs: ArrayLike, where: ArrayLike | None = None) -> jax.Array:
    r"""Brier score: squared error of the student's label distribution against the teacher's, or against one-hot labels.

    .. math::
      \ell_b = \sum_c \left(\mathrm{softmax}(z_b)_c - p_{bc}\right)^2

    A proper score like the cross entropy, yet bounded by 2: one confident mistake costs it no more than that.

    Args:
      logits: [B, C] label logits :math:`z` of the student.
      label_probs: [B, C] label distribution :math:`p` of the teacher.
      where: bool mask, broadcastable to [B]. A masked element is 0 and passes no gradient.

    Returns:
      [B] float32 elements, from 0 to 2.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_rele import losses
      >>> losses.brier(jnp.zeros((2, 2)), jnp.array([[0.5, 0.5], [1.0, 0.0]]))
      Array([0. , 0.5], dtype=float32)

    References:
      Brier, `Verification of Forecasts Expressed in Terms of Probability
      <https://doi.org/10.1175/1520-0493(1950)078%3C0001:VOFEIT%3E2.0.CO;2>`_, 1950.
    """
    check_shapes("brier", logits=(logits, "BC"), label_probs=(label_probs, "BC"))
    mask = element_mask(where, jnp.shape(logits)[:1])
    student = jax.nn.softmax(blank(mask, jnp.asarray(logits, jnp.float32)))
    teacher = blank(mask, jnp.asarray(label_probs, jnp.float32))
    return blank(mask, ((student - teacher) ** 2).sum(-1))


def confidence(label_probs: ArrayLike) -> jax.Array:
    r"""How sure a teacher is of its label distribution: 1 for a single label, 0 for the uniform distribution.

    .. math::
      c_b = 1 + \frac{1}{\log C} \sum_c p_{bc} \log p_{bc}

    A weight for `losses.term(..., confidence="confidence")`, put into the batch under that name. Not a loss.

    Args:
      label_probs: [..., C] label distributions :math:`p`; zeros are allowed and contribute 0.

    Returns:
      [...] float32, from 0 to 1; NaN for a distribution with NaN.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_rele import losses
      >>> losses.confidence(jnp.array([[1.0, 0.0], [0.9, 0.1], [0.5, 0.5]])).round(3)
      Array([1.   , 0.531, 0.   ], dtype=float32)
    """
    probs = jnp.asarray(label_probs, jnp.float32)
    entropy = jax.scipy.special.entr(jnp.where(is_zero(probs), 0.0, probs)).sum(-1)
    return jnp.clip(1 - entropy / jnp.log(probs.shape[-1]), 0.0, 1.0)
