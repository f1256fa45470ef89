"""Checks of a rationale without a model: values against the texts, verdicts against values, the label against rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jax_rele.rationale.agreement import verdict as rule_verdict
from jax_rele.rationale.rules import broken_rules
from jax_rele.rationale.words import Word, key, runs, words
from jax_rele.types import Comparison, Pair, Rationale, Rule

LOCATIONS = ("found", "other_side", "nowhere")
"""Where a value is found: in the text of its side, only in that of the other side, or in neither."""


@dataclass(frozen=True)
class Value:
    """A value of a rationale, and where it is found: one of `LOCATIONS`."""

    dimension: str
    side: str
    text: str
    location: str


@dataclass(frozen=True)
class Problem:
    """An inconsistency in a rationale.

    Attributes:
      kind: `no_values` (a match or mismatch where one side states nothing), `values_agree` (a mismatch of equal
        values), `values_differ` (a match of values that differ), `not_absent` (absent, although both sides have values
        that can be compared), or `rule` (the label against the verdicts).
      dimension: empty for a rule.
      detail: in words.
      certain: whether it is a contradiction; else a comparison by words, which ignores synonyms, disagrees.
    """

    kind: str
    dimension: str
    detail: str
    certain: bool


@dataclass(frozen=True)
class Verified:
    """The results of the checks of a rationale; see `verify`."""

    values: tuple[Value, ...]
    verdict_problems: tuple[Problem, ...]
    label_problems: tuple[Problem, ...]

    @property
    def inferred(self) -> tuple[Value, ...]:
        """Values that are not found in the text of their side."""
        return tuple(value for value in self.values if value.location != "found")

    @property
    def hallucinated(self) -> tuple[Value, ...]:
        """Values that neither query nor item contains."""
        return tuple(value for value in self.values if value.location == "nowhere")

    @property
    def contradictions(self) -> tuple[Problem, ...]:
        """The problems that are certain."""
        return tuple(problem for problem in (*self.verdict_problems, *self.label_problems) if problem.certain)


def verify(
    pair: Pair,
    rationale: Rationale,
    fields: Sequence[str],
    rules: Sequence[Rule] = (),
    *,
    cut_values: bool = False,
) -> Verified:
    """Checks a rationale against its pair.

    A value is found in a text where a run of whole words has its key (see `jax_rele.rationale.words`), so that case,
    spaces, accents and plurals do not matter.

    Args:
      fields: of the item that the model has seen, `attributes` among them where they were shown.
      rules: business rules.
      cut_values: values may end within a word, as a teacher's do that are too long for it; so parts of words are
        found too.
    """
    sides = {"query": [pair.query], "item": _item_texts(pair, fields)}
    tokens = {side: [words(text) for text in texts] for side, texts in sides.items()}
    values = tuple(
        Value(comparison.dimension, side, text, _locate(text, side, sides, tokens, cut_values))
        for comparison in rationale.comparisons
        for side, texts in (("query", comparison.query_values), ("item", comparison.item_values))
        for text in texts
    )
    problems = tuple(problem for each in rationale.comparisons if (problem := _verdict_problem(each)) is not None)
    broken = tuple(
        Problem("rule", "", f"{rationale.label} breaks a rule: {rule}", True) for rule in broken_rules(rules, rationale)
    )
    return Verified(values, problems, broken)


def _item_texts(pair: Pair, fields: Sequence[str]) -> list[str]:
    texts = [text for _, text in pair.item.texts([field for field in fields if field != "attributes"])]
    if "attributes" in fields:
        texts += [text for couple in pair.item.attributes for text in couple]
    return texts


def _locate(
    value: str,
    side: str,
    texts: Mapping[str, list[str]],
    tokens: Mapping[str, list[list[Word]]],
    cut_values: bool,
) -> str:
    other, pattern = "item" if side == "query" else "query", key(value)
    for location, where in (("found", side), ("other_side", other)):
        if not pattern:
            # A value without words, e.g. `★`, is compared character by character.
            stands_there = any(value in text for text in texts[where])
        else:
            stands_there = any(next(runs(text, pattern), None) is not None for text in tokens[where])
        if cut_values and where == side:
            stands_there |= any(value.casefold() in text.casefold() for text in texts[where])
        if stands_there:
            return location
    return "nowhere"


def _verdict_problem(comparison: Comparison) -> Problem | None:
    query, item = comparison.query_values, comparison.item_values
    name = comparison.dimension
    shown = f"{' ; '.join(query) or '-'} | {' ; '.join(item) or '-'}"
    if not query or not item:
        if comparison.verdict == "absent":
            return None
        side = "the query" if not query else "the item"
        return Problem("no_values", name, f"{comparison.verdict}, but no value of {side}: {shown}", True)
    ruled = rule_verdict(name, query, item)
    if ruled == comparison.verdict or ruled == "absent":
        return None
    single = len(query) == 1 and len(item) == 1
    equal = single and key(query[0]) == key(item[0])
    if comparison.verdict == "absent":
        return Problem("not_absent", name, f"absent, but both state it: {shown}", equal)
    if comparison.verdict == "mismatch":
        return Problem("values_agree", name, f"mismatch of values that agree: {shown}", equal)
    # By its words a sneaker is no running shoe, so only differing sizes (8 GB, 16 GB) are certain.
    return Problem("values_differ", name, f"match of values that differ: {shown}", single and name == "size")
