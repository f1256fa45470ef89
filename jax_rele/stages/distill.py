"""distill: train each student by each recipe, from the same start, on the same pairs in the same order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jax_rele import losses
from jax_rele.config import Config
from jax_rele.data import read_pairs_table
from jax_rele.data.encoding import encode_evidence
from jax_rele.data.loader import batches, flatten_groups, group_by_query, take_groups
from jax_rele.errors import UserError
from jax_rele.models import CrossEncoder
from jax_rele.stages import artefacts
from jax_rele.training import (
    distributed,
    init_state,
    make_mesh,
    make_optimizer,
    make_train_step,
    places_of_process,
    shard_step,
    train,
)
from jax_rele.training.checkpoint import clear, save_variables
from jax_rele.types import Pair, Signals

NEEDS = ("prepare", "score")
READS = ("seed", "labels", "data", "rationale", "student", "distill")


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Trains and writes the students; those that an interrupted run has finished are kept."""
    pairs = artefacts.load_pairs(run_dir, "train") + read_pairs_table(run_dir / artefacts.UNLABELLED)
    signals = artefacts.load_signals(config, run_dir)
    if np.isnan(signals.verdict_probs).all():
        for recipe in filter(losses.learns_verdicts, config.distill.recipes):
            raise UserError(
                f"distill.recipes: {recipe} learns from verdicts, and the signals hold none (teacher.order is "
                "label_only); use label_only or score_kd, or another teacher.order"
            )
    for student in config.distill.students:
        for recipe in config.distill.recipes:
            if not distributed.on_main((artefacts.student_dir(run_dir, student, recipe) / "variables").exists):
                train_student(config, run_dir, student, recipe, pairs, signals)
    groups = groups_of(config, pairs, "mkd")
    return {
        "students": len(config.distill.students) * len(config.distill.recipes),
        "steps each": config.distill.optimization.steps,
        "pairs": int((groups >= 0).sum()),
    }


def train_student(config: Config, run_dir: Path, name: str, recipe: str, pairs: list[Pair], signals: Signals) -> None:
    """Trains one student by one recipe and writes its variables."""
    model, tokenizer = artefacts.student_model(config, run_dir, name)
    optimization, distill = config.distill.optimization, config.distill
    rows = {
        "inputs": artefacts.student_inputs(config, model, tokenizer, pairs),
        **targets(config, pairs, signals),
    }
    if isinstance(model, CrossEncoder):
        lengths = config.student.query_length, config.student.item_length
        evidence = _in_order(pairs, signals, signals.evidence)
        dimensions, fields = config.rationale.dimensions, config.data.item_fields
        rows |= encode_evidence(tokenizer, pairs, evidence, dimensions, fields, *lengths)
        # Without a rationale there is no evidence to learn, not even that there is none.
        explained = np.array([bool(text) for text in _in_order(pairs, signals, signals.rationales)])
        rows["evidence_tags_mask"] &= explained[:, None]
    # A batch holds so many groups, each with labelled pairs of one query, that a recipe without a teacher sees the same
    # labelled pairs in the same step as one that learns from the group's unlabelled pairs too.
    groups = groups_of(config, pairs, recipe)
    mesh, tx = make_mesh(config.mesh), make_optimizer(optimization)
    count = max(1, optimization.batch_size // distill.group_size)
    places = places_of_process(mesh, count)
    data = batches(take_groups(rows, groups), count, config.seed, flatten_groups, places)

    state = init_state(artefacts.init_student(config, model, tokenizer), "params", {}, tx, mesh, config.seed)
    loss = artefacts.student_objective(config, name, recipe)
    step = make_train_step(
        model.apply,
        loss,
        tx,
        seed=config.seed,
        micro_batches=optimization.micro_batches,
        group_size=groups.shape[1],
    )
    directory = artefacts.student_dir(run_dir, name, recipe)
    state = train(
        shard_step(step, mesh, state),
        state,
        data,
        config=optimization,
        mesh=mesh,
        directory=directory,
        title=f"distill {name} {recipe}",
    )
    save_variables(directory / "variables", state.trainable)
    clear(directory / "checkpoints")


def groups_of(config: Config, pairs: list[Pair], recipe: str) -> np.ndarray:
    """[groups, size] rows of `pairs` by query, -1 for none; without a teacher, the same less their unlabelled pairs."""
    labelled = np.array([pair.label is not None for pair in pairs])
    groups = group_by_query([pair.query for pair in pairs], labelled, config.distill.group_size)
    if losses.needs_teacher(recipe):
        return groups
    groups = np.where((groups >= 0) & labelled[groups], groups, -1)
    groups = np.take_along_axis(groups, np.argsort(groups < 0, axis=1, kind="stable"), axis=1)
    # Groups that are left empty stay, so that every step holds the same labelled pairs whatever the recipe.
    return groups[:, : (groups >= 0).sum(axis=1).max()]


def targets(config: Config, pairs: list[Pair], signals: Signals) -> dict[str, np.ndarray]:
    """What the recipes read, a row per pair: labels, label and verdict distributions, and which of them are there."""
    schema = config.labels.schema_
    verdict_probs = _in_order(pairs, signals, signals.verdict_probs)
    return {
        "labels": np.array([0 if pair.label is None else schema.index(pair.label) for pair in pairs], np.int32),
        "labels_mask": np.array([pair.label is not None for pair in pairs]),
        "label_probs": _in_order(pairs, signals, signals.label_probs),
        "verdict_probs": np.nan_to_num(verdict_probs),
        "verdict_probs_mask": ~np.isnan(verdict_probs).any(axis=-1),
    }


def _in_order(pairs: list[Pair], signals: Signals, values):
    """Rows of `values`, which are aligned with the signals, in the order of the pairs."""
    place = {pair_id: row for row, pair_id in enumerate(signals.pair_ids)}
    missing = [pair.pair_id for pair in pairs if pair.pair_id not in place]
    if missing:
        raise UserError(
            f"the signals lack {len(missing)} of {len(pairs)} pairs, the first is {missing[0]!r}; delete the folder of "
            "the stage score and run it again"
        )
    rows = [place[pair.pair_id] for pair in pairs]
    return values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows]
