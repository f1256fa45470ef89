"""How rows are parsed, and what is known of the pairs while duplicates, conflicts and splits are decided."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from jax_rele.data.markup import plain_text
from jax_rele.data.pairs import deduplicate
from jax_rele.data.pairs.splits import NO_SPLIT, query_key
from jax_rele.data.rows import is_text_id
from jax_rele.names import SPLITS
from jax_rele.text import drop_ignorable, locale_key
from jax_rele.types import ITEM_FIELDS, Pair, ReadOptions

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

WITHOUT_LABEL_COLUMN, HTML, INVISIBLE = "without_label_column", "rows_with_html", "with_invisible_characters"
"""What is counted of rows."""

cached_query_key = lru_cache(1 << 16)(query_key)


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


def facts_of_pairs(pairs: Sequence[Pair], parsing: Parsing) -> dict[str, np.ndarray]:
    keys = [cached_query_key(pair.query, parsing.seed) for pair in pairs]
    return {
        "query": np.array(keys, np.uint64),
        "judgement": np.array([judgement(key, pair.item.id, pair.locale) for key, pair in zip(keys, pairs)], np.uint64),
        "content": hashes(map(_content, pairs)),
        "by_text": np.array([is_text_id(pair.item.id) for pair in pairs], np.bool_),
        "label": label_indices([pair.label for pair in pairs], parsing),
        "source_split": split_indices([pair.split for pair in pairs]),
    }


def label_indices(labels: Iterable[str | None], parsing: Parsing) -> np.ndarray:
    index = {None: deduplicate.UNLABELLED} | {name: i for i, name in enumerate(parsing.label_names)}
    return np.array([index[label] for label in labels], np.int16)


def split_indices(splits: Iterable[str | None]) -> np.ndarray:
    index: dict[str | None, int] = {None: NO_SPLIT} | {name: i for i, name in enumerate(SPLITS)}
    return np.array([index[split] for split in splits], np.int8)


def hashes(texts: Iterable[str]) -> np.ndarray:
    digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def judgement(query: int, item_id: str, locale: str) -> int:
    """A hash of what is judged: query, item and locale."""
    return int(hashes([f"{query}\x1f{item_id}\x1f{locale_key(locale)}"])[0])


def _content(pair: Pair) -> str:
    """A pair's content, which is hashed: the same on every machine."""
    item = pair.item
    rest = repr((item.attributes, pair.tags, pair.query_frequency, pair.long_tail))
    return "\x1f".join([pair.query, *(getattr(item, name) for name in ITEM_FIELDS), rest])


def has_html(text: str) -> bool:
    """Whether a text holds HTML tags or entities."""
    return ("<" in text or "&" in text) and plain_text(text) != text


def has_ignorable(text: str) -> bool:
    return drop_ignorable(text) != text
