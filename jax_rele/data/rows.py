"""The documented pair format: one row, as a mapping of names to values, to one `Pair`.

A row of JSONL:

    {"pair_id"?, "query", "item": {"id"?, "title", "brand"?, "color"?, "category"?, "bullets"?, "description"?,
     "attributes"?: {name: value}}, "label"?, "locale"?, "split"?, "query_tags"?: {"tokens": [..], "labels": [BIO..]},
     "query_frequency"?, "long_tail"?}

A flat row (CSV, TSV, Parquet) spells the fields of the item with a dot (`item.title`, `item.attributes.size`) or bare
(`title`, `attributes.size`, and `item_id` for `item.id`). `attributes` and `query_tags` may be JSON objects as text.
Null, NaN and blank text mean that a value is missing. Text loses NUL characters and surrounding white space alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import numbers
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import chain

from jax_rele.data.columns import (
    ABSENT,
    ATTRIBUTE,
    ColumnNames,
    attribute_columns,
    column_names,
    find_value,
    is_object,
    words_of_alike,
)
from jax_rele.data.markup import plain_text
from jax_rele.names import SPLITS
from jax_rele.text import LARGEST_EXACT_FLOAT, drop_ignorable, is_visible, text_key, whole_number
from jax_rele.types import ITEM_FIELDS, Item, Pair, ReadOptions, Tag

_SPLIT_SYNONYMS = dict.fromkeys(("valid", "val", "dev"), "validation")

_ITEM = "item"
_TEXT_ID = re.compile(f"{_ITEM}-[0-9a-f]{{20}}")
_ROUNDED = re.compile(r"-?(?:\d(?:\.\d+)?[eE]\+\d+|\d\.\d+[eE]\d+|\d{16,}\.0+)")
"""How spreadsheets and float columns write numbers that are too long for them."""
_WHOLE = re.compile(r"([+-]?\d+)\.0+")
_QUANTITIES = ("label", "long_tail", "query_frequency")
"""Fields for which a number of JSON is its value, and not how it is written."""
_TRUTHS = dict.fromkeys(("true", "yes", "1", "1.0"), True) | dict.fromkeys(("false", "no", "0", "0.0"), False)

_RAW_CHARACTERS = 500


class WrittenFloat(float):
    """A float of JSON that keeps how it was written, so that a text made of it is that of a CSV cell: `1.10`, `1e3`."""

    __slots__ = ("written",)
    written: str

    def __new__(cls, written: str) -> WrittenFloat:
        value = super().__new__(cls, written)
        value.written = written
        return value


class RoundedFloat(float):
    """A whole number from a column of 16 or 32 bits in which it has no room of its own: others look the same."""


class RowError(ValueError):
    """Why one row is no valid pair."""


@dataclass(frozen=True)
class Quarantined:
    """A quarantined row.

    Attributes:
      source: the file, or the split of a data set.
      row: the line in a text file, the row elsewhere, both counted from 1.
      reason: what is wrong.
      raw: the first characters of the row.
    """

    source: str
    row: int
    reason: str
    raw: str

    def named(self, source: str) -> str:
        """Its row and reason, and its file where that is not the `source` of a message."""
        return f"row {self.row}{'' if self.source == source else f' of {self.source}'}: {self.reason}"


def known_split(name: str) -> str | None:
    """The split that a name or a synonym of it (`valid`, `val`, `dev`) stands for; None for any other name."""
    split = _SPLIT_SYNONYMS.get(name.lower(), name.lower())
    return split if split in SPLITS else None


def stable_id(prefix: str, *parts) -> str:
    """`PREFIX-` and 80 bits of a hash of `parts` (JSON values) in hexadecimal: the same on every machine and run."""
    return f"{prefix}-{hashlib.blake2b(json.dumps(parts).encode(), digest_size=10).hexdigest()}"


def text_id(item: Item) -> str:
    """The id of an item that has none of its own: a hash of what its texts say, see `text.text_key`."""
    attributes = sorted((text_key(name), text_key(value)) for name, value in item.attributes)
    return stable_id(_ITEM, *(text_key(getattr(item, field)) for field in ITEM_FIELDS), attributes)


def is_text_id(item_id: str) -> bool:
    """Whether an id looks like one that `text_id` made."""
    return _TEXT_ID.fullmatch(item_id) is not None


def one_line(error: Exception) -> str:
    """A library's message, which may span lines, for use inside a message of ours."""
    return " ".join(str(error).split())[:200]


def parse_row(
    row: Mapping,
    reading: ReadOptions = ReadOptions(),
    *,
    label_map: Mapping[str, str],
    label_names: Sequence[str],
    require_label: bool = False,
    for_prediction: bool = False,
    with_split: bool = True,
) -> Pair:
    """Turns one row into a pair.

    A missing `item.id` becomes a hash of the item's text, a missing `pair_id` a hash of query, item id and locale.

    Args:
      row: nested or flat.
      reading: its `fields` are canonical name -> name in the row (a key, or a dotted path to a nested one; a field of
        the item may also be named by its key inside the item). A name that the row lacks falls back to the canonical
        one, unless `fields` gives that column to another field. Longer texts than its `max_characters` are refused.
      label_map: label in the row -> name of the label schema.
      label_names: the label schema; its names are always accepted as they are.
      require_label: refuse a row without label.
      for_prediction: read query, item, `pair_id` and locale alone.
      with_split: whether the row's split is read.

    Raises:
      RowError: the row is no valid pair.
    """
    names = column_names(row, reading.fields)
    if names.alike is not None:
        raise RowError(words_of_alike(names.alike, reading))
    clean = plain_text if reading.html == "text" else str
    item = _parse_item(row, names, reading, clean)
    query = _cleaned(_required(find_value(row, names.flat["query"]), "query"), "query", clean)
    locale = _text(find_value(row, names.flat["locale"]), "locale")
    pair_id = id_text(find_value(row, names.flat["pair_id"]), "pair_id")
    pair_id = pair_id or stable_id("pair", query, item.id, *([locale] if locale else []))
    if for_prediction:
        return _checked(Pair(pair_id, query, item, locale=locale), reading)
    split = _text(find_value(row, names.flat["split"]), "split") if with_split else ""
    split_name = known_split(split)
    if split and split_name is None:
        raise RowError(
            f"unknown split {_shown(split.lower())}: must be one of {list(SPLITS)}, or set data.splits.existing: ignore"
        )
    label = parse_label(find_value(row, names.flat["label"]), label_map, label_names, reading.name_of("aliases"))
    if require_label and label is None:
        raise RowError("missing label")
    pair = Pair(
        pair_id=pair_id,
        query=query,
        item=item,
        label=label,
        locale=locale,
        split=split_name,
        tags=parse_tags(find_value(row, names.flat["query_tags"])),
        query_frequency=parse_count(find_value(row, names.flat["query_frequency"]), "query_frequency"),
        long_tail=parse_truth(find_value(row, names.flat["long_tail"]), "long_tail"),
    )
    return _checked(pair, reading)


def _checked(pair: Pair, reading: ReadOptions) -> Pair:
    """The pair. Raises RowError where one of its texts is longer than texts may be."""
    item = pair.item
    texts = [pair.pair_id, pair.query, pair.locale, item.id, *(getattr(item, field) for field in ITEM_FIELDS)]
    texts += chain(*item.attributes, *((tag.text, tag.type) for tag in pair.tags or ()))
    longest = max(map(len, texts))
    most = reading.max_characters
    if most and longest > most:
        raise RowError(f"a text of {longest} characters, more than {reading.name_of('max_characters')} {most}")
    return pair


def _cleaned(text: str, name: str, clean: Callable[[str], str]) -> str:
    cleaned = clean(text).strip()
    if not is_visible(cleaned):
        raise RowError(f"the {name} holds nothing but HTML")
    return cleaned


def _parse_item(row: Mapping, names: ColumnNames, reading: ReadOptions, clean: Callable[[str], str]) -> Item:
    value = find_value(row, names.flat["item"])
    if value is not None and not is_object(value):
        raise RowError(
            f"item must be an object, got {type(value).__name__}; give a plain column its field, as item.title, by "
            f"{reading.name_of('fields')}"
        )
    candidates = names.flat if value is None else names.nested
    raw_values = {field: find_value(row, candidates[f"item.{field}"], ABSENT) for field in ("id", *ITEM_FIELDS)}
    if value is None and all(text is ABSENT for text in raw_values.values()):
        raise RowError("missing item")
    raw_values = {field: None if text is ABSENT else text for field, text in raw_values.items()}
    if isinstance(raw_values["bullets"], list | tuple):
        raw_values["bullets"] = joined_text(raw_values["bullets"], "item.bullets")
    texts = {field: _text(text, f"item.{field}") for field, text in raw_values.items() if field != "id"}
    texts["id"] = id_text(raw_values["id"], "item.id")
    _required(raw_values["title"], "title")
    texts |= {field: clean(texts[field]).strip() for field in ITEM_FIELDS}
    _cleaned(texts["title"], "title", clean)
    attributes = parse_attributes(row, candidates["item.attributes"], names.flat["item"], reading.fields, clean)
    item = Item(**texts, attributes=attributes)
    return item if item.id else replace(item, id=text_id(item))


def parse_attributes(
    row: Mapping,
    candidates: Sequence[str],
    items: Sequence[str],
    fields: Mapping[str, str],
    clean: Callable[[str], str],
) -> tuple[tuple[str, str], ...]:
    values = list((_parse_object(find_value(row, candidates), "item.attributes") or {}).items())
    values += [(name, row[column]) for column, name in attribute_columns(tuple(row), tuple(candidates))]
    mapped = {
        field.removeprefix(ATTRIBUTE): value
        for field, column in fields.items()
        if field.startswith(ATTRIBUTE)
        and (value := find_value(row, (column, *(f"{item}.{column}" for item in items)), ABSENT)) is not ABSENT
    }
    attributes: dict[str, str] = {}
    for name, value in (*values, *mapped.items()):
        key = _required(name, "name of an attribute")
        path = f"item.attributes.{key}"
        text = joined_text(value, path) if isinstance(value, list | tuple) else _text(_bool_text(value), path)
        if not (text := clean(text).strip()):
            continue
        if not _same_value(attributes.get(key, text), text) and key not in mapped:
            raise RowError(f"{path} has two values, {_shown(attributes[key])} and {_shown(text)}; leave one out")
        attributes[key] = text
    return tuple(attributes.items())


def _same_value(first: str, second: str) -> bool:
    """Whether two texts are one value, as `1.10` and `1.1` are."""
    try:
        return first == second or float(first) == float(second)
    except ValueError:
        return False


def parse_label(value, label_map: Mapping[str, str], label_names: Sequence[str], aliases: str) -> str | None:
    """The label that a value stands for; `aliases` is what the user sets to map others, for messages."""
    label = _text(_bool_text(value), "label")
    if not label or label in label_names:
        return label or None
    if label in label_map:
        return label_map[label]
    plain = _plain_label(label)
    for theirs, name in (*((name, name) for name in label_names), *label_map.items()):
        if _plain_label(theirs) == plain:
            return name
    hint = f"; {aliases} takes 'true' and 'false'" if plain in ("true", "false") else ""
    if similar := next((name for name in (*label_names, *label_map) if text_key(name) == text_key(label)), ""):
        hint = f"; map it in {aliases} if it is {similar!r}"
    known = f"one of {list(label_names)} or of {aliases} {dict(label_map)}"
    raise RowError(f"unknown label {_shown(label)}: must be {known}{hint}")


def _plain_label(label: str) -> str:
    """A label as others may write it: `3.0` is `3`, and `TRUE` is `true`."""
    if whole := _WHOLE.fullmatch(label):
        return str(int(whole[1])) if len(whole[1]) < 20 else whole[1]
    return label.casefold() if label.casefold() in ("true", "false") else label


def parse_tags(value) -> tuple[Tag, ...] | None:
    """{"tokens": [..], "labels": [BIO..]} -> segments. An `I-` that continues no segment of its type starts one."""
    value = _parse_object(value, "query_tags")
    if value is None:
        return None
    tokens, labels = value.get("tokens"), value.get("labels")
    if not isinstance(tokens, list | tuple) or not isinstance(labels, list | tuple):
        raise RowError("query_tags must hold the lists tokens and labels")
    if len(tokens) != len(labels):
        raise RowError(f"query_tags has {len(tokens)} tokens but {len(labels)} labels")
    segments: list[tuple[str, list[str]]] = []
    open_type = None
    for token, label in zip(tokens, labels):
        token = _required(token, "token of query_tags")
        mark, _, kind = label.partition("-") if isinstance(label, str) else ("", "", "")
        if label == "O":
            open_type = None
            continue
        if mark not in ("B", "I") or not _text(kind, "type of query_tags"):
            raise RowError(
                f"query_tags has the label {_shown(label)}, which is no BIO label: must be O, B-TYPE or I-TYPE"
            )
        if mark == "I" and kind == open_type:
            segments[-1][1].append(token)
        else:
            segments.append((kind, [token]))
        open_type = kind
    return tuple(Tag(" ".join(words), kind) for kind, words in segments)


def parse_count(value, name: str) -> int | None:
    text = "inf" if value == math.inf else _text(value, name)
    if not text:
        return None
    try:
        number = Decimal(text)
        if 0 <= number < 2**63 and number == number.to_integral_value():
            return int(number)
    except ArithmeticError:
        pass
    raise RowError(f"{name} must be a whole number from 0 on, got {_shown(value)}")


def parse_truth(value, name: str) -> bool | None:
    text = _text(_bool_text(value), name).lower()
    if text and text not in _TRUTHS:
        raise RowError(f"{name} must be true or false, yes or no, 1 or 0, got {_shown(value)}")
    return _TRUTHS.get(text)


def read_json(text: str) -> object:
    """The value of a row's JSON; its floats are `WrittenFloat`.

    Raises:
      RowError: a key stands twice.
      ValueError: not JSON, or an integer of thousands of digits.
      RecursionError: nested too deeply.
    """
    try:
        value, end = _QUICK_DECODER.raw_decode(text)
        if type(value) is dict and text[end:] in ("", "\n", "\r\n"):
            # As many colons as keys that are left: none stood twice.
            count = _key_count(value)
            if count == text.count(":") or (count == text.count('":') and not _SPACED_COLON.search(text)):
                return value
    except (ValueError, RecursionError):
        pass  # is raised again below
    return _DECODER.decode(text)


def _key_count(value: dict | list) -> int:
    """The keys of all objects of a value."""
    keys, values = (len(value), value.values()) if type(value) is dict else (0, value)
    for inner in values:
        if type(inner) is dict or type(inner) is list:
            keys += _key_count(inner)
    return keys


def unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object. Raises RowError for a key that stands twice, as it is not known which value counts."""
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = Counter(key for key, _ in pairs)
        raise RowError(f"not valid JSON: the key {next(key for key, count in keys.items() if count > 1)!a:.60} twice")
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=unique_keys, parse_float=WrittenFloat)
_QUICK_DECODER = json.JSONDecoder(parse_float=WrittenFloat)
"""Of a key that stands twice it takes the last value."""
_SPACED_COLON = re.compile(r'"[ \t\n\r]+:')


def _parse_object(value, name: str) -> Mapping | None:
    """An object, given as such or as JSON text; None for a missing one."""
    if isinstance(value, str):
        if not _text(value, name):
            return None
        try:
            value = read_json(value)
        except RowError as error:
            raise RowError(f"{name}: {error}") from None
        except (ValueError, RecursionError):
            raise RowError(f"{name} must be a JSON object, got the text {_shown(value)}") from None
    if value is not None and not isinstance(value, Mapping) and not _is_nan(value):
        raise RowError(f"{name} must be an object, got {type(value).__name__}")
    return value if isinstance(value, Mapping) else None


def _required(value, name: str) -> str:
    text = _text(value, name)
    if not is_visible(text):
        raise RowError(f"{'missing' if value is None or _is_nan(value) else 'blank'} {name}")
    return text


def id_text(value, name: str) -> str:
    """An id as shown, and whole where it is a whole float. Raises RowError for one that a spreadsheet has rounded."""
    text = whole_number(drop_ignorable(_text(value, name)).strip())
    if _ROUNDED.fullmatch(text):
        raise RowError(
            f"{name} {_shown(text)} is rounded, so that others look the same: save the column as text, not as numbers"
        )
    return text


def _text(value, name: str) -> str:
    if type(value) is not str:
        if value is None or _is_nan(value):
            return ""
        if isinstance(value, numbers.Real | Decimal) and not isinstance(value, bool):
            value = _number_text(value, name)
        if not isinstance(value, str):
            raise RowError(f"{name} must be text, got {type(value).__name__}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # a lone surrogate, from "\ud800" in JSON: no table and no tokenizer takes it
            raise RowError(f"{name} is no valid Unicode text: {_shown(value)}") from None
    return value.replace("\0", "").strip()


def _number_text(value: numbers.Real | Decimal, name: str) -> str:
    """A number as text; a whole one without decimals, since tables make floats of whole numbers beside a gap."""
    if isinstance(value, numbers.Integral):
        return str(value)
    if not math.isfinite(value):
        raise RowError(f"{name} is {value}, which is no text")
    is_id, is_exact = name in ("pair_id", "item.id"), abs(float(value)) < LARGEST_EXACT_FLOAT
    if isinstance(value, WrittenFloat) and name not in _QUANTITIES:
        has_exponent = "e" in value.written.lower()
        return (
            str(int(value))
            if is_id and has_exponent and is_exact and value.is_integer()
            else whole_number(value.written)
        )
    if is_id and isinstance(value, RoundedFloat):
        raise RowError(f"{name} is the float {value:.0f} of a column too narrow to be exact; write ids as text")
    if isinstance(value, Decimal):
        return f"{value.to_integral_value():f}" if value == value.to_integral_value() else str(value)
    if is_exact:
        return str(int(float(value))) if float(value).is_integer() else str(value)
    if is_id:
        raise RowError(f"{name} is the float {value}, too large to be exact; write ids as text")
    return str(value)


def _bool_text(value):
    return str(value).lower() if isinstance(value, bool) else value


def joined_text(values: Sequence, name: str) -> str:
    return "\n".join(text for text in (_text(value, name) for value in values) if text)


def _is_nan(value) -> bool:
    return isinstance(value, float | Decimal) and math.isnan(value)


def _shown(value) -> str:
    """A value for a message, on one line and not longer than 80 characters; `ascii` keeps surrogates out of tables."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def raw_text(raw) -> str:
    """The first characters of a row, for the quarantine."""
    if isinstance(raw, bytes):
        text = raw[: 4 * _RAW_CHARACTERS].decode(errors="replace").rstrip("\r\n")
    elif isinstance(raw, RowError):
        text = ""
    else:
        text = json.dumps(raw, default=str, skipkeys=True, ensure_ascii=False)
        text = text[: 2 * _RAW_CHARACTERS].encode(errors="replace").decode()
    return text[:_RAW_CHARACTERS]


def as_pair(pair: Pair | tuple[str, str | Item]) -> Pair:
    """A pair, or the text of a query and an item (or its text) as one. Raises TypeError for anything else."""
    if isinstance(pair, Pair):
        return pair
    if isinstance(pair, str) or len(pair) != 2 or not isinstance(pair[0], str):
        raise TypeError(f"a pair is a Pair or (query, item), got {pair!r:.80}")
    return Pair("", pair[0], as_item(pair[1]))


def as_item(item: str | Item) -> Item:
    """An item, or its text as the title of one. Raises TypeError for anything else."""
    if not isinstance(item, str | Item):
        raise TypeError(f"an item is an Item or its text, got {item!r:.80}")
    return item if isinstance(item, Item) else Item("", item)
