"""Training of students by a recipe, with any seed, by one compiled step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from jax_rele import losses
from jax_rele.config import Config, ScheduleConfig
from jax_rele.data.batches.loader import Groups, batches, bucket_of
from jax_rele.data.batches.sampler import Stream, count_streams, shuffle_streams
from jax_rele.data.tokens.token_cache import Columns
from jax_rele.distillation import targets
from jax_rele.distillation.dataset import TrainingData, queries
from jax_rele.errors import UserError
from jax_rele.losses.combine import Term
from jax_rele.models.partitioning import use
from jax_rele.runs import objectives, students
from jax_rele.training import (
    TrainState,
    local_row_indices,
    make_init_fn,
    make_mesh,
    make_optimizer,
    make_train_step,
    shard_step,
    train,
)
from jax_rele.training.collapse import alarm, score_variance

WINDOW = 32
"""Steps whose groups are sorted into batches by length, where there are several lengths."""


def terms_of(config: Config, run_dir: Path, name: str, recipe: str) -> dict[str, Term]:
    """The terms of a recipe for a student. Raises UserError where it lacks an output that they read."""
    heads = students.student_model(config, run_dir, name)[0].heads
    terms = objectives.terms(config, recipe, heads)
    targets.check_needs(config, name, recipe, terms, heads)
    return terms


@dataclass(frozen=True)
class Training:
    """One or several students and a recipe, ready to be trained with any seed by one compiled step.

    Attributes:
      step: compiled, see `sharding.shard_step`.
      start: seed -> the state at step 0.
      data: seed -> the batches.
      mesh: the devices.
      params_of: state -> {student: its parameters}.
    """

    step: Callable[..., tuple[TrainState, dict[str, Any]]]
    start: Callable[[int], TrainState]
    data: Callable[[int], Any]
    mesh: jax.sharding.Mesh
    params_of: Callable[[TrainState], dict[str, Any]]


def prepare(
    config: Config,
    run_dir: Path,
    recipe: str,
    terms: Mapping[str, Mapping[str, Term]],
    data: TrainingData,
    chosen: np.ndarray | None = None,
) -> Training:
    """Everything of a training that does not depend on its seed.

    Args:
      config: the run.
      run_dir: its folder, for the tokenizer.
      recipe: its name, for messages.
      terms: {student: its terms}. Several students are trained side by side in every step, each by its own terms and
        with an optimizer of its own, so that each ends as it would alone.
      data: labelled and unlabelled training pairs with their signals.
      chosen: row numbers of the pairs to train on; None for all.
    """
    optimization, one = config.distill.optimization, len(terms) == 1
    mesh = make_mesh(config.mesh)
    models, inits, inputs, fields = {}, {}, {}, {}
    for name in terms:
        models[name], tokenizer = students.student_model(config, run_dir, name)
        inits[name] = students.init_student(config, models[name], tokenizer)
        columns = targets.columns(config, name, recipe, models[name], tokenizer, terms[name], data)
        inputs[name] = columns.pop("inputs")
        fields |= columns
    (first, model), *_ = models.items()
    encoder = students.loaded_encoder(config, model, mesh)
    tx = make_optimizer(optimization)
    if one:
        apply, loss, init = model.apply, losses.combine(**terms[first]), inits[first]
        inputs, paths = inputs[first], {first: ()}
    else:
        apply, init = _joint_apply(models), _joint_init(inits)
        loss = losses.joint(**{name: losses.combine(**terms[name]) for name in terms})
        tx = _separate_optimizers(tx)
        paths = {name: (name,) for name in terms}

    teacher = any(losses.needs_teacher(each) for each in terms.values())
    read, streams = _groups(config, {"inputs": inputs, **fields}, data, chosen, teacher, mesh)

    def examples(seed):
        window = WINDOW if read.lengths > 1 else 1
        return shuffle_streams(streams, seed, sizes=read.buckets, window=window)

    def batches_of(seed):
        ordered = examples(seed)
        return batches(read, ordered, local_row_indices(mesh, ordered.width))

    init_state = make_init_fn(init, "params", {}, tx, mesh)

    def start(seed):
        state = init_state(seed)
        for path in paths.values():
            state = students.with_encoder(state, encoder, path)
        return state

    def params_of(state):
        params = state.trainable["params"]
        return {name: params[path[0]] if path else params for name, path in paths.items()}

    step = make_train_step(
        apply,
        loss,
        tx,
        micro_batches=optimization.micro_batches,
        group_size=read.members.shape[1],
        term_gradients=config.distill.term_gradients,
        watch=score_variance(config.labels.gains),
    )

    state = start(0)
    if recipe in config.distill.objectives:
        first = examples(0)
        _try(recipe, step, state, read(first.batch(0), np.arange(first.width)), mesh)
    return Training(shard_step(step, mesh, state), start, batches_of, mesh, params_of)


def _groups(
    config: Config,
    columns: Columns,
    data: TrainingData,
    chosen: np.ndarray | None,
    teacher: bool,
    mesh: jax.sharding.Mesh,
) -> tuple[Groups, list[Stream]]:
    """The pairs in groups of one query, and the streams of groups with and without labelled pairs.

    A batch holds so many groups that a recipe without a teacher sees the same labelled pairs in the same step as one
    that learns from the group's unlabelled pairs, and from other groups, too.
    """
    distill = config.distill
    known = queries(data)
    chosen = np.arange(len(data)) if chosen is None else np.asarray(chosen)
    query, labelled = known["query"][chosen], np.asarray(known["labelled"][chosen])
    groups = whole = targets.groups_of(config, query, labelled, True)
    if not teacher:
        groups = targets.groups_of(config, query, labelled, False)
    has_label = (labelled[whole] & (whole >= 0)).any(axis=1)
    count = max(1, distill.optimization.batch_size // distill.group_size)
    with_label, without = np.flatnonzero(has_label), np.flatnonzero(~has_label)
    if len(with_label) and len(without):
        first, second, cycle = count_streams(_fraction_schedule(distill.labelled_fraction), count)
        streams = [Stream(with_label, first, cycle)]
        if any(second):
            streams.append(Stream(without, second, cycle))
        streams = streams if teacher else streams[:1]
    else:
        streams = [Stream(np.arange(len(groups)), (count,))]
    width = max(streams[0].counts) if len(streams) == 1 else count
    while width * groups.shape[1] % (mesh.shape["data"] * mesh.shape["fsdp"]):
        groups = np.pad(groups, ((0, 0), (0, 1)), constant_values=-1)  # so that every device has as many rows
    buckets = _buckets(columns, chosen, distill.length_buckets)
    members = np.where(groups >= 0, chosen[groups], -1)
    if buckets is not None:
        buckets = np.where(groups >= 0, buckets[groups], 1).max(axis=1)
    return Groups(columns, members, buckets, distill.length_buckets), streams


def _fraction_schedule(fraction: float | ScheduleConfig) -> list[float]:
    if isinstance(fraction, ScheduleConfig):
        return np.linspace(fraction.start, fraction.end, fraction.steps + 1).tolist()
    return [fraction]


def _buckets(columns: Columns, rows: np.ndarray, lengths: int) -> np.ndarray | None:
    """The first of the `lengths` that all of a row's tokens fit in, for each row."""
    if lengths == 1:
        return None
    bucket = np.ones(len(rows), np.int64)
    for name, column in columns.items():
        if isinstance(column, Mapping):
            bucket = np.maximum(bucket, _buckets(column, rows, lengths))
        elif name.endswith("valid"):
            bucket = np.maximum(bucket, bucket_of(column.lengths(rows), column.length, lengths))
    return bucket


def _try(recipe: str, step: Callable[..., Any], state: TrainState, batch: Any, mesh: jax.sharding.Mesh) -> None:
    """Raises UserError where an objective of the config's own cannot be computed; traces shapes only."""
    try:
        with use(mesh):
            jax.eval_shape(step, state, batch)
    except UserError:
        raise
    except Exception as error:
        message = next(iter(str(error).splitlines()), "")
        raise UserError(
            f"distill.objectives.{recipe}: its terms cannot be computed ({type(error).__name__}: {message})"
        ) from None


def fit(training: Training, config: Config, seed: int, directory: Path, title: str) -> TrainState:
    """Trains from a seed, resuming from the checkpoints in `directory`; warns where the scores collapse."""
    return train(
        training.step,
        training.start(seed),
        training.data(seed),
        config=config.distill.optimization,
        mesh=training.mesh,
        directory=directory,
        title=title,
        alarm=alarm,
    )


def _joint_apply(models: Mapping[str, Any]) -> Callable[..., dict[str, Any]]:
    """The `apply` of several models: {name: its inputs} -> {name: its outputs}, with dropout as if alone."""

    def apply(variables, *, deterministic, rngs=None, **inputs):
        return {
            name: model.apply(
                {"params": variables["params"][name]}, **inputs[name], deterministic=deterministic, rngs=rngs
            )
            for name, model in models.items()
        }

    return apply


def _separate_optimizers(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer for each of the students, so that one's gradients are not clipped by the norm of the other's."""

    def apart(tree):
        return {name: {"params": params} for name, params in tree["params"].items()}

    def init(trainable):
        return {name: tx.init(params) for name, params in apart(trainable).items()}

    def update(grads, states, trainable):
        own = apart(trainable)
        done = {name: tx.update(each, states[name], own[name]) for name, each in apart(grads).items()}
        return {"params": {name: each["params"] for name, (each, _) in done.items()}}, {
            name: state for name, (_, state) in done.items()
        }

    return optax.GradientTransformation(init, update)


def _joint_init(inits: Mapping[str, Callable]) -> Callable[[jax.Array], dict[str, Any]]:
    return lambda rng: {"params": {name: init(rng)["params"] for name, init in inits.items()}}
