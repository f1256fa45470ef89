"""A mapped column that no row has is named, in every format, with the option that names it."""

import json

import pytest

from jax_rele.data.sources.shards import check_mapped_fields, open_shards, read_pairs
from jax_rele.deployment.index.items import read_items
from jax_rele.errors import UserError
from jax_rele.types import ReadOptions
from tests.data.sources.test_shards import LABELS, row, write

SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
MISSPELT = {
    "item.brand": "manufcturer",
    "query_frequency": "searches",
    "locale": "contry",
    "item.attributes.size": "Sise",
    "item.category": "details.categry",
    "query_tags": "tags",
}


def read(path, for_prediction=False, **reading):
    return read_pairs(path, label_names=LABELS, reading=ReadOptions(**reading), for_prediction=for_prediction)


def source(folder, suffix, n=30):
    rows = [row(i, manufacturer="Acme", country="us", frequency=3, Size="9") for i in range(n)]
    return write(folder / f"data{suffix}", rows)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("field", "column"), MISSPELT.items())
def test_a_column_that_is_not_there_is_named(tmp_path, suffix, field, column):
    path = source(tmp_path, suffix)
    with pytest.raises(UserError) as error:
        read(path, fields={field: column, "item.color": "Size"})
    assert str(error.value).startswith(
        f"data.fields: {field} is mapped to {column!r}, a column that no row of {path} has"
    )
    assert "'manufacturer', 'country', 'frequency', 'Size'" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_runs_mapping_is_lenient_with_another_file_and_a_commands_own_is_not(tmp_path):
    path = source(tmp_path, ".jsonl")
    assert len(read(path, for_prediction=True, fields={"item.brand": "maker"})[0]) == 30
    with pytest.raises(UserError, match=r"^--fields: item.brand is mapped to 'maker'"):
        read(path, for_prediction=True, fields={"item.brand": "maker"}, from_command=True)
    with pytest.raises(UserError, match=r"^--fields: item.brand is mapped to 'maker'"):
        check_mapped_fields(
            open_shards(str(path), ReadOptions(), tmp_path),
            str(path),
            ReadOptions({"item.brand": "maker"}, from_command=True),
        )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_columns_that_are_there_are_no_error(tmp_path, suffix):
    path = source(tmp_path, suffix)
    fields = {"item.brand": "Manufacturer", "query_frequency": "frequency", "item.attributes.size": "Size"}
    pairs, bad = read(path, fields=fields)
    assert not bad
    assert {pair.item.brand for pair in pairs} == {"Acme"}
    assert {pair.query_frequency for pair in pairs} == {3}
    assert pairs[0].item.attributes == (("size", "9"),)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("field", "column"), [("label", "lable"), ("item.title", "product_name"), ("query", "term"), ("item.brand", "brnd")]
)
def test_a_column_of_the_fields_own_name_does_not_take_the_place_of_a_misspelt_one(tmp_path, suffix, field, column):
    path = write(tmp_path / f"data{suffix}", [row(i, brand="Acme", esci_label="I") for i in range(3)])
    with pytest.raises(UserError, match=f"{field} is mapped to '{column}', a column that no row"):
        read(path, fields={field: column})


def test_one_row_of_any_file_is_enough(tmp_path):
    nested = {"query": "shoe", "item": {"title": "A shoe"}, "label": "Exact"}
    lines = [*({**nested, "pair_id": f"{i}"} for i in range(500)), {**nested, "extra": {"maker": "Acme"}}]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source(tmp_path, ".csv")
    assert read(tmp_path, fields={"item.brand": "extra.maker"})[0][-1].item.brand in ("Acme", "")
    shards = open_shards(str(tmp_path), ReadOptions(), tmp_path)
    check_mapped_fields(shards, "", ReadOptions({"item.brand": "extra.maker", "locale": "country"}))
    with pytest.raises(UserError, match=r"'item.title'.*'manufacturer'|'manufacturer'.*'item.title'"):
        read(tmp_path, fields={"item.brand": "extra.makr"})


def test_a_config_for_the_sample_serves_for_other_files_too(tmp_path):
    path, fields = source(tmp_path, ".jsonl"), {"item": "product", "query_tags": "queryner"}
    assert len(read(path, fields=fields)[0]) == 30
    with pytest.raises(UserError, match=r"item.brand is mapped to 'maker'"):
        read(path, fields={**fields, "item.brand": "maker"})
    with pytest.raises(UserError, match=r"is mapped to '(product|queryner)'"):
        read(path, fields=fields, from_command=True)


def test_a_key_inside_the_item_and_parts_of_an_object_count(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"query": "q", "product": {"name": "t", "maker": "m", "specs": {"size": 9}}}) + "\n")
    fields = {"item": "product", "item.title": "name", "item.brand": "maker", "item.attributes": "specs"}
    (pair,), _ = read(path, fields=fields)
    assert (pair.item.title, pair.item.brand, pair.item.attributes) == ("t", "m", (("size", "9"),))
    with pytest.raises(UserError, match=r"item.color is mapped to 'shade'.*'product.name', 'product.maker'"):
        read(path, fields={**fields, "item.color": "shade"})
    flat = write(tmp_path / "data.csv", [{"query": "q", "product.title": "t", "specs.size": "9"}])
    (pair,), _ = read(flat, fields={"item": "product", "item.attributes": "specs"})
    assert (pair.item.title, pair.item.attributes) == ("t", (("size", "9"),))


def test_items_to_index(tmp_path):
    path = write(tmp_path / "items.csv", [{"id": "1", "name": "A shoe", "maker": "Acme", "term": "shoe"}])
    right = {"item.title": "name", "item.brand": "maker", "query": "term"}
    items = read_items(path, ReadOptions(right, from_command=True))
    assert items.items[0].brand == "Acme"
    assert items.queries == ("shoe",)
    for field, column in (("item.brand", "mkaer"), ("query", "trem"), ("item.color", "colour")):
        with pytest.raises(UserError, match=f"^--fields: {field} is mapped to '{column}'.*'name'.*'maker'"):
            read_items(path, ReadOptions({**right, field: column}, from_command=True))
