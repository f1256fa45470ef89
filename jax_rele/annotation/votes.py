"""Consensus: the label and verdicts that several models with several samples agree on, and a rationale for them.

The samples of one model are its vote: a share for each label and for each verdict of each dimension (self-consistency).
The votes of models are then combined, with weights learnt from gold labels or equal ones. Nothing depends on the order
of answers.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from jax_rele.annotation.answers import Failure
from jax_rele.annotation.reliability import TIE, Reliability, fit_reliability, label_posterior, plurality
from jax_rele.io import hash_bytes
from jax_rele.rationale import render
from jax_rele.types import VERDICTS, LabelSchema, Rationale

STATUSES = ("accepted", "rejected", "pending")
GOLD_FILTERS = ("keep", "drop", "ask_again")
WEIGHTS = ("gold", "equal")

TO_ASK_AGAIN = "to be asked again"
"""The beginning of the reason of a pending decision that waits for answers of round 1."""

_CAUTIOUS = ("absent", "mismatch", "match")
"""The order in which verdicts win ties: the one that claims the least first."""


@dataclass(frozen=True)
class Vote:
    """One sampled answer of a model about a pair: a rationale, or why there is none.

    `round` is 1 where a disagreement with the gold label was pointed out, else 0; `cost` is that of the call.
    """

    pair_id: str
    model: str
    outcome: Rationale | Failure
    sample: int = 0
    round: int = 0
    cost: float = 0.0


@dataclass(frozen=True)
class Decision:
    """The consensus on a pair.

    Attributes:
      status: one of `STATUSES`.
      reason: why the pair is not accepted; empty where it is.
      rationale: the selected one; of a pair that is not accepted the best there is, or None.
      label: by the vote; None without a readable answer.
      label_share, label_shares: the label's share of the vote; {label: share} in the order of the schema.
      verdicts, verdict_shares: {dimension: verdict by the vote}, {dimension: its share}.
      n_answers, n_models: readable answers of the round that decides, and models with one.
      model: the author of the rationale.
      gold, gold_agrees: the gold label, and whether the label equals it; None without gold label.
      gold_dropped: rejected for another label than the gold label.
      asked_again: decided by answers of round 1.
      reviewed: decided by a person.
      first_label: by the vote of round 0.
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
    max_flaws: int | None = None,
) -> list[Decision]:
    """Decides every pair.

    A pair is pending while answers are missing; rejected where no answer can be read, where the label's share is below
    `min_vote_fraction`, where no rationale concludes with the label of the vote, where the selected one has more than
    `max_flaws`, or by the gold filter; else accepted.
    Ties go to the lower grade, and among verdicts to the one that claims the least. The selected rationale concludes
    with the label and agrees with the vote on the most verdicts; ties go to the fewest flaws, then to the most frequent
    rationale, then to the text with the lowest hash.

    Gold filter, for pairs whose first vote is not the gold label: `keep` changes nothing; `drop` rejects; `ask_again`
    leaves them pending until there are answers of round 1, which then decide alone, and rejects where these still
    disagree with the gold label.

    Args:
      votes: {pair_id: its votes}, of both rounds.
      labels: the label schema; grades are ordered by gain.
      dimensions: of the verdicts.
      gold: {pair_id: label}.
      weights: `gold` learns them (see `fit_reliability`; equal where there is too little gold), `equal` does not.
      min_vote_fraction: of the label that is accepted.
      gold_filter: one of `GOLD_FILTERS`.
      expected_answers: of a pair in a round; 0 where the number is unknown.
      reliability: of the models; by default it is fitted here, on round 0.
      flaws: counts those of a pair's rationale, e.g. the values that `verify` does not find.
      max_flaws: most flaws of a rationale that is accepted; None for any number.

    Returns:
      One decision per pair, in the order of pair ids.
    """
    if weights not in WEIGHTS or gold_filter not in GOLD_FILTERS:
        raise ValueError(f"weights must be one of {WEIGHTS} and gold_filter of {GOLD_FILTERS}")
    gold = gold or {}
    if reliability is None:
        reliability = fit_votes(votes, labels, gold, weights=weights)
    count = partial(
        _count,
        labels=labels,
        dimensions=dimensions,
        reliability=reliability,
        min_vote_fraction=min_vote_fraction,
        expected_answers=expected_answers,
        flaws=flaws,
        max_flaws=max_flaws,
    )
    return [
        _decide(votes[pair_id], partial(count, pair_id, gold.get(pair_id)), gold.get(pair_id), gold_filter)
        for pair_id in sorted(votes)
    ]


def fit_votes(
    votes: Mapping[str, Sequence[Vote]], labels: LabelSchema, gold: Mapping[str, str], *, weights: str = "gold"
) -> Reliability:
    """Each model's reliability, from its votes for labels in round 0; see `fit_reliability`."""
    fractions = {
        pair_id: model_shares((vote for vote in each if vote.round == 0), labels) for pair_id, each in votes.items()
    }
    return fit_reliability(fractions, model_names(votes), labels, gold if weights == "gold" else {})


def model_names(votes: Mapping[str, Sequence[Vote]]) -> list[str]:
    """Every model that has a vote, sorted."""
    return sorted({vote.model for each in votes.values() for vote in each})


def label_index(rationale: Rationale, labels: LabelSchema) -> int:
    """The position of the label of a model's rationale."""
    assert rationale.label is not None  # an answer without a label is not readable
    return labels.index(rationale.label)


def model_shares(votes: Iterable[Vote], labels: LabelSchema) -> dict[str, np.ndarray]:
    """{model: [C] shares of its readable answers for each label}, without models that have none."""
    counts: dict[str, np.ndarray] = {}
    for vote in votes:
        if isinstance(vote.outcome, Rationale):
            counts.setdefault(vote.model, np.zeros(len(labels)))[label_index(vote.outcome, labels)] += 1
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
    """The readable rationale that agrees most with a vote, its model, and whether it concludes with the label.

    One that concludes with the label precedes all others; see `consensus` for the rest.
    """
    readable = [(vote.outcome, vote) for vote in votes if isinstance(vote.outcome, Rationale)]
    if not readable:
        return None, "", False
    counts = Counter(rationale for rationale, _ in readable)

    def rank(candidate: tuple[Rationale, Vote]) -> tuple[bool, int, int, int, str, str]:
        rationale, vote = candidate
        agreed = sum(rationale.verdict(name) == verdict for name, verdict in verdicts.items())
        flawed = 0 if flaws is None else flaws(vote.pair_id, rationale)
        text = render(rationale).encode(errors="replace")
        return rationale.label != label, -agreed, flawed, -counts[rationale], hash_bytes(text), vote.model

    rationale, vote = min(readable, key=rank)
    return rationale, vote.model, rationale.label == label


def digest(decisions: Iterable[Decision]) -> str:
    """Hash of decisions in any order: equal for an interrupted run that was resumed and for an uninterrupted one."""
    rows = sorted(json.dumps(row(decision), sort_keys=True) for decision in decisions)
    return hash_bytes("\n".join(rows).encode())


def row(decision: Decision) -> dict[str, object]:
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
    votes: Sequence[Vote], count: Callable[[Sequence[Vote]], Decision], gold: str | None, gold_filter: str
) -> Decision:
    rounds = [[vote for vote in votes if vote.round == number] for number in (0, 1)]
    first = count(rounds[0])
    first = replace(first, first_label=first.label)
    if first.status == "pending" or gold is None or first.label in (None, gold) or gold_filter == "keep":
        return first
    reason = f"the vote says {first.label}, the gold label is {gold}"
    if gold_filter == "drop":
        return replace(first, status="rejected", reason=reason, gold_dropped=True)
    if not rounds[1]:
        return replace(first, status="pending", reason=f"{TO_ASK_AGAIN}: {reason}")
    # The reliability of round 0 is used here too: that of models that know the gold label cannot be estimated.
    again = replace(count(rounds[1]), first_label=first.label, asked_again=True)
    if again.status == "accepted" and again.label != gold:
        reason = f"asked again, the vote says {again.label}, the gold label is {gold}"
        return replace(again, status="rejected", reason=reason, gold_dropped=True)
    return again


def _count(
    pair_id: str,
    gold: str | None,
    votes: Sequence[Vote],
    labels: LabelSchema,
    dimensions: Sequence[str],
    reliability: Reliability,
    min_vote_fraction: float,
    expected_answers: int,
    flaws: Callable[[str, Rationale], int] | None,
    max_flaws: int | None,
) -> Decision:
    """The decision by the answers of one round, without the gold filter."""
    fractions = model_shares(votes, labels)
    if not fractions:
        if len(votes) < max(expected_answers, 1):
            return Decision(pair_id, "pending", f"{len(votes)} of {max(expected_answers, 1)} answers", gold=gold)
        failures = Counter(vote.outcome.kind for vote in votes if isinstance(vote.outcome, Failure))
        counted = ", ".join(f"{count} {kind}" for kind, count in sorted(failures.items()))
        return Decision(pair_id, "rejected", f"no readable answer: {counted}", gold=gold)
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
    elif flaws and max_flaws is not None and rationale is not None and (count := flaws(pair_id, rationale)) > max_flaws:
        status, reason = "rejected", f"flaws: the best rationale has {count}"
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
