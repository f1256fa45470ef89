"""Names of columns: the documented fields of a pair, and what a file calls them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from jax_rele.errors import UserError
from jax_rele.text import text_key
from jax_rele.types import ITEM_FIELDS, ReadOptions

FIELDS = (
    *("pair_id", "query", "item", "label", "locale", "split", "query_tags", "query_frequency", "long_tail"),
    *(f"item.{field}" for field in ("id", *ITEM_FIELDS, "attributes")),
)
"""The canonical names that `fields` maps to a file's names; `item.attributes.NAME` may be mapped as well."""

ATTRIBUTE = "item.attributes."

ABSENT = object()
"""Stands for the value of a column that a row lacks."""

_SHOWN = 20

_SEPARATORS = re.compile(r"[\s._\-]+")


@dataclass(frozen=True)
class ColumnNames:
    """For every canonical field the names to look for in a row, best first.

    `alike` is a field and several columns that differ from its name, and from each other, in spelling alone; None where
    there are none.
    """

    nested: Mapping[str, tuple[str, ...]]
    flat: Mapping[str, tuple[str, ...]]
    alike: tuple[str, tuple[str, ...]] | None = None


def column_names(row: Mapping, fields: Mapping[str, str]) -> ColumnNames:
    """The names to look for in a row: exact ones, and columns that differ from one in case, blanks and hyphens alone.

    Where several columns of a row differ from a name by no more than that, none of them is used. Names of which a row
    has no column are left out, but for item and attributes, whose parts may be columns of their own.
    """
    items, columns = tuple(fields.items()), tuple(row)
    nested = tuple((name, *row[name]) for name in item_columns(items, columns) if is_object(row[name]))
    return names_of_row(items, columns, nested)


def check_mapping(reading: ReadOptions, label_map: Mapping[str, str], label_names: Sequence[str]) -> None:
    """Raises UserError for a canonical name in the fields, or a label in `label_map`, that does not exist."""
    form = "FIELD=NAME" if reading.from_command else "{field: name in your file}"
    for name in reading.fields:
        if name not in FIELDS and not (name.startswith(ATTRIBUTE) and name != ATTRIBUTE):
            raise UserError(
                f"{reading.name_of('fields')}: {name!r} is no field of a pair; write {form} with a field of "
                f"{list(FIELDS)} or {ATTRIBUTE}NAME"
            )
    for theirs, label in label_map.items():
        if label not in label_names:
            raise UserError(
                f"{reading.name_of('aliases')}: {theirs!r} is mapped to {label!r}, which is none of {list(label_names)}"
            )


def check_columns(columns: Iterable[str], reading: ReadOptions, source: str, require_label: bool = False) -> None:
    """Raises UserError if no column can hold the query, the title or, where required, the label, or several a field."""
    columns = list(columns)
    names = _names_of_columns(tuple(reading.fields.items()), tuple(columns), ())
    if names.alike is not None:
        raise UserError(f"{source}: {words_of_alike(names.alike, reading)}")
    for field in ("query", "item.title", *(["label"] if require_label else [])):
        folded = {plain_name(column) for column in columns}
        inside = {plain_name(name.partition(".")[0]) for name in names.flat[field] if "." in name}
        if not set(names.flat[field]) & set(columns) and not inside & folded:
            raise missing_column(field, columns, reading, source)


def words_of_alike(alike: tuple[str, tuple[str, ...]], reading: ReadOptions) -> str:
    """What is wrong with columns that are `alike`, and how to mend it."""
    field, columns = alike
    return (
        f"the columns {list(columns)} differ in their spelling alone, and each may be the {field}; name the right one "
        f"in {reading.name_of('fields')}, or rename the other"
    )


def missing_column(field: str, columns: Sequence[str], reading: ReadOptions, source: str) -> UserError:
    """The error for a source without a column for a field."""
    # A header that another character divides comes as few long names.
    other = next((mark for mark in ";|\t" if any(mark in column for column in columns)), "")
    if not other and len(columns) == 1:
        marks = [mark for mark in re.findall(r"[^\w\s]|[\x00-\x1f ]", columns[0]) if mark not in "\"'.-_"]
        other = max(marks, key=marks.count, default="")
    fix = f"set {reading.name_of('delimiter')} to {other!r} if that divides the cells, or name" if other else "name"
    example = f" {field}=YOUR_COLUMN" if reading.from_command else f", e.g. {{{field}: YOUR_COLUMN}}"
    return UserError(
        f"{source}: no column holds the {field.rpartition('.')[2]}; the columns are {columns}; {fix} the right one "
        f"{'by' if reading.from_command else 'in'} {reading.name_of('fields')}{example}"
    )


def has_label_column(row: Mapping, reading: ReadOptions) -> bool:
    """Whether a row has a column for the label, if an empty one."""
    if "label" not in reading.fields and "label" in row:
        return True
    names = column_names(row, reading.fields).flat["label"]
    return any(name in row or name.partition(".")[0] in row for name in names)


def find_value(row: Mapping, names: Sequence[str], default=None):
    """The value of the first of `names` that the row has; a name may be a dotted path."""
    for name in names:
        value = get_value(row, name)
        if value is not ABSENT:
            return value
    return default


def get_value(row: Mapping, name: str):
    """The value of a column, or of a dotted path to a nested one; `ABSENT` where the row lacks it."""
    if name in row:
        return row[name]
    head, dot, rest = name.partition(".")
    if dot and (inner := row.get(head)) is not None and is_object(inner):
        return get_value(inner, rest)
    return ABSENT


def is_object(value: object) -> bool:
    """Whether a value is a mapping; rows have millions of values, and the general test is slow."""
    return type(value) is dict or (type(value) is not str and isinstance(value, Mapping))


@lru_cache(maxsize=1024)
def attribute_columns(columns: tuple[str, ...], names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """(column, name of its attribute) of the columns that are attributes: `names` are those of the whole object."""
    prefixes = [f"{name}.".casefold() for name in names]
    matched = ((column, next((p for p in prefixes if column[: len(p)].casefold() == p), "")) for column in columns)
    return tuple((column, column[len(prefix) :]) for column, prefix in matched if prefix)


class MappedFields:
    """The fields that the user has mapped and of which no row has had a column so far.

    A column of the field's own name does not count, though `parse_row` reads it: then the mapping is misspelt, and the
    user means another column. `optional` are mappings that need none.
    """

    def __init__(self, reading: ReadOptions, optional: Mapping[str, str] | None = None):
        self.reading = reading
        known = optional or {}
        self.unseen = {field: column for field, column in reading.fields.items() if known.get(field) != column}
        self.columns: dict[str, None] = {}

    def read(self, row: Mapping) -> None:
        """Notes the columns of a row, until each field has been seen."""
        if not self.unseen:
            return
        if len(self.columns) < 100:
            for name, value in row.items():
                inside = value if isinstance(value, Mapping) else ()
                self.columns.update(dict.fromkeys([f"{name}.{key}" for key in inside] or [name]))
        names = column_names(row, self.reading.fields)
        of_item = names.nested if isinstance(find_value(row, names.flat["item"]), Mapping) else names.flat
        for field in list(self.unseen):
            if _has_field(row, field, of_item if field.startswith("item.") else names.flat, self.unseen[field]):
                del self.unseen[field]

    def check(self, source: str) -> None:
        """Raises UserError for a mapped column that no row had; `source` is what was read, for the message."""
        for field, column in self.unseen.items():
            columns = ", ".join(map(repr, list(self.columns)[:_SHOWN])) + (
                ", ..." if len(self.columns) > _SHOWN else ""
            )
            raise UserError(
                f"{self.reading.name_of('fields')}: {field} is mapped to {column!r}, a column that no row of {source} "
                f"has; the columns are {columns}; write the right one, or leave {field} out"
            )


def _has_field(row: Mapping, field: str, names: Mapping[str, tuple[str, ...]], column: str) -> bool:
    inside = [f"{item}.{column}" for item in names["item"]] if field.startswith("item.") else []
    mapped = {plain_name(name) for name in (column, *inside)}
    known = names.get(field, ())  # an attribute of its own has none
    candidates = (column, *inside, *(name for name in known if plain_name(name) in mapped))
    if find_value(row, candidates, ABSENT) is not ABSENT:
        return True
    # The parts of an object may be columns of their own, as `product.title`.
    prefixes = tuple(f"{name}.".casefold() for name in candidates) if field in ("item", "item.attributes") else ()
    return bool(prefixes) and any(name.casefold().startswith(prefixes) for name in row)


def has_item_columns(columns: Iterable[str]) -> bool:
    """Whether a column is an item, or a field of one by its name (`item_id`, `Item Title`)."""
    return any(name == "item" or name.startswith("item_") for name in map(plain_name, columns))


@lru_cache(maxsize=1024)
def item_columns(items: tuple[tuple[str, str], ...], columns: tuple[str, ...]) -> tuple[str, ...]:
    """The columns that hold an item if they hold an object; `items` are those of the fields."""
    names = _names(items).flat["item"]
    return tuple(name for name in columns if name in names or (isinstance(name, str) and plain_name(name) == "item"))


@lru_cache(maxsize=4096)
def plain_name(name: str) -> str:
    """A column's name without what names may differ in: case, width, blanks, hyphens, dots and underscores."""
    return _SEPARATORS.sub("_", text_key(name))


@lru_cache(maxsize=1024)
def _names_of_columns(
    items: tuple[tuple[str, str], ...], columns: tuple[str, ...], nested: tuple[tuple[str, ...], ...]
) -> ColumnNames:
    """`nested` are columns that hold an item, each with the keys of the item after it."""
    exact = _names(items)
    known = {name for each in (exact.flat, exact.nested) for names in each.values() for name in names}
    known |= {theirs for _, theirs in items}
    similar: dict[str, list[str]] = defaultdict(list)
    paths = [f"{column}.{key}" for column, *keys in nested for key in keys]
    for column in dict.fromkeys((*(column for column in columns if isinstance(column, str)), *paths)):
        if column not in known:
            similar[plain_name(column)].append(column)

    def extended(names: tuple[str, ...]) -> tuple[str, ...]:
        spelled = (similar[folded] for folded in dict.fromkeys(map(plain_name, names)) if folded in similar)
        return (*names, *(each[0] for each in spelled if len(each) == 1))

    if not similar:
        return exact
    return ColumnNames(
        {field: extended(names) for field, names in exact.nested.items()},
        {field: extended(names) for field, names in exact.flat.items()},
        _alike(exact.nested if nested else exact.flat, {*columns, *paths}, similar),
    )


@lru_cache(maxsize=1024)
def names_of_row(
    items: tuple[tuple[str, str], ...], columns: tuple[str, ...], nested: tuple[tuple[str, ...], ...]
) -> ColumnNames:
    """`column_names` of a row of these columns; `nested` are its items, each column with the keys of the item."""
    names, present = _names_of_columns(items, columns, nested), set(columns)
    keys = {column: set(inside) for column, *inside in nested}

    def is_there(name: str) -> bool:
        head, _, rest = name.partition(".")
        if name in present or head not in keys:
            return name in present or head in present
        return rest in keys[head] or rest.partition(".")[0] in keys[head]

    def of_row(field: str, candidates: tuple[str, ...]) -> tuple[str, ...]:
        return candidates if field in ("item", "item.attributes") else tuple(filter(is_there, candidates))

    return ColumnNames(
        {field: of_row(field, candidates) for field, candidates in names.nested.items()},
        {field: of_row(field, candidates) for field, candidates in names.flat.items()},
        names.alike,
    )


def _alike(
    fields: Mapping[str, tuple[str, ...]], present: Collection[str], similar: Mapping[str, Sequence[str]]
) -> tuple[str, tuple[str, ...]] | None:
    """The first field without a column of exactly its name that has several by spelling."""
    for field, names in fields.items():
        if set(names).isdisjoint(present):
            for name in names:
                if len(columns := similar.get(plain_name(name), ())) > 1:
                    return field, tuple(columns)
    return None


@lru_cache(maxsize=8)
def _names(items: tuple[tuple[str, str], ...]) -> ColumnNames:
    fields = dict(items)
    used_names = set(fields.values())
    used_in_item = {theirs for field, theirs in fields.items() if field.startswith("item.")}

    def top(field: str, *canonical: str) -> tuple[str, ...]:
        mine = [fields[field]] if field in fields else []
        return (*mine, *(name for name in canonical if name not in used_names and name not in mine))

    nested, flat = {}, {}
    for field in FIELDS:
        if not field.startswith("item."):
            nested[field] = flat[field] = top(field, field)
    for field in FIELDS:
        if field.startswith("item."):
            key = field.removeprefix("item.")
            mine = [fields[field]] if field in fields else []
            inner = [*mine, *([] if key in used_in_item and key not in mine else [key])]
            paths = [f"{item}.{name}" for name in inner for item in nested["item"]]
            nested[field] = (*mine, *(path for path in paths if path not in used_names))
            flat[field] = tuple(dict.fromkeys((*nested[field], *top(field, "item_id" if key == "id" else key))))
    return ColumnNames(nested, flat)
