"""Rows of a source as a table of pairs, with the numbers by which duplicates, conflicts and splits are decided.

Rows with the same columns are read a column at a time. A row with a value that `parse_row` would not simply take over
is read by `parse_row` itself, alone; both ways give the same.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from operator import itemgetter

import numpy as np
import pyarrow as pa

from jax_rele.data.columns import (
    ATTRIBUTE,
    ColumnNames,
    attribute_columns,
    has_label_column,
    is_object,
    item_columns,
    names_of_row,
)
from jax_rele.data.markup import plain_text
from jax_rele.data.pairs import deduplicate
from jax_rele.data.pairs.splits import NO_SPLIT, query_key
from jax_rele.data.parquet import PAIRS, pairs_to_arrow
from jax_rele.data.rows import (
    RowError,
    id_text,
    is_text_id,
    joined_text,
    known_split,
    parse_attributes,
    parse_count,
    parse_label,
    parse_row,
    parse_tags,
    parse_truth,
    raw_text,
    stable_id,
    text_id,
)
from jax_rele.names import SPLITS
from jax_rele.text import drop_ignorable, is_visible, locale_key
from jax_rele.types import ITEM_FIELDS, Item, Pair, ReadOptions

FACTS = {
    "query": np.uint64,
    "judgement": np.uint64,
    "content": np.uint64,
    "by_text": np.bool_,
    "label": np.int16,
    "source_split": np.int8,
    "row": np.int64,
}
"""What is known of each pair while duplicates, conflicts and splits are decided, and its type.

`query` is its `query_key`, `judgement` a hash of query, item and locale, `content` one of the pair's content, `by_text`
whether the item's id is a hash of its text; `label` and `source_split` are indices, `row` is the number of its row.
"""

_WITHOUT_LABEL_COLUMN, _HTML, _INVISIBLE = "without_label_column", "rows_with_html", "with_invisible_characters"
_NO_ATTRIBUTES: tuple[tuple[str, str], ...] = ()
_PLAIN = {str, int, type(None)}
"""Types of values that are text as they are: blank, or its digits."""
_COMPARABLE = {str, int, bool, type(None)}
_query_key = lru_cache(1 << 16)(query_key)

Row = tuple[int, Mapping | RowError, object]
"""Row number, the row or what is wrong with it, and the raw row."""


@dataclass(frozen=True)
class Parsing:
    """How rows become pairs.

    Attributes:
      reading, label_map, label_names, with_split: as for `parse_row`.
      seed: of the splits.
      default_split: of rows that have none, or None.
    """

    reading: ReadOptions
    label_map: Mapping[str, str]
    label_names: tuple[str, ...]
    with_split: bool
    seed: int
    default_split: str | None = None


@dataclass
class ParsedRows:
    """What some rows are.

    Attributes:
      pairs: a table of the valid ones, in their order, with the schema `PAIRS`.
      facts: [len(pairs)] arrays, see `FACTS`.
      bad: row number, reason and raw text of each other row, in their order.
      counts: rows with HTML, with characters that are not shown, and without a column for the label.
      columns: the columns of the rows, each combination once, up to a hundred columns; empty where a row is valid.
      first_columns: of the first row that has columns.
    """

    pairs: pa.Table
    facts: dict[str, np.ndarray]
    bad: list[tuple[int, str, str]]
    counts: Counter[str]
    columns: list[tuple[str, ...]] = field(default_factory=list)
    first_columns: tuple[str, ...] | None = None


def parse_rows(rows: Sequence[Row], parsing: Parsing) -> ParsedRows:
    """Reads rows; each is a pair or bad."""
    items = tuple(parsing.reading.fields.items())
    bad: list[tuple[int, str, str]] = []
    alone: list[int] = []
    groups: dict[tuple, list[int]] = {}
    last: tuple[str, ...] | None = None
    names: tuple[str, ...] = ()
    for index, (_, row, _) in enumerate(rows):
        if type(row) is not dict:
            alone.append(index)
            continue
        columns = tuple(row)
        if columns != last:
            last, names = columns, item_columns(items, columns)
        objects = [name for name in names if is_object(row[name])]
        if not objects:
            groups.setdefault((columns, ()), []).append(index)
        elif len(objects) == 1 and type(row[objects[0]]) is dict:
            groups.setdefault((columns, ((objects[0], *row[objects[0]]),)), []).append(index)
        else:
            alone.append(index)
    counts: Counter[str] = Counter()
    parts: list[tuple[list[int], pa.Table, dict[str, np.ndarray]]] = []
    for (columns, nested), indices in groups.items():
        layout = _layout(items, columns, nested)
        # Ids that are hashes may be too long for texts of so few characters.
        if layout is None or 0 < parsing.reading.max_characters < 100:
            alone += indices
            continue
        group, slow = _parse_group([rows[index][1] for index in indices], layout, parsing, counts)
        alone += [indices[i] for i in slow]
        if slow:
            indices = [index for i, index in enumerate(indices) if i not in slow]
        if indices:
            table, facts = group
            parts.append((indices, table, facts))
    if alone:
        pairs: list[Pair] = []
        valid: list[int] = []
        for index in sorted(alone):
            number, row, raw = rows[index]
            pair = _parse_one(row, parsing, counts)
            if isinstance(pair, Pair):
                pairs.append(pair)
                valid.append(index)
            else:
                bad.append((number, str(pair), raw_text(raw)))
        if pairs:
            parts.append((valid, pairs_to_arrow(pairs), _facts(pairs, parsing)))
    table, facts = _in_order(parts, [number for number, _, _ in rows])
    with_columns = [row for _, row, _ in rows if not isinstance(row, RowError)]
    return ParsedRows(
        table,
        facts,
        bad,
        counts,
        [] if table.num_rows else _combinations(with_columns),
        tuple(with_columns[0]) if with_columns else None,
    )


def _combinations(rows: Iterable[Mapping]) -> list[tuple[str, ...]]:
    combinations: dict[tuple[str, ...], None] = {}
    columns: set[str] = set()
    for row in rows:
        if len(columns) >= 100:
            break
        combinations[tuple(row)] = None
        columns.update(row)
    return list(combinations)


def _in_order(
    parts: list[tuple[list[int], pa.Table, dict[str, np.ndarray]]], numbers: Sequence[int]
) -> tuple[pa.Table, dict[str, np.ndarray]]:
    """Tables of rows with the facts of each as one, by the indices of the rows, of which `numbers` are the numbers."""
    if not parts:
        return PAIRS.empty_table(), {name: np.zeros(0, kind) for name, kind in FACTS.items()}
    indices = np.concatenate([indices for indices, _, _ in parts])
    table, order = parts[0][1], np.arange(len(indices))
    if len(parts) > 1:
        order = np.argsort(indices)
        table = pa.concat_tables([table for _, table, _ in parts]).combine_chunks().take(pa.array(order))
    facts = {name: np.concatenate([facts[name] for _, _, facts in parts])[order] for name in FACTS if name != "row"}
    return table, facts | {"row": np.array(numbers, np.int64)[indices[order]]}


# ---- one row


def _parse_one(row: Mapping | RowError, parsing: Parsing, counts: Counter[str]) -> Pair | RowError:
    if isinstance(row, RowError):
        return row
    try:
        pair = parse_row(
            row,
            parsing.reading,
            label_map=parsing.label_map,
            label_names=parsing.label_names,
            with_split=parsing.with_split,
        )
    except RowError as error:
        return error
    if pair.label is None and not has_label_column(row, parsing.reading):
        counts[_WITHOUT_LABEL_COLUMN] += 1
    texts = (pair.query, *(getattr(pair.item, name) for name in ITEM_FIELDS))
    counts[_INVISIBLE] += any(map(_has_ignorable, texts))
    if parsing.reading.html == "keep":
        counts[_HTML] += any(map(_has_html, (*texts, *(text for _, text in pair.item.attributes))))
    return replace(pair, split=parsing.default_split) if parsing.default_split and pair.split is None else pair


def _facts(pairs: Sequence[Pair], parsing: Parsing) -> dict[str, np.ndarray]:
    keys = [_query_key(pair.query, parsing.seed) for pair in pairs]
    return {
        "query": np.array(keys, np.uint64),
        "judgement": np.array([judgement(key, pair.item.id, pair.locale) for key, pair in zip(keys, pairs)], np.uint64),
        "content": _hashes(map(_content, pairs)),
        "by_text": np.array([is_text_id(pair.item.id) for pair in pairs], np.bool_),
        "label": _label_indices([pair.label for pair in pairs], parsing),
        "source_split": _split_indices([pair.split for pair in pairs]),
    }


def _label_indices(labels: Iterable[str | None], parsing: Parsing) -> np.ndarray:
    index = {None: deduplicate.UNLABELLED} | {name: i for i, name in enumerate(parsing.label_names)}
    return np.array([index[label] for label in labels], np.int16)


def _split_indices(splits: Iterable[str | None]) -> np.ndarray:
    index: dict[str | None, int] = {None: NO_SPLIT} | {name: i for i, name in enumerate(SPLITS)}
    return np.array([index[split] for split in splits], np.int8)


def _hashes(texts: Iterable[str]) -> np.ndarray:
    digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def judgement(query: int, item_id: str, locale: str) -> int:
    """A hash of what is judged: query, item and locale."""
    return int(_hashes([f"{query}\x1f{item_id}\x1f{locale_key(locale)}"])[0])


def _content(pair: Pair) -> str:
    """A pair's content, which is hashed: the same on every machine."""
    item = pair.item
    rest = repr((item.attributes, pair.tags, pair.query_frequency, pair.long_tail))
    return "\x1f".join([pair.query, *(getattr(item, name) for name in ITEM_FIELDS), rest])


def _has_html(text: str) -> bool:
    """Whether a text holds HTML tags or entities."""
    return ("<" in text or "&" in text) and plain_text(text) != text


def _has_ignorable(text: str) -> bool:
    return drop_ignorable(text) != text


# ---- rows with the same columns


@dataclass(frozen=True)
class _Layout:
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
def _layout(
    items: tuple[tuple[str, str], ...], columns: tuple[str, ...], nested: tuple[tuple[str, ...], ...]
) -> _Layout | None:
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
    return _Layout(names, item, sources, attributes if has_attributes else None)


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


def _parse_group(
    rows: list, layout: _Layout, parsing: Parsing, counts: Counter[str]
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
        counts[_WITHOUT_LABEL_COLUMN] += sum(values["label"][i] is None for i in remaining)

    def select(column: list) -> list:
        return [column[i] for i in remaining] if slow else column

    texts = {
        name: [""] * len(remaining) if column is None else select(column.texts) for name, column in columns.items()
    }
    return _to_table(texts, {name: select(column) for name, column in values.items()}, parsing), slow


def _read_columns(
    rows: list, layout: _Layout, parsing: Parsing, slow: set[int]
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
    layout: _Layout,
    reading: ReadOptions,
    remaining: Sequence[int],
    slow: set[int],
) -> dict[str, int]:
    """The rows with characters that are not shown, and with HTML where it is kept."""
    invisible, with_html = set[int](), set[int]()
    for name in ("query", *(f"item.{name}" for name in ITEM_FIELDS)):
        if (column := columns[name]) is not None:
            invisible.update(i for i in column.odd if i not in slow and _has_ignorable(column.texts[i]))
            if column.has_markup and reading.html == "keep":
                with_html.update(i for i in remaining if _has_html(column.texts[i]))
    if layout.attributes is not None and reading.html == "keep":
        pairs = values["attributes"]
        with_html.update(i for i in remaining if any(_has_html(text) for _, text in pairs[i]))
    return {_INVISIBLE: len(invisible), _HTML: len(with_html)}


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

    keys = [_query_key(query, parsing.seed) for query in queries]
    locale_keys = {locale: locale_key(locale) for locale in set(locales)}
    rest = zip(attributes, tags, values["query_frequency"], values["long_tail"])
    contents = zip(queries, *fields, map(_repr, rest))
    facts = {
        "query": np.array(keys, np.uint64),
        "judgement": _hashes(
            [f"{key}\x1f{item_id}\x1f{locale_keys[locale]}" for key, item_id, locale in zip(keys, ids, locales)]
        ),
        "content": _hashes(map("\x1f".join, contents)),
        "by_text": np.array([item_id.startswith("item-") and is_text_id(item_id) for item_id in ids], np.bool_),
        "label": _label_indices(values["label"], parsing),
        "source_split": _split_indices(splits),
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
