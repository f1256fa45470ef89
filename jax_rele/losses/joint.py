"""Several models that are trained in one pass over the data, each with an objective of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax

Loss = Callable[..., tuple[jax.Array, dict[str, tuple[jax.Array, jax.Array]]]]
"""`loss(outputs, batch, step=0, counts=None) -> (scalar, {term: (sum, count)})`, as made by `combine`."""


def joint(**losses: Loss) -> Loss:
    r"""Joins the objectives of several models into one.

    .. math::
      L = \sum_m L_m

    Models that share no parameter are trained by it as each would be alone, while a batch is read, placed and logged
    once. All of them read the fields of the batch. Where the batch holds a mapping under a model's name, that model
    reads its entries too, and before the shared ones: `{"labels": ..., "cross_encoder": {"evidence_tags": ...}}`.

    Args:
      **losses: by the name of its model, an objective as made by `combine`.

    Returns:
      `loss(outputs, batch, step=0, counts=None) -> (scalar, {"MODEL/TERM": (sum, count)})`. `outputs` is a mapping from
      the models' names to their outputs; `batch`, `step` and `counts` are as for `combine`, with the same names of
      terms in `counts` as in the result. It raises ValueError at trace time for a model without outputs.

    Raises:
      ValueError: without objectives, or where one is not a function.

    Examples:
      >>> import jax.numpy as jnp
      >>> from jax_rele import losses
      >>> from jax_rele.types import StudentOutputs
      >>> label = losses.combine(label=losses.term(losses.cross_entropy))
      >>> loss = losses.joint(cross_encoder=label, two_tower=label)
      >>> outputs = {
      ...     "cross_encoder": StudentOutputs(logits=jnp.array([[2.0, 0.0]])),
      ...     "two_tower": StudentOutputs(logits=jnp.array([[0.0, 0.0]])),
      ... }
      >>> scalar, totals = loss(outputs, {"labels": jnp.array([0])})
      >>> print(f"{scalar:.3f}", sorted(totals))
      0.820 ['cross_encoder/label', 'two_tower/label']
    """
    if not losses:
        raise ValueError("joint needs at least one objective")
    for name, objective in losses.items():
        if not callable(objective):
            raise ValueError(f"{name} must be an objective: write {name}=losses.combine(...), got {objective!r}")

    def loss(outputs, batch, step=0, counts=None):
        scalar: float | jax.Array = 0.0
        totals: dict[str, tuple[jax.Array, jax.Array]] = {}
        # A model does not see the fields of another.
        shared = {k: v for k, v in batch.items() if not (k in losses and isinstance(v, Mapping))}
        for name, objective in losses.items():
            if name not in outputs:
                raise ValueError(f"joint: the outputs have no model {name!r}; they have: {', '.join(sorted(outputs))}")
            own = batch.get(name)
            fields = {**shared, **own} if isinstance(own, Mapping) else shared
            prefix = f"{name}/"
            of_model = counts and {k.removeprefix(prefix): v for k, v in counts.items() if k.startswith(prefix)}
            value, terms = objective(outputs[name], fields, step, of_model)
            scalar += value
            totals |= {prefix + term: total for term, total in terms.items()}
        return scalar, totals

    return loss
