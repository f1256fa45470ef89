"""distill: train each student by each recipe, from the same start, on the same pairs in the same order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from jax_rele import losses
from jax_rele.config import Config
from jax_rele.data.loader import batches, flatten_groups, split_streams, take_groups
from jax_rele.errors import UserError
from jax_rele.losses.combine import Term
from jax_rele.models.partitioning import use
from jax_rele.stages import artefacts, objectives, students, targets
from jax_rele.training import (
    TrainState,
    distributed,
    make_mesh,
    make_optimizer,
    make_train_step,
    places_of_process,
    shard_step,
    state_maker,
    train,
)
from jax_rele.training.checkpoint import clear, save_variables
from jax_rele.training.collapse import alarm, score_variance
from jax_rele.types import Pair, Signals

NEEDS = ("prepare", "score")
READS = ("seed", "labels", "data", "rationale", "student", "distill")


def external_inputs(config: Config) -> dict[str, str]:
    """Hashes of the files that hold losses of the config's own: an edited loss makes another student."""
    terms = [term for objective in config.distill.objectives.values() for term in objective.terms.values()]
    found = {f"loss {term.loss}": objectives.source_hash(term.loss) for term in terms if ":" in term.loss}
    return {name: value for name, value in found.items() if value}


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Trains and writes the students; those that an interrupted run has finished are kept."""
    signals = artefacts.load_signals(config, run_dir)
    pairs = artefacts.training_pairs(run_dir, signals)
    # What does not fit together is found before anything is trained.
    work = []
    for recipe in config.distill.recipes:
        together = (
            [config.distill.students] if config.distill.together else [(name,) for name in config.distill.students]
        )
        for names in together:
            terms = {name: terms_of(config, run_dir, name, recipe) for name in names}
            work.append((recipe, terms))
    for recipe, terms in work:
        folders = {name: artefacts.student_dir(run_dir, name, recipe) for name in terms}
        if distributed.on_main(partial(_are_there, folders.values())):
            continue
        training = prepare(config, run_dir, recipe, terms, pairs, signals)
        directory = run_dir / "distill" / "together" / recipe if len(terms) > 1 else folders[next(iter(terms))]
        title = f"distill {' + '.join(terms)} {recipe}"
        state = fit(training, config, config.seed, directory, title)
        for name, params in training.params_of(state).items():
            save_variables(folders[name] / "variables", {"params": params})
        clear(directory / "checkpoints")
    return {
        "students": len(config.distill.students) * len(config.distill.recipes),
        "steps each": config.distill.optimization.steps,
        "pairs": len(pairs),
    }


def _are_there(folders: Iterable[Path]) -> bool:
    return all((folder / "variables").exists() for folder in folders)


def terms_of(config: Config, run_dir: Path, name: str, recipe: str) -> dict[str, Term]:
    """The terms of a recipe for a student. Raises UserError where it lacks what they read."""
    heads = students.heads_of(students.student_model(config, run_dir, name)[0])
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
    pairs: Sequence[Pair],
    signals: Signals,
) -> Training:
    """Everything of a training that does not depend on its seed.

    Args:
      config: the run.
      run_dir: its folder, for the tokenizer.
      recipe: its name, for messages.
      terms: {student: its terms}. Several students are trained side by side in every step, each by its own terms and
        with an optimizer of its own, so that each becomes what it would have become alone.
      pairs: labelled and unlabelled training pairs.
      signals: of all of them.
    """
    optimization, one = config.distill.optimization, len(terms) == 1
    mesh = make_mesh(config.mesh)
    models, inits, inputs, fields = {}, {}, {}, {}
    for name in terms:
        models[name], tokenizer = students.student_model(config, run_dir, name)
        inits[name] = students.init_student(config, models[name], tokenizer)
        made = targets.rows(config, name, recipe, models[name], tokenizer, terms[name], pairs, signals)
        inputs[name] = made.pop("inputs")
        fields |= made
    (first, model), *_ = models.items()
    encoder = students.loaded_encoder(config, model, mesh)
    tx = make_optimizer(optimization)
    if one:
        apply, loss, init = model.apply, losses.combine(**terms[first]), inits[first]
        inputs, paths = inputs[first], {first: ()}
    else:
        apply, init = _side_by_side(models), _born_together(inits)
        loss = losses.joint(**{name: losses.combine(**terms[name]) for name in terms})
        tx = _one_each(tx)
        paths = {name: (name,) for name in terms}

    # A batch holds so many groups, each of one query, that a recipe without a teacher sees the same labelled pairs in
    # the same step as one that learns from the group's unlabelled pairs, and from other groups, too.
    count = max(1, optimization.batch_size // config.distill.group_size)
    teacher = any(losses.needs_teacher(each) for each in terms.values())
    groups, labelled = targets.groups_of(config, pairs, teacher), np.array([pair.label is not None for pair in pairs])
    whole = groups if teacher else targets.groups_of(config, pairs, True)
    streams = split_streams((labelled[whole] & (whole >= 0)).any(axis=1), count, config.distill.labelled_share)
    if not teacher:
        streams = streams[:1]
    rows_of_batch = sum(share for _, share in streams)
    while rows_of_batch * groups.shape[1] % (mesh.shape["data"] * mesh.shape["fsdp"]):
        groups = np.pad(groups, ((0, 0), (0, 1)), constant_values=-1)  # so that every device has as many rows
    arrays = take_groups({"inputs": inputs, **fields}, groups)

    def data(seed):
        places = places_of_process(mesh, rows_of_batch)
        return batches(arrays, rows_of_batch, seed, flatten_groups, places, streams)

    born = state_maker(init, "params", {}, tx, mesh)

    def start(seed):
        state = born(seed)
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
        group_size=groups.shape[1],
        term_gradients=config.distill.term_gradients,
        watch=score_variance(config.labels.gains),
    )

    state = start(0)
    if recipe in config.distill.objectives:
        _try(
            recipe,
            step,
            state,
            jax.tree.map(np.asarray, flatten_groups({name: _first(x, rows_of_batch) for name, x in arrays.items()})),
            mesh,
        )
    return Training(shard_step(step, mesh, state), start, data, mesh, params_of)


def _first(tree: Any, count: int) -> Any:
    return jax.tree.map(lambda x: np.resize(x, (count, *x.shape[1:])), tree)


def _try(recipe: str, step: Callable[..., Any], state: TrainState, batch: Any, mesh: jax.sharding.Mesh) -> None:
    """Raises UserError where an objective of the config's own cannot be computed; takes shapes alone."""
    try:
        with use(mesh):
            jax.eval_shape(step, state, batch)
    except UserError:
        raise
    except Exception as error:
        told = next(iter(str(error).splitlines()), "")
        raise UserError(
            f"distill.objectives.{recipe}: its terms cannot be computed ({type(error).__name__}: {told})"
        ) from None


def fit(training: Training, config: Config, seed: int, directory: Path, title: str) -> TrainState:
    """Trains from a seed, going on from what `directory` holds; a collapse of the scores is reported on the way."""
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


def _side_by_side(models: Mapping[str, Any]) -> Callable[..., dict[str, Any]]:
    """The `apply` of several models: {name: its inputs} -> {name: its outputs}. Each draws dropout as if alone."""

    def apply(variables, *, deterministic, rngs=None, **inputs):
        return {
            name: model.apply(
                {"params": variables["params"][name]}, **inputs[name], deterministic=deterministic, rngs=rngs
            )
            for name, model in models.items()
        }

    return apply


def _one_each(tx: optax.GradientTransformation) -> optax.GradientTransformation:
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


def _born_together(inits: Mapping[str, Callable]) -> Callable[[jax.Array], dict[str, Any]]:
    return lambda rng: {"params": {name: init(rng)["params"] for name, init in inits.items()}}
