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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from itertools import chain

from jax_rele.errors import UserError
from jax_rele.names import SPLITS
from jax_rele.text import is_visible, text_key
from jax_rele.types import ITEM_FIELDS, Item, Pair, Tag

_SPLIT_SYNONYMS = dict.fromkeys(("valid", "val", "dev"), "validation")

FIELDS = (
    *("pair_id", "query", "item", "label", "locale", "split", "query_tags", "query_frequency", "long_tail"),
    *(f"item.{field}" for field in ("id", *ITEM_FIELDS, "attributes")),
)
"""The canonical names that `fields` maps to a file's names; `item.attributes.NAME` may be mapped as well."""

_ATTRIBUTE = "item.attributes."
_ABSENT = object()
_TRUTHS = dict.fromkeys(("true", "yes", "1", "1.0"), True) | dict.fromkeys(("false", "no", "0", "0.0"), False)


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


def known_split(name: str) -> str | None:
    """The split that a name or a synonym of it (`valid`, `val`, `dev`) stands for; None for any other name."""
    split = _SPLIT_SYNONYMS.get(name.lower(), name.lower())
    return split if split in SPLITS else None


@dataclass(frozen=True)
class _Names:
    """For every canonical field the names to look for in a row, best first."""

    nested: Mapping[str, tuple[str, ...]]
    flat: Mapping[str, tuple[str, ...]]


def stable_id(prefix: str, *parts) -> str:
    """`PREFIX-` and 80 bits of a hash of `parts` (JSON values) in hexadecimal: the same on every machine and run."""
    return f"{prefix}-{hashlib.blake2b(json.dumps(parts).encode(), digest_size=10).hexdigest()}"


def one_line(error: Exception) -> str:
    """A library's message, which may span lines, for use inside a message of ours."""
    return " ".join(str(error).split())[:200]


def check_mapping(fields: Mapping[str, str], label_map: Mapping[str, str], label_names: Sequence[str]) -> None:
    """Raises UserError for a canonical name in `fields`, or a label in `label_map`, that does not exist."""
    for name in fields:
        if name not in FIELDS and not (name.startswith(_ATTRIBUTE) and name != _ATTRIBUTE):
            raise UserError(
                f"data.fields: {name!r} is no field of a pair; write {{field: name in your file}} with a field of "
                f"{list(FIELDS)} or {_ATTRIBUTE}NAME"
            )
    for theirs, label in label_map.items():
        if label not in label_names:
            raise UserError(f"labels.aliases: {theirs!r} is mapped to {label!r}, which is none of {list(label_names)}")


def check_columns(columns: Iterable[str], fields: Mapping[str, str], source: str, require_label: bool = False) -> None:
    """Raises UserError if no column can hold the query, the title or, where required, the label."""
    columns = list(columns)
    for field in ("query", "item.title", *(["label"] if require_label else [])):
        names = _names(tuple(fields.items())).flat[field]
        if not any(name == column or name.startswith(f"{column}.") for name in names for column in columns):
            raise UserError(
                f"{source}: no column holds the {field.rpartition('.')[2]}; the columns are {columns}; name the right "
                f"one in data.fields, e.g. {{{field}: YOUR_COLUMN}}"
            )


def parse_row(
    row: Mapping,
    *,
    fields: Mapping[str, str],
    label_map: Mapping[str, str],
    label_names: Sequence[str],
    require_label: bool = False,
    for_prediction: bool = False,
    max_characters: int | None = None,
    with_split: bool = True,
) -> Pair:
    """Turns one row into a pair.

    A missing `item.id` becomes a hash of the item's text, a missing `pair_id` a hash of query, item id and locale.

    Args:
      row: nested or flat.
      fields: canonical name -> name in the row (a key, or a dotted path to a nested one; a field of the item may also
        be named by its key inside the item). A name that the row lacks falls back to the canonical one, unless
        `fields` gives that column to another field.
      label_map: label in the row -> name of the label schema.
      label_names: the label schema; its names are always accepted as they are.
      require_label: refuse a row without label.
      for_prediction: read query, item, `pair_id` and locale alone.
      max_characters: refuse a row that holds a longer text; None for any length.
      with_split: whether the row's split is read.

    Raises:
      RowError: the row is no valid pair.
    """
    names = _names(tuple(fields.items()))
    item = _parse_item(row, names, fields)
    query = _required(_find(row, names.flat["query"]), "query")
    locale = _text(_find(row, names.flat["locale"]), "locale")
    pair_id = _text(_find(row, names.flat["pair_id"]), "pair_id")
    pair_id = pair_id or stable_id("pair", query, item.id, *([locale] if locale else []))
    if for_prediction:
        return _checked(Pair(pair_id, query, item, locale=locale), max_characters)
    split = _text(_find(row, names.flat["split"]), "split") if with_split else ""
    split_name = known_split(split)
    if split and split_name is None:
        raise RowError(
            f"unknown split {_shown(split.lower())}: must be one of {list(SPLITS)}, or set data.splits.existing: ignore"
        )
    label = _parse_label(_find(row, names.flat["label"]), label_map, label_names)
    if require_label and label is None:
        raise RowError("missing label")
    pair = Pair(
        pair_id=pair_id,
        query=query,
        item=item,
        label=label,
        locale=locale,
        split=split_name,
        tags=_parse_tags(_find(row, names.flat["query_tags"])),
        query_frequency=_parse_count(_find(row, names.flat["query_frequency"]), "query_frequency"),
        long_tail=_parse_truth(_find(row, names.flat["long_tail"]), "long_tail"),
    )
    return _checked(pair, max_characters)


def _checked(pair: Pair, max_characters: int | None) -> Pair:
    """The pair. Raises RowError where one of its texts is longer than that."""
    item = pair.item
    texts = [pair.pair_id, pair.query, pair.locale, item.id, *(getattr(item, field) for field in ITEM_FIELDS)]
    texts += chain(*item.attributes, *((tag.text, tag.type) for tag in pair.tags or ()))
    longest = max(map(len, texts))
    if max_characters is not None and longest > max_characters:
        raise RowError(f"a text of {longest} characters, more than data.max_characters {max_characters}")
    return pair


def _parse_item(row: Mapping, names: _Names, fields: Mapping[str, str]) -> Item:
    value = _find(row, names.flat["item"])
    if value is not None and not isinstance(value, Mapping):
        raise RowError(
            f"item must be an object, got {type(value).__name__}; give a plain column its field in data.fields, e.g. "
            "{item.title: COLUMN}"
        )
    candidates = names.flat if value is None else names.nested
    raw_values = {field: _find(row, candidates[f"item.{field}"], _ABSENT) for field in ("id", *ITEM_FIELDS)}
    if value is None and all(text is _ABSENT for text in raw_values.values()):
        raise RowError("missing item")
    raw_values = {field: None if text is _ABSENT else text for field, text in raw_values.items()}
    if isinstance(raw_values["bullets"], list | tuple):
        raw_values["bullets"] = _joined(raw_values["bullets"], "item.bullets")
    texts = {field: _text(text, f"item.{field}") for field, text in raw_values.items()}
    texts["title"] = _required(raw_values["title"], "title")
    attributes = _parse_attributes(row, candidates["item.attributes"], fields)
    texts["id"] = texts["id"] or stable_id("item", *(text_key(texts[field]) for field in ITEM_FIELDS), attributes)
    return Item(**texts, attributes=attributes)


def _parse_attributes(
    row: Mapping, candidates: Sequence[str], fields: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:
    values = dict(_parse_object(_find(row, candidates), "item.attributes") or {})
    prefixes = tuple(f"{name}." for name in candidates)
    for column, value in row.items():
        if prefix := next(filter(column.startswith, prefixes), ""):
            values[column.removeprefix(prefix)] = value
    for field, column in fields.items():
        if field.startswith(_ATTRIBUTE) and (value := _get(row, column)) is not _ABSENT:
            values[field.removeprefix(_ATTRIBUTE)] = value
    attributes = {}
    for name, value in values.items():
        key = _required(name, "name of an attribute")
        path = f"item.attributes.{key}"
        text = _joined(value, path) if isinstance(value, list | tuple) else _text(_bool_text(value), path)
        if text:
            attributes[key] = text
    return tuple(attributes.items())


def _parse_label(value, label_map: Mapping[str, str], label_names: Sequence[str]) -> str | None:
    label = _text(_bool_text(value), "label")
    if not label or label in label_names:
        return label or None
    if label in label_map:
        return label_map[label]
    raise RowError(
        f"unknown label {_shown(label)}: must be one of {list(label_names)} or of labels.aliases {dict(label_map)}"
    )


def _parse_tags(value) -> tuple[Tag, ...] | None:
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


def _parse_count(value, name: str) -> int | None:
    text = _text(value, name)
    if not text:
        return None
    try:
        number = Decimal(text)
        if 0 <= number < 2**63 and number == number.to_integral_value():
            return int(number)
    except ArithmeticError:
        pass
    raise RowError(f"{name} must be a whole number from 0 on, got {_shown(value)}")


def _parse_truth(value, name: str) -> bool | None:
    text = _text(_bool_text(value), name).lower()
    if text and text not in _TRUTHS:
        raise RowError(f"{name} must be true or false, yes or no, 1 or 0, got {_shown(value)}")
    return _TRUTHS.get(text)


def _parse_object(value, name: str) -> Mapping | None:
    """An object, given as such or as JSON text; None for a missing one."""
    if isinstance(value, str):
        if not _text(value, name):
            return None
        try:
            value = json.loads(value)
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


def _text(value, name: str) -> str:
    if type(value) is not str:
        if value is None or _is_nan(value):
            return ""
        if isinstance(value, numbers.Real | Decimal) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            raise RowError(f"{name} must be text, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate, from "\ud800" in JSON: no table and no tokenizer takes it
        raise RowError(f"{name} is no valid Unicode text: {_shown(value)}") from None
    return value.replace("\0", "").strip()


def _bool_text(value):
    return str(value).lower() if isinstance(value, bool) else value


def _joined(values: Sequence, name: str) -> str:
    return "\n".join(text for text in (_text(value, name) for value in values) if text)


def _is_nan(value) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _shown(value) -> str:
    """A value for a message, on one line and not longer than 80 characters; `ascii` keeps surrogates out of tables."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _find(row: Mapping, names: Sequence[str], default=None):
    """The value of the first of `names` that the row has; a name may be a dotted path."""
    for name in names:
        value = _get(row, name)
        if value is not _ABSENT:
            return value
    return default


def _get(row: Mapping, name: str):
    if name in row:
        return row[name]
    head, dot, rest = name.partition(".")
    if dot and isinstance(row.get(head), Mapping):
        return _get(row[head], rest)
    return _ABSENT


@lru_cache(maxsize=8)
def _names(items: tuple[tuple[str, str], ...]) -> _Names:
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
    return _Names(nested, flat)


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
