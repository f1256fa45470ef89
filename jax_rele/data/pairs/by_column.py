"""Rows with the same columns, read a column at a time: texts as columns of texts, equal values once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter

import numpy as np
import pyarrow as pa

from jax_rele.data.columns import ATTRIBUTE, ColumnNames, attribute_columns, has_label_column, names_of_row
from jax_rele.data.markup import plain_text
from jax_rele.data.pairs.facts import (
    HTML,
    INVISIBLE,
    WITHOUT_LABEL_COLUMN,
    Parsing,
    cached_query_key,
    has_html,
    has_ignorable,
    hashes,
    label_indices,
    split_indices,
)
from jax_rele.data.parquet import PAIRS
from jax_rele.data.rows import (
    RowError,
    id_text,
    is_text_id,
    joined_text,
    known_split,
    parse_attributes,
    parse_count,
    parse_label,
    parse_tags,
    parse_truth,
    stable_id,
    text_id,
)
from jax_rele.text import is_visible, locale_key
from jax_rele.types import ITEM_FIELDS, Item, ReadOptions

_NO_ATTRIBUTES: tuple[tuple[str, str], ...] = ()
_PLAIN = {str, int, type(None)}
"""Types of values that are text as they are: blank, or its digits."""
_COMPARABLE = {str, int, bool, type(None)}


@dataclass(frozen=True)
class ColumnLayout:
    """Where rows of some columns have their fields.

    Attributes:
      names: of the columns to look for.
      item: the column of the item, or None where its fields are columns.
      sources: field -> whether it is one of the item, and its key there or its column; absent ones are left out.
      attributes: the columns that attributes may be in, None where there are none.
    """

    names: ColumnNames
    item: str | None
    sources: Mapping[str, tuple[bool, str]]
    attributes: tuple[str, ...] | None


@lru_cache(maxsize=1024)
def find_layout(
    items: tuple[tuple[str, str], ...], columns: tuple[str, ...], nested: tuple[tuple[str, ...], ...]
) -> ColumnLayout | None:
    """None where columns do not say by themselves where the fields are, or no row of them can be a pair."""
    names = names_of_row(items, columns, nested)
    if names.alike is not None:
        return None
    item, keys = (nested[0][0], nested[0][1:]) if nested else (None, ())
    candidates = {name: names.flat[name] for name in ("query", "locale", "pair_id", "split", "label")}
    candidates |= {name: names.flat[name] for name in ("query_tags", "query_frequency", "long_tail")}
    of_item = names.nested if nested else names.flat
    candidates |= {f"item.{name}": of_item[f"item.{name}"] for name in ("id", *ITEM_FIELDS, "attributes")}
    sources: dict[str, tuple[bool, str]] = {}
    try:
        for name, columns_of_field in candidates.items():
            if (source := _source(columns_of_field, columns, item, keys)) is not None:
                sources[name] = source
        whole = _source(names.flat["item"], columns, item, keys)
    except LookupError:
        return None
    if whole != ((False, item) if nested else None) or not {"query", "item.title"} <= sources.keys():
        return None
    attributes = of_item["item.attributes"]
    has_attributes = (
        "item.attributes" in sources
        or attribute_columns(columns, attributes)
        or any(name.startswith(ATTRIBUTE) for name, _ in items)
    )
    return ColumnLayout(names, item, sources, attributes if has_attributes else None)


def _source(
    names: Sequence[str], columns: tuple[str, ...], item: str | None, keys: tuple[str, ...]
) -> tuple[bool, str] | None:
    """Where `find_value` finds the first of some names. Raises LookupError where that depends on a row's values."""
    for name in names:
        if name in columns:
            return False, name
        head, dot, rest = name.partition(".")
        if not dot or head not in columns:
            continue
        if head != item:
            raise LookupError(head)
        if rest in keys:
            return True, rest
        if "." in rest and rest.partition(".")[0] in keys:
            raise LookupError(rest)
    return None


class _Texts:
    """A text column: the texts without white space around them.

    Attributes:
      odd: the indices of those that are not all printable ASCII.
    """

    def __init__(self, values: list, slow: set[int]):
        kinds = set(map(type, values))
        if kinds != {str}:
            if not kinds <= _PLAIN:
                slow.update(i for i, value in enumerate(values) if type(value) not in _PLAIN)
            values = [v if type(v) is str else str(v) if type(v) is int else "" for v in values]
        self.texts: list[str] = list(map(str.strip, values))
        joined = "".join(self.texts)
        self.odd: list[int] = []
        if not (joined.isascii() and joined.isprintable()):
            self.odd = [i for i, text in enumerate(self.texts) if not (text.isascii() and text.isprintable())]
        self.has_markup = "<" in joined or "&" in joined
        self.has_points = "." in joined or "+" in joined or "-" in joined
        if self.odd and ("\0" in joined or not _is_unicode(joined)):
            slow.update(i for i in self.odd if "\0" in self.texts[i] or not _is_unicode(self.texts[i]))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_columns(
    rows: list, layout: ColumnLayout, parsing: Parsing, counts: Counter[str]
) -> tuple[tuple[pa.Table, dict[str, np.ndarray]], set[int]]:
    """Reads rows of one layout a column at a time.

    Returns:
      The table and the facts of those that are read, and the indices of the others.
    """
    slow = set[int]()
    columns, values = _read_columns(rows, layout, parsing, slow)
    remaining = [i for i in range(len(rows)) if i not in slow]
    counts.update(_count(columns, values, layout, parsing.reading, remaining, slow))
    if None in values["label"] and not has_label_column(rows[0], parsing.reading):
        counts[WITHOUT_LABEL_COLUMN] += sum(values["label"][i] is None for i in remaining)

    def select(column: list) -> list:
        return [column[i] for i in remaining] if slow else column

    texts = {
        name: [""] * len(remaining) if column is None else select(column.texts) for name, column in columns.items()
    }
    return _to_table(texts, {name: select(column) for name, column in values.items()}, parsing), slow


def _read_columns(
    rows: list, layout: ColumnLayout, parsing: Parsing, slow: set[int]
) -> tuple[dict[str, _Texts | None], dict[str, list]]:
    """The columns of texts, None for absent ones, and those of other values; rows that need more go to `slow`."""
    reading = parsing.reading
    objects = list(map(itemgetter(layout.item), rows)) if layout.item is not None else []

    def raw(name: str) -> list | None:
        if (source := layout.sources.get(name)) is None:
            return None
        is_inside, column = source
        return list(map(itemgetter(column), objects if is_inside else rows))

    def texts(name: str) -> _Texts | None:
        read = raw(name)
        if read is not None and name == "item.bullets" and not set(map(type, read)).isdisjoint((list, tuple)):
            read = _each(
                read, lambda value: joined_text(value, name) if isinstance(value, list | tuple) else value, slow
            )
        return None if read is None else _Texts(read, slow)

    def each(name: str, parse: Callable) -> list:
        read = raw(name)
        return [None] * len(rows) if read is None else _each(read, parse, slow)

    columns = {name: texts(name) for name in ("query", "locale", "pair_id", "item.id")}
    columns |= {f"item.{name}": texts(f"item.{name}") for name in ITEM_FIELDS}
    split_column = texts("split") if parsing.with_split else None
    for name in ("query", "item.title"):
        _check_visible(columns[name], slow)
    for name in ("pair_id", "item.id"):
        _read_ids(columns[name], name, slow)
    labels = each(
        "label", lambda value: parse_label(value, parsing.label_map, parsing.label_names, reading.name_of("aliases"))
    )
    tags = each("query_tags", lambda value: None if type(value) is str and not value else parse_tags(value))
    frequencies = each("query_frequency", lambda value: parse_count(value, "query_frequency"))
    rare = each("long_tail", lambda value: parse_truth(value, "long_tail"))
    splits: list[str | None] = [None] * len(rows)
    if split_column is not None:
        splits = _each(split_column.texts, _read_split, slow)
    attributes = [_NO_ATTRIBUTES] * len(rows)
    if layout.attributes is not None:
        clean = plain_text if reading.html == "text" else str
        whole, candidates = layout.names.flat["item"], layout.attributes
        attributes = _each(rows, lambda row: parse_attributes(row, candidates, whole, reading.fields, clean), slow)
    most = reading.max_characters
    for column in columns.values():
        if column is None:
            continue
        if most and max(map(len, column.texts)) > most:
            slow.update(i for i, text in enumerate(column.texts) if len(text) > most)
        if reading.html == "text" and column.has_markup:
            slow.update(i for i, text in enumerate(column.texts) if "<" in text or "&" in text)
    if most:
        for i, (pairs, segments) in enumerate(zip(attributes, tags)):
            if (pairs or segments) and i not in slow:
                longest = [*(len(text) for pair in pairs for text in pair)]
                longest += [len(text) for tag in segments or () for text in (tag.text, tag.type)]
                if longest and max(longest) > most:
                    slow.add(i)

    others = {"label": labels, "tags": tags, "query_frequency": frequencies, "long_tail": rare}
    return columns, others | {"split": splits, "attributes": attributes}


def _count(
    columns: Mapping[str, _Texts | None],
    values: Mapping[str, list],
    layout: ColumnLayout,
    reading: ReadOptions,
    remaining: Sequence[int],
    slow: set[int],
) -> dict[str, int]:
    """The rows with characters that are not shown, and with HTML where it is kept."""
    invisible, with_html = set[int](), set[int]()
    for name in ("query", *(f"item.{name}" for name in ITEM_FIELDS)):
        if (column := columns[name]) is not None:
            invisible.update(i for i in column.odd if i not in slow and has_ignorable(column.texts[i]))
            if column.has_markup and reading.html == "keep":
                with_html.update(i for i in remaining if has_html(column.texts[i]))
    if layout.attributes is not None and reading.html == "keep":
        pairs = values["attributes"]
        with_html.update(i for i in remaining if any(has_html(text) for _, text in pairs[i]))
    return {INVISIBLE: len(invisible), HTML: len(with_html)}


def _to_table(
    read: dict[str, list[str]], values: Mapping[str, list], parsing: Parsing
) -> tuple[pa.Table, dict[str, np.ndarray]]:
    """Columns of texts and of other values as a table and facts; makes the ids that are missing."""
    fields = [read[f"item.{name}"] for name in ITEM_FIELDS]
    queries, locales, attributes, tags = read["query"], read["locale"], values["attributes"], values["tags"]
    if "" in read["item.id"]:
        read["item.id"] = [
            item_id or text_id(Item("", **dict(zip(ITEM_FIELDS, texts)), attributes=pairs))
            for item_id, texts, pairs in zip(read["item.id"], zip(*fields), attributes)
        ]
    ids = read["item.id"]
    if "" in read["pair_id"]:
        read["pair_id"] = [
            pair_id or stable_id("pair", query, item_id, *([locale] if locale else []))
            for pair_id, query, item_id, locale in zip(read["pair_id"], queries, ids, locales)
        ]
    splits = values["split"]
    if parsing.default_split:
        splits = [split or parsing.default_split for split in splits]

    keys = [cached_query_key(query, parsing.seed) for query in queries]
    locale_keys = {locale: locale_key(locale) for locale in set(locales)}
    rest = zip(attributes, tags, values["query_frequency"], values["long_tail"])
    contents = zip(queries, *fields, map(_repr, rest))
    facts = {
        "query": np.array(keys, np.uint64),
        "judgement": hashes(
            [f"{key}\x1f{item_id}\x1f{locale_keys[locale]}" for key, item_id, locale in zip(keys, ids, locales)]
        ),
        "content": hashes(map("\x1f".join, contents)),
        "by_text": np.array([item_id.startswith("item-") and is_text_id(item_id) for item_id in ids], np.bool_),
        "label": label_indices(values["label"], parsing),
        "source_split": split_indices(splits),
    }
    item_type = PAIRS.field("item").type
    of_item = [ids, *fields, attributes]
    arrays: list[pa.Array] = [pa.array(column, kind.type) for column, kind in zip(of_item, item_type)]
    table = {
        "pair_id": read["pair_id"],
        "query": queries,
        "item": pa.StructArray.from_arrays(arrays, fields=list(item_type)),
        "label": values["label"],
        "locale": locales,
        "split": splits,
        "tags": [None if segments is None else [vars(tag) for tag in segments] for segments in tags],
        "query_frequency": values["query_frequency"],
        "long_tail": values["long_tail"],
    }
    return pa.Table.from_pydict(table, schema=PAIRS), facts


def _each(values: list, parse: Callable, slow: set[int]) -> list:
    """The values parsed, equal ones once; those that are bad go to the slow ones."""
    kinds = set(map(type, values))
    # Of several types, equal values may differ, as 1 and True.
    if kinds <= _COMPARABLE and len(kinds - {type(None)}) <= 1:
        known = {}
        for value in set(values):
            try:
                known[value] = parse(value), True
            except RowError:
                known[value] = None, False
        if not all(is_good for _, is_good in known.values()):
            slow.update(i for i, value in enumerate(values) if not known[value][1])
        return [known[value][0] for value in values]
    parsed = []
    for i, value in enumerate(values):
        try:
            parsed.append(parse(value))
        except RowError:
            parsed.append(None)
            slow.add(i)
    return parsed


def _read_split(text: str) -> str | None:
    split = known_split(text)
    if text and split is None:
        raise RowError(text)
    return split


def _check_visible(column: _Texts | None, slow: set[int]) -> None:
    if column is not None:
        slow.update(i for i in column.odd if not is_visible(column.texts[i]))
        if "" in column.texts:
            slow.update(i for i, text in enumerate(column.texts) if not text)


def _read_ids(column: _Texts | None, name: str, slow: set[int]) -> None:
    if column is None:
        return
    for i, text in enumerate(column.texts) if column.has_points else [(i, column.texts[i]) for i in column.odd]:
        if i not in slow:
            try:
                column.texts[i] = id_text(text, name)
            except RowError:
                slow.add(i)


@lru_cache(maxsize=1 << 12)
def _repr(values: tuple) -> str:
    return repr(values)
