"""Files of rows: JSON lines, CSV, TSV and Parquet, read row by row so that a bad row costs one row.

The rows are read with json, csv and pyarrow. `datasets` infers one schema for the whole file and stops at the first
line that does not fit: it neither reports the row in which a line is cut nor continues after an invalid byte.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import lzma
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from jax_rele.data.rows import RowError, one_line
from jax_rele.data.sources.files import PARQUET, SourceFile, unreachable
from jax_rele.errors import UserError

Row = tuple[int, Mapping | RowError, object]
"""Row number, the row or what is wrong with it, and the raw row."""

_INVALID = "\udcff"  # stands in a cell for an invalid byte: a lone surrogate, which no encoding yields
_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeDecodeError, pa.ArrowException)


def read_file(file: SourceFile, encoding: str = "utf-8", max_characters: int = 0) -> Iterator[Row]:
    """The rows of a file.

    Args:
      file: the file.
      encoding: of text.
      max_characters: a CSV cell may be this long, or as long as the csv module's own limit if that is more.

    Raises:
      UserError: the file cannot be read, or the header of a CSV is broken.
    """
    encoding = check_encoding(encoding)
    try:
        if file.suffix == PARQUET:
            yield from _parquet_rows(file)
            return
        # Without a limit a quote that is never closed would take in the rest of the file.
        csv.field_size_limit(max(csv.field_size_limit(), max_characters))
        with file.open() as stream:
            lines, encoding = _lines(stream, encoding)
            if file.suffix in (".csv", ".tsv"):
                yield from _csv_rows(lines, file.name, encoding, "\t" if file.suffix == ".tsv" else ",")
            else:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield number, _json_object(line, encoding), line
    except _DAMAGED as error:
        raise UserError(
            f"{file.name}: the file cannot be read ({one_line(error)}); if it is damaged, write it again"
        ) from error
    except UserError:
        raise
    except Exception as error:
        if file.system is None:
            raise
        raise unreachable(file.name, error) from error


def check_encoding(encoding: str) -> str:
    """Python's name of an encoding. Raises UserError for an unknown one."""
    try:
        name = codecs.lookup(encoding).name
        "".encode(name)
    except (LookupError, ValueError):
        raise UserError(
            f"data.encoding: {encoding!r} is no text encoding; write e.g. utf-8, cp1252 or gb18030"
        ) from None
    return "utf-8" if name == "utf-8-sig" else name


def _lines(stream: IO[bytes], encoding: str) -> tuple[Iterable[bytes], str]:
    """Lines and the encoding that they are in."""
    if "\n".encode(encoding)[-1:] == b"\n" and len("\n".encode(encoding)) == 1:
        return _without_mark(stream) if encoding == "utf-8" else stream, encoding
    # In UTF-16 and UTF-32 a byte 10 need not be the end of a line.
    text = io.TextIOWrapper(stream, encoding, errors="replace", newline="\n")
    recoded = _without_mark(line.encode("utf-8", "surrogatepass") for line in text)
    # What could not be decoded becomes a byte that is never UTF-8, so that its row is quarantined.
    return (line.replace("\ufffd".encode(), b"\xff") for line in recoded), "utf-8"


def _without_mark(lines: Iterable[bytes]) -> Iterator[bytes]:
    for i, line in enumerate(lines):
        yield line.removeprefix(codecs.BOM_UTF8) if i == 0 else line


def _json_object(line: bytes, encoding: str) -> Mapping | RowError:
    try:
        value = json.loads(line.decode(encoding))
    except UnicodeDecodeError as error:
        return RowError(f"{_not_valid(encoding)} at byte {error.start + 1}: if the file has another, set data.encoding")
    except json.JSONDecodeError as error:
        return RowError(f"not valid JSON at character {error.pos + 1}: {error.msg}")
    except ValueError as error:  # a number with thousands of digits
        return RowError(f"not valid JSON: {error}")
    except RecursionError:
        return RowError("not valid JSON: nested too deeply")
    return value if isinstance(value, dict) else RowError(f"must be a JSON object, got {type(value).__name__}")


def _not_valid(encoding: str) -> str:
    return f"not valid {encoding.upper()}"


def _csv_rows(lines: Iterable[bytes], source: str, encoding: str, delimiter: str) -> Iterator[Row]:
    numbered = enumerate(lines, 1)
    again: deque[tuple[int, bytes]] = deque()
    pending: list[tuple[int, bytes]] = []

    def texts() -> Iterator[str]:
        while True:
            number, line = again.popleft() if again else next(numbered, (0, b""))
            if not line:
                return
            pending.append((number, line))
            yield _decoded(line, encoding)

    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    problem: RowError | None
    while True:
        pending.clear()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            # A quote that is never closed swallows the rows after it: the first line is bad, the rest is read again.
            (number, line), *rest = pending
            again.extendleft(reversed(rest))
            reader = csv.reader(texts(), delimiter=delimiter, strict=True)
            cells, problem, raw = [], RowError(f"broken quotes or cells: {error}"), line
        else:
            if cells is None:
                return
            number, problem, raw = pending[0][0], None, b"".join(line for _, line in pending)
            if not cells:
                continue
        if problem is None and any(_INVALID in cell for cell in cells):
            problem = RowError(f"{_not_valid(encoding)}: if the file has another encoding, set data.encoding")
        if header is None:
            header = _csv_header(cells, problem, source)
        elif problem is None and len(cells) != len(header):
            yield number, RowError(f"{len(cells)} cells, but the header has {len(header)}"), raw
        else:
            yield number, problem or dict(zip(header, cells)), raw


def _decoded(line: bytes, encoding: str) -> str:
    try:
        return line.decode(encoding)
    except UnicodeDecodeError:
        # An invalid byte must not stop the csv reader.
        return line.decode(encoding, "replace").replace("\ufffd", _INVALID)


def _csv_header(cells: list[str], problem: RowError | None, source: str) -> list[str]:
    if problem is not None:
        raise UserError(f"{source}: the header is broken ({problem}); its first line must name the columns")
    header = [cell.strip() for cell in cells]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UserError(f"{source}: the header names {twice} twice; give every column its own name")
    return header


def _parquet_rows(file: SourceFile) -> Iterator[Row]:
    number = 0
    with file.open() as stream, pq.ParquetFile(stream, page_checksum_verification=True) as table:
        for batch in table.iter_batches(batch_size=1024):
            for row in python_rows(batch):
                number += 1
                yield number, row, row


def python_rows(batch: pa.RecordBatch) -> list[Mapping | RowError]:
    """The rows of a batch, or for each one that cannot be made what is wrong with it."""
    try:
        return batch.to_pylist(maps_as_pydicts="strict")
    except (ValueError, KeyError, OverflowError) as error:
        if batch.num_rows == 1:  # invalid UTF-8 (Parquet does not check it), a map with one key twice, a far-off date
            return [RowError(f"cannot be read: {one_line(error)}")]
        return [row for i in range(batch.num_rows) for row in python_rows(batch.slice(i, 1))]
