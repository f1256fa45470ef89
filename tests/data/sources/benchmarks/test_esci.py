"""ESCI: every judgement of a task once, with its product's text."""

import os
import re

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from jax_rele.data import parse_row
from jax_rele.data.markup import plain_text
from jax_rele.data.sources import benchmarks
from jax_rele.data.sources.benchmarks import Esci, esci
from jax_rele.data.sources.benchmarks.official import OfficialFile
from jax_rele.errors import UserError
from jax_rele.io import hash_file

from .official import write_esci

CONFIGS = [f"{task}_{locale}" for task in ("task1", "task2", "task3") for locale in ("all", "us", "es", "jp")]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("esci")
    write_esci(folder)
    return folder


def changed(folder, name, change):
    """Rewrites a Parquet file with its rows as `change` makes them."""
    path = folder / f"shopping_queries_dataset_{name}.parquet"
    rows = pq.read_table(path).to_pylist()
    pq.write_table(pa.Table.from_pylist(change(rows)), path)
    return path


def as_in_the_readme(folder, config):
    """The rows as the official README reads them, with pandas."""
    task, _, locale = config.partition("_")
    examples = pd.read_parquet(folder / esci.EXAMPLES)
    rows = examples.merge(pd.read_parquet(folder / esci.PRODUCTS), how="left", on=["product_locale", "product_id"])
    rows = rows.merge(pd.read_csv(folder / esci.SOURCES), how="left", on="query_id")
    rows = rows[rows["small_version" if task == "task1" else "large_version"] == 1]
    rows = rows if locale == "all" else rows[rows["product_locale"] == locale]
    return rows.astype(object).where(rows.notna(), "").to_dict("records")


@pytest.mark.parametrize("config", CONFIGS)
def test_every_judgement_comes_once_as_the_official_join_has_it(files, tmp_path, config):
    rows = {row["pair_id"]: row for row in benchmarks.rows(f"esci/{config}", str(files), tmp_path)}
    expected = as_in_the_readme(files, config)
    assert len(expected) > 10
    assert sum(1 for _ in benchmarks.rows(f"esci/{config}", str(files), tmp_path)) == len(rows) == len(expected)
    for row in expected:
        assert rows[str(row["example_id"])] == {
            "pair_id": str(row["example_id"]),
            "query": row["query"],
            "query_id": str(row["query_id"]),
            "source": row["source"],
            "item_id": row["product_id"],
            "title": row["product_title"],
            "brand": row["product_brand"],
            "color": row["product_color"],
            "bullets": plain_text(row["product_bullet_point"]),
            "description": plain_text(row["product_description"]),
            "locale": row["product_locale"],
            "label": row["esci_label"],
            "split": row["split"],
        }


def test_the_rows_are_pairs_without_any_mapping(files, tmp_path):
    labels = dict(zip("ESCI", ("Exact", "Substitute", "Complement", "Irrelevant")))
    pairs = [
        parse_row(row, label_map=labels, label_names=list(labels.values()))
        for row in benchmarks.rows("esci/task2_all", str(files), tmp_path)
    ]
    assert {pair.split for pair in pairs} == {"train", "test"}
    assert {pair.locale for pair in pairs} == {"us", "es", "jp"}
    assert {pair.label for pair in pairs} == set(labels.values())
    texts = {pair.item.description for pair in pairs}
    assert any("light & strong\n< 5 kg" in text for text in texts)
    assert "" in texts
    assert not any("<p>" in text or "&amp;" in text for text in texts)


def test_tfds_reads_it_without_tensorflow(files, tmp_path):
    rows = list(benchmarks.rows("esci/task1_us", str(files), tmp_path))
    (data_dir,) = (tmp_path / "tfds").iterdir()
    source = tfds.data_source("esci/task1_us", split="test", data_dir=data_dir)
    assert [example["pair_id"].decode() for example in source] == [r["pair_id"] for r in rows if r["split"] == "test"]
    metadata = Esci(config="task1_us", data_dir=data_dir).info.metadata
    assert metadata["official"] is False
    assert "not built from the official files" in metadata["notice"]


def test_shards_are_joined_in_order(files, tmp_path, monkeypatch):
    whole = list(benchmarks.rows("esci/task2_all", str(files), tmp_path / "a"))
    monkeypatch.setattr("jax_rele.data.sources.benchmarks.builder.SHARD_ROWS", 7)
    assert list(benchmarks.rows("esci/task2_all", str(files), tmp_path / "b")) == whole
    assert len(list((tmp_path / "b").rglob("*.array_record-*"))) > 15


def test_of_products_with_one_key_the_first_counts_and_a_missing_one_leaves_empty_texts(tmp_path):
    examples, _ = write_esci(tmp_path)
    twice, gone = examples[0]["product_id"], examples[1]["product_id"]

    def change(rows):
        rows = [row for row in rows if (row["product_id"], row["product_locale"]) != (gone, "us")]
        same = next(row for row in rows if (row["product_id"], row["product_locale"]) == (twice, "us"))
        return [{**same, "product_title": "the first"}, *rows, {**same, "product_title": "the last"}]

    changed(tmp_path, "products", change)
    rows = {row["pair_id"]: row for row in benchmarks.rows("esci/task2_us", str(tmp_path), tmp_path / "cache")}
    assert len(rows) == sum(example["product_locale"] == "us" for example in examples)
    assert rows[str(examples[0]["example_id"])]["title"] == "the first"
    assert rows[str(examples[1]["example_id"])]["title"] == ""
    (data_dir,) = (tmp_path / "cache" / "tfds").iterdir()
    missing = sum(row["title"] == "" for row in rows.values())
    assert Esci(config="task2_us", data_dir=data_dir).info.metadata["without_product"] == missing > 0


@pytest.mark.parametrize("name", ["examples", "products"])
def test_a_damaged_file_is_named(tmp_path, name):
    write_esci(tmp_path)
    path = tmp_path / f"shopping_queries_dataset_{name}.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"{re.escape(str(path))}: the file cannot be read"):
        benchmarks.rows("esci/task1_us", str(tmp_path), tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.array_record*"))


def test_a_page_damaged_in_the_middle_is_named(tmp_path):
    write_esci(tmp_path)
    path = tmp_path / esci.PRODUCTS
    content = bytearray(path.read_bytes())
    content[4:400] = os.urandom(396)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"products\.parquet: the file cannot be read"):
        benchmarks.rows("esci/task1_us", str(tmp_path), tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.array_record*"))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "examples",
            lambda r: [{k: v for k, v in x.items() if k != "split"} for x in r],
            r"lacks the columns \['split'\]",
        ),
        ("products", lambda r: [{k: v for k, v in x.items() if k != "product_brand"} for x in r], "'product_brand'"),
        ("examples", lambda r: [{**x, "split": "dev"} for x in r], "the column split holds 'dev'"),
        ("examples", lambda r: [{**x, "product_locale": "de"} for x in r], "the column product_locale holds 'de'"),
        ("examples", lambda r: [{**x, "small_version": 0} for x in r], "no judgement of esci/task1_us"),
    ],
)
def test_another_form_is_refused(tmp_path, name, change, message):
    write_esci(tmp_path)
    changed(tmp_path, name, change)
    with pytest.raises(UserError, match=message):
        benchmarks.rows("esci/task1_us", str(tmp_path), tmp_path / "cache")


def pretend_official(monkeypatch, folder, **changes):
    """Makes the facts of the official files those of the files in a folder."""
    rows = {
        esci.EXAMPLES: pq.read_metadata(folder / esci.EXAMPLES).num_rows,
        esci.PRODUCTS: pq.read_metadata(folder / esci.PRODUCTS).num_rows,
        esci.SOURCES: len((folder / esci.SOURCES).read_text().splitlines()) - 1,
    } | changes
    monkeypatch.setattr(
        Esci,
        "FILES",
        tuple(
            OfficialFile(
                file.name,
                file.url,
                file.columns,
                rows[file.name],
                (folder / file.name).stat().st_size,
                hash_file(folder / file.name),
            )
            for file in Esci.FILES
        ),
    )


def judgement_counts(folder, config):
    locales_and_splits = [(row["product_locale"], row["split"]) for row in as_in_the_readme(folder, config)]
    return {
        locale: tuple(locales_and_splits.count((locale, split)) for split in ("train", "test"))
        for locale in ("us", "es", "jp")
    }


def test_official_files_are_known_and_their_judgements_counted(files, tmp_path, monkeypatch):
    pretend_official(monkeypatch, files)
    counts = judgement_counts(files, "task1_all")
    monkeypatch.setitem(esci.JUDGEMENT_COUNTS, "small_version", counts)
    list(benchmarks.rows("esci/task1_all", str(files), tmp_path))
    (data_dir,) = (tmp_path / "tfds").iterdir()
    assert Esci(config="task1_all", data_dir=data_dir).info.metadata["official"] is True
    monkeypatch.setitem(esci.JUDGEMENT_COUNTS, "small_version", {**counts, "es": (1, counts["es"][1])})
    with pytest.raises(UserError, match="judgements of task1, es, train; the official file has 1"):
        benchmarks.rows("esci/task1_es", str(files), tmp_path)


@pytest.mark.parametrize("name", [esci.EXAMPLES, esci.PRODUCTS, esci.SOURCES])
def test_official_files_with_other_rows_are_refused(files, tmp_path, monkeypatch, name):
    pretend_official(monkeypatch, files, **{name: 7})
    monkeypatch.setitem(esci.JUDGEMENT_COUNTS, "large_version", judgement_counts(files, "task2_all"))
    with pytest.raises(UserError, match=f"{name}: .* rows, but the official file has 7"):
        benchmarks.rows("esci/task2_all", str(files), tmp_path)


def test_the_tables_of_the_readme_sum_to_its_totals():
    totals = {
        version: tuple(sum(counts[i] for counts in locales.values()) for i in (0, 1))
        for version, locales in esci.JUDGEMENT_COUNTS.items()
    }
    assert totals == {"small_version": (781_638, 336_373), "large_version": (1_983_272, 638_016)}
    assert sum(totals["large_version"]) == Esci.official(esci.EXAMPLES).rows
