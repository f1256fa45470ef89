"""What a training step carries: the step, the variables that learn, those that do not, and the optimizer's state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax


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
    trainable: Mapping[str, Any]
    frozen: Mapping[str, Any]
    opt_state: optax.OptState
    seed: jax.Array

    @property
    def variables(self) -> dict[str, Any]:
        """All collections, as `Module.apply` takes them."""
        return {**self.frozen, **self.trainable}


def create_state(
    trainable: Mapping[str, Any],
    frozen: Mapping[str, Any],
    tx: optax.GradientTransformation,
    seed: jax.typing.ArrayLike = 0,
) -> TrainState:
    """A state at step 0."""
    return TrainState(jnp.zeros((), jnp.int32), trainable, frozen, tx.init(trainable), jnp.asarray(seed, jnp.uint32))
