"""Preferences as data: two rationales for a pair, of which one is better; read from a file, or made from samples."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jax_rele.data.rows import RowError, id_text, read_json
from jax_rele.data.sources.readers import text_lines
from jax_rele.errors import UserError
from jax_rele.io import write_text
from jax_rele.rationale import ParseError, ParseFailure, parse, render
from jax_rele.rationale.rules import broken_rules
from jax_rele.types import Pair, Rationale, Rule

LABEL, RULES, VERDICTS = "label", "rules", "verdicts"
"""The reasons of preferences that are made: the label agrees with the human one; the verdicts and the label keep the
business rules; more verdicts are verified."""

_FIELDS = ("pair_id", "chosen", "rejected", "reason")


@dataclass(frozen=True)
class Preference:
    """That one rationale for a pair is better than another.

    Attributes:
      pair_id: the pair.
      chosen: the better rationale, with a label.
      rejected: the worse one, with a label.
      reason: why, in any words; may be empty.
    """

    pair_id: str
    chosen: Rationale
    rejected: Rationale
    reason: str = ""

    def __post_init__(self):
        if _without_order(self.chosen) == _without_order(self.rejected):
            raise ValueError("chosen and rejected are equal")
        if self.chosen.label is None or self.rejected.label is None:
            raise ValueError("a side has no label")


def _without_order(rationale: Rationale) -> tuple[str | None, frozenset]:
    return rationale.label, frozenset(rationale.comparisons)


def write_preferences(path: str | Path, preferences: Iterable[Preference]) -> None:
    """Writes one JSON object a line: `pair_id`, `chosen` and `rejected` in the grammar, and `reason`."""
    rows = (
        (each.pair_id, *(render(side) for side in (each.chosen, each.rejected)), each.reason) for each in preferences
    )
    write_text(path, "".join(json.dumps(dict(zip(_FIELDS, row)), ensure_ascii=False) + "\n" for row in rows))


def read_preferences(
    path: str | Path,
    pair_ids: Collection[str],
    labels: Collection[str],
    dimensions: Collection[str],
    held_out: Collection[str] = (),
) -> list[Preference]:
    """The preferences of a file of JSON lines.

    Args:
      path: rows `{"pair_id": "1", "chosen": "…", "rejected": "…", "reason"?: "…"}`; both sides are rationales in the
        grammar of `jax_rele.rationale`, with the label first or last; ids are read as those of pairs are.
      pair_ids: the pairs that preferences may be of.
      labels, dimensions: those that there are.
      held_out: pairs that models are evaluated on, which no preference may be of.

    Raises:
      UserError: the file cannot be read, or a row is no preference; it names the line.
    """
    preferences = []
    for number, line in enumerate(text_lines(path), 1):
        if line.strip():
            try:
                preferences.append(_read_row(line, pair_ids, labels, dimensions, held_out))
            except ValueError as error:
                raise UserError(f"{path}, line {number}: {error}; correct the row or take it out") from None
    if not preferences:
        raise UserError(f"{path}: there is no preference; write one JSON object a line")
    return preferences


def make_preferences(
    pairs: Sequence[Pair],
    rationales: Sequence[Sequence[Rationale | ParseFailure]],
    references: Sequence[Rationale | None] | None = None,
    rules: Sequence[Rule] = (),
) -> tuple[list[Preference], dict[str, int]]:
    """Preferences between several rationales for a pair: a teacher's own samples, or answers of several models.

    At most two for a pair. `label`: a rationale whose label is the human one against one whose label is not. And of two
    with the right label `rules`: one that keeps the business rules against the one that breaks most of them; or, where
    all keep them, `verdicts`: the one with most verdicts as in a reference against the one with fewest. Where several
    qualify the first is taken; the side against a wrong label is the one with most verdicts as in the reference. No
    rationale is preferred that breaks a rule. A pair is in dispute, and gives none, where its reference has another
    label than the human one, or where every rationale with the human label breaks a rule.

    Args:
      pairs: pairs with a label.
      rationales: of each pair; what does not parse, or has no label, is left out.
      references: for each pair what verdicts are verified against, by rules or by people; None where there is none.
      rules: business rules.

    Returns:
      The preferences, in the order of the pairs, and counts: `label`, `verdicts` and, if there are rules, `rules` by
      kind; of the pairs that gave none `disputed`, and `ties`, the others; and `unreadable`, the rationales that are
      left out.

    Raises:
      ValueError: a pair has no label, or the lengths differ.
    """
    references = [None] * len(pairs) if references is None else references
    preferences: list[Preference] = []
    ties = disputed = unreadable = 0
    for pair, reference, drawn in zip(pairs, references, rationales, strict=True):
        if pair.label is None:
            raise ValueError(f"the pair {pair.pair_id!r} has no label")
        if reference is not None and reference.label not in (None, pair.label):
            disputed += 1
            continue
        readable = [each for each in drawn if isinstance(each, Rationale) and each.label is not None]
        unreadable += len(drawn) - len(readable)
        texts = list(dict.fromkeys(readable))
        ranks = {each: (len(broken_rules(rules, each)), -_verified(each, reference)) for each in texts}
        right = sorted((each for each in texts if each.label == pair.label), key=ranks.__getitem__)
        wrong = [each for each in texts if each.label != pair.label]
        before = len(preferences)
        if right and ranks[right[0]][0]:
            disputed += 1
            continue
        if right and wrong:
            preferences.append(Preference(pair.pair_id, right[0], wrong[0], LABEL))
        if right and ranks[right[0]] < ranks[right[-1]]:
            worst = next(each for each in right if ranks[each] == ranks[right[-1]])
            preferences.append(Preference(pair.pair_id, right[0], worst, RULES if ranks[worst][0] else VERDICTS))
        ties += len(preferences) == before
    kinds = (LABEL, RULES, VERDICTS) if rules else (LABEL, VERDICTS)
    counts = {kind: sum(each.reason == kind for each in preferences) for kind in kinds}
    return preferences, {**counts, "ties": ties, "disputed": disputed, "unreadable": unreadable}


def _verified(rationale: Rationale, reference: Rationale | None) -> int:
    """How many of the reference's verdicts a rationale shares."""
    comparisons = () if reference is None else reference.comparisons
    return sum(rationale.verdict(each.dimension) == each.verdict for each in comparisons)


def _read_row(
    line: str,
    pair_ids: Collection[str],
    labels: Collection[str],
    dimensions: Collection[str],
    held_out: Collection[str],
) -> Preference:
    try:
        row = read_json(line)
    except RowError:
        raise
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON ({error.msg} at character {error.pos + 1})") from None
    except (ValueError, RecursionError):
        raise ValueError("is nested too deep, or has a number of thousands of digits") from None
    if not isinstance(row, dict):
        raise ValueError("is no JSON object")
    unknown = [name for name in row if name not in _FIELDS]
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}; a preference has {', '.join(_FIELDS)}")
    texts = {"reason": "", **row, "pair_id": id_text(row.get("pair_id"), "pair_id")}
    wrong = [name for name in _FIELDS if not isinstance(texts.get(name), str)]
    if wrong or not texts["pair_id"]:
        raise ValueError(f"{[*wrong, 'pair_id'][0]} is missing or no text")
    try:
        "".join(texts.values()).encode()
    except UnicodeEncodeError:
        raise ValueError("is no valid Unicode text") from None
    if texts["pair_id"] in held_out:
        raise ValueError(f"the pair {texts['pair_id']!r} is held out for evaluation; take a training pair")
    if texts["pair_id"] not in pair_ids:
        raise ValueError(f"there is no pair {texts['pair_id']!r}")
    chosen, rejected = (_read_side(name, texts[name], labels, dimensions) for name in ("chosen", "rejected"))
    return Preference(texts["pair_id"], chosen, rejected, texts["reason"])


def _read_side(name: str, text: str, labels: Collection[str], dimensions: Collection[str]) -> Rationale:
    try:
        rationale = parse(text)
    except ParseError as error:
        raise ValueError(f"{name} is no rationale in the grammar ({error})") from None
    if rationale.label not in labels:
        raise ValueError(f"{name} must have one of the labels {', '.join(labels)}, got {rationale.label!r}")
    unknown = [each.dimension for each in rationale.comparisons if each.dimension not in dimensions]
    if unknown:
        raise ValueError(f"{name} compares {unknown[0]!r}; the dimensions are {', '.join(dimensions)}")
    return rationale
