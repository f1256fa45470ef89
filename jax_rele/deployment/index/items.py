"""Items to index: from files to distinct items, and as a table beside their vectors."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa

from jax_rele.data.columns import MappedFields, check_mapping, column_names, find_value, has_item_columns
from jax_rele.data.markup import plain_text
from jax_rele.data.rows import Quarantined, RowError, id_text, parse_row, raw_text
from jax_rele.data.sources.shards import open_shards, with_sample_fields
from jax_rele.errors import UserError
from jax_rele.io import hash_bytes
from jax_rele.text import is_visible
from jax_rele.types import ITEM_FIELDS, Item, ReadOptions

ITEMS = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("id", *ITEM_FIELDS)),
        pa.field("attributes", pa.map_(pa.string(), pa.field("value", pa.string(), nullable=False)), nullable=False),
        pa.field("text_hash", pa.string(), nullable=False),
    ]
)
"""Schema of a table of items; `text_hash` is of the text that the model reads."""


@dataclass(frozen=True)
class ReadItems:
    """What a file of items holds.

    Attributes:
      items: distinct by id, in the order in which each id first occurs; of several rows the last one.
      bad: the rows that are no item.
      n_rows: rows that are items.
      n_replaced: rows whose item a later row with the same id, but other content, replaced.
      queries: the distinct queries beside the items, in order.
      rows: (source, number) of the row of each item.
      bad_ids: ids in rows that are no item for another reason.
    """

    items: tuple[Item, ...]
    bad: tuple[Quarantined, ...]
    n_rows: int
    n_replaced: int
    queries: tuple[str, ...] = ()
    rows: tuple[tuple[str, int], ...] = ()
    bad_ids: frozenset[str] = frozenset()

    def without(self, unreadable: Mapping[int, str], path: str | os.PathLike) -> ReadItems:
        """The items but for those that a model cannot read, by index with what is wrong; they are bad rows.

        Raises:
          UserError: no item is left.
        """
        if not unreadable:
            return self
        bad = [
            Quarantined(*self.rows[index], f"the item: {reason}", raw_text(asdict(self.items[index])))
            for index, reason in unreadable.items()
        ]
        if len(bad) == len(self.items):
            raise UserError(f"{path}: none of its items can be read ({bad[0].named(os.fspath(path))})")
        items, rows = zip(*(each for index, each in enumerate(zip(self.items, self.rows)) if index not in unreadable))
        bad_ids = self.bad_ids | {self.items[index].id for index in unreadable}
        return replace(self, items=items, bad=(*self.bad, *bad), rows=rows, bad_ids=bad_ids)


def read_items(path: str | os.PathLike, reading: ReadOptions = ReadOptions()) -> ReadItems:
    """Reads items from JSONL, CSV, TSV or Parquet: rows of items, or of pairs with an `item`.

    Args:
      path: a file, folder or glob pattern, here or in another file system; or `sample`, the bundled one.
      reading: how it is read, and what it calls the fields of the pair format (`item`, `item.title`, ...).

    Raises:
      UserError: no such file, a damaged one, or no row is an item.
    """
    name = os.fspath(path)
    reading = with_sample_fields(name, reading)
    check_mapping(reading, {}, ())
    mapped = MappedFields(reading)
    items: dict[str, Item] = {}
    rows: dict[str, tuple[str, int]] = {}
    queries: dict[str, None] = {}
    bad: list[Quarantined] = []
    bad_ids: set[str] = set()
    n_rows = n_replaced = 0
    for shard in open_shards(name, reading, Path(".cache")):
        for number, row, raw in shard.rows():
            try:
                if isinstance(row, RowError):
                    raise row
                item_row = _item_row(row, reading)
                mapped.read({**row, **item_row})
                item = _parse_item(item_row, reading)
            except RowError as error:
                bad.append(Quarantined(shard.name, number, str(error), raw_text(raw)))
                bad_ids.update(_ids(row, reading))
                continue
            n_rows += 1
            n_replaced += item.id in items and items[item.id] != item
            items[item.id], rows[item.id] = item, (shard.name, number)
            if query := _query(row, reading):
                queries.setdefault(query)
    if not items:
        reason = f"none of its {len(bad)} rows is an item ({bad[0].named(name)})" if bad else "has no rows"
        raise UserError(
            f"{path}: {reason}; a row of items has an id and a title, one of pairs an item; map other names by "
            f"{reading.name_of('fields')}"
        )
    mapped.check(name)
    return ReadItems(
        tuple(items.values()), tuple(bad), n_rows, n_replaced, tuple(queries), tuple(rows.values()), frozenset(bad_ids)
    )


def _query(row: Mapping, reading: ReadOptions) -> str:
    """The query beside an item; empty where there is none."""
    names = column_names(row, reading.fields).flat["query"]
    text = next((row[name] for name in names if isinstance(row.get(name), str)), "")
    text = (plain_text(text) if reading.html == "text" else text).replace("\0", "").strip()
    return text if is_visible(text) else ""


def _item_row(row: Mapping, reading: ReadOptions) -> Mapping:
    """A row with an item. A row that has the fields of an item at its top is one."""
    if "item" not in reading.fields and not has_item_columns(row):
        attributes = {name: value for name, value in row.items() if name.casefold().startswith("attributes.")}
        return {"item": {name: value for name, value in row.items() if name not in attributes}} | {
            f"item.{name}": value for name, value in attributes.items()
        }
    return row


def _ids(row: Mapping | RowError, reading: ReadOptions) -> list[str]:
    """The item's id in a row that is bad for another reason, where it can be read."""
    if isinstance(row, RowError):
        return []
    try:
        row = _item_row(row, reading)
        names = column_names(row, reading.fields)
        is_nested = isinstance(find_value(row, names.flat["item"]), Mapping)
        item_id = id_text(find_value(row, (names.nested if is_nested else names.flat)["item.id"]), "item.id")
    except RowError:
        return []
    return [item_id] if item_id else []


def _parse_item(row: Mapping, reading: ReadOptions) -> Item:
    """The item of a row that has one."""
    row = {**row, reading.fields.get("query", "query"): "-"}
    return parse_row(row, reading, label_map={}, label_names=(), for_prediction=True).item


def text_hash(text: str) -> str:
    """The hash of what a model reads of an item."""
    return hash_bytes(text.encode())


def items_table(items: Sequence[Item], hashes: Iterable[str]) -> pa.Table:
    """Items as a table with the schema `ITEMS`."""
    columns: dict[str, list] = {name: [getattr(item, name) for item in items] for name in ("id", *ITEM_FIELDS)}
    return pa.Table.from_pydict(
        {**columns, "attributes": [list(item.attributes) for item in items], "text_hash": list(hashes)}, schema=ITEMS
    )


def table_items(table: pa.Table) -> list[Item]:
    """The items of a table with the schema `ITEMS`."""
    return [
        Item(**{name: row[name] for name in ("id", *ITEM_FIELDS)}, attributes=tuple(row["attributes"]))
        for row in table.select([name for name in ITEMS.names if name != "text_hash"]).to_pylist()
    ]
