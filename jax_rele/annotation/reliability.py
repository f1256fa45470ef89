"""How far each model's labels can be trusted, learnt from gold labels, and what votes of unequal worth add up to."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from jax_rele.types import LabelSchema

MIN_GOLD = 40
"""Pairs with votes and a gold label; with fewer all models weigh the same."""

MAX_FITTED = 20_000
"""Pairs that reliability is fitted on: those with a gold label first, chosen by hash."""

FOLDS = 5
"""A pair with a gold label is decided by what was learnt from the other folds, so that its own label is no help."""

TIE = 1e-9
"""Shares that differ by less are equal."""


@dataclass(frozen=True)
class Reliability:
    """What is known of models.

    Attributes:
      kind: `gold` (Dawid-Skene) or `equal`.
      n_gold: pairs with votes and a gold label.
      weights: {model: weight of its verdicts}, its accuracy where `gold`; they sum to 1.
      accuracy: {model: estimated accuracy of its labels}; empty where `equal`.
      confusion: {model: [C, C] P(model says column | truth is row)}; empty where `equal`.
      prior: [C] P(truth).
      folds: what decides pairs with a gold label: fitted without those of the pair's fold; empty where `equal`.
      gold: the pairs with a gold label.
    """

    kind: str
    n_gold: int
    weights: Mapping[str, float]
    accuracy: Mapping[str, float] = field(default_factory=dict)
    confusion: Mapping[str, np.ndarray] = field(default_factory=dict)
    prior: np.ndarray | None = None
    folds: tuple[Reliability, ...] = ()
    gold: frozenset[str] = frozenset()


def fit_reliability(
    fractions: Mapping[str, Mapping[str, np.ndarray]],
    models: Sequence[str],
    labels: LabelSchema,
    gold: Mapping[str, str],
    *,
    min_gold: int = MIN_GOLD,
) -> Reliability:
    """Learns the models' confusion matrices by Dawid-Skene, with the truth of gold pairs given.

    Dawid and Skene 1979, doi 10.2307/2346806, by crowd-kit; a model's vote is the label with its largest share. The
    expected counts are then smoothed by one imagined answer, spread over all labels, for each model and truth.

    Args:
      shares: {pair_id: {model: [C] shares of its answers for each label}}.
      models: all models.
      labels: the label schema.
      gold: {pair_id: label}.
      min_gold: fewer pairs with votes and a gold label give equal weights.
    """
    known = {pair_id: gold[pair_id] for pair_id, each in fractions.items() if each and pair_id in gold}
    if len(known) < min_gold or not models:
        return Reliability("equal", len(known), {model: 1.0 / len(models) for model in models})
    voted = [pair_id for pair_id, each in fractions.items() if each]
    fitted = sorted(voted, key=lambda pair_id: (pair_id not in known, _hash(pair_id)))[:MAX_FITTED]
    whole = _fit(fractions, fitted, models, labels, known)
    folds = []
    for fold in range(FOLDS):
        others = {pair_id: label for pair_id, label in known.items() if fold_of(pair_id) != fold}
        folds.append(_fit(fractions, fitted, models, labels, others))
    return Reliability(**{**vars(whole), "n_gold": len(known), "folds": tuple(folds), "gold": frozenset(known)})


def fold_of(pair_id: str) -> int:
    """The fold of a pair, by its hash."""
    return _hash(pair_id)[-1] % FOLDS


def label_posterior(votes: Mapping[str, np.ndarray], reliability: Reliability, pair_id: str = "") -> np.ndarray:
    """[C] what the votes of models for a pair's label add up to; sums to 1.

    `equal`: the mean of the models' shares. `gold`: P(truth | votes) by the models' confusion matrices, taking models
    to err independently; a share of an answer counts as that part of an answer (in the exponent), so that a model's
    samples together are one vote.

    Args:
      votes: {model: [C] shares}, of at least one model.
      reliability: of the models; for a pair with a gold label, that of its fold decides.
      pair_id: the pair.
    """
    if reliability.folds and pair_id in reliability.gold:
        reliability = reliability.folds[fold_of(pair_id)]
    models = sorted(votes)
    if reliability.kind == "equal":
        return np.mean([votes[model] for model in models], axis=0)
    log = np.log(reliability.prior)
    for model in models:
        log = log + (np.log(reliability.confusion[model]) * votes[model]).sum(axis=1)
    likelihood = np.exp(log - log.max())
    return likelihood / likelihood.sum()


def plurality(fractions: Sequence[float] | np.ndarray, labels: LabelSchema) -> int:
    """The label with the largest share; of several the one with the lowest gain, then the last."""
    fractions = np.asarray(fractions)
    tied = np.flatnonzero(fractions >= fractions.max() - TIE)
    return int(min(tied, key=lambda index: (labels.gains[index], -index)))


def _fit(fractions, fitted: Sequence[str], models, labels: LabelSchema, gold: Mapping[str, str]) -> Reliability:
    # They take a second to import, which those who never learn weights need not wait for.
    import pandas as pd
    from crowdkit.aggregation.classification.dawid_skene import DawidSkene

    votes = [
        (pair_id, model, plurality(fractions[pair_id][model], labels))
        for pair_id in sorted(fitted)
        for model in models
        if model in fractions[pair_id]
    ]
    # The library knows only labels that someone votes for; an imagined judge who always votes makes it know all, and
    # their order. What such a judge says of one pair each changes next to nothing and is left out below.
    imagined = [(f"\x00{index}", "\x00", index) for index in range(len(labels))]
    data = pd.DataFrame([*imagined, *votes], columns=["task", "worker", "label"])
    truth = {pair_id: labels.index(label) for pair_id, label in gold.items() if pair_id in fractions}
    truth |= {task: index for task, _, index in imagined}
    fitter = DawidSkene(n_iter=50, tol=1e-4)
    with warnings.catch_warnings():
        # The library passes arguments that newer pandas does not want.
        warnings.simplefilter("ignore")
        truths = pd.Series({task: truth[task] for task in data["task"].unique() if task in truth})
        fitter.fit(data, truths)
    probs = fitter.probas_.reindex(columns=range(len(labels)), fill_value=0.0)
    rows = {pair_id: index for index, pair_id in enumerate(probs.index)}
    probs = probs.to_numpy(np.float64)
    counts = {model: np.full((len(labels), len(labels)), 1.0 / len(labels)) for model in models}
    for pair_id, model, index in votes:
        counts[model][:, index] += probs[rows[pair_id]]
    real = probs[[rows[pair_id] for pair_id in sorted(fitted)]]
    prior = (real.sum(axis=0) + 1.0 / len(labels)) / (len(real) + 1.0)
    confusion = {model: count / count.sum(axis=1, keepdims=True) for model, count in counts.items()}
    accuracy = {model: float((prior * np.diag(confusion[model])).sum()) for model in models}
    total = sum(accuracy.values())
    weights = {model: fraction / total for model, fraction in accuracy.items()}
    return Reliability("gold", len(gold), weights, accuracy, confusion, prior)


def _hash(pair_id: str) -> bytes:
    return hashlib.sha256(pair_id.encode(errors="replace")).digest()
