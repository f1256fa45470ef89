"""Rewards of a teacher's answers that anybody can check: the label, the verdicts and values, and how short they are."""

from __future__ import annotations

from collections.abc import Sequence

from jax_rele.annotation.verify import verify
from jax_rele.rationale import ParseFailure
from jax_rele.rationale.words import words
from jax_rele.types import Pair, Rationale, Rule

PARTS = ("label", "verdicts", "brevity")
"""The parts of a reward."""


def reward_parts(
    pair: Pair, rationale: Rationale | ParseFailure, reference: Rationale, fields: Sequence[str], rules: Sequence[Rule]
) -> dict[str, float]:
    """The parts of an answer's reward, each in [0, 1]; all 0 for an answer that does not parse.

    Args:
      pair: with its human label.
      rationale: the answer, whose values may be cut.
      reference: the annotator's rationale of the pair.
      fields: of the item that the teacher has seen.
      rules: business rules.

    Returns:
      `label`: 1 where the label is the human one and no rule forbids it; `verdicts`: the fraction of the dimensions
      whose verdict is the reference's, follows from the values, and whose values stand in the texts, 1 for an answer
      of the label alone; `brevity`: 1 less the words of the values over those of the texts.
    """
    if isinstance(rationale, ParseFailure):
        return dict.fromkeys(PARTS, 0.0)
    verified = verify(pair, rationale, fields, rules, cut_values=True)
    wrong = {value.dimension for value in verified.inferred}
    wrong |= {problem.dimension for problem in verified.verdict_problems if problem.certain}
    right = [
        each.dimension not in wrong and each.verdict == reference.verdict(each.dimension)
        for each in rationale.comparisons
    ]
    texts = [pair.query, *(text for _, text in pair.item.texts(fields))]
    written = [text for each in rationale.comparisons for text in (*each.query_values, *each.item_values)]
    count, of_values = (sum(len(words(text)) for text in several) for several in (texts, written))
    return {
        "label": float(rationale.label == pair.label and not verified.label_problems),
        "verdicts": sum(right) / len(right) if right else 1.0,
        "brevity": max(0.0, 1 - of_values / max(1, count)),
    }
