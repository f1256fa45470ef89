"""Mean losses over rows that are not trained on, in one compile and batches of one shape."""

from __future__ import annotations

from collections.abc import Callable

import jax

from jax_rele import losses
from jax_rele.losses.combine import Totals
from jax_rele.training.sharding import local_row_indices, shard_batch, use
from jax_rele.training.state import Apply, Batch, TrainState
from jax_rele.training.step import Loss


def make_evaluate(
    apply: Apply, loss: Loss, rows: Batch, batch_size: int, mesh: jax.sharding.Mesh
) -> Callable[[TrainState], dict[str, float]]:
    """Makes `evaluate(state) -> {term: mean}`, for `train`.

    Args:
      apply: `Module.apply` of a model that takes `deterministic`.
      loss: the terms to take the means of; any function of outputs and batch will do, an accuracy as well as a loss.
      rows: all rows, the same on every process.
      batch_size: rows of a forward pass over all devices.
      mesh: the devices.

    Returns:
      A function. The means are exact: the last batch is filled up with rows that count for nothing.
    """
    count, indices = len(jax.tree.leaves(rows)[0]), local_row_indices(mesh, batch_size)

    @jax.jit
    def totals(variables, batch):
        return loss(apply(variables, **batch["inputs"], deterministic=True), batch)[1]

    def batch(start):
        numbers = start + indices
        picked = jax.tree.map(lambda x: x[numbers % count], rows)
        return shard_batch({**picked, "mask": numbers < count}, mesh)

    def evaluate(state: TrainState) -> dict[str, float]:
        sums: Totals = {}
        with use(mesh):
            for start in range(0, count, batch_size):
                terms = jax.tree.map(float, jax.device_get(totals(state.variables, batch(start))))
                sums = losses.add_totals(sums, terms) if sums else terms
        return losses.means(sums)

    return evaluate
