"""Recipes side by side: means over training seeds, and intervals that cover both the choice of queries and of seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jax_rele.evaluation.assemble import REFERENCE_RECIPE, TEACHER
from jax_rele.evaluation.bootstrap import interval, intervals, metric_names, metric_samples
from jax_rele.evaluation.calibration import fit_temperature
from jax_rele.evaluation.decision import fit_bias
from jax_rele.types import LabelSchema

EVERYTHING = "all"
"""The slice of all pairs."""


@dataclass(frozen=True)
class HeldOutPairs:
    """The pairs that recipes are compared on.

    Attributes:
      labels: [N] int labels of the evaluated pairs.
      queries: their N queries; equal strings are one query.
      validation_labels: [M] int labels of the pairs on which decision biases and temperatures are fitted.
      slices: {name: [N] bool} of the subsets that are also reported.
      folds, validation_folds: of a cross-validation: [N] and [M] int, the fold whose models judge each pair. A query's
        evaluated pairs are in one fold; its validation pairs may come again in another, judged by other models.
    """

    labels: np.ndarray
    queries: Sequence[str]
    validation_labels: np.ndarray
    slices: Mapping[str, np.ndarray]
    folds: np.ndarray | None = None
    validation_folds: np.ndarray | None = None


@dataclass(frozen=True)
class Cell:
    """One student trained by one recipe on some number of pairs, with every seed.

    Attributes:
      student, recipe: their names.
      labelled, teacher_labelled: numbers of training pairs with a human label, and with the teacher's signals alone.
      probs, validation_probs: for each seed the label distributions, [N, C] and [M, C].
    """

    student: str
    recipe: str
    labelled: int
    teacher_labelled: int
    probs: Sequence[np.ndarray]
    validation_probs: Sequence[np.ndarray]


def compare(
    cells: Sequence[Cell],
    pairs: HeldOutPairs,
    schema: LabelSchema,
    *,
    others: Mapping[str, tuple[np.ndarray, np.ndarray]],
    seeds: Sequence[int],
    gain_maps: Mapping[str, Sequence[float]],
    n_bootstrap: int,
    seed: int,
    reference: str = REFERENCE_RECIPE,
) -> dict:
    """Every metric of every cell, on all pairs and on each slice, with its difference to a reference recipe.

    A metric's value is the mean over the training seeds. A resample draws queries with replacement, the same ones for
    every model, and training seeds with replacement, the same ones for a cell and the one it is compared with; so an
    interval covers the randomness of test queries and of training. With few seeds the latter part is imprecise, and
    with one the interval covers the queries alone.

    Where the pairs are those of all folds of a cross-validation, a metric of one seed is that of all folds' pairs, each
    judged by its fold's model with that seed: `metric_samples` says how it is pooled. Bias and temperature are fitted
    for each fold's model on its own validation pairs. The folds' models learn from overlapping pairs, so the intervals
    do not cover the choice of training pairs, of which no unbiased estimate exists (Bengio and Grandvalet, No Unbiased
    Estimator of the Variance of K-Fold Cross-Validation, JMLR 5, 2004).

    Args:
      cells: what was trained; each with as many seeds.
      pairs: the pairs to compare on.
      schema: the label schema.
      others: {name: ([N, C], [M, C])} of what has no seeds: baselines, and the teacher by the name `teacher`.
      seeds: the training seeds.
      gain_maps: {name: C gains}, one nDCG for each.
      n_bootstrap: number of resamples.
      seed: of the resamples.
      reference: the recipe that the others are compared with.

    Returns:
      A document of plain dicts, lists, strings and numbers: `n_pairs`, `n_queries`, `folds` (how many; None without
      cross-validation), `slices` ({name: pairs}), `seeds`,
      `bootstrap`, `metrics`, `others` ({slice: {name: {metric: {"value", "ci95"}}}}) and `cells`, a list of
      {"student", "recipe", "labelled", "teacher_labelled", "slices": {slice: {metric: {"value", "ci95", "by_seed",
      "difference", "retained"}}}}: the difference to the same student by the reference on as many pairs, None where
      that was not trained, and the share of the teacher's value. What is undefined is None.
    """
    masks = {EVERYTHING: np.ones(len(pairs.labels), bool), **pairs.slices}
    masks = {name: mask for name, mask in masks.items() if mask.any()}

    folds = np.zeros(len(pairs.labels), int) if pairs.folds is None else pairs.folds
    validation_folds = np.zeros(len(pairs.validation_labels), int)
    validation_folds = validation_folds if pairs.validation_folds is None else pairs.validation_folds

    def samples(probs, fitted, mask):
        return metric_samples(
            np.asarray(probs)[mask],
            pairs.labels[mask],
            [query for query, selected in zip(pairs.queries, mask) if selected],
            schema,
            gain_maps=gain_maps,
            **{name: values[mask] for name, values in fitted.items()},
            n_bootstrap=n_bootstrap,
            seed=seed,
            folds=None if pairs.folds is None else folds[mask],
        )

    def fitted(validation_probs):
        bias, temperature = np.zeros((len(folds), len(schema))), np.ones(len(folds))
        for fold in np.unique(folds):
            rows, held_out = folds == fold, validation_folds == fold
            probs, labels = np.asarray(validation_probs)[held_out], pairs.validation_labels[held_out]
            bias[rows], temperature[rows] = fit_bias(probs, labels), fit_temperature(probs, labels)
        return {"bias": bias, "temperature": temperature}

    fits = [[fitted(probs) for probs in cell.validation_probs] for cell in cells]
    other_fits = {name: fitted(validation_probs) for name, (_, validation_probs) in others.items()}
    # A separate stream, since the draws of queries begin with the same seed.
    draws = np.random.default_rng([seed, 1]).integers(0, len(seeds), (n_bootstrap, len(seeds)))
    others_by_slice: dict[str, dict] = {}
    figures: list[dict[str, dict]] = [{} for _ in cells]
    positions = {_key(cell): position for position, cell in enumerate(cells)}
    for slice_name, mask in masks.items():
        fixed = {name: samples(probs, other_fits[name], mask) for name, (probs, _) in others.items()}
        others_by_slice[slice_name] = {name: intervals(metrics) for name, metrics in fixed.items()}
        metrics = [
            _by_seed([samples(probs, fit, mask) for probs, fit in zip(cell.probs, fit_of_seeds)])
            for cell, fit_of_seeds in zip(cells, fits)
        ]
        for cell, by_seed, slices in zip(cells, metrics, figures):
            other = positions.get((cell.student, reference, cell.labelled, cell.teacher_labelled))
            slices[slice_name] = {
                metric: {
                    **interval(_over_seeds(values, draws)),
                    "by_seed": [None if np.isnan(value) else float(value) for value in values[:, 0]],
                    "difference": None
                    if other is None or cell.recipe == reference
                    else interval(_over_seeds(values - metrics[other][metric], draws)),
                    "retained": _retained(values, fixed.get(TEACHER, {}).get(metric)),
                }
                for metric, values in by_seed.items()
            }
    return {
        "n_pairs": len(pairs.labels),
        "n_queries": len(set(pairs.queries)),
        "folds": None if pairs.folds is None else len(np.unique(folds)),
        "slices": {name: int(mask.sum()) for name, mask in masks.items()},
        "seeds": list(seeds),
        "bootstrap": {"samples": n_bootstrap, "unit": "query and training seed", "seed": seed},
        "metrics": list(metric_names(gain_maps)),
        "reference": reference,
        "others": others_by_slice,
        "cells": [
            {
                "student": cell.student,
                "recipe": cell.recipe,
                "labelled": cell.labelled,
                "teacher_labelled": cell.teacher_labelled,
                "slices": slices,
            }
            for cell, slices in zip(cells, figures)
        ],
    }


def _key(cell: Cell) -> tuple[str, str, int, int]:
    return cell.student, cell.recipe, cell.labelled, cell.teacher_labelled


def _by_seed(metrics: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """{metric: [seeds, 1 + n]}."""
    return {metric: np.stack([each[metric] for each in metrics]) for metric in metrics[0]}


def _over_seeds(values: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """[seeds, 1 + n] -> [1 + n]: the mean, then for each resample that of the seeds that it drew."""
    resampled = np.take_along_axis(values[:, 1:].T, draws, axis=1).mean(axis=1)
    return np.concatenate([[values[:, 0].mean()], resampled])


def _retained(values: np.ndarray, teacher: np.ndarray | None) -> float | None:
    if teacher is None or np.isnan(teacher[0]) or teacher[0] == 0 or np.isnan(values[:, 0]).any():
        return None
    return float(values[:, 0].mean() / teacher[0])
