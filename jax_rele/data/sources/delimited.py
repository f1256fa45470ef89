"""Tables of delimited text, CSV and TSV: every line is in the header, in one row, or blank.

A quote that is not closed takes in what follows it. Such a cell is recognised by the lines in it that are rows
themselves, see `swallowed`: its first line is a bad row and the others are read again.
"""

from __future__ import annotations

import csv
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from jax_rele.data.rows import RowError
from jax_rele.data.sources.swallowed import RECORDS, CellKind, Columns, is_fully_quoted
from jax_rele.errors import UserError
from jax_rele.io import stands_for_another
from jax_rele.text import whole_number
from jax_rele.types import ReadOptions

DELIMITERS = {",": "a comma", "\t": "a tab", ";": "a semicolon", "|": "a bar"}
"""Characters that may separate the cells where the config names none."""

QUOTED_CELLS = "quoted_cells"
"""Note on a file that is read without quoting: rows with a cell that is quoted as CSV quotes."""

SHORT_ROWS = "short_rows"
"""Note on a file: bad rows with fewer cells than the header."""

UNNAMED_CELLS = "unnamed_cells"
"""Note on a file: rows with a cell, not read, in a column to which the header gives no name."""

_INVALID = "\udcff"  # stands in a cell for an invalid byte: a lone surrogate, which no encoding yields
_SEPARATOR_LINE = re.compile(rb'"?sep=(.)"?\s*', re.IGNORECASE)  # Excel's own first line
_AROUND = " \t\r\n\ufeff"  # a byte order mark among them, as of a file that was joined to another
_NULL = "\\N"  # an empty cell as databases export it
_CSV_QUOTED = re.compile(r'"(?:[^"]|"")*"')

Lines = list[tuple[int, bytes]]
"""Numbers of lines, from 1, and the lines."""


def delimited_rows(
    lines: Iterable[bytes],
    source: str,
    encoding: str,
    *,
    default_delimiter: str,
    reading: ReadOptions = ReadOptions(),
    notes: Counter[str] | None = None,
) -> Iterator[tuple[int, Mapping | RowError, bytes]]:
    """(number of its first line, the row or what is wrong with it, its bytes) of each row.

    A number that ends in `.0`, or more zeros, is written whole: without types a column of whole numbers that was
    written as floats or decimals cannot be distinguished otherwise. A cell of backslash and N, as databases write what
    is empty, is empty.

    Args:
      lines: of the file, the header first.
      source: the file, for messages.
      encoding: of the lines.
      default_delimiter: is used where it separates the cells of the header, or no other of `DELIMITERS` does.
      reading: delimiter and quoting. `none`: a quote is a character. `standard`: quoted cells may hold delimiters and
        line ends, and a quote is doubled; `backslash`: as that, or has a backslash before it. `auto`: none where tabs
        separate the cells, elsewhere standard, but for cells that take in other rows.
      notes: what a user should know of the file is counted here.

    Raises:
      UserError: there is no usable header.
    """
    counted = _Counted(lines)
    delimiter, quoting = reading.delimiter, reading.quoting
    first, *_ = counted.peek(1)
    if not delimiter and (separator := _SEPARATOR_LINE.fullmatch(first)):
        delimiter = separator[1].decode("latin-1")
        counted.skip()
        first, *_ = counted.peek(1)
    text = _decoded(first, encoding)
    if "\0" in text:
        raise UserError(
            f"{source}: the header holds NUL characters; set {reading.name_of('encoding')}, perhaps to utf-16-le"
        )
    if not delimiter:
        delimiter = _choose_delimiter([_decoded(line, encoding) for line in counted.peek(2)], default_delimiter)
    # A header in quotes says that the writer quotes, whatever separates the cells.
    quoted_header = all(map(_CSV_QUOTED.fullmatch, text.strip().split(delimiter)))
    unquoted = quoting == "none" or (quoting == "auto" and delimiter == "\t" and not quoted_header)
    read = _unquoted if unquoted else _quoted
    header: list[str] | None = None
    unnamed: list[int] = []
    spare = 0  # columns at the end that have no name
    for physical, cells in read(counted, encoding, delimiter, reading):
        counted.accounted += len(physical)
        if isinstance(cells, list) and _INVALID in "".join(cells):
            option = reading.name_of("encoding")
            cells = RowError(f"not valid {encoding.upper()}: if the file has another encoding, set {option}")
        if header is None:
            header, spare = _header(cells, source)
            unnamed = [index for index, name in enumerate(header) if not name]
            continue
        raw = physical[0][1] if len(physical) == 1 else b"".join(line for _, line in physical)
        if isinstance(cells, list):
            if notes is not None:
                if unquoted and quoting == "auto" and any(map(_CSV_QUOTED.fullmatch, cells)):
                    notes[QUOTED_CELLS] += 1
                if len(cells) < len(header):
                    notes[SHORT_ROWS] += 1
                if unnamed and any(cells[index].strip() for index in unnamed if index < len(cells)):
                    notes[UNNAMED_CELLS] += 1
            yield physical[0][0], _row(cells, header, spare, physical, delimiter, unquoted, reading), raw
        else:
            yield physical[0][0], cells, raw
    assert counted.accounted == counted.read, f"{source}: {counted.read} lines, {counted.accounted} accounted for"


class _Counted:
    """Numbered lines that may be read again; counts those that were read and those that became part of a row."""

    def __init__(self, lines: Iterable[bytes]):
        self.lines, self.again = iter(lines), deque[tuple[int, bytes]]()
        self.read = self.accounted = 0

    def peek(self, count: int) -> list[bytes]:
        """The next lines that are not blank, which stay, and empty ones where there are no more."""
        peeked: Lines = []
        for number, line in self:
            if not line.strip():
                self.accounted += 1
                continue
            peeked.append((number, line))
            if len(peeked) == count:
                break
        self.again.extendleft(reversed(peeked))
        return [line for _, line in peeked] + [b""] * (count - len(peeked))

    def ahead(self, count: int) -> list[bytes]:
        """At most so many of the next lines, and about a megabyte, which stay the next ones."""
        size = sum(len(line) for _, line in self.again)
        while len(self.again) < count and size < 1 << 20 and (line := next(self.lines, None)) is not None:
            self.read += 1
            self.again.append((self.read, line))
            size += len(line)
        return [line for _, line in islice(self.again, count)]

    def skip(self) -> None:
        next(self)
        self.accounted += 1

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        return self

    def __next__(self) -> tuple[int, bytes]:
        if self.again:
            return self.again.popleft()
        line = next(self.lines)
        self.read += 1
        return self.read, line


def _width(line: str, delimiter: str) -> int:
    """How many cells a line has; 0 for a line that is none of a table."""
    try:
        return len(next(csv.reader([line], delimiter=delimiter), []))
    except csv.Error:
        return 0


def _choose_delimiter(lines: list[str], default: str) -> str:
    """The delimiter by which the header and the line after it have the same number of cells, several if possible."""

    def fitness(delimiter: str) -> tuple[bool, bool, bool, int]:
        widths = [_width(line, delimiter) for line in lines]
        several = widths[0] > 1
        return several and widths[0] == widths[1], several, delimiter == default, widths[0]

    return max((default, *DELIMITERS), key=fitness)


def _unquoted(
    lines: _Counted, encoding: str, delimiter: str, _: ReadOptions
) -> Iterator[tuple[Lines, list[str] | RowError]]:
    for number, line in lines:
        text = _decoded(line, encoding).rstrip("\r\n")
        if text:
            yield [(number, line)], text.split(delimiter)
        else:
            lines.accounted += 1


def _quoted(
    lines: _Counted, encoding: str, delimiter: str, reading: ReadOptions
) -> Iterator[tuple[Lines, list[str] | RowError]]:
    pending: Lines = []

    def texts() -> Iterator[str]:
        for number, line in lines:
            pending.append((number, line))
            yield _decoded(line, encoding)

    first = _decoded(lines.peek(1)[0], encoding)
    spaced = f"{delimiter} " in first and delimiter != " "
    escape = "\\" if reading.quoting == "backslash" else None
    columns = Columns(delimiter, spaced=spaced)

    def new_reader():
        return csv.reader(texts(), delimiter=delimiter, escapechar=escape, skipinitialspace=spaced, strict=True)

    def judge(cells: list[str]) -> CellKind:
        kind = columns.judge(cells, width, lambda: [_decoded(line, encoding) for line in lines.ahead(RECORDS)])
        if kind is CellKind.TEXT:
            return kind
        text = "".join(_decoded(line, encoding) for _, line in pending)
        return CellKind.TEXT if is_fully_quoted(text, cells, delimiter) else kind

    reader, width = new_reader(), 0
    while True:
        pending.clear()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            # A quote that is never closed takes in the rows after it.
            lines.again.extendleft(reversed(pending[1:]))
            reader = new_reader()
            if cells := _before_blanks(_decoded(pending[0][1], encoding), delimiter, escape, width):
                columns.add(cells)
                yield pending[:1], cells
                continue
            if len(pending) == 1 and "field larger" in str(error):
                most = csv.field_size_limit()
                what = f"a text of more than {most} characters; see {reading.name_of('max_characters')}"
                yield pending[:1], RowError(what)
                continue
            escaped = b'\\"' in pending[0][1] and not escape
            option = reading.name_of("quoting")
            fix = f"set {option} to backslash" if escaped else f"double a quote inside a cell, or see {option}"
            yield pending[:1], RowError(f"broken quotes or cells: {error}; {fix}")
            continue
        if cells is None:
            return
        if not cells:
            lines.accounted += len(pending)
            continue
        if not spaced and len(pending) == 1 and width:
            cells = _after_blanks(_decoded(pending[0][1], encoding), delimiter, escape, width) or cells
        if not width:
            width = len(cells)
        elif len(pending) > 1 and reading.quoting == "auto" and (kind := judge(cells)) is not CellKind.TEXT:
            what = "takes in other rows" if kind is CellKind.ROWS else "takes in lines that look like rows"
            problem = RowError(
                f"a quote opens a cell that {what} (to line {pending[-1][0]}): close or double it, or set "
                f"{reading.name_of('quoting')} to none, or to standard to accept such cells"
            )
            if kind is CellKind.EITHER:  # read again, the lines of a text would become rows
                yield list(pending), problem
                continue
            lines.again.extendleft(reversed(pending[1:]))
            reader = new_reader()
            yield pending[:1], problem
            continue
        if len(cells) == width:
            columns.add(cells)
        yield list(pending), cells


def _after_blanks(line: str, delimiter: str, escape: str | None, width: int) -> list[str] | None:
    """The cells of a line with blanks before quotes, if so read it has as many as the header; None otherwise."""
    if f'{delimiter} "' not in line:
        return None
    try:
        (cells,) = csv.reader([line], delimiter=delimiter, escapechar=escape, skipinitialspace=True, strict=True)
    except (csv.Error, ValueError):
        return None
    return cells if len(cells) == width else None


def _before_blanks(line: str, delimiter: str, escape: str | None, width: int) -> list[str] | None:
    """The cells of a line without the blanks behind closing quotes, if it then has as many as the header."""
    closed = re.sub(rf"({_CSV_QUOTED.pattern}) +(?={re.escape(delimiter)}|\s*\Z)", r"\1", line)
    if closed == line:
        return None
    try:
        (cells,) = csv.reader([closed], delimiter=delimiter, escapechar=escape, strict=True)
    except (csv.Error, ValueError):
        return None
    return cells if len(cells) == width else None


def _decoded(line: bytes, encoding: str) -> str:
    try:
        return line.decode(encoding)
    except UnicodeDecodeError:
        # An invalid byte must not stop the csv reader.
        return line.decode(encoding, "replace").replace("\ufffd", _INVALID)


def _header(cells: list[str] | RowError, source: str) -> tuple[list[str], int]:
    """The names of the columns, and how many columns after them have none."""
    if isinstance(cells, RowError):
        raise UserError(f"{source}: the header is broken ({cells}); its first line must name the columns")
    header = [cell.strip(_AROUND) for cell in cells]
    while header and not header[-1]:
        header.pop()
    repeated = sorted({name for name in header if name and header.count(name) > 1})
    if repeated:
        raise UserError(f"{source}: the header names {repeated} twice; give every column its own name")
    return header, len(cells) - len(header)


def _row(
    cells: list[str],
    header: list[str],
    spare: int,
    physical: Lines,
    delimiter: str,
    unquoted: bool,
    reading: ReadOptions,
) -> Mapping | RowError:
    width = len(header)
    if len(cells) > width and not any(cell.strip() for cell in cells[width:]):
        cells = cells[:width]
    if len(cells) != width:
        span = f" (lines {physical[0][0]} to {physical[-1][0]})" if len(physical) > 1 else ""
        fix = _width_fix(cells, width, spare, delimiter, unquoted, reading)
        return RowError(f"{len(cells)} cells{span}, but the header has {width}: {fix}")
    if all(cell.strip(_AROUND) == name for cell, name in zip(cells, header)):
        return RowError("the header again; remove it where files were joined")
    text = "".join(cells)
    if ".0" in text or "-0" in text:
        cells = list(map(whole_number, cells))
    return dict(zip(header, cells if _NULL not in cells else ("" if cell == _NULL else cell for cell in cells)))


def _width_fix(cells: list[str], width: int, spare: int, delimiter: str, unquoted: bool, reading: ReadOptions) -> str:
    """What helps a row with too few or too many cells."""
    if stands_for_another(cells[0].encode("utf-8", "replace")):
        return "a line of a Git LFS pointer or a web page: fetch the file itself, and join the files again"
    if width == 1 and len(cells) > 1:
        return "the file's first line must name all columns; remove lines before that"
    quoting = reading.name_of("quoting")
    if unquoted and any('"' in cell for cell in cells):
        return f"if its quotes are those of CSV, set {quoting} to standard"
    if 0 < len(cells) - width <= spare:
        return f"the header has no name for cell {width + 1}: name it, or quote a cell that holds the delimiter"
    text = delimiter.join(cells)
    if f'{delimiter} "' in text and not unquoted:
        return "a blank before a quote makes the quote part of the text: remove the blank"
    if len(cells) > width:
        if unquoted:
            return f"leave {DELIMITERS.get(delimiter, 'the delimiter')} out of a cell, or quote it and set {quoting}"
        return f"quote a cell that holds the delimiter, or see {reading.name_of('delimiter')} and {quoting}"
    for other, name in DELIMITERS.items():
        if other != delimiter and len(text.split(other)) == width:
            return f"its cells are separated by {name}, those of the header by {DELIMITERS.get(delimiter, delimiter)}"
    quote = "" if unquoted else ", whose cell wants quotes,"
    return f"a line end inside a cell{quote} cuts a row in two, or the row lacks its end: write empty cells too"
