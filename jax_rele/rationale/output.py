"""Reads rationales from the output of a language model, whatever text and formatting surrounds them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jax_rele.rationale.grammar import ParseError, read_lines, split_values, unescape
from jax_rele.types import VERDICTS, Comparison, Rationale

_LINE = re.compile(r"((?:[^\\|:]|\\.)+):(.*)", re.DOTALL)
_FIELDS = re.compile(r"((?:[^\\|]|\\.|\\\Z)*)(?:\||\Z)", re.DOTALL)
_BULLET = re.compile(r"\s*(?:(?:[-*+>•–]|#+|\d+[.)])\s+)*")
_MARKUP = "*_`\"' \t\r.,"


@dataclass(frozen=True)
class ParseFailure:
    """Why no rationale could be read from a model's output."""

    reason: str


class _Unreadable(Exception):
    pass


def parse_output(text: str, *, dimensions: Sequence[str], labels: Sequence[str]) -> Rationale | ParseFailure:
    """The rationale in a model's output. Never raises.

    Prose around the lines, think blocks, code fences, bullets, bold marks, spaces and the case of names, verdicts and
    labels are ignored. Lines of unknown dimensions are dropped; a dimension without a line is absent without values.
    Where a dimension or label occurs twice both must agree, and the first is kept.

    Args:
      text: what the model wrote.
      dimensions: the dimensions of the result, in its order.
      labels: the labels that there are.

    Returns:
      A rationale with a comparison for each of `dimensions` and a label of `labels`; or a failure where the label or
      the verdict of a named dimension is missing, unknown or contradictory.
    """
    try:
        comparisons, label_names = _read_plain(text, dimensions) or _read_formatted(text, dimensions)
        return Rationale(_arrange(comparisons, dimensions), _one_label(label_names, labels))
    except _Unreadable as error:
        return ParseFailure(str(error))


def _read_plain(text: str, dimensions: Sequence[str]) -> tuple[list[Comparison], list[str]] | None:
    """Text of the grammar alone, whose values may hold what looks like formatting. None for other text."""
    try:
        comparisons, label = read_lines(text, strict=False)
    except ParseError:
        return None
    if label is None or any(comparison.dimension not in dimensions for comparison in comparisons):
        return None
    return comparisons, [label]


def _read_formatted(text: str, dimensions: Sequence[str]) -> tuple[list[Comparison], list[str]]:
    """The comparisons of known dimensions and the labels of every line that looks like one."""
    comparisons, labels = [], []
    without_verdict = {}
    for line in _answer(text).split("\n"):
        parts = _LINE.fullmatch(_BULLET.sub("", line, count=1))
        if parts is None:
            continue
        name, rest = parts.groups()
        if name.startswith("**"):
            rest = rest.removeprefix("**")
        dimension = _lookup(unescape(name, strict=False), dimensions)
        # The pattern also matches the empty text after the last field.
        fields = [match[1] for match in _FIELDS.finditer(rest)][:-1]
        if len(fields) > 1 and dimension is not None:
            comparisons.append(_comparison(dimension, fields))
        elif len(fields) < 2 and name.strip(_MARKUP).casefold() in ("label", "final label"):
            labels += [unescape(field.strip(), strict=False) for field in fields if field.strip()]
        elif dimension is not None:
            without_verdict[dimension] = rest.strip()
    judged = {comparison.dimension for comparison in comparisons}
    for dimension, rest in without_verdict.items():
        if dimension not in judged:
            raise _Unreadable(f"{dimension}: no verdict in {_short(rest)}")
    return comparisons, labels


def _answer(text: str) -> str:
    """The text without think blocks (also unclosed, or opened in the prompt) and without the fences of code blocks."""
    parts = []
    while text:
        before, _, after = text.partition("<think>")
        parts.append(before.rpartition("</think>")[2])
        text = after.partition("</think>")[2]
    return "\n".join(line for line in "\n".join(parts).split("\n") if not line.lstrip().startswith("```"))


def _comparison(dimension: str, fields: list[str]) -> Comparison:
    if len(fields) != 3:
        raise _Unreadable(f"{dimension}: expected query values | item values | verdict, found {len(fields)} fields")
    verdict = fields[2].strip(_MARKUP).casefold()
    if verdict not in VERDICTS:
        raise _Unreadable(f"{dimension}: the verdict {_short(fields[2].strip())} is not one of {', '.join(VERDICTS)}")
    return Comparison(dimension, split_values(_unmarked(fields[0])), split_values(_unmarked(fields[1])), verdict)


def _unmarked(slot: str) -> str:
    slot = slot.strip()
    for mark in ("**", "__", "`"):
        if len(slot) > 2 * len(mark) and slot.startswith(mark) and slot.endswith(mark):
            slot = slot[len(mark) : -len(mark)].strip()
    return slot


def _arrange(comparisons: list[Comparison], dimensions: Sequence[str]) -> tuple[Comparison, ...]:
    by_dimension: dict[str, Comparison] = {}
    for comparison in comparisons:
        dimension = _lookup(comparison.dimension, dimensions)
        if dimension is None:
            continue
        first = by_dimension.setdefault(dimension, replace(comparison, dimension=dimension))
        if first.verdict != comparison.verdict:
            raise _Unreadable(f"{dimension}: judged both {first.verdict} and {comparison.verdict}")
    return tuple(by_dimension.get(dimension) or Comparison(dimension) for dimension in dimensions)


def _one_label(label_names: list[str], labels: Sequence[str]) -> str:
    if not label_names:
        raise _Unreadable("no label")
    known = set()
    for name in label_names:
        label = _lookup(name, labels)
        if label is None:
            raise _Unreadable(f"the label {_short(name)} is not one of {', '.join(labels)}")
        known.add(label)
    if len(known) > 1:
        raise _Unreadable(f"more than one label: {', '.join(sorted(known))}")
    return known.pop()


def _lookup(name: str, names: Sequence[str]) -> str | None:
    """The same one of `names`, else the only one that differs in case or formatting alone."""
    if name in names:
        return name
    plain = name.strip(_MARKUP).casefold()
    alike = [other for other in names if other.strip(_MARKUP).casefold() == plain]
    return alike[0] if len(alike) == 1 else None


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
