"""How good annotations are, in figures: agreement, accuracy, values and verdicts that do not hold, failures, cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from jax_rele.annotation.answers import KINDS
from jax_rele.annotation.figures import fleiss_kappa, ratio
from jax_rele.annotation.reliability import Reliability, plurality
from jax_rele.annotation.verify import LabelRule, Verified, verify
from jax_rele.annotation.votes import STATUSES, Decision, Vote, model_shares, verdict_plurality, verdict_shares
from jax_rele.types import VERDICTS, LabelSchema, Pair, Rationale

CONSENSUS = "consensus"
"""The name of the kept rationales beside those of models."""


@dataclass(frozen=True)
class Annotations:
    """All that was annotated.

    Attributes:
      pairs: {pair_id: pair}.
      votes: {pair_id: votes}, of both rounds.
      decisions: one per pair.
      labels: the label schema.
      dimensions: of the verdicts.
      fields: of the item that the models have seen.
      label_rules: what labels go with what verdicts.
      verified: checks made before, by (pair, rationale); filled as they are made.
    """

    pairs: Mapping[str, Pair]
    votes: Mapping[str, Sequence[Vote]]
    decisions: Sequence[Decision]
    labels: LabelSchema
    dimensions: Sequence[str]
    fields: Sequence[str]
    label_rules: Sequence[LabelRule] = ()
    verified: dict[tuple[str, Rationale], Verified] = field(default_factory=dict, repr=False)

    def verify(self, pair_id: str, rationale: Rationale) -> Verified:
        """The checks of a rationale, made once."""
        key = (pair_id, rationale)
        if key not in self.verified:
            self.verified[key] = verify(self.pairs[pair_id], rationale, self.fields, self.label_rules)
        return self.verified[key]


def build_quality(
    annotations: Annotations,
    *,
    reliability: Reliability | None = None,
    injection: Mapping | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """The quality of annotations as plain JSON.

    Every figure with an interval is {"value", "ci95": [low, high]}, from resamples of whole queries; a value is None
    where it is undefined. Figures of models are of round 0, where nobody was told the gold label; what a consensus
    with learnt weights says of a pair with a gold label was learnt without that label (see `fit_reliability`).

    Returns:
      {"labels", "dimensions", "bootstrap", "weights", "injection", "slices": {name: S}}; S = {"n_pairs", "n_gold",
      "decisions": {status: pairs}, "reasons": {why not accepted: pairs}, "marks": {mark: pairs}, "cost",
      "cost_per_accepted", "majority": {"label", "accuracy"}, "agreement": {"models" and "samples": {"n_pairs",
      "label" and each dimension: kappa}}, "models": {name: M}}. The models include `consensus`: its accuracy is that of
      the vote before anyone was asked again, its checks are those of the kept rationales. M = {"answers", "readable",
      "failures": {kind: answers}, "accuracy", "values", "hallucinated", "inferred", "contradictions",
      "doubts", "rule_problems", "cost", "cost_per_readable", "kept", "cost_per_kept"}.
    """
    return {
        "labels": list(annotations.labels.names),
        "dimensions": list(annotations.dimensions),
        "bootstrap": {"samples": n_bootstrap, "unit": "query", "seed": seed},
        "weights": None if reliability is None else _weights(reliability),
        "injection": injection,
        "slices": {
            name: _slice(annotations, pair_ids, n_bootstrap, seed)
            for name, pair_ids in _slices(annotations).items()
            if pair_ids
        },
    }


def model_names(votes: Mapping[str, Sequence[Vote]]) -> list[str]:
    """Every model that has a vote, sorted."""
    return sorted({vote.model for each in votes.values() for vote in each})


def _weights(reliability: Reliability) -> dict[str, Any]:
    return {
        "kind": reliability.kind,
        "n_gold": reliability.n_gold,
        "weights": dict(reliability.weights),
        "accuracy": dict(reliability.accuracy),
        "confusion": {model: matrix.tolist() for model, matrix in reliability.confusion.items()},
    }


def _slices(annotations: Annotations) -> dict[str, list[str]]:
    pair_ids = sorted(decision.pair_id for decision in annotations.decisions)
    slices = {"all": pair_ids}
    locales = sorted({annotations.pairs[pair_id].locale for pair_id in pair_ids} - {""})
    for locale in locales if len(locales) > 1 else ():
        slices[f"locale: {locale}"] = [p for p in pair_ids if annotations.pairs[p].locale == locale]
    for name, tail in (("long tail", True), ("head", False)):
        slices[name] = [p for p in pair_ids if annotations.pairs[p].long_tail is tail]
    return slices


def _slice(annotations: Annotations, pair_ids: list[str], n_bootstrap: int, seed: int) -> dict[str, Any]:
    labels, votes = annotations.labels, annotations.votes
    selected = set(pair_ids)
    decisions = {each.pair_id: each for each in annotations.decisions if each.pair_id in selected}
    query = {pair_id: annotations.pairs[pair_id].query for pair_id in pair_ids}
    fraction = partial(_fraction, query=query, n_bootstrap=n_bootstrap, seed=seed)
    gold = {pair_id: each.gold for pair_id, each in decisions.items() if each.gold is not None}
    cost = sum(vote.cost for pair_id in pair_ids for vote in votes.get(pair_id, ()))
    accepted = sum(each.status == "accepted" for each in decisions.values())
    models = {}
    for model in model_names({pair_id: votes.get(pair_id, ()) for pair_id in pair_ids}):
        own = {p: [vote for vote in votes.get(p, ()) if vote.model == model] for p in pair_ids}
        first = {p: [vote for vote in each if vote.round == 0] for p, each in own.items()}
        label_of = {}
        for pair_id in gold:
            if fractions := model_shares(first[pair_id], labels):
                label_of[pair_id] = labels.names[plurality(fractions[model], labels)]
        answers = [vote for each in own.values() for vote in each]
        failures = Counter(vote.outcome.kind for vote in answers if not isinstance(vote.outcome, Rationale))
        readable = len(answers) - failures.total()
        spent = sum(vote.cost for vote in answers)
        n_selected = sum(each.status == "accepted" and each.model == model for each in decisions.values())
        models[model] = {
            "answers": len(answers),
            "readable": readable,
            "failures": {kind: failures[kind] for kind in KINDS if failures[kind]},
            "accuracy": fraction([(p, label == gold[p], 1) for p, label in label_of.items()]),
            **_checks(annotations, [(p, vote.outcome) for p, each in first.items() for vote in each], fraction),
            "cost": spent,
            "cost_per_readable": spent / readable if readable else None,
            "kept": n_selected,
            "cost_per_kept": spent / n_selected if n_selected else None,
        }
    models[CONSENSUS] = {
        "answers": len(decisions),
        "readable": sum(each.label is not None for each in decisions.values()),
        "failures": {},
        "accuracy": fraction(
            [(p, decisions[p].first_label == gold[p], 1) for p in gold if decisions[p].first_label is not None]
        ),
        **_checks(annotations, [(p, d.rationale) for p, d in decisions.items() if d.status == "accepted"], fraction),
        "cost": cost,
        "cost_per_readable": None,
        "kept": accepted,
        "cost_per_kept": cost / accepted if accepted else None,
    }
    return {
        "n_pairs": len(pair_ids),
        "n_gold": len(gold),
        "decisions": {status: sum(each.status == status for each in decisions.values()) for status in STATUSES},
        "reasons": _reasons(decisions),
        "marks": {
            "gold_agrees": sum(each.gold_agrees is True for each in decisions.values()),
            **{
                mark: sum(getattr(each, mark) for each in decisions.values())
                for mark in ("gold_dropped", "asked_again", "reviewed")
            },
        },
        "cost": cost,
        "cost_per_accepted": cost / accepted if accepted else None,
        "majority": _majority(gold, fraction),
        "agreement": _agreement(annotations, pair_ids, query, n_bootstrap, seed),
        "models": models,
    }


def _fraction(rows: Sequence[tuple[str, float, float]], query: Mapping[str, str], n_bootstrap: int, seed: int) -> dict:
    """Of rows (pair, numerator, denominator)."""
    pair_ids = [pair_id for pair_id, _, _ in rows]
    numerators, denominators = [float(a) for _, a, _ in rows], [float(b) for _, _, b in rows]
    return dict(ratio(numerators, denominators, [query[p] for p in pair_ids], n_bootstrap, seed))


def _majority(gold: Mapping[str, str], fraction) -> dict[str, Any]:
    """Always saying the most frequent gold label, the least that an annotator must beat."""
    counts = Counter(gold.values())
    label = min(counts, key=lambda name: (-counts[name], name), default=None)
    return {"label": label, "accuracy": fraction([(p, answer == label, 1) for p, answer in gold.items()])}


def _checks(annotations: Annotations, outcomes: Sequence[tuple[str, Any]], fraction) -> dict[str, Any]:
    """Shares of values that do not stand where they should, and of rationales with problems."""
    checks = [
        (pair_id, annotations.verify(pair_id, answer)) for pair_id, answer in outcomes if isinstance(answer, Rationale)
    ]
    return {
        "values": sum(len(checked.values) for _, checked in checks),
        "hallucinated": fraction([(p, len(checked.hallucinated), len(checked.values)) for p, checked in checks]),
        "inferred": fraction([(p, len(checked.inferred), len(checked.values)) for p, checked in checks]),
        "contradictions": fraction([(p, any(each.certain for each in c.verdict_problems), 1) for p, c in checks]),
        "doubts": fraction([(p, any(not each.certain for each in c.verdict_problems), 1) for p, c in checks]),
        "rule_problems": fraction([(p, bool(checked.label_problems), 1) for p, checked in checks]),
    }


def _agreement(annotations: Annotations, pair_ids, query, n_bootstrap: int, seed: int) -> dict[str, Any]:
    """Fleiss' kappa between models (their pluralities) and between the samples of models."""
    first = {p: [vote for vote in annotations.votes.get(p, ()) if vote.round == 0] for p in pair_ids}
    names = model_names(first)
    between = [
        (p, [_vote_codes(each, annotations) for m in names if (each := _readable(first[p], m))]) for p in pair_ids
    ]
    groups = {"models": (len(names), between)}
    for model in names:
        samples = max(len([v for v in each if v.model == model]) for each in first.values())
        within = [(p, [_rationale_codes(one, annotations) for one in _readable(first[p], model)]) for p in pair_ids]
        groups[f"samples of {model}"] = (samples, within)
    result = {}
    for name, (raters, rows) in groups.items():
        # All raters must have spoken.
        rows = [(pair_id, answer) for pair_id, answer in rows if len(answer) == raters] if raters > 1 else []
        figures: dict[str, Any] = {"n_pairs": len(rows)}
        for column_index, column in enumerate(("label", *annotations.dimensions)):
            size = len(annotations.labels) if column_index == 0 else len(VERDICTS)
            counts = np.zeros((len(rows), size))
            for number, (_, answer) in enumerate(rows):
                for one in answer:
                    counts[number, one[column_index]] += 1
            figures[column] = fleiss_kappa(counts, [query[p] for p, _ in rows], n_bootstrap, seed)
        if raters > 1:
            result[name] = figures
    return result


def _readable(votes: Sequence[Vote], model: str) -> list[Rationale]:
    return [vote.outcome for vote in votes if vote.model == model and isinstance(vote.outcome, Rationale)]


def _rationale_codes(answer: Rationale, annotations: Annotations) -> list[int]:
    """The categories of one answer: its label, then each verdict."""
    verdicts = (VERDICTS.index(answer.verdict(name)) for name in annotations.dimensions)
    return [annotations.labels.index(answer.label), *verdicts]


def _vote_codes(readable: Sequence[Rationale], annotations: Annotations) -> list[int]:
    """The categories of a model's pluralities over its samples."""
    votes = [Vote("", "", answer) for answer in readable]
    label = plurality(model_shares(votes, annotations.labels)[""], annotations.labels)
    fractions = verdict_shares(votes, annotations.dimensions, {"": 1.0})
    return [label, *(VERDICTS.index(verdict_plurality(fractions[name])) for name in annotations.dimensions)]


def _reasons(decisions: Mapping[str, Decision]) -> dict[str, int]:
    """Why pairs are not accepted, without what differs from pair to pair."""
    reasons = Counter(f"{each.status}: {_reason(each)}" for each in decisions.values() if each.status != "accepted")
    return dict(sorted(reasons.items(), key=lambda one: (-one[1], one[0])))


def _reason(decision: Decision) -> str:
    if decision.gold_dropped:
        return "against the gold label"
    if decision.status == "pending":
        return "to be asked again" if decision.reason.startswith("to be asked again") else "answers wanting"
    return decision.reason.split(":")[0] if ":" in decision.reason else decision.reason
