"""Several kinds of answer of one teacher for the same pair, and the mean of what they say.

LRKD (arXiv 2601.21611) has rationales of three kinds: of the user's intent, of attributes, and of business rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jax_rele.names import Order
from jax_rele.rationale import Annotator, ParseFailure, render
from jax_rele.teacher.predictions import TeacherPredictions
from jax_rele.types import Comparison, Pair, Rationale, Rule

MAIN = "main answer"
"""The name of the answer over all dimensions, beside those of `teacher.perspectives`."""


@dataclass(frozen=True)
class Perspective:
    """One kind of answer.

    Attributes:
      name: of the perspective.
      order: one of `names.ORDERS`.
      dimensions: the dimensions that it compares, in order.
      rules: the business rules of which it says whether they apply: a line each, whose verdict is `match` where the
        rule applies and `absent` where it does not.
      instructions: text before the query of every prompt, by which the teacher knows which answer is asked for.
    """

    name: str
    order: Order
    dimensions: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    instructions: str = ""

    @property
    def lines(self) -> tuple[str, ...]:
        """The names of the answer's lines besides the label's."""
        return (*self.dimensions, *rule_lines(self.rules))

    def answer(self, rationale: Rationale) -> Rationale:
        """This answer for a pair, made of a rationale over all dimensions; what that does not compare is absent."""
        comparisons = [comparison(rationale, name) for name in self.dimensions]
        comparisons += [
            Comparison(line, verdict="match" if rule.applies(rationale) else "absent")
            for line, rule in zip(rule_lines(self.rules), self.rules)
        ]
        return Rationale(tuple(comparisons), rationale.label)


def rule_lines(rules: Sequence[Rule]) -> tuple[str, ...]:
    """The names of the lines that say which rules apply."""
    return tuple(f"rule {number}" for number in range(1, len(rules) + 1))


def comparison(rationale: Rationale, dimension: str) -> Comparison:
    """The comparison of a dimension; absent, without values, where the rationale has none."""
    compared = (each for each in rationale.comparisons if each.dimension == dimension)
    return next(compared, Comparison(dimension, verdict="absent"))


@dataclass(frozen=True)
class PerspectiveAnnotator:
    """An `Annotator` whose rationales are those of another one, seen from a perspective."""

    annotator: Annotator
    perspective: Perspective

    def annotate(self, pairs: Sequence[Pair]) -> list[Rationale]:
        """One rationale per pair, in order."""
        return [self.perspective.answer(rationale) for rationale in self.annotator.annotate(pairs)]


def mean_of_perspectives(
    main: TeacherPredictions,
    others: Mapping[str, tuple[Sequence[str], TeacherPredictions]],
    labels: Sequence[str],
    dimensions: Sequence[str],
    order: str,
) -> TeacherPredictions:
    """The mean distributions over the main answer and further ones for the same N pairs.

    A verdict's distribution is the mean over the answers that compare its dimension. The rationale is that of the main
    answer, with the label that is likeliest by the mean.

    Args:
      main: the predictions by the answer over all dimensions.
      others: {perspective: (the names of its lines, predictions by it)}.
      labels, dimensions: names, in the order of the distributions.
      order: of the main answer, one of `names.ORDERS`.

    Returns:
      The mean; its `label_probs_of` has the label distributions of each answer, those of the main one as `MAIN`.
    """
    everyone = [main, *(predictions for _, predictions in others.values())]
    label_probs = np.mean([each.label_probs for each in everyone], axis=0)
    verdict_probs = np.array(main.verdict_probs)
    for index, dimension in enumerate(dimensions):
        compared = [
            predictions.verdict_probs[:, list(lines).index(dimension)]
            for lines, predictions in others.values()
            if dimension in lines
        ]
        # Where nothing is written, an answer has no verdicts; the main answer then has none either.
        known = [probs for probs in compared if not np.isnan(probs).any()]
        verdict_probs[:, index] = np.mean([main.verdict_probs[:, index], *known], axis=0)
    rationales = tuple(
        rationale if isinstance(rationale, ParseFailure) else replace(rationale, label=labels[likeliest])
        for rationale, likeliest in zip(main.rationales, label_probs.argmax(-1).tolist())
    )
    return TeacherPredictions(
        label_probs=label_probs,
        verdict_probs=verdict_probs,
        texts=tuple(
            text if isinstance(rationale, ParseFailure) else render(rationale, order)
            for text, rationale in zip(main.texts, rationales)
        ),
        rationales=rationales,
        label_scoring=main.label_scoring,
        tokens_decoded=sum(each.tokens_decoded for each in everyone),
        tokens_emitted=sum(each.tokens_emitted for each in everyone),
        label_probs_of={
            MAIN: main.label_probs,
            **{name: predictions.label_probs for name, (_, predictions) in others.items()},
        },
    )
