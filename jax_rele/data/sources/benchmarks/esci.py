"""Amazon's Shopping Queries Dataset (ESCI) as a TFDS builder.

Reddy et al., arXiv 2206.06588; files and statistics: https://github.com/amazon-science/esci-data (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tensorflow_datasets as tfds

from jax_rele.data.markup import plain_text
from jax_rele.data.sources.benchmarks.builder import Benchmark, notice, read_csv, reading
from jax_rele.data.sources.benchmarks.official import OfficialFile, check_columns, check_rows
from jax_rele.errors import UserError

TASKS = {"task1": "small_version", "task2": "large_version", "task3": "large_version"}
"""Task -> the column that marks its judgements."""

LOCALES = ("us", "es", "jp")
SPLITS = ("train", "test")

EXAMPLES, PRODUCTS, SOURCES = (
    "shopping_queries_dataset_examples.parquet",
    "shopping_queries_dataset_products.parquet",
    "shopping_queries_dataset_sources.csv",
)
_URL = "https://github.com/amazon-science/esci-data/raw/main/shopping_queries_dataset"

JUDGEMENT_COUNTS = {
    "small_version": {"us": (419_653, 181_701), "es": (152_891, 65_883), "jp": (209_094, 88_789)},
    "large_version": {"us": (1_393_063, 425_762), "es": (263_063, 93_347), "jp": (327_146, 118_907)},
}
"""Judgements of train and test by version and locale, from the tables of the official README."""

_TEXTS = ("product_title", "product_brand", "product_color", "product_bullet_point", "product_description")


class Esci(Benchmark):
    """ESCI: `esci/task{1,2,3}_{all,us,es,jp}`, one example a judgement, with the product's text.

    Task 1 is the small version, tasks 2 and 3 are the large one; the split is the official one. Labels are E, S, C and
    I (task 3 asks for S against the others: map them by `labels.aliases`). The join is on (product_id,
    product_locale); of several products with one key the first counts; a judgement whose product is missing has empty
    texts. HTML in descriptions and bullet points becomes text. A null is an empty text.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012, read by TFDS
        tfds.core.BuilderConfig(name=f"{task}_{locale}", description=f"{task} in {locale}")
        for task in TASKS
        for locale in ("all", *LOCALES)
    ]
    INSIDE = "shopping_queries_dataset"
    FILES = (
        OfficialFile(
            EXAMPLES,
            f"{_URL}/{EXAMPLES}",
            (
                *("example_id", "query", "query_id", "product_id", "product_locale", "esci_label"),
                *("small_version", "large_version", "split"),
            ),
            rows=2_621_288,
            size=51_286_808,
            sha256="4a735b693b4a424a6fc67f5be6e4c811495c488bbf66d02a602d308b2744263a",
        ),
        OfficialFile(
            PRODUCTS,
            f"{_URL}/{PRODUCTS}",
            (
                *("product_id", "product_title", "product_description", "product_bullet_point", "product_brand"),
                *("product_color", "product_locale"),
            ),
            rows=1_814_924,
            size=1_108_857_465,
            sha256="25124442d064d64b26f74082d6fa09438d679efc0c183cf28d19064a2b65a265",
        ),
        OfficialFile(SOURCES, f"{_URL}/{SOURCES}", ("query_id", "source"), rows=130_652, size=1_682_802),
    )

    HOMEPAGE = "https://github.com/amazon-science/esci-data"
    TEXTS = MappingProxyType(
        {
            "pair_id": "example_id",
            **dict.fromkeys(("query", "query_id"), ""),
            "source": "how the query was found: behavioral, negations, parse_pattern, other",
            "item_id": "product_id, unique within a locale only",
            **dict.fromkeys(("title", "brand", "color", "bullets", "description", "locale", "label"), ""),
        }
    )

    def _shard_iterators_per_split(self, dl_manager):
        paths, official = self.located(dl_manager)
        task, _, locale = self.builder_config.name.partition("_")
        examples = self._examples(paths[EXAMPLES], official[EXAMPLES])
        examples = examples.filter(pc.fill_null(pc.equal(examples["version"], 1), False))
        locales = LOCALES if locale == "all" else (locale,)
        parts = {
            (split, locale_): examples.filter(
                pc.and_(pc.equal(examples["split"], split), pc.equal(examples["product_locale"], locale_))
            )
            for split in SPLITS
            for locale_ in locales
        }
        if not any(part.num_rows for part in parts.values()):
            raise UserError(f"{paths[EXAMPLES]}: no judgement of {self.name}/{self.builder_config.name} in it")
        for (split, locale_), part in parts.items():
            expected = JUDGEMENT_COUNTS[TASKS[task]][locale_][SPLITS.index(split)]
            if official[EXAMPLES] and part.num_rows != expected:
                raise UserError(
                    f"{paths[EXAMPLES]}: {part.num_rows} judgements of {task}, {locale_}, {split}; the official file "
                    f"has {expected}"
                )
        needed = {name: pa.concat_tables([parts[split, name] for split in SPLITS])["product_id"] for name in locales}
        catalogue = _Catalogue(self.official(PRODUCTS), paths[PRODUCTS], official[PRODUCTS], needed)
        table = read_csv(self.official(SOURCES), paths[SOURCES])
        if official[SOURCES]:
            check_rows(self.official(SOURCES), paths[SOURCES], table.num_rows)
        sources = dict(zip(table["query_id"].to_pylist(), table["source"].to_pylist()))
        is_official = all(official.values())
        self.info.metadata.update(official=is_official, notice=notice(is_official), without_product=0)
        shards: dict[str, list[Callable]] = {split: [] for split in SPLITS}
        for (split, locale_), part in parts.items():
            shards[split] += self._shards(part, locale_, catalogue, sources)
        return shards

    def _examples(self, path: Path, official: bool) -> pa.Table:
        """The judgements of all locales, without the versions but the task's, as `version`."""
        file = self.official(EXAMPLES)
        version = TASKS[self.builder_config.name.partition("_")[0]]
        with reading(path), pq.ParquetFile(path) as table:
            check_columns(file, path, table.schema_arrow.names)
            if official:
                check_rows(file, path, table.metadata.num_rows)
            names = [name for name in file.columns if not name.endswith("_version")]
            examples = table.read(columns=[*names, version])
            columns = {name: pc.cast(examples[name], pa.string()) for name in names}
            columns["version"] = pc.cast(examples[version], pa.int64())
        examples = pa.table(columns)
        for name, known in (("split", SPLITS), ("product_locale", LOCALES)):
            if unknown := sorted(set(map(str, pc.unique(examples[name]).to_pylist())) - set(known)):
                raise UserError(f"{path}: the column {name} holds {unknown[0]!r}; it must be one of {list(known)}")
        return examples

    def _rows(
        self, examples: pa.Table, locale: str, catalogue: _Catalogue, sources: Mapping[str, str]
    ) -> Iterator[tuple[int, dict[str, object]]]:
        products, keys = catalogue.of(locale)
        positions = pc.index_in(examples["product_id"], value_set=keys).to_pylist()
        for number, (example, position) in enumerate(zip(examples.to_pylist(), positions)):
            texts: dict[str, str | None] = dict.fromkeys(("title", "brand", "color", "bullets", "description"))
            if position is None:
                self.info.metadata["without_product"] += 1
            else:
                texts = {name: products[column][position].as_py() for name, column in zip(texts, _TEXTS)}
            texts |= {
                **{"pair_id": example["example_id"], "query": example["query"], "query_id": example["query_id"]},
                **{"item_id": example["product_id"], "locale": locale, "label": example["esci_label"]},
                **{"source": sources.get(example["query_id"])},
            }
            row: dict[str, object] = {name: text or "" for name, text in texts.items()}
            yield number, row | {name: plain_text(texts[name] or "") for name in ("bullets", "description")}


class _Catalogue:
    """The products that a locale's judgements name, as columns and not as Python objects; one locale at a time."""

    def __init__(self, file: OfficialFile, path: Path, official: bool, needed: Mapping[str, pa.ChunkedArray]):
        self._file, self._path, self._needed = file, path, needed
        with reading(path), pq.ParquetFile(path) as table:
            check_columns(file, path, table.schema_arrow.names)
            if official:
                check_rows(file, path, table.metadata.num_rows)
        self._loaded: tuple[str, dict[str, pa.ChunkedArray], pa.Array] | None = None

    def of(self, locale: str) -> tuple[dict[str, pa.ChunkedArray], pa.Array]:
        """The text columns of the products, and their ids."""
        if self._loaded is None or self._loaded[0] != locale:
            self._loaded = None  # before the next one is read
            self._loaded = (locale, *self._load(locale))
        return self._loaded[1:]

    def _load(self, locale: str) -> tuple[dict[str, pa.ChunkedArray], pa.Array]:
        needed = pc.unique(self._needed[locale])
        batches: dict[str, list[pa.Array]] = {name: [] for name in ("product_id", *_TEXTS)}
        with reading(self._path), pq.ParquetFile(self._path) as table:
            for batch in table.iter_batches(batch_size=16_384, columns=list(self._file.columns)):
                ids = pc.cast(batch["product_id"], pa.string())
                selected = pc.and_(pc.equal(batch["product_locale"], locale), pc.is_in(ids, value_set=needed))
                rows = batch.filter(pc.fill_null(selected, False))
                for name, arrays in batches.items():
                    arrays.append(pc.cast(rows[name], pa.string()))
        columns = {name: pa.chunked_array(arrays, pa.string()) for name, arrays in batches.items()}
        return columns, columns.pop("product_id").combine_chunks()
