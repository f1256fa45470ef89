"""Pure training steps. Sharding and donation are put on from outside, by `jax_rele.training.sharding`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from jax_rele.training.state import TrainState

Batch = Mapping[str, Any]
"""`inputs`: keyword arguments of the model; every other key: a field that loss terms read by name."""

Loss = Callable[..., tuple[jax.Array, dict[str, tuple[jax.Array, jax.Array]]]]
"""`loss(outputs, batch, step) -> (scalar, {term: (sum, count)})`, as made by `jax_rele.losses.combine`."""


def make_train_step(
    apply: Callable[..., Any], loss: Loss, tx: optax.GradientTransformation, *, seed: int = 0
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]:
    """Makes `step(state, batch) -> (state, metrics)`.

    Args:
      apply: `Module.apply` of a model that takes `deterministic` and the rng `dropout`.
      loss: the objective.
      tx: the optimizer.
      seed: dropout of step s depends on (seed, s) alone, so a resumed run repeats an unbroken one.

    Returns:
      A pure function. Metrics are `loss`, `grad_norm` and `terms`, a dict of (sum, count) pairs.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)

        def objective(trainable):
            variables = {**state.frozen, **trainable}
            outputs = apply(variables, **batch["inputs"], deterministic=False, rngs={"dropout": rng})
            return loss(outputs, batch, state.step)

        (value, terms), grads = jax.value_and_grad(objective, has_aux=True)(state.trainable)
        updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(grads), "terms": terms}
        return TrainState(state.step + 1, trainable, state.frozen, opt_state), metrics

    return step
