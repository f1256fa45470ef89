"""Files of pairs: JSON lines, CSV, TSV and Parquet, read row by row so that a bad row costs one row.

The rows are read with json, csv and pyarrow. `datasets` infers one schema for the whole file and stops at the first
line that does not fit: it can neither say in which row a line is cut nor go on after an invalid byte.
"""

from __future__ import annotations

import csv
import glob
import gzip
import json
import os
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jax_rele.data.schema import Quarantined, RowError, check_columns, check_mapping, one_line, parse_row
from jax_rele.errors import UserError
from jax_rele.types import Pair

SAMPLE = "sample"
"""The name of the embedded sample: 477 pairs of the Amazon ESCI data set, with human query tags (QueryNER) for 185."""

_SAMPLE_FILE = Path(__file__).parent / "sample" / "esci_tiny_us.jsonl"
_SAMPLE_FIELDS = {"item": "product", "query_tags": "queryner"}
_SAMPLE_LABELS = {"E": "Exact", "S": "Substitute", "C": "Complement", "I": "Irrelevant"}
_RAW_CHARACTERS = 500

_Row = tuple[int, Mapping | RowError, object]
"""Row number, the row or what is wrong with it, and the raw row."""


def read_pairs(
    path: str | os.PathLike,
    *,
    label_names: Sequence[str],
    fields: Mapping[str, str] | None = None,
    label_map: Mapping[str, str] | None = None,
    require_label: bool = False,
    for_prediction: bool = False,
) -> tuple[list[Pair], list[Quarantined]]:
    """Reads pairs, in the order of the files and their rows; bad rows are set aside with their reason.

    Args:
      path: `sample` (the embedded sample), or a file (`.jsonl`, `.json` with one object a line, `.csv`, `.tsv`, each
        also `.gz`; `.parquet`), a folder of such files, or a glob pattern.
      label_names: the names of the label schema.
      fields: canonical name -> name in the file, see `parse_row`. The sample brings its own.
      label_map: label in the file -> name of the label schema.
      require_label: set rows without label aside.
      for_prediction: read what a model needs and nothing else; the same pair may come twice.

    Returns:
      The pairs, with distinct `pair_id`s (the second row with the same one is set aside) unless they are for
      prediction, and the rows set aside.

    Raises:
      UserError: no such file, an unknown suffix, a damaged or empty file, no column for a field that every pair needs,
        or a file without one valid row.
    """
    fields, label_map = dict(fields or {}), dict(label_map or {})
    if path == SAMPLE:
        fields = _SAMPLE_FIELDS | fields
        label_map = {code: name for code, name in _SAMPLE_LABELS.items() if name in label_names} | label_map
    check_mapping(fields, label_map, label_names)
    pairs: list[Pair] = []
    bad: list[Quarantined] = []
    first_seen: dict[str, tuple[str, int]] = {}
    for source, file in _files(path):
        n_before, n_bad_before = len(pairs), len(bad)
        columns: dict[str, None] = {}
        for number, row, raw in _rows(file, source):
            try:
                if isinstance(row, RowError):
                    raise row
                if len(pairs) == n_before and len(columns) < 100:
                    if not columns and not _is_json(file):  # such rows all have the same columns: no need to read on
                        check_columns(row, fields, source, require_label)
                    columns.update(dict.fromkeys(row))
                pair = parse_row(
                    row,
                    fields=fields,
                    label_map=label_map,
                    label_names=label_names,
                    require_label=require_label,
                    for_prediction=for_prediction,
                )
                if pair.pair_id in first_seen and not for_prediction:
                    where, first = first_seen[pair.pair_id]
                    raise RowError(
                        f"duplicate pair_id, first seen at {'' if where == source else f'{where} '}row {first}"
                    )
            except RowError as error:
                bad.append(Quarantined(source, number, str(error), _raw_text(raw)))
            else:
                first_seen[pair.pair_id] = (source, number)
                pairs.append(pair)
        if len(pairs) == n_before:
            _refuse(source, columns, bad[n_bad_before:], fields, require_label)
    return pairs, bad


def read_rows(file: str | os.PathLike) -> Iterator[tuple[int, Mapping | RowError]]:
    """The number of each row of a file, from 1, and the row as it is, or what is wrong with it.

    Raises:
      UserError: the file cannot be read.
    """
    for number, row, _ in _rows(Path(file), str(file)):
        yield number, row


def source_files(path: str | os.PathLike) -> list[Path]:
    """The files of a source, in the order in which `read_pairs` reads them. Raises UserError as it does."""
    return [file for _, file in _files(path)]


def check_quarantine(n_good: int, bad: Sequence[Quarantined], max_bad_share: float, source: str) -> None:
    """Raises UserError if more than `max_bad_share` (0 to 1) of all rows were set aside; names the first reasons."""
    n_rows = n_good + len(bad)
    if not bad or len(bad) / n_rows <= max_bad_share:
        return
    first: dict[str, Quarantined] = {}
    for row in bad:
        first.setdefault(row.reason, row)
    reasons = "; ".join(f"row {row.row} of {row.source}: {row.reason}" for row in list(first.values())[:3])
    raise UserError(
        f"{source}: {len(bad)} of {n_rows} rows are bad ({len(bad) / n_rows:.1%}), more than data.max_bad_share "
        f"{max_bad_share:.1%} ({reasons}); mend them, or raise data.max_bad_share"
    )


def _refuse(
    source: str, columns: Iterable[str], bad: Sequence[Quarantined], fields: Mapping[str, str], require_label: bool
) -> None:
    if not bad:
        raise UserError(f"{source}: the file has no rows; give one with pairs in it, or take it out of the input")
    if bad[0].raw.lstrip().startswith("["):
        raise UserError(f"{source}: the file is one JSON array; write one object a line (jq -c '.[]' does it)")
    if columns:
        check_columns(columns, fields, source, require_label)
    raise UserError(
        f"{source}: none of its {len(bad)} rows is a valid pair (row {bad[0].row}: {bad[0].reason}); mend the rows, or "
        f"map names in data.fields and labels in labels.written_as"
    )


def _files(path: str | os.PathLike) -> list[tuple[str, Path]]:
    """(name for messages, file) of every file that `path` stands for, sorted by name."""
    if path == SAMPLE:
        return [(SAMPLE, _SAMPLE_FILE)]
    name = os.path.expanduser(os.fspath(path))
    if os.path.isfile(name):
        files = [name]
    elif os.path.isdir(name):
        inside = sorted(entry.path for entry in os.scandir(name) if entry.is_file() and entry.name[0] not in "._")
        files = [file for file in inside if _reader(file)]
        if not files:
            raise UserError(f"{path}: the folder holds no file of pairs; known suffixes are {_suffixes()}")
    elif glob.has_magic(name):
        files = sorted(file for file in glob.glob(name, recursive=True) if os.path.isfile(file))
        if not files:
            raise UserError(f"{path}: no file matches the pattern; check the path")
    else:
        raise UserError(f"{path}: no such file; check the path, or use {SAMPLE!r} for the embedded sample")
    for file in files:
        if not _reader(file):
            raise UserError(f"{file}: unknown suffix; convert the file to one of {_suffixes()}")
    return [(file, Path(file)) for file in files]


def _rows(file: Path, source: str) -> Iterator[_Row]:
    try:
        reader = _reader(file)
        if reader is _parquet_rows:
            yield from _parquet_rows(file)
        else:
            with (gzip.open if file.suffix.lower() == ".gz" else open)(file, "rb") as lines:
                yield from reader(_without_byte_order_mark(lines), source)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, pa.ArrowException) as error:
        raise UserError(
            f"{source}: the file cannot be read ({one_line(error)}); if it is damaged, write it again"
        ) from error


def _json_rows(lines: Iterable[bytes], _: str) -> Iterator[_Row]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, _json_object(line), line


def _json_object(line: bytes) -> Mapping | RowError:
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return RowError(f"not valid UTF-8 at byte {error.start + 1}")
    except json.JSONDecodeError as error:
        return RowError(f"not valid JSON at character {error.pos + 1}: {error.msg}")
    except ValueError as error:  # a number with thousands of digits
        return RowError(f"not valid JSON: {error}")
    except RecursionError:
        return RowError("not valid JSON: nested too deeply")
    return value if isinstance(value, dict) else RowError(f"must be a JSON object, got {type(value).__name__}")


def _csv_rows(lines: Iterable[bytes], source: str, delimiter: str) -> Iterator[_Row]:
    numbered = enumerate(lines, 1)
    again: deque[tuple[int, bytes]] = deque()
    taken: list[tuple[int, bytes]] = []

    def texts() -> Iterator[str]:
        while True:
            number, line = again.popleft() if again else next(numbered, (0, b""))
            if not line:
                return
            taken.append((number, line))
            yield line.decode(errors="surrogateescape")  # an invalid byte must not stop the csv reader

    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        taken.clear()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            # A quote that is never closed swallows the rows after it: the first line is bad, the rest is read again.
            (number, line), *rest = taken
            again.extendleft(reversed(rest))
            reader = csv.reader(texts(), delimiter=delimiter, strict=True)
            cells, problem, raw = [], RowError(f"broken quotes or cells: {error}"), line
        else:
            if cells is None:
                return
            number, problem, raw = taken[0][0], None, b"".join(line for _, line in taken)
            if not cells:
                continue
        if problem is None and not _is_unicode(cells):
            problem = RowError("not valid UTF-8")
        if header is None:
            header = _csv_header(cells, problem, source)
        elif problem is None and len(cells) != len(header):
            yield number, RowError(f"{len(cells)} cells, but the header has {len(header)}"), raw
        else:
            yield number, problem or dict(zip(header, cells)), raw


def _csv_header(cells: list[str], problem: RowError | None, source: str) -> list[str]:
    if problem is not None:
        raise UserError(f"{source}: the header is broken ({problem}); its first line must name the columns")
    header = [cell.strip() for cell in cells]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UserError(f"{source}: the header names {twice} twice; give every column its own name")
    return header


def _parquet_rows(file: Path) -> Iterator[_Row]:
    number = 0
    with pq.ParquetFile(file, page_checksum_verification=True) as table:
        for batch in table.iter_batches(batch_size=1024):
            for row in _python_rows(batch):
                number += 1
                yield number, row, row


def _python_rows(batch: pa.RecordBatch) -> list[Mapping | RowError]:
    try:
        return batch.to_pylist(maps_as_pydicts="strict")
    except (ValueError, KeyError, OverflowError) as error:
        if batch.num_rows == 1:  # invalid UTF-8 (Parquet does not check it), a map with one key twice, a far-off date
            return [RowError(f"cannot be read: {one_line(error)}")]
        return [row for i in range(batch.num_rows) for row in _python_rows(batch.slice(i, 1))]


_READERS = {
    ".jsonl": _json_rows,
    ".json": _json_rows,
    ".csv": partial(_csv_rows, delimiter=","),
    ".tsv": partial(_csv_rows, delimiter="\t"),
}


def _reader(file: str | os.PathLike):
    """What reads the file, by its suffix; None for an unknown one."""
    stem, suffix = os.path.splitext(str(file).lower())
    if suffix == ".parquet":
        return _parquet_rows
    return _READERS.get(os.path.splitext(stem)[1] if suffix == ".gz" else suffix)


def _suffixes() -> str:
    return f"{', '.join(_READERS)} (each also .gz), .parquet"


def _is_json(file: str | os.PathLike) -> bool:
    return _reader(file) is _json_rows


def _without_byte_order_mark(lines: Iterable[bytes]) -> Iterator[bytes]:
    for i, line in enumerate(lines):
        yield line.removeprefix(b"\xef\xbb\xbf") if i == 0 else line


def _is_unicode(cells: list[str]) -> bool:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return False
    return True


def _raw_text(raw) -> str:
    if isinstance(raw, bytes):
        text = raw[: 4 * _RAW_CHARACTERS].decode(errors="replace").rstrip("\r\n")
    elif isinstance(raw, RowError):
        text = ""
    else:
        text = json.dumps(raw, ensure_ascii=False, default=str, skipkeys=True)
    return text[:_RAW_CHARACTERS]
