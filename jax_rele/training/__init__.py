"""Pure steps, sharding put on from outside, checkpoints, and the loop."""

from jax_rele.models.partitioning import AXES, RULES, use
from jax_rele.training.held_out import make_evaluate
from jax_rele.training.loop import train
from jax_rele.training.optimizer import learning_rate, make_optimizer
from jax_rele.training.sharding import (
    abstract,
    check_rows,
    init_sharded,
    init_state,
    local_row_indices,
    make_init_fn,
    make_local_mesh,
    make_mesh,
    shard_batch,
    shard_step,
)
from jax_rele.training.state import TrainState, create_state
from jax_rele.training.step import make_train_step

__all__ = [
    "AXES",
    "RULES",
    "TrainState",
    "abstract",
    "check_rows",
    "create_state",
    "init_sharded",
    "init_state",
    "learning_rate",
    "local_row_indices",
    "make_evaluate",
    "make_init_fn",
    "make_local_mesh",
    "make_mesh",
    "make_optimizer",
    "make_train_step",
    "shard_batch",
    "shard_step",
    "train",
    "use",
]
