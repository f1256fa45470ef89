"""Parquet tables: written whole or not at all, with checksums, and read with the damage named."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jax_rele.data.rows import Quarantined, one_line
from jax_rele.errors import UserError
from jax_rele.io import atomic_path, disk_is_full, refuse_placeholder, sync, write_error
from jax_rele.types import ITEM_FIELDS, Item, Pair, Tag


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_TEXT = pa.string()
_ATTRIBUTES = _required("attributes", pa.map_(_TEXT, _required("value", _TEXT)))
_ITEM = pa.struct([*(_required(field, _TEXT) for field in ("id", *ITEM_FIELDS)), _ATTRIBUTES])
WRITE_OPTIONS = {"compression": "zstd", "write_page_checksum": True}
"""How every table is written."""
ROWS = 4096
"""Rows of a row group of a table of pairs."""

PAIRS = pa.schema(
    [
        _required("pair_id", _TEXT),
        _required("query", _TEXT),
        _required("item", _ITEM),
        pa.field("label", _TEXT),
        _required("locale", _TEXT),
        pa.field("split", _TEXT),
        pa.field("tags", pa.list_(pa.struct([_required("text", _TEXT), _required("type", _TEXT)]))),
        pa.field("query_frequency", pa.int64()),
        pa.field("long_tail", pa.bool_()),
    ]
)
"""Schema of a table of pairs."""

OPTIONAL_PAIR_COLUMNS = ("long_tail",)
"""Columns of pairs that tables of earlier versions lack."""

QUARANTINE = pa.schema(
    [_required("source", _TEXT), _required("row", pa.int64()), _required("reason", _TEXT), _required("raw", _TEXT)]
)
"""Schema of the quarantined rows."""

RATIONALES = pa.schema([_required("pair_id", _TEXT), _required("text", _TEXT), _required("annotator", _TEXT)])
"""Schema of rationales: the text in the grammar, and who wrote it."""

REFERENCES = pa.schema(
    [
        _required("pair_id", _TEXT),
        _required("chosen_log_prob", pa.float32()),
        _required("rejected_log_prob", pa.float32()),
    ]
)
"""Schema of the log-probabilities of preferences by the reference, in nats."""


def write_table(path: str | os.PathLike, data: Iterable[Mapping] | Mapping[str, Iterable], schema: pa.Schema) -> None:
    """Writes a Parquet table in one step, see `open_atomically`.

    Args:
      path: the file.
      data: rows (mappings) or columns (a mapping of sequences), with just the names of the schema.
      schema: the columns; its metadata are written too.

    Raises:
      ValueError, TypeError: the data do not fit the schema.
    """
    rows = [data] if isinstance(data, Mapping) else list(data)
    for row in rows:
        if set(row) != set(schema.names):  # pyarrow would drop unknown names and fill in missing ones
            raise ValueError(f"the schema has the columns {schema.names}, the data {list(row)}")
    if isinstance(data, Mapping):
        table = pa.Table.from_pydict(dict(data), schema=schema)
    else:
        table = pa.Table.from_pylist(rows, schema=schema)
    with open_atomically(Path(path)) as file:
        pq.write_table(table, file, **WRITE_OPTIONS)


def join_tables(
    path: str | os.PathLike,
    parts: Iterable[str | os.PathLike],
    order: Sequence[int] | np.ndarray | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes the rows of tables of one schema as one table, in one step.

    Args:
      path: of the result.
      parts: the tables.
      order: the row of the joined parts that each row of the result is; by default they follow each other, and one
        part is in memory at a time.
      metadata: of the result; by default those of the first part.

    Raises:
      UserError: as `read_table`, for a part.
      ValueError: there are no parts, or their schemas differ.
    """
    read = map(read_table, parts)
    first = next(read, None)
    if first is None:
        raise ValueError(f"{path}: no parts to join")
    tables: Iterable[pa.Table] = itertools.chain([first], read)
    if order is not None:
        joined, order = pa.concat_tables(tables), np.asarray(order)
        tables = (joined.take(order[start : start + ROWS]) for start in range(0, len(order), ROWS))
    schema = first.schema if metadata is None else first.schema.with_metadata(dict(metadata))
    with open_atomically(Path(path)) as file, pq.ParquetWriter(file, schema, **WRITE_OPTIONS) as writer:
        for table in tables:
            writer.write_table(table.replace_schema_metadata(schema.metadata))


def write_batches(path: Path, tables: Iterable[pa.Table], schema: pa.Schema, rows: int = ROWS) -> int:
    """Writes tables one after the other as one, in one step, in row groups of `rows`; returns the number of rows.

    Raises:
      UserError: the disk is full.
    """
    with open_atomically(path) as file, pq.ParquetWriter(file, schema, **WRITE_OPTIONS) as writer:
        total, buffered, n_buffered = 0, [], 0
        for table in tables:
            buffered.append(table)
            n_buffered += table.num_rows
            total += table.num_rows
            if n_buffered >= rows:
                joined = pa.concat_tables(buffered)
                cut = n_buffered - n_buffered % rows
                writer.write_table(joined.slice(0, cut), row_group_size=rows)
                buffered, n_buffered = [joined.slice(cut)], n_buffered - cut
        if n_buffered:
            writer.write_table(pa.concat_tables(buffered), row_group_size=rows)
    return total


@contextmanager
def new_files(folder: Path) -> Iterator[Path]:
    """A folder inside `folder` whose content is moved there when all of it has been written; otherwise it is removed.

    What was there under the same names is replaced. What a killed process left of such a folder is removed.

    Raises:
      UserError: the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".making-*"):
        shutil.rmtree(stale, ignore_errors=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".making-", dir=folder) as temporary:
            yield Path(temporary)
            for path in sorted(Path(temporary).iterdir()):
                target = folder / path.name
                if target.is_dir():
                    shutil.rmtree(target)
                os.replace(path, target)
            sync(folder)
    except Exception as error:
        if isinstance(error, UserError) or not disk_is_full(error):
            raise
        raise write_error(folder, error) from error


@contextmanager
def open_atomically(path: Path) -> Iterator[IO[bytes]]:
    """A file that replaces `path` when all of it is on disk, see `io.atomic_path`; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        yield file


@contextmanager
def reading_table(path: str | os.PathLike) -> Iterator[None]:
    """Turns what a missing or damaged table raises into a UserError, and refuses what stands for another file."""
    refuse_placeholder(Path(path))
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such table; run the stage that writes it") from None
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(
            f"{path}: the table is damaged ({one_line(error)}); delete it and run the stage again"
        ) from error


def fill_missing(table: pa.Table, schema: pa.Schema, optional: Collection[str]) -> pa.Table:
    """The table with nulls for those of its optional columns that it lacks."""
    for name in optional:
        if name not in table.column_names:
            table = table.append_column(schema.field(name), pa.nulls(table.num_rows, schema.field(name).type))
    return table


def read_table(path: str | os.PathLike, schema: pa.Schema | None = None, optional: Collection[str] = ()) -> pa.Table:
    """Reads a Parquet table.

    Args:
      path: the file.
      schema: the columns to return, cast to its types; None for all as they are. The file's metadata are kept.
      optional: columns of the schema that the file may lack; they are then nulls.

    Raises:
      UserError: no such file, a damaged one, or one without the columns of the schema.
    """
    with reading_table(path):
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
        table.validate(full=True)  # the checksums do not cover the footer; also finds invalid UTF-8
    if schema is None:
        return table
    missing = [name for name in schema.names if name not in (*table.column_names, *optional)]
    if missing:
        raise UserError(
            f"{path}: the table has no column {missing}, only {table.column_names}; check that it is the right file"
        )
    table = fill_missing(table, schema, optional)
    try:
        return table.select(schema.names).cast(schema).replace_schema_metadata(table.schema.metadata)
    except (ValueError, pa.ArrowException) as error:
        raise UserError(
            f"{path}: the columns have other types than expected ({one_line(error)}); write the table again"
        ) from error


def read_schema(path: str | os.PathLike) -> pa.Schema:
    """The columns and metadata of a Parquet file. Raises UserError for a missing or damaged one."""
    refuse_placeholder(Path(path))
    try:
        return pq.read_schema(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: no Parquet file ({one_line(error)}); if it is damaged, write it again") from error


def write_pairs(path: str | os.PathLike, pairs: Iterable[Pair]) -> None:
    """Writes pairs as a table, a row group at a time; `read_pairs_table` gives back the same ones.

    Raises:
      UserError: the disk is full.
    """
    write_batches(Path(path), map(pairs_to_arrow, in_chunks(pairs, ROWS)), PAIRS)


def write_pair_tables(path: Path, tables: Iterable[pa.Table], pairs: Iterable[Pair] = ()) -> None:
    """Writes tables of pairs, and pairs after them, as `write_pairs` writes the pairs of both.

    Raises:
      UserError: the disk is full.
    """
    write_batches(path, _in_row_groups(itertools.chain(tables, map(pairs_to_arrow, in_chunks(pairs, ROWS)))), PAIRS)


def _in_row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Tables of `ROWS` rows, the last one of what is left; each column in one piece, as that decides its pages."""
    buffered, n_rows = [], 0
    for table in tables:
        buffered.append(table)
        n_rows += table.num_rows
        while n_rows >= ROWS:
            joined = pa.concat_tables(buffered)
            yield joined.slice(0, ROWS).combine_chunks()
            buffered, n_rows = [joined.slice(ROWS)], n_rows - ROWS
    if n_rows:
        yield pa.concat_tables(buffered).combine_chunks()


def read_pairs_table(path: str | os.PathLike) -> list[Pair]:
    """Reads a table of pairs. Raises UserError as `read_table` does."""
    table = read_table(path, PAIRS, optional=OPTIONAL_PAIR_COLUMNS)
    return [pair for batch in table.to_batches(max_chunksize=ROWS) for pair in pairs_from_arrow(batch)]


def in_chunks(values: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` values, the last one of what is left."""
    values = iter(values)
    while chunk := list(itertools.islice(values, size)):
        yield chunk


def pairs_to_arrow(pairs: Sequence[Pair]) -> pa.Table:
    """Pairs as a table with the schema `PAIRS`."""
    items = [pair.item for pair in pairs]
    item = PAIRS.field("item").type
    columns = {field.name: pa.array([getattr(item, field.name) for item in items], field.type) for field in item}
    arrays = {name: [getattr(pair, name) for pair in pairs] for name in PAIRS.names if name not in ("item", "tags")}
    arrays["item"] = pa.StructArray.from_arrays(list(columns.values()), fields=list(item))
    arrays["tags"] = [None if pair.tags is None else [vars(tag) for tag in pair.tags] for pair in pairs]
    return pa.Table.from_pydict(arrays, schema=PAIRS)


def pairs_from_arrow(batch: pa.RecordBatch | pa.Table) -> list[Pair]:
    """The pairs of a table with the schema `PAIRS`."""
    return [
        Pair(
            **{
                **row,
                "item": Item(**{**row["item"], "attributes": tuple(row["item"]["attributes"])}),
                "tags": None if row["tags"] is None else tuple(Tag(**tag) for tag in row["tags"]),
            }
        )
        for row in batch.to_pylist()
    ]


def write_quarantine(path: str | os.PathLike, bad: Iterable[Quarantined]) -> None:
    """Writes quarantined rows; a table without rows if there are none."""
    write_table(path, map(asdict, bad), QUARANTINE)
