"""The quality of annotations as one self-contained HTML page, with examples of what went wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax_rele.annotation.answers import Failure
from jax_rele.annotation.quality import CONSENSUS, Annotations
from jax_rele.annotation.verify import Verified
from jax_rele.annotation.votes import Decision, Vote
from jax_rele.evaluation.page import write_html
from jax_rele.evaluation.summary import cell
from jax_rele.types import Pair, Rationale

EXAMPLES = {
    "parse failure": "Answers that could not be read.",
    "disagreement": "Pairs whose label has too small a share of the vote, or that no rationale concludes.",
    "against the gold label": "Pairs whose vote is not the gold label.",
    "asked again": "Pairs that were asked again with the gold label pointed out.",
    "value that stands nowhere": "Rationales with a value that neither query nor item contains.",
    "verdict against its values": "Rationales with a verdict that contradicts its values.",
    "label against the rules": "Rationales whose label does not go with their verdicts.",
}
"""Kinds of examples: what a card can be about."""

COLUMNS = (
    ("accuracy", "accuracy"),
    ("hallucinated", "values that stand nowhere"),
    ("inferred", "values not in their text"),
    ("contradictions", "rationales with a contradiction"),
    ("doubts", "rationales with a doubt"),
    ("rule_problems", "labels against the rules"),
)
"""The figures of models that are shown as a table, with their headings."""

_LONG = 420
"""Characters of a text that a card shows."""
_LONG_ANSWER = 4000


@dataclass(frozen=True)
class AnnotationExample:
    """A card of the report.

    Attributes:
      kind: a key of `EXAMPLES`, or that and what exactly, after a colon.
      pair: what it is about.
      detail: what is wrong.
      model: whose answer it is, empty where it is about the vote.
      rationale: what was said, or None.
      text: the answer as it came, where that is known and could not be read.
      checked: what the checks of the rationale found.
      decision: what became of the pair.
    """

    kind: str
    pair: Pair
    detail: str
    model: str = ""
    rationale: Rationale | None = None
    text: str = ""
    checked: Verified | None = None
    decision: Decision | None = None


def find_examples(
    annotations: Annotations, texts: Mapping[tuple[str, str, int, int], str] | None = None, *, per_kind: int = 3
) -> list[AnnotationExample]:
    """Examples of each kind of failure, chosen by hash, so that they are the same whatever the order of answers.

    Args:
      annotations: all that was annotated.
      texts: {(pair_id, model, sample, round): answer as it came}; those of unreadable answers are shown.
      per_kind: how many of a kind at most; each kind of parse failure is one of its own.
    """
    candidates: dict[str, list[tuple[bytes, AnnotationExample]]] = {}
    for identity, example in _candidates(annotations, texts or {}):
        rank = hashlib.sha256(identity.encode(errors="replace")).digest()
        selected = candidates.setdefault(example.kind, [])
        selected.append((rank, example))
        selected.sort(key=lambda one: one[0])
        del selected[per_kind:]
    order = list(EXAMPLES)
    kinds = sorted(candidates, key=lambda kind: (order.index(kind.split(":")[0]), kind))
    return [example for kind in kinds for _, example in candidates[kind]]


def write_report(
    path: str | Path, quality: Mapping[str, Any], examples: Sequence[AnnotationExample], *, run_name: str
) -> None:
    """Writes the report: one HTML file that needs no script, no network and no other file.

    Args:
      path: the file to write.
      quality: what `build_quality` returned.
      examples: what `find_examples` returned.
      run_name: the heading.
    """
    kinds: dict[str, list[AnnotationExample]] = {}
    for example in examples:
        kinds.setdefault(example.kind, []).append(example)
    write_html(
        path,
        "report.html.j2",
        package="jax_rele.annotation",
        run_name=run_name,
        quality=quality,
        whole=quality["slices"]["all"],
        columns=COLUMNS,
        consensus=CONSENSUS,
        cell=cell,
        money=money,
        cut=_cut,
        cut_answer=lambda text: _cut(text, _LONG_ANSWER),
        kinds=[(kind, EXAMPLES[kind.split(":")[0]], cards) for kind, cards in kinds.items()],
        findings=findings(quality),
        location_of=_location_of,
    )


def findings(quality: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the figures show, in sentences, each with its kind: `better`, `worse`, `open` or `note`."""
    whole = quality["slices"]["all"]
    sentences = []
    majority = whole["majority"]
    if majority["label"] is not None:
        for name, figures in whole["models"].items():
            if figures["accuracy"]["value"] is not None:
                sentences.append(_against_majority(name, figures["accuracy"], majority))
    decisions = whole["decisions"]
    text = f"{decisions['accepted']} of {whole['n_pairs']} pairs are accepted, {decisions['rejected']} rejected"
    sentences.append(("note", f"{text}, {decisions['pending']} pending."))
    if not whole["n_gold"]:
        sentences.append(("note", "There are no gold labels, so nothing is known of the accuracy of labels."))
    weights = quality["weights"]
    if weights is not None:
        learnt = (
            f"weights learnt from {weights['n_gold']} gold labels" if weights["kind"] == "gold" else "equal weights"
        )
        sentences.append(("note", f"The models vote with {learnt}."))
    if quality["injection"] is not None and (attacked := quality["injection"]["overall"])["n"]:
        low = (attacked["net"]["ci95"] or [0.0])[0]
        sentences.append(
            (
                "worse" if low > 0 else "open",
                f"Tampered titles move {cell(attacked['towards'])} of {attacked['n']} labels towards the attacker's, "
                f"{cell(attacked['away'])} away from it.",
            )
        )
    return sentences


def money(amount: float | None) -> str:
    """A cost with four digits that count."""
    return "–" if amount is None else "0" if amount == 0 else f"{amount:.4g}"


def _against_majority(name: str, accuracy: Mapping, majority: Mapping) -> tuple[str, str]:
    other = majority["accuracy"]
    text = f"{cell(accuracy)}, where always saying {majority['label']} has {cell(other)}"
    if accuracy["ci95"] is None or other["ci95"] is None:
        return "open", f"{name}'s accuracy is {text}."
    if accuracy["ci95"][0] > other["ci95"][1]:
        return "better", f"{name} beats the most frequent label: its accuracy is {text}."
    if accuracy["ci95"][1] < other["ci95"][0]:
        return "worse", f"{name} is worse than the most frequent label: its accuracy is {text}."
    return "open", f"{name} is not shown to beat the most frequent label: its accuracy is {text}."


def _candidates(
    annotations: Annotations, texts: Mapping[tuple[str, str, int, int], str]
) -> Iterator[tuple[str, AnnotationExample]]:
    """Everything that could be a card, with what identifies it."""
    decisions = {decision.pair_id: decision for decision in annotations.decisions}
    for pair_id, decision in decisions.items():
        pair = annotations.pairs[pair_id]
        about = {"pair": pair, "rationale": decision.rationale, "model": decision.model, "decision": decision}
        if decision.gold is not None and decision.first_label not in (None, decision.gold):
            kind = "asked again" if decision.asked_again else "against the gold label"
            detail = f"first vote {decision.first_label}, gold label {decision.gold}"
            detail += f", asked again {decision.label}" if decision.asked_again else ""
            yield pair_id, AnnotationExample(kind, detail=detail, **about)
        elif decision.status == "rejected" and decision.label is not None and not decision.reviewed:
            yield pair_id, AnnotationExample("disagreement", detail=decision.reason, **about)
        for vote in annotations.votes.get(pair_id, ()):
            yield from _vote_candidates(annotations, pair, vote, texts, decision)


def _vote_candidates(
    annotations: Annotations, pair: Pair, vote: Vote, texts: Mapping, decision: Decision
) -> Iterator[tuple[str, AnnotationExample]]:
    identity = "\x00".join([pair.pair_id, vote.model, str(vote.sample), str(vote.round)])
    about: dict[str, Any] = {"pair": pair, "model": vote.model, "decision": decision}
    if isinstance(vote.outcome, Failure):
        text = texts.get((pair.pair_id, vote.model, vote.sample, vote.round), "")
        kind = f"parse failure: {vote.outcome.kind}"
        yield identity, AnnotationExample(kind, detail=vote.outcome.detail, text=text, **about)
        return
    checked = annotations.verify(pair.pair_id, vote.outcome)
    about |= {"rationale": vote.outcome, "checked": checked}
    if checked.hallucinated:
        values = ", ".join(f"{value.dimension}: {value.text}" for value in checked.hallucinated)
        yield identity, AnnotationExample("value that stands nowhere", detail=values, **about)
    certain = [problem for problem in checked.verdict_problems if problem.certain]
    if certain:
        detail = "; ".join(f"{problem.dimension}: {problem.detail}" for problem in certain)
        yield identity, AnnotationExample("verdict against its values", detail=detail, **about)
    if checked.label_problems:
        detail = "; ".join(problem.detail for problem in checked.label_problems)
        yield identity, AnnotationExample("label against the rules", detail=detail, **about)


def _location_of(example: AnnotationExample, dimension: str, side: str, text: str) -> str:
    """Where a value stands, as far as the example knows."""
    if example.checked is None:
        return "found"
    return next(
        (v.location for v in example.checked.values if (v.dimension, v.side, v.text) == (dimension, side, text)),
        "found",
    )


def _cut(text: str, size: int = _LONG) -> str:
    return text if len(text) <= size else text[: size - 1] + "…"
