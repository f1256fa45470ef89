"""The quality of annotations: agreement, accuracy, wrong values and verdicts, failures, cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from jax_rele.annotation.answers import KINDS, Failure
from jax_rele.annotation.reliability import Reliability, plurality
from jax_rele.annotation.verify import Verified, verify
from jax_rele.annotation.votes import (
    STATUSES,
    TO_ASK_AGAIN,
    Decision,
    Vote,
    label_index,
    model_names,
    model_shares,
    verdict_plurality,
    verdict_shares,
)
from jax_rele.evaluation.bootstrap import Estimate
from jax_rele.evaluation.ratios import fleiss_kappa, ratio
from jax_rele.text import locale_key, query_id
from jax_rele.types import VERDICTS, LabelSchema, Pair, Rationale, Rule

CONSENSUS = "consensus"
"""The name of the combined vote beside those of models."""


@dataclass(frozen=True)
class Annotations:
    """All answers about some pairs, and the decisions on them.

    Attributes:
      pairs: {pair_id: pair}.
      votes: {pair_id: votes}, of both rounds.
      decisions: one per pair.
      labels: the label schema.
      dimensions: of the verdicts.
      fields: of the item that the models have seen.
      rules: business rules.
      cut_values: whether values may end within a word, see `verify`.
      verified: a cache of checks by (pair_id, rationale).
    """

    pairs: Mapping[str, Pair]
    votes: Mapping[str, Sequence[Vote]]
    decisions: Sequence[Decision]
    labels: LabelSchema
    dimensions: Sequence[str]
    fields: Sequence[str]
    rules: Sequence[Rule] = ()
    cut_values: bool = False
    verified: dict[tuple[str, Rationale], Verified] = field(default_factory=dict, repr=False)

    def verify(self, pair_id: str, rationale: Rationale) -> Verified:
        """The checks of a rationale (cached)."""
        key = (pair_id, rationale)
        if key not in self.verified:
            self.verified[key] = verify(
                self.pairs[pair_id], rationale, self.fields, self.rules, cut_values=self.cut_values
            )
        return self.verified[key]


def build_quality(
    annotations: Annotations,
    *,
    reliability: Reliability | None = None,
    injection: Mapping[str, object] | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, object]:
    """The quality of annotations as plain JSON.

    Every figure with an interval is {"value", "ci95": [low, high]}, from resamples of whole queries; a value is None
    where it is undefined. Figures of models are of round 0, in which the gold label was not pointed out. Learnt weights
    that decide a pair with a gold label were learnt without that label (see `fit_reliability`).

    Returns:
      {"labels", "dimensions", "bootstrap", "weights", "injection", "slices": {name: S}}; S = {"n_pairs", "n_gold",
      "decisions": {status: pairs}, "reasons": {why not accepted: pairs}, "marks": {mark: pairs}, "cost",
      "cost_per_accepted", "majority": {"label", "accuracy"}, "agreement": {"models" and "samples": {"n_pairs",
      "label" and each dimension: kappa}}, "models": {name: M}}. The models include `consensus`: its accuracy is that of
      the vote of round 0, its checks are those of the accepted rationales. M = {"answers", "readable",
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
            name: _Slice(annotations, pair_ids, n_bootstrap, seed).quality()
            for name, pair_ids in _slices(annotations).items()
            if pair_ids
        },
    }


def _weights(reliability: Reliability) -> dict[str, object]:
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
    locale_of = {pair_id: locale_key(annotations.pairs[pair_id].locale) for pair_id in pair_ids}
    locales = sorted({*locale_of.values()} - {""})
    for locale in locales if len(locales) > 1 else ():
        slices[f"locale: {locale}"] = [p for p in pair_ids if locale_of[p] == locale]
    for name, tail in (("long tail", True), ("head", False)):
        slices[name] = [p for p in pair_ids if annotations.pairs[p].long_tail is tail]
    return slices


@dataclass(frozen=True)
class _Slice:
    annotations: Annotations
    pair_ids: Sequence[str]
    n_bootstrap: int
    seed: int

    def quality(self) -> dict[str, object]:
        votes = {pair_id: self.annotations.votes.get(pair_id, ()) for pair_id in self.pair_ids}
        first = {pair_id: [vote for vote in each if vote.round == 0] for pair_id, each in votes.items()}
        members = set(self.pair_ids)
        decisions = {each.pair_id: each for each in self.annotations.decisions if each.pair_id in members}
        gold = {pair_id: each.gold for pair_id, each in decisions.items() if each.gold is not None}
        accepted = {pair_id: each for pair_id, each in decisions.items() if each.status == "accepted"}
        cost = sum(vote.cost for each in votes.values() for vote in each)
        models: dict[str, object] = {
            model: self._model(model, votes, first, gold, sum(each.model == model for each in accepted.values()))
            for model in model_names(votes)
        }
        first_labels = {p: decisions[p].first_label for p in gold}
        models[CONSENSUS] = {
            "answers": len(decisions),
            "readable": sum(each.label is not None for each in decisions.values()),
            "failures": {},
            "accuracy": self._accuracy({p: label for p, label in first_labels.items() if label is not None}, gold),
            **self._checks((pair_id, each.rationale) for pair_id, each in accepted.items()),
            "cost": cost,
            "cost_per_readable": None,
            "kept": len(accepted),
            "cost_per_kept": cost / len(accepted) if accepted else None,
        }
        marks = ("gold_dropped", "asked_again", "reviewed")
        counts = Counter(gold.values())
        majority = min(counts, key=lambda name: (-counts[name], name), default=None)
        return {
            "n_pairs": len(self.pair_ids),
            "n_gold": len(gold),
            "decisions": {status: sum(each.status == status for each in decisions.values()) for status in STATUSES},
            "reasons": _reasons(decisions.values()),
            "marks": {
                "gold_agrees": sum(each.gold_agrees is True for each in decisions.values()),
                **{mark: sum(getattr(each, mark) for each in decisions.values()) for mark in marks},
            },
            "cost": cost,
            "cost_per_accepted": cost / len(accepted) if accepted else None,
            # Always predicting the most frequent gold label is the baseline that an annotator must beat.
            "majority": {"label": majority, "accuracy": self._accuracy(dict.fromkeys(gold, majority), gold)},
            "agreement": self._agreement(first),
            "models": models,
        }

    def _model(
        self,
        model: str,
        votes: Mapping[str, Sequence[Vote]],
        first: Mapping[str, Sequence[Vote]],
        gold: Mapping[str, str],
        n_selected: int,
    ) -> dict[str, object]:
        labels = self.annotations.labels
        answers = [vote for each in votes.values() for vote in each if vote.model == model]
        failures = Counter(vote.outcome.kind for vote in answers if isinstance(vote.outcome, Failure))
        readable = len(answers) - failures.total()
        cost = sum(vote.cost for vote in answers)
        own = {pair_id: [vote for vote in each if vote.model == model] for pair_id, each in first.items()}
        votes_of = {pair_id: model_shares(own[pair_id], labels).get(model) for pair_id in gold}
        predicted = {p: labels.names[plurality(each, labels)] for p, each in votes_of.items() if each is not None}
        return {
            "answers": len(answers),
            "readable": readable,
            "failures": {kind: failures[kind] for kind in KINDS if failures[kind]},
            "accuracy": self._accuracy(predicted, gold),
            **self._checks((pair_id, vote.outcome) for pair_id, each in own.items() for vote in each),
            "cost": cost,
            "cost_per_readable": cost / readable if readable else None,
            "kept": n_selected,
            "cost_per_kept": cost / n_selected if n_selected else None,
        }

    def _ratio(self, rows: Iterable[tuple[str, float, float]]) -> Estimate:
        """Of rows (pair_id, numerator, denominator)."""
        rows = list(rows)
        queries = [query_id(self.annotations.pairs[pair_id].query) for pair_id, *_ in rows]
        return ratio([row[1] for row in rows], [row[2] for row in rows], queries, self.n_bootstrap, self.seed)

    def _accuracy(self, predicted: Mapping[str, str | None], gold: Mapping[str, str]) -> Estimate:
        return self._ratio((pair_id, label == gold[pair_id], 1) for pair_id, label in predicted.items())

    def _checks(self, outcomes: Iterable[tuple[str, Rationale | Failure | None]]) -> dict[str, object]:
        """Fractions of values that are not in their text, and of rationales with problems."""
        checks = [(p, self.annotations.verify(p, each)) for p, each in outcomes if isinstance(each, Rationale)]
        ratio_of = self._ratio
        return {
            "values": sum(len(check.values) for _, check in checks),
            "hallucinated": ratio_of((p, len(check.hallucinated), len(check.values)) for p, check in checks),
            "inferred": ratio_of((p, len(check.inferred), len(check.values)) for p, check in checks),
            "contradictions": ratio_of((p, any(x.certain for x in check.verdict_problems), 1) for p, check in checks),
            "doubts": ratio_of((p, any(not x.certain for x in check.verdict_problems), 1) for p, check in checks),
            "rule_problems": ratio_of((p, bool(check.label_problems), 1) for p, check in checks),
        }

    def _agreement(self, votes: Mapping[str, Sequence[Vote]]) -> dict[str, object]:
        """Fleiss' kappa between models (their pluralities) and between the samples of models, in round 0."""
        names = model_names(votes)
        readable = {
            (pair_id, model): [v.outcome for v in each if v.model == model and isinstance(v.outcome, Rationale)]
            for pair_id, each in votes.items()
            for model in names
        }
        by_model = {p: [self._plurality_codes(readable[p, m]) for m in names if readable[p, m]] for p in votes}
        groups = {"models": (len(names), by_model)}
        for model in names:
            samples = max(sum(vote.model == model for vote in each) for each in votes.values())
            groups[f"samples of {model}"] = samples, {p: [self._codes(r) for r in readable[p, model]] for p in votes}
        return {name: self._kappas(*group) for name, group in groups.items() if group[0] > 1}

    def _kappas(self, raters: int, ratings: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, object]:
        """Kappa of the label and of each dimension, from the pairs that all raters have rated."""
        rows = [(pair_id, codes) for pair_id, codes in ratings.items() if len(codes) == raters]
        queries = [query_id(self.annotations.pairs[pair_id].query) for pair_id, _ in rows]
        figures: dict[str, object] = {"n_pairs": len(rows)}
        for column, name in enumerate(("label", *self.annotations.dimensions)):
            counts = np.zeros((len(rows), len(VERDICTS) if column else len(self.annotations.labels)))
            for row, (_, codes) in enumerate(rows):
                for code in codes:
                    counts[row, code[column]] += 1
            figures[name] = fleiss_kappa(counts, queries, self.n_bootstrap, self.seed)
        return figures

    def _codes(self, rationale: Rationale) -> list[int]:
        """The categories of one answer: its label, then each verdict."""
        verdicts = (VERDICTS.index(rationale.verdict(name)) for name in self.annotations.dimensions)
        return [label_index(rationale, self.annotations.labels), *verdicts]

    def _plurality_codes(self, readable: Sequence[Rationale]) -> list[int]:
        """The categories of a model's pluralities over its samples."""
        votes = [Vote("", "", rationale) for rationale in readable]
        label = plurality(model_shares(votes, self.annotations.labels)[""], self.annotations.labels)
        fractions = verdict_shares(votes, self.annotations.dimensions, {"": 1.0})
        return [label, *(VERDICTS.index(verdict_plurality(each)) for each in fractions.values())]


def _reasons(decisions: Iterable[Decision]) -> dict[str, int]:
    """{why pairs are not accepted, without details of single pairs: pairs}."""
    reasons = Counter(f"{each.status}: {_reason(each)}" for each in decisions if each.status != "accepted")
    return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))


def _reason(decision: Decision) -> str:
    if decision.gold_dropped:
        return "against the gold label"
    if decision.status == "pending":
        return TO_ASK_AGAIN if decision.reason.startswith(TO_ASK_AGAIN) else "answers wanting"
    return decision.reason.split(":")[0]
