"""Wayfair's WANDS as a TFDS builder.

Chen et al., WANDS: Dataset for Product Search Relevance Assessment, ECIR 2022; https://github.com/wayfair/WANDS (MIT).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow_datasets as tfds

from jax_rele.data.markup import plain_text
from jax_rele.data.sources.benchmarks.builder import Benchmark, notice, read_csv
from jax_rele.data.sources.benchmarks.official import OfficialFile, check_rows
from jax_rele.errors import UserError
from jax_rele.names import SPLITS
from jax_rele.text import text_key

ONE_LINE = {"id", "query_id", "product_id", "query", "query_class", "label"}
"""Columns whose texts never hold a line break."""

QUERIES, PRODUCTS, LABELS = "query.csv", "product.csv", "label.csv"

_URL = "https://raw.githubusercontent.com/wayfair/WANDS/main/dataset"
_RATINGS = ("rating_count", "average_rating", "review_count")


class Wands(Benchmark):
    """WANDS: one example a judgement (Exact, Partial, Irrelevant), with the product's text and attributes.

    The split is ours, by query (`split_of`). `category` is the product class. The attributes are the features, the
    levels of the category hierarchy as `category_level_1`, `category_level_2`, ..., and the whole hierarchy as
    `category_hierarchy`. HTML in descriptions and features becomes text. Of several queries or products with one id the
    first counts; a judgement whose query or product is missing has empty texts. A null is an empty text, or NaN.
    """

    VERSION = tfds.core.Version("1.0.0")
    INSIDE = "dataset"
    # No public source states the sizes or checksums of these files; a file with the rows of the official one is it.
    FILES = (
        OfficialFile(QUERIES, f"{_URL}/{QUERIES}", ("query_id", "query", "query_class"), rows=480),
        OfficialFile(
            PRODUCTS,
            f"{_URL}/{PRODUCTS}",
            (
                *("product_id", "product_name", "product_class", "category hierarchy", "product_description"),
                *("product_features", *_RATINGS),
            ),
            rows=42_994,
        ),
        OfficialFile(LABELS, f"{_URL}/{LABELS}", ("id", "query_id", "product_id", "label"), rows=233_448),
    )

    HOMEPAGE = "https://github.com/wayfair/WANDS"
    TEXTS = MappingProxyType(
        {
            "pair_id": "id of the label",
            **dict.fromkeys(("query", "query_id", "query_class"), ""),
            "item_id": "product_id",
            **dict.fromkeys(("title", "category", "description"), ""),
            "attributes": "a JSON object: name -> value, or a list of values",
            "label": "",
        }
    )
    NUMBERS = _RATINGS

    def _shard_iterators_per_split(self, dl_manager):
        paths, must_be = self.located(dl_manager)
        tables = {name: _read(self.official(name), path) for name, path in paths.items()}
        for name in (name for name in paths if must_be[name]):
            check_rows(self.official(name), paths[name], tables[name].num_rows)
        official = all(tables[file.name].num_rows == file.rows for file in self.FILES)
        queries, products, labels = (tables[name] for name in (QUERIES, PRODUCTS, LABELS))
        if not labels.num_rows:
            raise UserError(f"{paths[LABELS]}: no judgement in it; fetch it again, or give the rows you want")
        query_of = pc.index_in(labels["query_id"], value_set=queries["query_id"])
        split_of_query = [split_of(query or "") for query in queries["query"].to_pylist()]
        splits = [split_of("") if i is None else split_of_query[i] for i in query_of.to_pylist()]
        labels = labels.append_column("query", query_of).append_column("split", pa.array(splits))
        item_of = pc.index_in(labels["product_id"], value_set=products["product_id"])
        labels = labels.append_column("item", item_of)
        self.info.metadata.update(
            official=official,
            notice=notice(official),
            without_query=query_of.null_count,
            without_product=item_of.null_count,
        )
        asked = queries.to_pylist()
        items: dict[int | None, dict[str, object]] = {}
        parts = {split: labels.filter(pc.equal(labels["split"], split)) for split in SPLITS}
        return {split: self._shards(part, asked, products, items) for split, part in parts.items()}

    def _rows(
        self,
        labels: pa.Table,
        queries: Sequence[Mapping[str, str | None]],
        products: pa.Table,
        items: dict[int | None, dict[str, object]],
    ) -> Iterator[tuple[int, dict[str, object]]]:
        for number, row in enumerate(labels.to_pylist()):
            query = {} if row["query"] is None else queries[row["query"]]
            index = row["item"]
            if index not in items:
                items[index] = _item({} if index is None else products.slice(index, 1).to_pylist()[0])
            texts = {
                "pair_id": row["id"],
                "query": query.get("query"),
                "query_id": row["query_id"],
                "query_class": query.get("query_class"),
                "item_id": row["product_id"],
                "label": row["label"],
            }
            yield number, {name: text or "" for name, text in texts.items()} | items[index]


def split_of(query: str) -> str:
    """The split of a query: train, validation or test for about 60, 20 and 20 % of the queries.

    The first eight bytes of the SHA-256 of the normalised query (`jax_rele.text.text_key`, as UTF-8) are, as a
    big-endian integer divided by 2^64, a number in [0, 1): below 0.6 the query is for training, below 0.8 for
    validation, else for testing. Thus queries that are the same when normalised are in one split, and whoever has the
    queries has the split.
    """
    digest = hashlib.sha256(text_key(query).encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    return "train" if position < 0.6 else "validation" if position < 0.8 else "test"


def attributes(features: str, hierarchy: str = "") -> dict[str, str | list[str]]:
    """The attributes of a product: name -> value, or the distinct values in order where there are several.

    Features are written `name : value|name:value`; the name ends at the first colon. A part without a name is one more
    value of the feature before it (`material : steel| : wood`, `color : red|blue`). The hierarchy is written `A / B`.
    """
    values: dict[str, list[str]] = {}
    name = ""
    for part in features.split("|"):
        before, colon, after = part.partition(":")
        named, value = (before.strip(), after) if colon else ("", part)
        name = named or name
        value = plain_text(value.strip())
        if name and value and value not in values.setdefault(name, []):
            values[name].append(value)
    levels = [level.strip() for level in hierarchy.split(" / ") if level.strip()]
    for number, level in enumerate(levels, 1):
        values[f"category_level_{number}"] = [level]
    if levels:
        values["category_hierarchy"] = [" / ".join(levels)]
    return {name: texts if len(texts) > 1 else texts[0] for name, texts in values.items() if texts}


def _item(product: Mapping[str, str | None]) -> dict[str, object]:
    def text(name: str) -> str:
        return (product.get(name) or "").strip()

    return {
        "title": text("product_name"),
        "category": text("product_class"),
        "description": plain_text(text("product_description")),
        "attributes": json.dumps(attributes(text("product_features"), text("category hierarchy")), ensure_ascii=False),
        **{name: _number(text(name)) for name in _RATINGS},
    }


def _number(text: str) -> np.float32:
    return np.float32(text if re.fullmatch(r"\d+(\.\d+)?", text) else "nan")


def _read(file: OfficialFile, path: Path) -> pa.Table:
    """A table of texts: separated by tabs, with quotes where a text holds a quote, a tab or a line break."""
    table = read_csv(file, path, delimiter="\t", newlines_in_values=True)
    for name in ONE_LINE & set(file.columns):
        broken = pc.indices_nonzero(pc.match_substring(table[name], "\n"))
        if len(broken):
            value = table[name][broken[0].as_py()].as_py().splitlines()[0]
            raise UserError(
                f"{path}: a quote that is never closed swallows rows (about line {broken[0].as_py() + 2}, the column "
                f"{name} begins with {value!r}); close it, or fetch the file again"
            )
    return table
