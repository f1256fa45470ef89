"""Consensus: what several models, each with several samples, say of a pair together, and the rationale that says it.

The samples of one model are its vote: a share for each label and for each verdict of each dimension (self-consistency).
The votes of models are then combined, with weights learnt from gold labels or equal ones. Nothing depends on the order
of answers.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from jax_rele.annotation.answers import Failure
from jax_rele.annotation.reliability import TIE, Reliability, fit_reliability, label_posterior, plurality
from jax_rele.rationale import render
from jax_rele.types import VERDICTS, LabelSchema, Rationale

STATUSES = ("accepted", "rejected", "pending")
GOLD_FILTERS = ("keep", "drop", "ask_again")
WEIGHTS = ("gold", "equal")

TO_ASK_AGAIN = "to be asked again"
"""How the reason of a pending decision begins that waits for answers of round 1."""

_CAUTIOUS = ("absent", "mismatch", "match")
"""Which verdict wins a tie: the one that claims the least."""


@dataclass(frozen=True)
class Vote:
    """What one sample of a model says of a pair.

    Attributes:
      pair_id: what it is about.
      model: whose it is.
      outcome: the rationale, or why there is none.
      sample: its number.
      round: 0, or 1 where a disagreement with the gold label was pointed out.
      cost: of the call.
    """

    pair_id: str
    model: str
    outcome: Rationale | Failure
    sample: int = 0
    round: int = 0
    cost: float = 0.0


@dataclass(frozen=True)
class Decision:
    """What became of a pair.

    Attributes:
      pair_id: the pair.
      status: one of `STATUSES`.
      reason: why it is not accepted; empty where it is.
      rationale: the one that is kept, of an accepted pair; else the best there is, or None.
      label: what the vote says; None where nobody does.
      label_share: the label's share of the vote.
      label_shares: {label: share}, in the order of the schema.
      verdicts: {dimension: what the vote says}.
      verdict_shares: {dimension: that verdict's share of the vote}.
      n_answers: readable answers, of the round that decides.
      n_models: models with one.
      model: whose rationale is kept.
      gold: the gold label, or None.
      gold_agrees: whether label and gold label are equal; None without gold label.
      gold_dropped: rejected for that.
      asked_again: decided by answers to whom the disagreement was pointed out.
      reviewed: a person decided.
      first_label: what the vote said before anyone was asked again.
    """

    pair_id: str
    status: str
    reason: str = ""
    rationale: Rationale | None = None
    label: str | None = None
    label_share: float = 0.0
    label_shares: Mapping[str, float] = field(default_factory=dict)
    verdicts: Mapping[str, str] = field(default_factory=dict)
    verdict_shares: Mapping[str, float] = field(default_factory=dict)
    n_answers: int = 0
    n_models: int = 0
    model: str = ""
    gold: str | None = None
    gold_agrees: bool | None = None
    gold_dropped: bool = False
    asked_again: bool = False
    reviewed: bool = False
    first_label: str | None = None


def consensus(
    votes: Mapping[str, Sequence[Vote]],
    labels: LabelSchema,
    dimensions: Sequence[str],
    *,
    gold: Mapping[str, str] | None = None,
    weights: str = "gold",
    min_vote_fraction: float = 0.5,
    gold_filter: str = "keep",
    expected_answers: int = 0,
    reliability: Reliability | None = None,
    flaws: Callable[[str, Rationale], int] | None = None,
) -> list[Decision]:
    """Decides every pair.

    A pair is pending while answers are wanting; rejected where no answer can be read, where the label's share is below
    `min_vote_fraction`, where no rationale concludes with the label of the vote, or by the gold filter; else accepted.
    Ties go to the lower grade, and among verdicts to the one that claims the least. The rationale kept concludes with
    the label and agrees with the vote on the most verdicts; of several the one with the fewest flaws, then the one that
    most answers are, then the one whose text has the lowest hash.

    Gold filter, for pairs whose first vote is not the gold label: `keep` changes nothing; `drop` rejects; `ask_again`
    leaves them pending until there are answers of round 1, which then decide alone, and rejects where they disagree
    with the gold label still.

    Args:
      votes: {pair_id: its votes}, of both rounds.
      labels: the label schema; grades are ordered by gain.
      dimensions: of the verdicts.
      gold: {pair_id: label}.
      weights: `gold` learns them (see `fit_reliability`; equal where there is too little gold), `equal` does not.
      min_vote_fraction: of the label that is accepted.
      gold_filter: one of `GOLD_FILTERS`.
      wanted: answers that a pair should have in a round; 0 where whatever is there is all.
      reliability: of the models, fitted before; by default it is fitted here, on round 0.
      flaws: of a pair's rationale, e.g. how many of its values `verify` does not find.

    Returns:
      One decision per pair, in the order of pair ids.
    """
    if weights not in WEIGHTS or gold_filter not in GOLD_FILTERS:
        raise ValueError(f"weights must be one of {WEIGHTS} and gold_filter of {GOLD_FILTERS}")
    gold = gold or {}
    if reliability is None:
        reliability = fit_votes(votes, labels, gold, weights=weights)
    rules = (reliability, min_vote_fraction, expected_answers, flaws)
    return [
        _decide(pair_id, votes[pair_id], labels, dimensions, gold.get(pair_id), gold_filter, rules)
        for pair_id in sorted(votes)
    ]


def fit_votes(
    votes: Mapping[str, Sequence[Vote]], labels: LabelSchema, gold: Mapping[str, str], *, weights: str = "gold"
) -> Reliability:
    """How far each model can be trusted, from its votes for labels in round 0; see `fit_reliability`."""
    names = sorted({vote.model for each in votes.values() for vote in each})
    fractions = {
        pair_id: model_shares((vote for vote in each if vote.round == 0), labels) for pair_id, each in votes.items()
    }
    return fit_reliability(fractions, names, labels, gold if weights == "gold" else {})


def model_shares(votes: Iterable[Vote], labels: LabelSchema) -> dict[str, np.ndarray]:
    """{model: [C] shares of its readable answers for each label}, models without one left out."""
    counts: dict[str, np.ndarray] = {}
    for vote in votes:
        if isinstance(vote.outcome, Rationale):
            counts.setdefault(vote.model, np.zeros(len(labels)))[labels.index(vote.outcome.label)] += 1
    return {model: counts[model] / counts[model].sum() for model in sorted(counts)}


def verdict_plurality(fractions: Mapping[str, float]) -> str:
    """The verdict with the largest share; of several the one that claims the least."""
    most = max(fractions.values())
    return next(name for name in _CAUTIOUS if fractions.get(name, 0.0) >= most - TIE)


def verdict_shares(
    votes: Sequence[Vote], dimensions: Sequence[str], weights: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """{dimension: {verdict: share}} of the readable answers, a model's samples counting as one vote of its weight."""
    by_model: dict[str, list[Rationale]] = {}
    for vote in votes:
        if isinstance(vote.outcome, Rationale):
            by_model.setdefault(vote.model, []).append(vote.outcome)
    models = sorted(by_model)
    total = sum(weights[model] for model in models)
    by_dimension = {}
    for dimension in dimensions:
        fractions = dict.fromkeys(VERDICTS, 0.0)
        for model in models:
            counts = Counter(rationale.verdict(dimension) for rationale in by_model[model])
            for verdict in VERDICTS:
                fractions[verdict] += weights[model] / total * counts[verdict] / len(by_model[model])
        by_dimension[dimension] = fractions
    return by_dimension


def keep_rationale(
    votes: Iterable[Vote],
    label: str | None,
    verdicts: Mapping[str, str],
    flaws: Callable[[str, Rationale], int] | None = None,
) -> tuple[Rationale | None, str, bool]:
    """The readable rationale that agrees most with a vote, whose it is, and whether it concludes with the label.

    One that concludes with the label comes before all others; see `consensus` for the rest.
    """
    readable = [(vote.outcome, vote) for vote in votes if isinstance(vote.outcome, Rationale)]
    if not readable:
        return None, "", False
    counts = Counter(rationale for rationale, _ in readable)

    def rank(one: tuple[Rationale, Vote]) -> tuple:
        rationale, vote = one
        agreed = sum(rationale.verdict(name) == verdict for name, verdict in verdicts.items())
        flawed = 0 if flaws is None else flaws(vote.pair_id, rationale)
        text = render(rationale).encode(errors="replace")
        return rationale.label != label, -agreed, flawed, -counts[rationale], hashlib.sha256(text).digest(), vote.model

    rationale, vote = min(readable, key=rank)
    return rationale, vote.model, rationale.label == label


def digest(decisions: Iterable[Decision]) -> str:
    """Hash of decisions, whatever their order: equal for a run that was killed and resumed and one that was not."""
    rows = sorted(json.dumps(row(decision), sort_keys=True) for decision in decisions)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def row(decision: Decision) -> dict:
    """A decision as a row of the table `DECISIONS` (see `review`)."""
    fields = dict(vars(decision))
    fields["rationale"] = None if decision.rationale is None else render(decision.rationale)
    fields["label_shares"] = [{"name": name, "share": fraction} for name, fraction in decision.label_shares.items()]
    fields["verdicts"] = [
        {"dimension": name, "verdict": verdict, "share": decision.verdict_shares[name]}
        for name, verdict in decision.verdicts.items()
    ]
    del fields["verdict_shares"]
    return fields


def _decide(
    pair_id: str,
    votes: Sequence[Vote],
    labels: LabelSchema,
    dimensions: Sequence[str],
    gold: str | None,
    gold_filter: str,
    rules: tuple,
) -> Decision:
    rounds = [[vote for vote in votes if vote.round == number] for number in (0, 1)]
    first = _count(pair_id, rounds[0], labels, dimensions, gold, *rules)
    fields = dict(vars(first)) | {"first_label": first.label}
    disagrees = gold is not None and first.label is not None and first.label != gold
    if first.status == "pending" or not disagrees or gold_filter == "keep":
        return Decision(**fields)
    against = f"the vote says {first.label}, the gold label is {gold}"
    if gold_filter == "drop":
        return Decision(**{**fields, "status": "rejected", "reason": against, "gold_dropped": True})
    if not rounds[1]:
        return Decision(**{**fields, "status": "pending", "reason": f"{TO_ASK_AGAIN}: {against}"})
    # How reliable a model is once it was told the gold label is not known; its reliability before has to do.
    again = _count(pair_id, rounds[1], labels, dimensions, gold, *rules)
    fields = dict(vars(again)) | {"first_label": first.label, "asked_again": True}
    if again.status == "accepted" and again.label != gold:
        reason = f"asked again, the vote says {again.label}, the gold label is {gold}"
        fields |= {"status": "rejected", "reason": reason, "gold_dropped": True}
    return Decision(**fields)


def _count(
    pair_id: str,
    votes: Sequence[Vote],
    labels: LabelSchema,
    dimensions: Sequence[str],
    gold: str | None,
    reliability: Reliability,
    min_vote_fraction: float,
    expected_answers: int,
    flaws: Callable[[str, Rationale], int] | None,
) -> Decision:
    """The decision by the answers of one round, the gold filter aside."""
    fractions = model_shares(votes, labels)
    if not fractions:
        failures = Counter(vote.outcome.kind for vote in votes)
        counted = ", ".join(f"{count} {kind}" for kind, count in sorted(failures.items()))
        reason, status = f"no readable answer: {counted}", "rejected"
        if len(votes) < max(expected_answers, 1):
            reason, status = f"{len(votes)} of {max(expected_answers, 1)} answers", "pending"
        return Decision(pair_id, status, reason, gold=gold)
    posterior = label_posterior(fractions, reliability, pair_id)
    index = plurality(posterior, labels)
    label = labels.names[index]
    by_verdict = verdict_shares(votes, dimensions, reliability.weights)
    verdicts = {name: verdict_plurality(each) for name, each in by_verdict.items()}
    rationale, model, concludes = keep_rationale(votes, label, verdicts, flaws)
    status, reason = "accepted", ""
    if len(votes) < expected_answers:
        status, reason = "pending", f"{len(votes)} of {expected_answers} answers"
    elif posterior[index] < min_vote_fraction - TIE:
        status, reason = "rejected", f"disagreement: {label} has a share of {posterior[index]:.2f}"
    elif not concludes:
        status, reason = "rejected", f"no rationale concludes {label}, as the vote does"
    return Decision(
        pair_id,
        status,
        reason,
        rationale=rationale,
        label=label,
        label_share=float(posterior[index]),
        label_shares={name: float(fraction) for name, fraction in zip(labels.names, posterior)},
        verdicts=verdicts,
        verdict_shares={name: float(by_verdict[name][verdict]) for name, verdict in verdicts.items()},
        n_answers=sum(isinstance(vote.outcome, Rationale) for vote in votes),
        n_models=len(fractions),
        model=model,
        gold=gold,
        gold_agrees=None if gold is None else label == gold,
    )
