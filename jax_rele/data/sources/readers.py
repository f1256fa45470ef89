"""Files of rows: JSON lines, CSV, TSV and Parquet, read such that a bad row costs one row.

The rows are read with json, csv and pyarrow. `datasets` infers one schema for the whole file and stops at the first
line that does not fit: it neither reports the row in which a line is cut nor continues after an invalid byte.
"""

from __future__ import annotations

import codecs
import csv
import json
import lzma
import math
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jax_rele.data.rows import RoundedFloat, RowError, one_line, read_json
from jax_rele.data.sources.delimited import delimited_rows
from jax_rele.data.sources.files import PARQUET, TEXT_SUFFIXES, SourceFile, unreachable
from jax_rele.errors import UserError
from jax_rele.io import placeholder, refuse_placeholder, stands_for_another
from jax_rele.types import ReadOptions

LONGEST_LIST = 64
"""Values of a list that is a field's text; longer ones are embeddings and the like."""
_AS_SURROGATE = "jax_rele.surrogate"
codecs.register_error(_AS_SURROGATE, lambda error: ("\udcff", error.end))  # type: ignore[attr-defined]  # of decoding

Row = tuple[int, Mapping | RowError, object]
"""Row number, the row or what is wrong with it, and the raw row."""

Chunk = Callable[[], Sequence[Row]]
"""Gives some consecutive rows; can be sent to another process."""

_ROWS = 1024
"""Rows of a chunk."""
_BLOCKS = 8
"""Blocks whose lines are a chunk."""
_T = TypeVar("_T")
_BLOCK = 1 << 16
_NARROW: dict[str, tuple[type[np.floating], int]] = {"halffloat": (np.float16, 2**11), "float": (np.float32, 2**24)}
"""Types of floats that have room for whole numbers up to a limit only."""
_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeError, pa.ArrowException)
_OTHER_FORMATS = {
    b"\x1f\x8b": "is compressed by gzip; add .gz to its name",
    b"BZh": "is compressed by bzip2; add .bz2 to its name",
    b"\xfd7zXZ": "is compressed by xz; add .xz to its name",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd; add .zst to its name",
    b"PK\x03\x04": "is a ZIP archive or a workbook; export it as CSV",
    b"PAR1": "is Parquet; let its name end in .parquet",
    b"SQLite format 3": "is an SQLite database; export it as CSV",
    b"<?xml": "is XML; export it as CSV or JSON lines",
    b"%PDF": "is a PDF; export the table as CSV",
    b"\xd0\xcf\x11\xe0": "is a workbook; export it as CSV",
    b"7z\xbc\xaf": "is a 7z archive; unpack it",
    b"ARROW1": "is an Arrow file; write it as Parquet",
    b"Obj\x01": "is an Avro file; write it as Parquet",
    b"\x80\x04\x95": "is a pickle, which is never read; write it as Parquet",
    b"\x80\x05\x95": "is a pickle, which is never read; write it as Parquet",
}
"""How files begin whose name says otherwise, in lower case where that differs."""


def read_file(
    file: SourceFile, reading: ReadOptions = ReadOptions(), *, notes: Counter[str] | None = None
) -> Iterator[Row]:
    """The rows of a file; the arguments and errors are those of `read_chunks`."""
    for chunk in read_chunks(file, reading, notes=notes):
        yield from chunk()


def read_chunks(
    file: SourceFile, reading: ReadOptions = ReadOptions(), *, notes: Counter[str] | None = None
) -> Iterator[Chunk]:
    """The rows of a file, some thousand at a time; they may be read in another process.

    Args:
      file: the file.
      reading: how; its fields are not applied. A CSV cell may be as long as a text may be, or as the csv module's own
        limit if that is more.
      notes: of CSV and TSV, see `delimited_rows`.

    Raises:
      UserError: the file cannot be read, has another format than its name says, or the header of a CSV is broken.
    """
    encoding = check_encoding(reading)
    with _reading(file.name, is_local=file.system is None):
        # Plain text is looked at below: among rows such a line is one bad row.
        if file.system is None and Path(file.path).suffix not in TEXT_SUFFIXES:
            refuse_placeholder(Path(file.path))
        if file.suffix == PARQUET:
            yield from _parquet_chunks(file)
            return
        # Without a limit a quote that is never closed would take in the rest of the file.
        csv.field_size_limit(max(csv.field_size_limit(), reading.max_characters))
        with file.open() as stream:
            lines, encoding = _lines(stream, encoding, file.name)
            if file.suffix in (".csv", ".tsv"):
                rows = delimited_rows(
                    _refuse_objects(chain.from_iterable(lines), file.name),
                    file.name,
                    encoding,
                    default_delimiter="\t" if file.suffix == ".tsv" else ",",
                    reading=reading,
                    notes=notes,
                )
                for some in in_chunks(rows):
                    yield partial(list, some)
            else:
                number = 1
                for lists in in_chunks(lines, _BLOCKS):
                    some_lines = list(chain.from_iterable(lists))
                    yield partial(_json_rows, number, some_lines, encoding, reading)
                    number += len(some_lines)


@contextmanager
def _reading(name: str, *, is_local: bool) -> Iterator[None]:
    """Turns what a damaged file, or one on another machine, raises into a UserError."""
    try:
        yield
    except _DAMAGED as error:
        raise UserError(
            f"{name}: the file cannot be read ({one_line(error)}); if it is damaged, write it again"
        ) from error
    except UserError:
        raise
    except Exception as error:
        if is_local:
            raise
        raise unreachable(name, error) from error


def in_chunks(values: Iterable[_T], most: int = _ROWS) -> Iterator[list[_T]]:
    """Lists of at most so many values; where an error ends the values, those before it come first."""
    chunk: list[_T] = []
    try:
        for value in values:
            chunk.append(value)
            if len(chunk) == most:
                yield chunk
                chunk = []
    except Exception:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk


def _json_rows(first: int, lines: Sequence[bytes], encoding: str, reading: ReadOptions) -> list[Row]:
    """The rows of some lines, which are numbered from `first` on."""
    return [
        (number, _json_object(line, encoding, reading), line)
        for number, line in enumerate(lines, first)
        if line.strip()
    ]


def text_lines(path: str | os.PathLike) -> list[str]:
    """The lines of a text file in UTF-8, or in UTF-16 or UTF-32 with a mark, without their ends.

    Raises:
      UserError: the file cannot be read, is no text in these encodings, or stands for another file.
    """
    name = os.fspath(path)
    try:
        refuse_placeholder(Path(path))
        with SourceFile(name, name).open() as stream:
            lines, encoding = _lines(stream, "utf-8", name)
            return [line.decode(encoding).rstrip("\r\n") for line in chain.from_iterable(lines)]
    except UnicodeDecodeError:
        raise UserError(f"{name}: cannot be read: no UTF-8 text") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or one_line(error)}") from None


def check_encoding(reading: ReadOptions) -> str:
    """Python's name of the encoding. Raises UserError for an unknown one."""
    try:
        name = codecs.lookup(reading.encoding).name
        "".encode(name)
    except (LookupError, ValueError):
        raise UserError(
            f"{reading.name_of('encoding')}: {reading.encoding!r} is no text encoding; write e.g. utf-8, cp1252 or "
            "gb18030"
        ) from None
    return "utf-8" if name == "utf-8-sig" else name


def _lines(stream: IO[bytes], encoding: str, name: str) -> tuple[Iterator[list[bytes]], str]:
    """Lists of lines, and the encoding that they are in."""
    first = stream.read(_BLOCK)
    # Among rows a line of another format is one bad row.
    if not any(map(_is_object, first.splitlines())):
        _refuse_other_format(first, name)
    if encoding == "utf-8" and first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        marked = "utf-32" if first.startswith(codecs.BOM_UTF32_LE) else "utf-16"
        # A mark without line ends, or without the many NULs of a line of Latin letters, is damage.
        if 50 * first.count(b"\0") > len(first) or re.search("[\r\n]", first.decode(marked, "replace")):
            encoding = marked
    blocks: Iterator[bytes] = chain([first], iter(lambda: stream.read(_BLOCK), b""))
    if "\n".encode(encoding) != b"\n":
        # In UTF-16 and UTF-32 a byte 10 need not be the end of a line. What cannot be decoded becomes half a pair of
        # surrogates, whose bytes are never UTF-8, so that its row is quarantined.
        texts = codecs.iterdecode(blocks, encoding, errors=_AS_SURROGATE)
        blocks = (text.encode("utf-8", "surrogatepass") for text in texts)
        encoding = "utf-8"
    lines = _split_lines(blocks)
    return (_without_mark(lines) if encoding == "utf-8" else lines), encoding


def _is_object(line: bytes) -> bool:
    """Whether a line is a JSON object; the styles of a web page have braces too."""
    line = line.strip().removeprefix(codecs.BOM_UTF8)
    return line.startswith(b"{") and isinstance(_json_object(line, "utf-8", ReadOptions()), dict)


def _refuse_other_format(first: bytes, name: str) -> None:
    """Raises UserError for a file that begins as one of another format."""
    if message := placeholder(first[:4096]):
        raise UserError(f"{name}: {message}")
    for start, message in _OTHER_FORMATS.items():
        begins = first.lstrip()[: len(start)]
        if start in (begins, begins.lower()):
            raise UserError(f"{name}: {message}")


def _refuse_objects(lines: Iterator[bytes], name: str) -> Iterator[bytes]:
    """The lines of a table. Raises UserError where the first one is a JSON object."""
    for number, line in enumerate(lines):
        if number == 0 and re.match(rb'\{\s*"[^"]*"\s*:', line):
            raise UserError(f"{name}: is JSON, not a table; let the name of a file of JSON lines end in .jsonl")
        yield line


def _split_lines(blocks: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Lines with their ends, which are those of Unix, Windows or the old Macintosh; lists of whole ones."""
    parts: list[bytes] = []
    for block in blocks:
        lines = block.splitlines(keepends=True)
        complete: list[bytes] = []
        if parts and parts[-1].endswith(b"\r"):
            if block.startswith(b"\n"):
                parts.append(lines.pop(0))
            complete.append(b"".join(parts))
            parts = []
        if parts and len(lines) > 1:
            lines[0] = b"".join([*parts, lines[0]])
            parts = []
        if lines and (parts or not lines[-1].endswith(b"\n")):
            parts.append(lines.pop())
            if parts[-1].endswith(b"\n"):
                lines, parts = [b"".join(parts)], []
        complete += lines
        if complete:
            yield complete
    if parts:
        yield [b"".join(parts)]


def _without_mark(blocks: Iterable[list[bytes]]) -> Iterator[list[bytes]]:
    for i, lines in enumerate(blocks):
        yield [lines[0].removeprefix(codecs.BOM_UTF8), *lines[1:]] if i == 0 else lines


def _json_object(line: bytes, encoding: str, reading: ReadOptions) -> Mapping | RowError:
    try:
        value = read_json(line.decode(encoding))
    except RowError as error:
        return error
    except UnicodeDecodeError as error:
        return RowError(
            f"not valid {encoding.upper()} at byte {error.start + 1}: if the file has another, set "
            f"{reading.name_of('encoding')}"
        )
    except json.JSONDecodeError as error:
        hint = _json_hint(line.strip(), error, reading)
        return RowError(f"not valid JSON at character {error.pos + 1}: {error.msg}{hint}")
    except ValueError as error:  # a number with thousands of digits
        return RowError(f"not valid JSON: {error}")
    except RecursionError:
        return RowError("not valid JSON: nested too deeply")
    return value if isinstance(value, dict) else RowError(f"must be a JSON object, got {type(value).__name__}")


def _json_hint(line: bytes, error: json.JSONDecodeError, reading: ReadOptions) -> str:
    """What is probably wrong with the file of a line that is no JSON object; empty where that is not clear."""
    if stands_for_another(line):
        return "; a line of a Git LFS pointer or a web page: fetch the file itself, and join the files again"
    if b"\0" in line:
        return f"; a NUL character: the file may be UTF-16, see {reading.name_of('encoding')}"
    if line.startswith(b"\x1e"):
        return "; a record separator (RFC 7464): remove it from the lines"
    if (error.msg == "Extra data" and line.endswith(b"},")) or line in (b"[", b"]"):
        return "; the lines of a JSON array: write one object a line, without commas (jq -c '.[]' does it)"
    if error.msg == "Extra data":
        return "; one object a line (jq -c . does it)"
    if line == b"{" or (line.endswith((b",", b"{", b"[")) and line.startswith((b'"', b"{"))):
        return "; an object goes over several lines: write one a line (jq -c . does it)"
    if b"{" not in line and (b"," in line or b"\t" in line):
        return "; if the file is a table, let its name end in .csv or .tsv"
    if re.match(rb"\{\s*'", line):
        return "; single quotes: written by Python's str, write it by json.dumps"
    return ""


def _parquet_chunks(file: SourceFile) -> Iterator[Chunk]:
    number = 1
    with file.open() as stream:
        first = stream.read(1024)
    if not first.startswith(b"PAR1"):
        _refuse_other_format(first, file.name)
    with file.open() as stream, pq.ParquetFile(stream, page_checksum_verification=True) as table:
        names = table.schema_arrow.names
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"{file.name}: the table has {repeated} twice; give every column its own name")
        for batch in table.iter_batches(batch_size=1024):
            yield partial(_arrow_rows, file.name, number, batch, is_local=file.system is None)
            number += batch.num_rows


def _arrow_rows(name: str, first: int, batch: pa.RecordBatch, *, is_local: bool) -> list[Row]:
    with _reading(name, is_local=is_local):
        return [(number, row, row) for number, row in enumerate(python_rows(batch), first)]


def python_rows(batch: pa.RecordBatch) -> list[Mapping | RowError]:
    """The rows of a batch, or for each one that cannot be made what is wrong with it."""
    for index, field in enumerate(batch.schema):
        if pa.types.is_float32(field.type):
            # As `_exact`, a column at a time: most have no number that is too large.
            column, (_, limit) = batch.column(index), _NARROW["float"]
            if not pc.any(pc.greater_equal(pc.abs(column), limit)).as_py():
                batch = batch.set_column(index, field.name, pc.cast(pc.cast(column, pa.string()), pa.float64()))
    try:
        rows = batch.to_pylist(maps_as_pydicts="strict")
    except (ValueError, KeyError, OverflowError) as error:
        if batch.num_rows == 1:  # invalid UTF-8 (Parquet does not check it), a map with one key twice, a far-off date
            return [RowError(f"cannot be read: {one_line(error)}")]
        return [row for i in range(batch.num_rows) for row in python_rows(batch.slice(i, 1))]
    return with_exact_floats(rows, batch.schema)


def with_exact_floats(rows: list, schema: pa.Schema) -> list:
    """Rows of a schema, whose values of 16 and 32 bits have the digits that they had in the table, see `_exact`."""
    if narrow := [field for field in schema if _has_narrow(field.type)]:
        return [{**row, **{field.name: _exact(row.get(field.name), field.type) for field in narrow}} for row in rows]
    return rows


def _narrow(kind: pa.DataType) -> bool:
    return pa.types.is_float32(kind) or pa.types.is_float16(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _has_narrow(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(_has_narrow(kind.field(index).type) for index in range(kind.num_fields))
    if pa.types.is_map(kind):
        return _has_narrow(kind.item_type)
    if pa.types.is_dictionary(kind) or _is_list(kind):
        return _has_narrow(kind.value_type)
    return _narrow(kind)


def _exact(value, kind: pa.DataType):
    """A value with floats for its narrow ones, by way of their shortest decimal form: 0.1, and not 0.10000000149.

    Lists that are longer than any that is a text, as embeddings are, stay as they are.
    """
    if value is None:
        return None
    if _narrow(kind):
        dtype, limit = _NARROW[str(kind)]
        return RoundedFloat(value) if limit <= abs(value) < math.inf else float(str(dtype(value)))
    if pa.types.is_struct(kind):
        return {name: _exact(inner, kind.field(name).type) for name, inner in value.items()}
    if pa.types.is_map(kind):
        return {name: _exact(inner, kind.item_type) for name, inner in value.items()}
    if pa.types.is_dictionary(kind):
        return _exact(value, kind.value_type)
    if _is_list(kind) and len(value) <= LONGEST_LIST and _has_narrow(kind.value_type):
        return [_exact(inner, kind.value_type) for inner in value]
    return value
