"""Training of the teacher as a language model: the shared part of `adapt` and `finetune`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import jax

from jax_rele import losses
from jax_rele.config import OptimizationConfig
from jax_rele.data.batches.loader import batches, rows, shuffled
from jax_rele.data.tokens.prompts import Answer
from jax_rele.errors import UserError
from jax_rele.losses.combine import Term
from jax_rele.models import Decoder
from jax_rele.training import (
    TrainState,
    local_row_indices,
    make_optimizer,
    make_train_step,
    shard_step,
    train,
)
from jax_rele.training.sharding import batch_shards
from jax_rele.training.state import Apply, Batch, Step
from jax_rele.training.step import Loss
from jax_rele.types import Pair, PyTree

CHUNK = 512
"""Positions of a device whose logits exist at a time."""


def language_term(mesh: jax.sharding.Mesh) -> Term:
    """Next-token cross-entropy; the rows carry each token's weight."""
    return losses.term(losses.next_token_cross_entropy, chunk_size=CHUNK * batch_shards(mesh))


@dataclass(frozen=True)
class Objective:
    """What a step of the teacher's training computes: see `training.make_train_step`."""

    apply: Apply
    loss: Loss
    extra_metrics: Callable[[PyTree, Batch], dict[str, tuple[jax.Array, jax.Array]]] | None = None


MakeObjective = Callable[[Decoder, jax.sharding.Mesh], Objective]


def language_objective(model: Decoder, mesh: jax.sharding.Mesh) -> Objective:
    """The objective of `adapt` and `finetune`."""
    return Objective(model.apply, losses.combine(tokens=language_term(mesh)))


def check_packing(
    pairs: Sequence[Pair], prompts: Sequence[Sequence[int]], answers: Sequence[Answer], pack_to: int, field: str
) -> None:
    """Raises UserError where an example is longer than a packed row; nothing is cut.

    Args:
      pairs, prompts, answers: the examples, for their lengths and names.
      pack_to: tokens of a row; 0 for one example a row.
      field: the config path of `pack_to`.
    """
    sizes = [len(prompt) + len(answer.ids) - 1 for prompt, answer in zip(prompts, answers)]
    longest = max(sizes, default=0)
    if 0 < pack_to < longest:
        name = pairs[sizes.index(longest)].pair_id
        raise UserError(
            f"{field}: prompt and rationale of the pair {name!r} take {longest} tokens, a row has {pack_to}; make it "
            f"{longest} or more, or 0 for one example a row"
        )


def train_language_model(
    model: Decoder,
    state: TrainState,
    arrays: Mapping[str, PyTree],
    *,
    make_objective: MakeObjective = language_objective,
    optimization: OptimizationConfig,
    mesh: jax.sharding.Mesh,
    seed: int,
    directory: Path,
    title: str,
    evaluate: Callable[[TrainState], dict[str, float]] | None = None,
    evaluate_every: int = 0,
) -> TrainState:
    """Trains the decoder on rows of tokens, in an order that the seed decides.

    Args:
      model: the decoder.
      state: the state at step 0, made with `make_optimizer(optimization)`; its buffers are donated.
      arrays: what `prompts.language_rows` returns, or other rows that the objective reads.
      make_objective: what is minimised; hashable, so that its step is compiled once.
      optimization, mesh, directory, title, evaluate, evaluate_every: see `training.train`.
      seed: of the order of rows.
    """
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    leaves, structure = jax.tree.flatten(abstract)
    order = shuffled(len(arrays["inputs"]["tokens"]), optimization.batch_size, seed)
    return train(
        _compiled_step(model, make_objective, optimization, mesh, structure, tuple(leaves)),
        state,
        batches(rows(dict(arrays)), order, local_row_indices(mesh, optimization.batch_size)),
        config=optimization,
        mesh=mesh,
        directory=directory,
        title=title,
        evaluate=evaluate,
        evaluate_every=evaluate_every,
    )


@lru_cache(maxsize=4)
def _compiled_step(
    model: Decoder,
    make_objective: MakeObjective,
    optimization: OptimizationConfig,
    mesh: jax.sharding.Mesh,
    structure: jax.tree_util.PyTreeDef,
    leaves: tuple[jax.ShapeDtypeStruct, ...],
) -> Step:
    """The step for states like these; those of the four stages serve all runs of a cross-validation."""
    objective, tx = make_objective(model, mesh), make_optimizer(optimization)
    step = make_train_step(
        objective.apply,
        objective.loss,
        tx,
        micro_batches=optimization.micro_batches,
        extra_metrics=objective.extra_metrics,
    )
    return shard_step(step, mesh, jax.tree.unflatten(structure, leaves))
