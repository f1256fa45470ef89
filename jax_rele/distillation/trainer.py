"""Training of students by an objective, with any seed, by one compiled step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grain
import jax
import numpy as np
import optax

from jax_rele import losses
from jax_rele.config import DistillConfig, OptimizationConfig, ScheduleConfig
from jax_rele.data.batches.loader import Groups, batches, bucket_of, group_by_query
from jax_rele.data.batches.sampler import Order, Stream, count_streams, shuffle_streams
from jax_rele.data.tokens.token_cache import Columns
from jax_rele.distillation.dataset import Dataset, check_present
from jax_rele.distillation.fields import batch_fields
from jax_rele.distillation.hyperparameters import (
    Hyperparameters,
    Terms,
    as_variables,
    make_tunable_optimizer,
    make_tunable_step,
)
from jax_rele.distillation.packed_inputs import choose_packing, packable
from jax_rele.errors import UserError
from jax_rele.models.partitioning import use
from jax_rele.students import Student
from jax_rele.students.base import StudentModel
from jax_rele.students.weights import init_student, with_encoder
from jax_rele.training import (
    TrainState,
    local_row_indices,
    make_init_fn,
    make_optimizer,
    make_train_step,
    shard_step,
    train,
)
from jax_rele.training.collapse import collapse_check, score_variance
from jax_rele.training.state import Apply, Batch, Step
from jax_rele.types import Params, PyTree

Compiled = dict[Hashable, tuple[Callable[[int], TrainState], Step]]
"""What trainers compiled: `seed -> state at step 0` without loaded weights, and the step; by all that these depend on
within one config."""

WINDOW = 32
"""With length buckets, groups are sorted by length within this many steps."""


@dataclass(frozen=True)
class Trainer:
    """One or several students and an objective, trained with any seed by one compiled step.

    Attributes:
      step: compiled, see `sharding.shard_step`.
      init_state: seed -> the state at step 0.
      batches: seed -> an iterator over this process's rows of every batch.
      params_of: state -> {student: its parameters}.
      optimization: how long and at what rate.
      mesh: the devices.
    """

    step: Step
    init_state: Callable[[int], TrainState]
    batches: Callable[[int], grain.DatasetIterator]
    params_of: Callable[[TrainState], dict[str, Params]]
    optimization: OptimizationConfig
    mesh: jax.sharding.Mesh

    def fit(self, seed: int, directory: Path, title: str) -> dict[str, Params]:
        """Trains from a seed, resuming from the checkpoints in `directory`; warns where the scores collapse.

        Returns:
          {student: its parameters}.
        """
        state = train(
            self.step,
            self.init_state(seed),
            self.batches(seed),
            config=self.optimization,
            mesh=self.mesh,
            directory=directory,
            title=title,
            check=collapse_check,
        )
        return self.params_of(state)

    def with_hyperparameters(self, values: Hyperparameters) -> Trainer:
        """The same compiled step with other numbers; for a trainer that was made with numbers of the same terms."""
        variables = as_variables(values, self.mesh)
        return dataclasses.replace(
            self,
            init_state=lambda seed: dataclasses.replace(self.init_state(seed), frozen=variables),
            optimization=self.optimization.model_copy(update={"learning_rate": values.learning_rate}),
        )


def make_trainer(
    students: Mapping[str, Student],
    datasets: Mapping[str, Dataset],
    terms: Terms,
    distill: DistillConfig,
    mesh: jax.sharding.Mesh,
    *,
    recipe: str,
    encoder: Params | None = None,
    selected: np.ndarray | None = None,
    hyperparameters: Hyperparameters | None = None,
    compiled: Compiled | None = None,
) -> Trainer:
    """Everything of a training that does not depend on its seed.

    Args:
      students: one or several by name; they need no parameters. Several are trained side by side in every step, each
        by its own terms and with an optimizer of its own, so that each ends as it would alone.
      datasets: of each student, of the same pairs.
      terms: of each student.
      distill: how batches are formed, and the optimization.
      mesh: the devices.
      recipe: the objective's name, for messages.
      encoder: the weights that the students' encoders start from; None: random ones.
      selected: row numbers of the pairs to train on; None for all.
      hyperparameters: numbers that are inputs of the compiled step, in place of those of the terms and of the config,
        so that `Trainer.with_hyperparameters` needs no other compile; None: all numbers are constants.
      compiled: what earlier trainers of the same config compiled, e.g. on other pairs; it is used and added to.

    Raises:
      UserError: no pair has what a term reads, or a custom objective cannot be computed.
    """
    columns: Columns = {}
    inputs = {}
    for name, student in students.items():
        read = datasets[name].select(batch_fields(student.model, student.input_spec, [terms[name]]))
        check_present(recipe, losses.needs(terms[name])[1], read)
        inputs[name] = read.pop("inputs")
        columns |= read
    first = next(iter(students))
    apply: Apply
    init: Callable[[jax.Array], Params]
    paths: dict[str, tuple[str, ...]]
    if len(students) == 1:
        apply = students[first].model.apply
        init, paths = init_student(students[first]), {first: ()}
        columns["inputs"] = inputs[first]
    else:
        apply = _joint_apply({name: student.model for name, student in students.items()})
        init, paths = _joint_init(students), {name: (name,) for name in students}
        columns["inputs"] = inputs

    needs_teacher = any(losses.needs_teacher(terms[name]) for name in students)
    group = partial(_groups, columns, datasets[first], distill, mesh, needs_teacher)
    read_groups, streams = group(selected)
    if distill.pack_to:
        # By all pairs where batches are as large, so that trainings on some of them share a compiled step.
        sampled, sampled_order = read_groups, _order(read_groups, streams, seed=0)
        if selected is not None:
            whole, whole_streams = group(None)
            whole_order = _order(whole, whole_streams, seed=0)
            if (whole.members.shape[1], whole_order.width) == (sampled.members.shape[1], sampled_order.width):
                sampled, sampled_order = whole, whole_order
        left_out = [("inputs", *paths[name]) for name in students if name not in packable(terms, students)]
        micro_batches = distill.optimization.micro_batches
        packed = choose_packing(sampled, sampled_order, distill.pack_to, micro_batches, mesh, left_out)
        read_groups = dataclasses.replace(read_groups, packed=packed)

    def order(seed: int):
        return _order(read_groups, streams, seed)

    def batches_of(seed: int):
        ordered = order(seed)
        return batches(read_groups, ordered, local_row_indices(mesh, ordered.width))

    def objective(terms: Terms):
        combined = {name: losses.combine(**terms[name]) for name in students}
        return combined[first] if len(students) == 1 else losses.joint(**combined)

    def optimizer(learning_rate: jax.typing.ArrayLike | None = None) -> optax.GradientTransformation:
        if learning_rate is None:
            tx = make_optimizer(distill.optimization)
        else:
            tx = make_tunable_optimizer(distill.optimization, learning_rate)
        return tx if len(students) == 1 else _separate_optimizers(tx)

    def make_step(terms: Terms, learning_rate: jax.typing.ArrayLike | None = None) -> Step:
        return make_train_step(
            apply,
            objective(terms),
            optimizer(learning_rate),
            micro_batches=distill.optimization.micro_batches,
            group_size=read_groups.members.shape[1],
            term_gradients=distill.term_gradients,
            extra_metrics=score_variance(students[first].label_schema.gains),
        )

    # A step with inputs of its own serves no other trainer.
    compiled = {} if compiled is None or hyperparameters is not None else compiled
    key = recipe, tuple((name, student.model) for name, student in students.items()), read_groups.members.shape[1]
    numbers: Params = {}
    if hyperparameters is None:
        step, tx = make_step(terms), optimizer()
    else:
        step, tx = make_tunable_step(make_step, terms), optimizer(hyperparameters.learning_rate)
        numbers = as_variables(hyperparameters, mesh)
    init_random = compiled[key][0] if key in compiled else make_init_fn(init, "params", numbers, tx, mesh)

    def init_state(seed: int) -> TrainState:
        state = init_random(seed)
        params = state.trainable["params"]
        for path in paths.values():
            params = with_encoder(params, encoder, path)
        return dataclasses.replace(state, trainable={"params": params})

    def params_of(state: TrainState) -> dict[str, Params]:
        params = state.trainable["params"]
        return {name: params[path[0]] if path else params for name, path in paths.items()}

    if key not in compiled:
        state = init_state(0)
        if recipe in distill.objectives:
            first_batch = order(0)
            batch = read_groups(first_batch.batch(0), np.arange(first_batch.width))
            _check_objective(recipe, step, state, batch, mesh)
        compiled[key] = init_random, shard_step(step, mesh, state)
    return Trainer(compiled[key][1], init_state, batches_of, params_of, distill.optimization, mesh)


def _order(groups: Groups, streams: Sequence[Stream], seed: int) -> Order:
    return shuffle_streams(streams, seed, sizes=groups.buckets, window=WINDOW if groups.lengths > 1 else 1)


def query_groups(queries: np.ndarray, labelled: np.ndarray, size: int, *, unlabelled: bool) -> np.ndarray:
    """[groups, size] rows by query, -1 for none; otherwise the same groups with the unlabelled pairs removed."""
    groups = group_by_query(queries, labelled, size)
    if unlabelled:
        return groups
    groups = np.where((groups >= 0) & labelled[groups], groups, -1)
    groups = np.take_along_axis(groups, np.argsort(groups < 0, axis=1, kind="stable"), axis=1)
    # Groups that are left empty stay, so that every step holds the same labelled pairs whatever the recipe.
    return groups[:, : (groups >= 0).sum(axis=1).max()]


def _groups(
    columns: Columns,
    dataset: Dataset,
    distill: DistillConfig,
    mesh: jax.sharding.Mesh,
    needs_teacher: bool,
    selected: np.ndarray | None,
) -> tuple[Groups, list[Stream]]:
    """The pairs in groups of one query, and the streams of groups with and without labelled pairs.

    Labelled pairs fall on the same steps whether or not the objective uses unlabelled pairs.
    """
    selected = np.arange(len(dataset)) if selected is None else np.asarray(selected)
    query, labelled = dataset.columns["query"][selected], dataset.labelled[selected]
    whole = query_groups(query, labelled, distill.group_size, unlabelled=True)
    groups = whole if needs_teacher else query_groups(query, labelled, distill.group_size, unlabelled=False)
    has_label = (labelled[whole] & (whole >= 0)).any(axis=1)
    count = max(1, distill.optimization.batch_size // distill.group_size)
    with_label, without = np.flatnonzero(has_label), np.flatnonzero(~has_label)
    if len(with_label) and len(without):
        first, second, cycle = count_streams(_fraction_schedule(distill.labelled_fraction), count)
        streams = [Stream(with_label, first, cycle)]
        if any(second) and needs_teacher:
            streams.append(Stream(without, second, cycle))
    else:
        streams = [Stream(np.arange(len(groups)), (count,))]
    width = max(streams[0].counts) if len(streams) == 1 else count
    while width * groups.shape[1] % (mesh.shape["data"] * mesh.shape["fsdp"]):
        groups = np.pad(groups, ((0, 0), (0, 1)), constant_values=-1)  # so that every device has as many rows
    members, buckets = np.where(groups >= 0, selected[groups], -1), None
    if distill.length_buckets > 1:
        row_buckets = _buckets(columns, selected, distill.length_buckets)
        buckets = np.where(groups >= 0, row_buckets[groups], 1).max(axis=1)
    return Groups(columns, members, buckets, distill.length_buckets), streams


def _fraction_schedule(fraction: float | ScheduleConfig) -> list[float]:
    if isinstance(fraction, ScheduleConfig):
        return np.linspace(fraction.start, fraction.end, fraction.steps + 1).tolist()
    return [fraction]


def _buckets(columns: Mapping[str, PyTree], rows: np.ndarray, lengths: int) -> np.ndarray:
    """The first of the `lengths` that all of a row's tokens fit in, for each row."""
    bucket = np.ones(len(rows), np.int64)
    for name, column in columns.items():
        if isinstance(column, Mapping):
            bucket = np.maximum(bucket, _buckets(column, rows, lengths))
        elif name.endswith("valid"):
            bucket = np.maximum(bucket, bucket_of(column.lengths(rows), column.length, lengths))
    return bucket


def _check_objective(recipe: str, step: Step, state: TrainState, batch: Batch, mesh: jax.sharding.Mesh):
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


def _joint_apply(models: Mapping[str, StudentModel]) -> Apply:
    """The `apply` of several models: {name: its inputs} -> {name: its outputs}, with dropout as if alone."""

    def apply(variables, *, deterministic, rngs=None, **inputs):
        return {
            name: model.apply(
                {"params": variables["params"][name]}, **inputs[name], deterministic=deterministic, rngs=rngs
            )
            for name, model in models.items()
        }

    return apply


def _joint_init(students: Mapping[str, Student]) -> Callable[[jax.Array], Params]:
    inits = {name: init_student(student) for name, student in students.items()}
    return lambda rng: {"params": {name: init(rng)["params"] for name, init in inits.items()}}


def _separate_optimizers(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer for each of the students, so that one's gradients are not clipped by the norm of the other's."""

    def by_student(tree):
        return {name: {"params": params} for name, params in tree["params"].items()}

    def init(trainable):
        return {name: tx.init(params) for name, params in by_student(trainable).items()}

    def update(grads, states, trainable):
        own = by_student(trainable)
        results = {name: tx.update(each, states[name], own[name]) for name, each in by_student(grads).items()}
        return {"params": {name: each["params"] for name, (each, _) in results.items()}}, {
            name: state for name, (_, state) in results.items()
        }

    return optax.GradientTransformation(init, update)
