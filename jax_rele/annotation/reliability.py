"""How reliable each model's labels are, estimated from gold labels, and the label distribution that the votes give."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.special import softmax

from jax_rele.types import LabelSchema

MIN_GOLD = 40
"""Pairs with votes and a gold label; with fewer all models weigh the same."""

MAX_FITTED = 20_000
"""Pairs that reliability is fitted on: those with a gold label first, chosen by hash."""

FOLDS = 5
"""Estimates from the other folds decide a pair with a gold label, so that its own label has no influence."""

TIE = 1e-9
"""Shares that differ by less are equal."""

MAX_STEPS, TOLERANCE = 50, 1e-4
"""Of expectation maximisation."""

EPSILON = 1e-10
"""Probabilities and expected counts below this are raised to it before their logarithm is taken."""


@dataclass(frozen=True)
class Reliability:
    """The estimated reliability of models.

    Attributes:
      kind: `gold` (Dawid-Skene) or `equal`.
      n_gold: pairs with votes and a gold label.
      weights: {model: weight of its verdicts}, its accuracy where `gold`; they sum to 1.
      accuracy: {model: estimated accuracy of its labels}; empty where `equal`.
      confusion: {model: [C, C] P(model says column | truth is row)}; empty where `equal`.
      prior: [C] P(truth); empty where `equal`.
      folds: for pairs with a gold label: fitted without the gold labels of the pair's fold; empty where `equal`.
      gold: the pairs with a gold label.
    """

    kind: str
    n_gold: int
    weights: Mapping[str, float]
    accuracy: Mapping[str, float] = field(default_factory=dict)
    confusion: Mapping[str, np.ndarray] = field(default_factory=dict)
    prior: np.ndarray = field(default_factory=lambda: np.empty(0))
    folds: tuple[Reliability, ...] = ()
    gold: frozenset[str] = frozenset()


def fit_reliability(
    fractions: Mapping[str, Mapping[str, np.ndarray]],
    models: Sequence[str],
    labels: LabelSchema,
    gold: Mapping[str, str],
) -> Reliability:
    """Learns the models' confusion matrices by Dawid-Skene, with the truth of gold pairs given.

    A model's vote is the label with its largest share; see `fit_dawid_skene`. The expected counts are then smoothed by
    one pseudo-answer, spread evenly over all labels, for each model and true label.

    Args:
      fractions: {pair_id: {model: [C] shares of its answers for each label}}.
      models: all models.
      labels: the label schema.
      gold: {pair_id: label}.
    """
    known = {pair_id: gold[pair_id] for pair_id, each in fractions.items() if each and pair_id in gold}
    if len(known) < MIN_GOLD or not models:
        return Reliability("equal", len(known), {model: 1.0 / len(models) for model in models})
    voted = [pair_id for pair_id, each in fractions.items() if each]
    fitted = sorted(voted, key=lambda pair_id: (pair_id not in known, _hash(pair_id)))[:MAX_FITTED]
    votes = np.full((len(fitted), len(models)), -1)
    for row, pair_id in enumerate(fitted):
        for column, model in enumerate(models):
            if model in fractions[pair_id]:
                votes[row, column] = plurality(fractions[pair_id][model], labels)
    truth = np.array([labels.index(known[pair_id]) if pair_id in known else -1 for pair_id in fitted])
    fold = np.array([fold_of(pair_id) for pair_id in fitted])
    folds = [_fit(votes, np.where(fold == held_out, -1, truth), models, len(labels)) for held_out in range(FOLDS)]
    whole = _fit(votes, truth, models, len(labels))
    return replace(whole, n_gold=len(known), folds=tuple(folds), gold=frozenset(known))


def fit_dawid_skene(votes: np.ndarray, truth: np.ndarray, n_labels: int, *, prior_count: int = 0) -> np.ndarray:
    """Label probabilities from several annotators' votes by expectation maximisation.

    The steps end when the evidence lower bound per vote, with the prior counted for each vote, rises by less than
    TOLERANCE. Reference: Dawid and Skene 1979, doi 10.2307/2346806.

    Args:
      votes: [N, M] int, the label that annotator m gave to pair n; -1 for none. Every pair has a vote.
      truth: [N] int, the known label of a pair; -1 where it is to be estimated.
      n_labels: C.
      prior_count: pseudo-pairs of each label that are added to the prior.

    Returns:
      [N, C] float64, P(truth | votes); one-hot where the label is known.
    """
    one_hot = np.eye(n_labels + 1)[votes][..., :n_labels]  # -1 selects the last row, which the cut leaves all zeros
    known, counts = truth >= 0, one_hot.sum(axis=(1, 2))
    known_probs = np.eye(n_labels)[truth[known]]
    n_votes = counts.sum() + prior_count * n_labels

    def maximize() -> tuple[np.ndarray, np.ndarray]:
        confusion = np.einsum("nmo,nt->mot", one_hot, probs).clip(EPSILON)
        log_confusion = np.log(confusion / confusion.sum(axis=1, keepdims=True))
        prior = (probs.sum(axis=0) + prior_count) / (len(probs) + prior_count * n_labels)
        return np.log(prior.clip(EPSILON)), np.einsum("nmo,mot->nt", one_hot, log_confusion)

    probs = one_hot.sum(axis=1) / counts[:, None]
    probs[known] = known_probs
    log_prior, log_likelihood = maximize()
    bound = -np.inf
    for _ in range(MAX_STEPS):
        probs = softmax(log_prior + log_likelihood, axis=1)
        probs[known] = known_probs
        log_prior, log_likelihood = maximize()
        expectation = (probs * (log_likelihood + counts[:, None] * log_prior)).sum() + prior_count * log_prior.sum()
        previous, bound = bound, (expectation - (probs * np.log(probs.clip(EPSILON))).sum()) / n_votes
        if bound - previous < TOLERANCE:
            break
    return probs


def fold_of(pair_id: str) -> int:
    """The fold of a pair, by its hash."""
    return _hash(pair_id)[-1] % FOLDS


def label_posterior(votes: Mapping[str, np.ndarray], reliability: Reliability, pair_id: str = "") -> np.ndarray:
    """[C] label distribution of a pair by the votes of at least one model: {model: [C] shares}.

    `equal`: the mean of the models' shares. `gold`: P(truth | votes) by the models' confusion matrices, if models err
    independently; shares are exponents of the likelihoods, so that a model's samples together are one vote. For a pair
    with a gold label the estimates of its fold are used.
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


def _fit(votes: np.ndarray, truth: np.ndarray, models: Sequence[str], n_labels: int) -> Reliability:
    probs = fit_dawid_skene(votes, truth, n_labels, prior_count=1)
    prior = (probs.sum(axis=0) + 1.0 / n_labels) / (len(probs) + 1.0)
    confusion = {}
    for column, model in enumerate(models):
        votes_of_model = np.eye(n_labels + 1)[votes[:, column], :n_labels]
        counts = probs.T @ votes_of_model + 1.0 / n_labels
        confusion[model] = counts / counts.sum(axis=1, keepdims=True)
    accuracy = {model: float((prior * np.diag(confusion[model])).sum()) for model in models}
    total = sum(accuracy.values())
    weights = {model: fraction / total for model, fraction in accuracy.items()}
    return Reliability("gold", int((truth >= 0).sum()), weights, accuracy, confusion, prior)


def _hash(pair_id: str) -> bytes:
    return hashlib.sha256(pair_id.encode(errors="replace")).digest()
