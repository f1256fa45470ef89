"""What a training step carries: the step, the variables that learn, those that do not, and the optimizer's state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax

from jax_rele.types import Params, PyTree

Batch = Mapping[str, PyTree]
"""`inputs`: keyword arguments of the model; every other key: a field that loss terms read by name."""

Metrics = dict[str, PyTree]
"""Figures of a step, see `make_train_step`."""

Apply = Callable[..., PyTree]
"""`Module.apply` of a model that takes `deterministic` and the rng `dropout`."""


@partial(jax.tree_util.register_dataclass)
@dataclass(frozen=True)
class TrainState:
    """A pytree.

    Attributes:
      step: int32 scalar, optimizer steps taken.
      trainable: variable collections that gradients, optimizer and checkpoints see, e.g. `{"lora": ...}`.
      frozen: variable collections that are only read, e.g. `{"params": ...}`; may be empty.
      opt_state: state of the optax transformation over `trainable`.
      seed: uint32 scalar; dropout of step s depends on (seed, s) alone, so a resumed run repeats an unbroken one.
    """

    step: jax.Array
    trainable: Params
    frozen: Params
    opt_state: optax.OptState
    seed: jax.Array

    @property
    def variables(self) -> Params:
        """All collections, as `Module.apply` takes them."""
        return {**self.frozen, **self.trainable}


def create_state(
    trainable: Params,
    frozen: Params,
    tx: optax.GradientTransformation,
    seed: jax.typing.ArrayLike = 0,
) -> TrainState:
    """A state at step 0."""
    return TrainState(jnp.zeros((), jnp.int32), trainable, frozen, tx.init(trainable), jnp.asarray(seed, jnp.uint32))


Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
"""A training step: `(state, batch) -> (state, metrics)`."""
