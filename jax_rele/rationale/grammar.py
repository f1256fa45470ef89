r"""The grammar of rationales: `Rationale` <-> text, an exact inverse, and the teacher's prompt.

One line per comparison, and the label after or before them; several values are joined by ` ; `, no value is `-`:

    category: battery | Portable Charger | mismatch
    brand: - | INIU | absent
    label: Substitute

Queries and item texts are untrusted, so every value, name and label is escaped and cannot leave its slot. `\` `|` `;`
`:` are written with a backslash, line feed and carriage return as `\n` and `\r`, every other control character, line
separator, and white space at either end as `\uXXXX`, and the text `-` as `\-`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from jax_rele.names import ORDERS
from jax_rele.types import VERDICTS, Comparison, Pair, Rationale

KINDS = ("fixed", "query_values", "item_values", "verdict", "label")
"""The kinds of segments of a rendered rationale."""

VALUE_DELIMITERS = "\n|;"
"""The raw characters that can end a value: `;` begins the next value, `|` ends the slot, a line feed ends the line.

Where a decoder fills the value slots of `template` with text without these characters and backslashes, and the verdict
and label slots with known words, `parse_output` reads the result. Between the values of one slot it may write ` ;`.
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
_Line: TypeAlias = tuple[str | None, tuple[str, ...]]
"""The dimension of a line, None on that of the label, and the texts of its slots."""


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
    """A part of a rendered rationale. Every segment that is not fixed begins with one space.

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
    """The inverse of `escape`.

    Raises:
      ValueError: a backslash that begins no escape. Without `strict` such a backslash is kept as it is.
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
    """A dimension's name as it is written before the colon; one called `label` must not look like the label line."""
    return "\\u006cabel" if dimension == _LABEL else escape(dimension)


def render(rationale: Rationale, order: str = "rationale_first") -> str:
    """The rationale as text in one of `ORDERS`, without a final line feed; a label of None is left out."""
    return "".join(segment.text for segment in segments(rationale, order))


def segments(rationale: Rationale, order: str = "rationale_first") -> list[Segment]:
    """The rendered rationale in parts: joined, their texts are `render(rationale, order)`.

    The fixed parts hold the names, colons, bars and line feeds; the others the escaped values, a verdict or a label.
    """
    comparisons: list[_Line] = [
        (each.dimension, (_values_text(each.query_values), _values_text(each.item_values), " " + each.verdict))
        for each in rationale.comparisons
    ]
    label = [] if rationale.label is None else [" " + escape(rationale.label)]
    return _lines_to_segments(comparisons, label, order)


def template(dimensions: Sequence[str], order: str = "rationale_first") -> list[Segment]:
    """The segments of a rationale over `dimensions` with empty slots, for a decoder that forces the fixed ones."""
    return _lines_to_segments([(dimension, ("", "", "")) for dimension in dimensions], [""], order)


def parse(text: str) -> Rationale:
    """The rationale that `render` wrote as `text`, in any order.

    Raises:
      ParseError: `render` cannot have written the text; it names the line and the reason.
    """
    comparisons, label = read_lines(text, strict=True)
    return Rationale(tuple(comparisons), label)


def read_lines(text: str, *, strict: bool) -> tuple[list[Comparison], str | None]:
    """The comparisons and the label of text that consists of the grammar's lines alone.

    With `strict` slots must hold exactly what `render` writes; otherwise spaces and empty values are dropped, and
    colons and backslashes that are not escapes are kept.

    Raises:
      ParseError: a line is neither a comparison nor a label, or a dimension or the label occurs twice.
    """
    comparisons: dict[str, Comparison] = {}
    label = None
    lines = text.split("\n") if text else []
    for number, line in enumerate(lines, 1):
        try:
            if compared := _COMPARISON.fullmatch(line):
                comparison = _read_comparison(*compared.groups(), strict=strict)
                if comparison.dimension in comparisons:
                    raise ValueError(f"the dimension {comparison.dimension!r} occurs twice")
                comparisons[comparison.dimension] = comparison
            elif not line.startswith(_LABEL + ":"):
                raise ValueError("expected 'dimension: query values | item values | verdict' or 'label: name'")
            elif label is not None:
                raise ValueError("a second label")
            elif number not in (1, len(lines)):
                raise ValueError("the label is between comparisons")
            else:
                label = _read_text(_read_slot(line[len(_LABEL) + 1 :], strict), strict)
        except ValueError as error:
            raise ParseError(number, str(error)) from None
    return list(comparisons.values()), label


def prompt(pair: Pair, fields: Sequence[str]) -> str:
    """The teacher's prompt: the query, the item's non-empty `fields`, and the line that asks for the rationale.

    Every text is escaped, so that it takes exactly one line.
    """
    texts = [("query", pair.query), *pair.item.texts(fields)]
    return "".join(f"{name}: {escape(text)}\n" for name, text in texts) + "judge:\n"


def split_values(slot: str) -> tuple[str, ...]:
    """The values of a slot, read leniently: spaces around values and empty values are dropped."""
    parts = (part.strip() for part in re.findall(r"(?:[^\\;]|\\.|\\\Z)+", slot, re.DOTALL))
    return tuple(unescape(part, strict=False) for part in parts if part not in ("", NONE))


def _read_comparison(name: str, query: str, item: str, verdict: str, *, strict: bool) -> Comparison:
    dimension = unescape(name, strict=strict)
    if strict and escape_name(dimension) != name:
        raise ValueError(f"{name!r} is not how the dimension {dimension!r} is written")
    if strict and not (query.endswith(" ") and item.endswith(" ")):
        raise ValueError("expected a space before '|'")
    verdict = _read_slot(verdict, strict)
    if verdict not in VERDICTS:
        raise ValueError(f"the verdict {verdict!r} is not one of {', '.join(VERDICTS)}")
    read_values = _read_values if strict else split_values
    return Comparison(dimension, read_values(query), read_values(item), verdict)


def _read_slot(slot: str, strict: bool) -> str:
    if not strict:
        return slot.strip()
    if not slot.startswith(" "):
        raise ValueError("expected a space after ':' and '|'")
    return slot[1:]


def _read_values(slot: str) -> tuple[str, ...]:
    slot = _read_slot(slot[:-1], True)
    return () if slot == NONE else tuple(_read_text(part, True) for part in slot.split(_SEPARATOR))


def _read_text(part: str, strict: bool) -> str:
    if not part:
        raise ValueError("a value or label is empty")
    text = unescape(part, strict=strict)
    if strict and escape(text) != part:
        raise ValueError(f"{part!r} is not how {text!r} is written")
    return text


def _values_text(values: Sequence[str]) -> str:
    return " " + (_SEPARATOR.join(map(escape, values)) or NONE)


def _lines_to_segments(comparisons: list[_Line], label: list[str], order: str) -> list[Segment]:
    if order not in ORDERS:
        raise ValueError(f"order must be one of {ORDERS}, got {order!r}")
    last: list[_Line] = [(None, (text,)) for text in label]
    lines = {"rationale_first": comparisons + last, "label_first": last + comparisons, "label_only": last}[order]
    result = []
    for number, (dimension, slots) in enumerate(lines):
        fixed = ("\n" if number else "") + (_LABEL if dimension is None else escape_name(dimension)) + ":"
        for kind, text in zip(KINDS[4:] if dimension is None else KINDS[1:], slots):
            result += [Segment("fixed", fixed, dimension), Segment(kind, text, dimension)]
            fixed = " |"
    return result
