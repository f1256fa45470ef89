"""Whether a quoted cell of several lines is a text of several lines, or a quote that was never closed took in rows.

Both are valid CSV. What differs is what the lines hold: rows have a cell for every column, and the values of a label, a
price or a query recur. `scripts/campaign/quotes.py` counts the errors of this rule on generated files.
"""

from __future__ import annotations

import csv
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from itertools import chain

RECORDS = 1000
"""Records before a cell, and lines after it, whose values it is compared with."""
_REFRESH = 500  # records after which the values are collected again
_FEW = 20  # a column with more values, or rarer ones, may have others that have not been seen
_LONGEST = 200  # characters of a value that may recur
_LINE_END = re.compile(r"\r\n|\r|\n")
_DIGITS = re.compile(r"\d+")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


class CellKind(Enum):
    """Of a record: a text; rows for sure; rows or a text."""

    TEXT = "text"
    ROWS = "rows"
    EITHER = "either"


class _Column:
    """The values of a column; numbers in them stand for each other, so that prices and ids of one form are one value.

    Attributes:
      counts: of each value.
      is_closed: whether other values are unlikely; then a line with another one is no row.
    """

    def __init__(self, values: Sequence[str | None]):
        self.counts = Counter(_DIGITS.sub("0", value) for value in values if value is not None)
        self.total = len(values)
        single = sum(count == 1 for count in self.counts.values()) + self.total - self.counts.total()
        few = self.total >= _FEW and len(self.counts) <= _FEW and 50 * single <= self.total
        self.is_closed = few and any(self.counts)

    def count(self, value: str) -> int:
        return self.counts[_DIGITS.sub("0", value.strip())]

    def is_frequent(self, value: str) -> bool:
        return self.is_closed or self.count(value) >= max(3, self.total / 10)


class Columns:
    """What the columns of a table hold, by the records around the current one."""

    def __init__(self, delimiter: str, *, spaced: bool):
        self.delimiter, self.spaced = delimiter, spaced
        self.recent: deque[list[str]] = deque(maxlen=RECORDS)
        self.columns: list[_Column] = []
        self.seen = self.collected = 0

    def add(self, cells: list[str]) -> None:
        """Notes a record of the table's width."""
        self.recent.append(cells)
        self.seen += 1

    def _collect(self, width: int, ahead: Callable[[], Iterable[str]]) -> None:
        if self.columns and self.seen < self.collected + _REFRESH:
            return
        self.collected = self.seen
        values: list[list[str | None]] = [[] for _ in range(width)]
        for cells in chain(self.recent, _records(ahead(), self.delimiter, self.spaced)):
            if len(cells) == width:
                for column, cell in zip(values, cells):
                    # A cell of several lines may be what is in question.
                    is_value = len(cell) <= _LONGEST and not _LINE_END.search(cell)
                    column.append(cell.strip() if is_value else None)
        self.columns = [_Column(column) for column in values]

    def judge(self, cells: Sequence[str], width: int, ahead: Callable[[], Iterable[str]]) -> CellKind:
        """What the cells of several lines of a record are.

        Args:
          cells: of the record.
          width: cells of a row.
          ahead: gives lines after the record.
        """
        self._collect(width, ahead)
        kinds: set[CellKind | None] = set()
        looks, n_lines, is_either = 0, 0, False
        ends: list[bool] = []
        for index, cell in enumerate(cells):
            texts = _LINE_END.split(cell)
            if len(texts) == 1:
                continue
            n_lines += len(texts)
            # Its last line is a quote alone, with which the text of the next row may begin.
            is_either |= not cell.strip() and index == len(cells) - 1
            has_width = False
            for number, text in enumerate(texts):
                first, last = number == 0, number == len(texts) - 1
                before, after = cells[:index] if first else [], cells[index + 1 :] if last else []
                if len(before) + text.count(self.delimiter) + 1 + len(after) < width:
                    ends += [False] * (first or last)
                    continue
                prose = [*before, *self._split(text, prose=True), *after]
                looks += len(prose) == width
                ends += [len(prose) == width] * (first or last)
                covered = range(index + 1 if first else 0, index if last else width)
                for pieces in {tuple(prose), (*before, *self._split(text), *after)}:
                    if len(pieces) == width:
                        has_width = True
                        kinds.add(self._is_row(pieces, covered))
                    elif len(pieces) > width and not last and self._is_row(pieces, covered) is CellKind.ROWS:
                        kinds.add(CellKind.ROWS)
            if has_width and index < width:
                # Values that recur do not have several lines; a row that is cut in its cell is such a value.
                column = self.columns[index]
                is_either |= column.is_closed or (bool(texts[0].strip()) and column.count(texts[0]) > 0)
        if CellKind.ROWS in kinds:
            return CellKind.ROWS
        if is_either or CellKind.EITHER in kinds:
            return CellKind.EITHER
        if not kinds or any(column.is_closed for column in self.columns):
            return CellKind.TEXT
        if looks == n_lines and n_lines > 2 and width > 2:
            return CellKind.ROWS
        return CellKind.EITHER if all(ends) or 3 * looks >= n_lines + 2 else CellKind.TEXT

    def _split(self, text: str, *, prose: bool = False) -> list[str]:
        """The cells of a line; in `prose` a delimiter before a blank or the end of the line is punctuation."""
        pieces = text.split(self.delimiter)
        if prose and not self.spaced:
            joined = [pieces[0]]
            for number, piece in enumerate(pieces[1:], 2):
                if piece[:1].isspace() or (not piece and number == len(pieces)):
                    joined[-1] += self.delimiter + piece
                else:
                    joined.append(piece)
            return joined
        return pieces

    def _is_row(self, pieces: Sequence[str], covered: Iterable[int]) -> CellKind | None:
        """Whether a line is a row by its values in these columns; None where they do not say."""
        kind, contradicted = None, False
        for index in covered:
            column, value = self.columns[index], pieces[index].strip()
            if not column.count(value):
                contradicted |= column.is_closed
            elif value and column.is_frequent(value):
                kind = CellKind.ROWS
            elif value or column.is_closed:
                kind = kind or CellKind.EITHER
        if not contradicted:
            return kind
        return CellKind.EITHER if kind is CellKind.ROWS else CellKind.TEXT


def is_fully_quoted(text: str, cells: Sequence[str], delimiter: str) -> bool:
    """Whether the cells of a record are quoted, two at least, and no other than numbers and empty ones is not.

    A row that such a writer's cell took in would have quotes of its own, and break it.
    """
    cell_forms = []
    for cell in cells:
        quoted = re.escape('"' + cell.replace('"', '""') + '"')
        is_plain = not cell or _NUMBER.fullmatch(cell)
        cell_forms.append(f"(?:({quoted})|{re.escape(cell)})" if is_plain else f"({quoted})")
    match = re.fullmatch(f"{re.escape(delimiter)} ?".join(cell_forms), text.rstrip("\r\n"))
    return match is not None and len([group for group in match.groups() if group is not None]) > 1


def _records(lines: Iterable[str], delimiter: str, spaced: bool) -> Iterable[list[str]]:
    rest = iter(lines)
    while True:
        try:
            yield from csv.reader(rest, delimiter=delimiter, skipinitialspace=spaced, strict=True)
            return
        except csv.Error:
            continue
