"""Pure steps, sharding put on from outside, checkpoints, and the loop."""

from jax_rele.models.partitioning import AXES, RULES, use
from jax_rele.training.held_out import make_evaluate
from jax_rele.training.loop import train
from jax_rele.training.optimizer import learning_rate, make_optimizer
from jax_rele.training.sharding import (
    abstract,
    born_sharded,
    init_state,
    make_local_mesh,
    make_mesh,
    place,
    places_of_process,
    shard_step,
    state_maker,
)
from jax_rele.training.state import TrainState, create_state
from jax_rele.training.step import make_train_step

__all__ = [
    "AXES",
    "RULES",
    "TrainState",
    "abstract",
    "born_sharded",
    "create_state",
    "init_state",
    "learning_rate",
    "make_evaluate",
    "make_local_mesh",
    "make_mesh",
    "make_optimizer",
    "make_train_step",
    "place",
    "places_of_process",
    "shard_step",
    "state_maker",
    "train",
    "use",
]
