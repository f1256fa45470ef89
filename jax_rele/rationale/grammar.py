r"""The grammar of rationales: `Rationale` <-> text, an exact inverse, and the teacher's prompt.

One line per comparison, then (or before them) the label; several values are joined by ` ; `, no value is `-`:

    category: battery | Portable Charger | mismatch
    brand: - | INIU | absent
    label: Substitute

Queries and item texts are untrusted, so every value, name and label is escaped: whatever it holds, it stays inside its
slot. `\` `|` `;` `:` are written with a backslash, line feed and carriage return as `\n` and `\r`, every other control
character, line separator, and white space at either end as `\uXXXX`, and the text `-` as `\-`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from jax_rele.types import VERDICTS, Comparison, Pair, Rationale

ORDERS = ("rationale_first", "label_first", "label_only")
"""Where the label stands: after the comparisons, before them, or alone."""

KINDS = ("fixed", "query_values", "item_values", "verdict", "label")
"""What a segment of a rendered rationale is."""

VALUE_DELIMITERS = "\n|;"
"""The raw characters that can end a value: `;` begins the next value, `|` ends the slot, a line feed ends the line.

A decoder that fills the value slots of `template` with text free of these characters and of backslashes, and the
verdict and label slots with known words, always writes text that `parse_output` reads. It may still write ` ;` between
the values of one slot.
"""

NONE = "-"
_LABEL = "label"
_SEPARATOR = " ; "
_SPECIAL = re.compile(r"[\\|;:\x00-\x1f\x7f-\x9f\u2028\u2029]|\A\s|\s\Z")
_ESCAPE = re.compile(r"\\(?:u([0-9a-f]{4})|(.)|\Z)", re.DOTALL)
_SHORT = {"\\": "\\", "|": "|", ";": ";", ":": ":", "-": "-", "n": "\n", "r": "\r"}
_LONG = {raw: "\\" + letter for letter, raw in _SHORT.items()}
# Alternatives exclude each other, so matching is linear in the line.
_SLOT = r"((?:[^\\|]|\\.)*)"
_COMPARISON = re.compile(rf"((?:[^\\|;:]|\\.)+):{_SLOT}\|{_SLOT}\|{_SLOT}", re.DOTALL)


class ParseError(ValueError):
    """Text that is not a rendered rationale.

    Attributes:
      line: the number of the offending line, from 1.
      reason: what is wrong with it.
    """

    def __init__(self, line: int, reason: str):
        super().__init__(line, reason)
        self.line = line
        self.reason = reason

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


@dataclass(frozen=True)
class Segment:
    """A part of a rendered rationale. Every segment that is not fixed begins with the one space that separates it.

    Attributes:
      kind: one of `KINDS`.
      text: the characters, escaped.
      dimension: the dimension of the line, None on the label line.
    """

    kind: str
    text: str
    dimension: str | None = None


def escape(text: str) -> str:
    """Any text as a single line that holds none of the grammar's markers. `unescape` is its inverse."""
    if text == NONE:
        return _LONG[NONE]
    return _SPECIAL.sub(lambda match: _LONG.get(match[0]) or f"\\u{ord(match[0]):04x}", text)


def unescape(text: str, *, strict: bool = True) -> str:
    """The text behind an escaped one.

    Args:
      text: escaped text.
      strict: whether a backslash that begins no escape is an error; otherwise it stands for itself.

    Raises:
      ValueError: `strict`, and the text holds a backslash that begins no escape.
    """

    def raw(match: re.Match) -> str:
        code, letter = match.groups()
        if code and not 0xD800 <= int(code, 16) <= 0xDFFF:
            return chr(int(code, 16))
        if letter in _SHORT:
            return _SHORT[letter]
        if strict:
            raise ValueError(f"{match[0]!r} is not an escape")
        return match[0]

    return _ESCAPE.sub(raw, text) if "\\" in text else text


def escape_name(dimension: str) -> str:
    """A dimension's name as it stands before the colon; one called `label` must not look like the label line."""
    return "\\u006cabel" if dimension == _LABEL else escape(dimension)


def render(rationale: Rationale, order: str = "rationale_first") -> str:
    """The rationale as text, without a final line feed.

    Args:
      rationale: what to write; a label of None is left out.
      order: one of `ORDERS`.
    """
    return "".join(segment.text for segment in segments(rationale, order))


def segments(rationale: Rationale, order: str = "rationale_first") -> list[Segment]:
    """The rendered rationale in parts: joined, their texts are `render(rationale, order)`.

    The fixed parts hold the names, colons, bars and line feeds; the others the escaped values, a verdict or a label.
    """
    lines = [
        (
            comparison.dimension,
            [
                ("query_values", _values_text(comparison.query_values)),
                ("item_values", _values_text(comparison.item_values)),
                ("verdict", " " + comparison.verdict),
            ],
        )
        for comparison in rationale.comparisons
    ]
    label = [] if rationale.label is None else [(None, [("label", " " + escape(rationale.label))])]
    return _lines_to_segments(lines, label, order)


def template(dimensions: Sequence[str], order: str = "rationale_first") -> list[Segment]:
    """The segments of a rationale over `dimensions` with empty slots: what decoding may force, and where it is free."""
    lines = [(dimension, [(kind, "") for kind in KINDS[1:4]]) for dimension in dimensions]
    return _lines_to_segments(lines, [(None, [("label", "")])], order)


def parse(text: str) -> Rationale:
    """The rationale that `render` wrote as `text`, in whichever order. Accepts nothing that `render` cannot write.

    Raises:
      ParseError: the text is not a rendered rationale; says on which line, and why.
    """
    comparisons, label = read_lines(text, strict=True)
    return Rationale(tuple(comparisons), label)


def read_lines(text: str, *, strict: bool) -> tuple[list[Comparison], str | None]:
    """The comparisons and the label of text that consists of the grammar's lines alone.

    Args:
      text: lines in any order of `ORDERS`.
      strict: whether slots must hold exactly what `render` writes; otherwise spaces, empty values and stray colons and
        backslashes are taken as a reader would take them.

    Raises:
      ParseError: a line is neither a comparison nor a label, or a dimension or the label stands twice.
    """
    comparisons: dict[str, Comparison] = {}
    label = None
    lines = text.split("\n") if text else []
    for number, line in enumerate(lines, 1):
        compared = _COMPARISON.fullmatch(line)
        if compared:
            comparison = _read_comparison(*compared.groups(), number, strict)
            if comparison.dimension in comparisons:
                raise ParseError(number, f"the dimension {comparison.dimension!r} stands twice")
            comparisons[comparison.dimension] = comparison
        elif not line.startswith(_LABEL + ":"):
            raise ParseError(number, "expected 'dimension: query values | item values | verdict' or 'label: name'")
        elif label is not None:
            raise ParseError(number, "a second label")
        elif number not in (1, len(lines)):
            raise ParseError(number, "the label stands between comparisons")
        else:
            label = _read_text(_read_slot(line[len(_LABEL) + 1 :], number, strict), number, strict)
    return list(comparisons.values()), label


def prompt(pair: Pair, fields: Sequence[str]) -> str:
    """What the teacher reads before it writes: the query, the item's non-empty `fields`, and the word to go.

    Every text is escaped, so it takes one line and cannot pass for another line.
    """
    texts = [("query", pair.query), *pair.item.texts(fields)]
    return "".join(f"{name}: {escape(text)}\n" for name, text in texts) + "judge:\n"


def split_values(slot: str) -> tuple[str, ...]:
    """The values of a slot, read leniently: unescaped `;` separates, spaces around values and empty values go."""
    parts = (part.strip() for part in re.findall(r"(?:[^\\;]|\\.|\\\Z)+", slot, re.DOTALL))
    return tuple(unescape(part, strict=False) for part in parts if part not in ("", NONE))


def _read_comparison(name: str, query: str, item: str, verdict: str, number: int, strict: bool) -> Comparison:
    try:
        dimension = unescape(name, strict=strict)
    except ValueError as error:
        raise ParseError(number, str(error)) from None
    if strict and escape_name(dimension) != name:
        raise ParseError(number, f"{name!r} is not how the dimension {dimension!r} is written")
    if strict and not (query.endswith(" ") and item.endswith(" ")):
        raise ParseError(number, "expected a space before '|'")
    verdict = _read_slot(verdict, number, strict)
    if verdict not in VERDICTS:
        raise ParseError(number, f"the verdict {verdict!r} is not one of {', '.join(VERDICTS)}")
    if not strict:
        return Comparison(dimension, split_values(query), split_values(item), verdict)
    values = [_read_values(_read_slot(slot[:-1], number, strict), number) for slot in (query, item)]
    return Comparison(dimension, *values, verdict)


def _read_slot(slot: str, number: int, strict: bool) -> str:
    if not strict:
        return slot.strip()
    if not slot.startswith(" "):
        raise ParseError(number, "expected a space after ':' and '|'")
    return slot[1:]


def _read_values(slot: str, number: int) -> tuple[str, ...]:
    return () if slot == NONE else tuple(_read_text(part, number, True) for part in slot.split(_SEPARATOR))


def _read_text(part: str, number: int, strict: bool) -> str:
    if not part:
        raise ParseError(number, "a value or label is empty")
    try:
        text = unescape(part, strict=strict)
    except ValueError as error:
        raise ParseError(number, str(error)) from None
    if strict and escape(text) != part:
        raise ParseError(number, f"{part!r} is not how {text!r} is written")
    return text


def _values_text(values: Sequence[str]) -> str:
    return " " + (_SEPARATOR.join(map(escape, values)) or NONE)


def _lines_to_segments(comparisons: list, label: list, order: str) -> list[Segment]:
    if order not in ORDERS:
        raise ValueError(f"order must be one of {ORDERS}, got {order!r}")
    lines = {"rationale_first": comparisons + label, "label_first": label + comparisons, "label_only": label}[order]
    result = []
    for number, (dimension, slots) in enumerate(lines):
        name = _LABEL if dimension is None else escape_name(dimension)
        fixed = ("\n" if number else "") + name + ":"
        for kind, text in slots:
            result += [Segment("fixed", fixed, dimension), Segment(kind, text, dimension)]
            fixed = " |"
    return result
