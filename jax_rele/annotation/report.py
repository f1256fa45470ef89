"""The quality of annotations as one self-contained HTML page, with examples of failures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

from jax_rele.annotation.answers import Failure
from jax_rele.annotation.quality import CONSENSUS, Annotations
from jax_rele.annotation.verify import Verified
from jax_rele.annotation.votes import Decision, Vote
from jax_rele.evaluation.bootstrap import Estimate
from jax_rele.evaluation.page import write_html
from jax_rele.evaluation.summary import cell
from jax_rele.io import hash_bytes
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
"""{kind of example: its description}."""

COLUMNS = (
    ("accuracy", "accuracy"),
    ("hallucinated", "values that stand nowhere"),
    ("inferred", "values not in their text"),
    ("contradictions", "rationales with a contradiction"),
    ("doubts", "rationales with a doubt"),
    ("rule_problems", "labels against the rules"),
)
"""The figures of models that are shown as a table, with their headings."""

PER_KIND = 3
"""Examples of a kind; each kind of parse failure is a kind of its own."""

_LONG = 420
"""Characters of a text that a card shows."""
_LONG_ANSWER = 4000


@dataclass(frozen=True)
class AnnotationExample:
    """A card of the report.

    Attributes:
      kind: a key of `EXAMPLES`, for parse failures followed by a colon and the kind of failure.
      pair: the pair.
      detail: what is wrong.
      model: the author of the answer; empty where the card is about the vote.
      rationale: of the answer or the decision, or None.
      text: an unreadable answer, where it is known.
      checked: the checks of the rationale.
      decision: on the pair.
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
    annotations: Annotations, texts: Mapping[tuple[str, str, int, int], str] | None = None
) -> list[AnnotationExample]:
    """Examples of each kind of failure, chosen by hash, so that the order of answers does not matter.

    `texts`, {(pair_id, model, sample, round): text}, holds what is shown of unreadable answers.
    """
    by_kind: dict[str, list[tuple[str, AnnotationExample]]] = {}
    for identity, example in _candidates(annotations, texts or {}):
        by_kind.setdefault(example.kind, []).append((hash_bytes(identity.encode(errors="replace")), example))
    order = list(EXAMPLES)
    kinds = sorted(by_kind, key=lambda kind: (order.index(kind.split(":")[0]), kind))
    return [example for kind in kinds for _, example in sorted(by_kind[kind], key=itemgetter(0))[:PER_KIND]]


def write_report(
    path: str | Path, quality: Mapping[str, Any], examples: Sequence[AnnotationExample], *, run_name: str
) -> None:
    """Writes what `build_quality` and `find_examples` returned as one HTML file, with `run_name` as the heading."""
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
    """Sentences on the figures, each with its kind: `better`, `worse`, `open` or `note`."""
    whole = quality["slices"]["all"]
    majority, decisions = whole["majority"], whole["decisions"]
    sentences = [
        _against_majority(name, figures["accuracy"], majority)
        for name, figures in whole["models"].items()
        if majority["label"] is not None and figures["accuracy"]["value"] is not None
    ]
    text = f"{decisions['accepted']} of {whole['n_pairs']} pairs are accepted, {decisions['rejected']} rejected"
    sentences.append(("note", f"{text}, {decisions['pending']} pending."))
    if not whole["n_gold"]:
        sentences.append(("note", "There are no gold labels, so the accuracy of labels is unknown."))
    if (weights := quality["weights"]) is not None:
        learnt = f"weights learnt from {weights['n_gold']} gold labels"
        sentences.append(("note", f"The models vote with {learnt if weights['kind'] == 'gold' else 'equal weights'}."))
    if quality["injection"] is not None and (attacked := quality["injection"]["overall"])["n"]:
        text = f"Tampered titles move {cell(attacked['towards'])} of {attacked['n']} labels towards the attacker's"
        kind = "worse" if (attacked["net"]["ci95"] or [0.0])[0] > 0 else "open"
        sentences.append((kind, f"{text}, {cell(attacked['away'])} away from it."))
    return sentences


def money(amount: float | None) -> str:
    """A cost with four significant digits."""
    return "–" if amount is None else "0" if amount == 0 else f"{amount:.4g}"


def _against_majority(name: str, accuracy: Estimate, majority: Mapping[str, Any]) -> tuple[str, str]:
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
    """Every possible card, with a text that identifies it."""
    for decision in annotations.decisions:
        pair_id, pair = decision.pair_id, annotations.pairs[decision.pair_id]
        card = partial(
            AnnotationExample, pair=pair, rationale=decision.rationale, model=decision.model, decision=decision
        )
        if decision.gold is not None and decision.first_label not in (None, decision.gold):
            detail = f"first vote {decision.first_label}, gold label {decision.gold}"
            if decision.asked_again:
                yield pair_id, card("asked again", detail=f"{detail}, asked again {decision.label}")
            else:
                yield pair_id, card("against the gold label", detail=detail)
        elif decision.status == "rejected" and decision.label is not None and not decision.reviewed:
            yield pair_id, card("disagreement", detail=decision.reason)
        for vote in annotations.votes.get(pair_id, ()):
            key = (pair_id, vote.model, vote.sample, vote.round)
            for example in _vote_candidates(annotations, pair, vote, texts.get(key, ""), decision):
                yield "\x00".join(map(str, key)), example


def _vote_candidates(
    annotations: Annotations, pair: Pair, vote: Vote, text: str, decision: Decision
) -> Iterator[AnnotationExample]:
    outcome = vote.outcome
    card = partial(AnnotationExample, pair=pair, model=vote.model, decision=decision)
    if isinstance(outcome, Failure):
        yield card(f"parse failure: {outcome.kind}", detail=outcome.detail, text=text)
        return
    checked = annotations.verify(pair.pair_id, outcome)
    card = partial(card, rationale=outcome, checked=checked)
    if checked.hallucinated:
        values = ", ".join(f"{value.dimension}: {value.text}" for value in checked.hallucinated)
        yield card("value that stands nowhere", detail=values)
    if certain := [f"{each.dimension}: {each.detail}" for each in checked.verdict_problems if each.certain]:
        yield card("verdict against its values", detail="; ".join(certain))
    if checked.label_problems:
        yield card("label against the rules", detail="; ".join(each.detail for each in checked.label_problems))


def _location_of(example: AnnotationExample, dimension: str, side: str, text: str) -> str:
    """Where a value is found; `found` where that was not checked."""
    values = () if example.checked is None else example.checked.values
    matches = (each.location for each in values if (each.dimension, each.side, each.text) == (dimension, side, text))
    return next(matches, "found")


def _cut(text: str, size: int = _LONG) -> str:
    return text if len(text) <= size else text[: size - 1] + "…"
