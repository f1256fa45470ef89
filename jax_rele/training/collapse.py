"""Whether a student still distinguishes pairs: a silent collapse to one score is reported while it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from jax_rele.types import PyTree

SMALLEST = 1e-3
"""Standard deviation of the expected gain below which the scores count as equal."""


def score_variance(
    gains: Sequence[float],
) -> Callable[[PyTree, Mapping[str, PyTree]], dict[str, tuple[jax.Array, jax.Array]]]:
    """The `extra_metrics` of a training step: variance of the expected gain over the pairs of a batch.

    Args:
      gains: [C] the gain of each label.

    Returns:
      `(outputs, batch) -> {"score_variance": (sum of squares about the batch's mean, pairs)}`, over the rows of
      `batch["mask"]` where there is one; for several students in one pass a `NAME/score_variance` each.
    """

    def variance(outputs, batch):
        if isinstance(outputs, Mapping):
            return {f"{name}/{key}": value for name in outputs for key, value in variance(outputs[name], batch).items()}
        probs = jax.nn.softmax(jax.lax.stop_gradient(outputs.logits).astype(jnp.float32))
        score = (probs * jnp.asarray(gains, jnp.float32)).sum(axis=-1)
        mask = batch.get("mask", jnp.ones(score.shape, bool))
        count = mask.sum().astype(jnp.float32)
        mean = jnp.where(mask, score, 0.0).sum() / jnp.maximum(count, 1.0)
        return {"score_variance": (jnp.where(mask, (score - mean) ** 2, 0.0).sum(), count)}

    return variance


def collapse_check(row: Mapping[str, float]) -> str:
    """A warning for a line of the metric log; empty where the scores differ.

    Examples:
      >>> from jax_rele.training.collapse import collapse_check
      >>> collapse_check({"step": 40, "score_variance": 1e-12}).partition(";")[0]
      'step 40: all pairs have the same score (standard deviation 1e-06): the student has collapsed'
    """
    for key, value in row.items():
        if key.endswith("score_variance") and value < SMALLEST**2:
            who = key.removesuffix("score_variance").removesuffix("/")
            return (
                f"step {row['step']}: all pairs have the same score (standard deviation {value**0.5:.0e}"
                f"{f' of {who}' if who else ''}): the student has collapsed; lower learning_rate, raise "
                "warmup_fraction, or give it more labelled pairs"
            )
    return ""
