"""Numbers of an objective and of its optimizer as inputs of a compiled step, so that others need no second compile."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jax_rele.config import OptimizationConfig
from jax_rele.losses.combine import Term
from jax_rele.training import make_optimizer
from jax_rele.training.state import Batch, Metrics, Step, TrainState
from jax_rele.types import Params

COLLECTION = "hyperparameters"
"""Where a training state's `frozen` holds the numbers; the model does not see them."""

Terms = Mapping[str, Mapping[str, Term]]
"""{student: its terms}."""


@dataclass(frozen=True)
class Hyperparameters:
    """Numbers in place of those of the terms, whose others stay as they are, and the peak learning rate.

    Attributes:
      weights, temperatures: by the name of the term.
      learning_rate: the peak.
    """

    weights: Mapping[str, float]
    temperatures: Mapping[str, float]
    learning_rate: float


def as_variables(values: Hyperparameters, mesh: jax.sharding.Mesh) -> Params:
    """The numbers as what a training state holds in `frozen`: float32 scalars, on every device."""
    numbers = jax.tree.map(jnp.float32, {COLLECTION: dataclasses.asdict(values)})
    return jax.device_put(numbers, NamedSharding(mesh, PartitionSpec()))


def make_tunable_optimizer(
    optimization: OptimizationConfig, learning_rate: jax.typing.ArrayLike = 1.0
) -> optax.GradientTransformation:
    """The optimizer of the config with another peak learning rate, which may be traced."""
    # AdamW's whole update, weight decay too, is proportional to the rate.
    unit = optimization.model_copy(update={"learning_rate": 1.0})
    return optax.chain(make_optimizer(unit), optax.scale(learning_rate))


def make_tunable_step(make_step: Callable[[Terms, jax.typing.ArrayLike], Step], terms: Terms) -> Step:
    """A training step that reads its hyperparameters from the state, see `as_variables`.

    Args:
      make_step: (terms, peak learning rate) -> a step; the numbers are traced.
      terms: of each student.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        values = state.frozen[COLLECTION]
        replaced = {
            student: {name: _replaced(name, term, values) for name, term in own.items()}
            for student, own in terms.items()
        }
        frozen = {name: variables for name, variables in state.frozen.items() if name != COLLECTION}
        inner = make_step(replaced, values["learning_rate"])
        new, metrics = inner(dataclasses.replace(state, frozen=frozen), batch)
        return dataclasses.replace(new, frozen=state.frozen), metrics

    return step


def _replaced(name: str, term: Term, values: Params) -> Term:
    return dataclasses.replace(
        term,
        weight=values["weights"].get(name, term.weight),
        temperature=values["temperatures"].get(name, term.temperature),
    )
