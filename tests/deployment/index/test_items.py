"""Items from rows of every form; and the commands `index` and `search`."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_bundles import tiny_items, write_tower

from jax_rele import cli
from jax_rele.data import read_table
from jax_rele.data.parquet import write_pairs
from jax_rele.deployment.index import open_index, read_items
from jax_rele.deployment.index.items import items_table, table_items
from jax_rele.errors import UserError
from jax_rele.types import ITEM_FIELDS, Item, Pair, ReadOptions


def as_row(item):
    row = {name: getattr(item, name) for name in ("id", *ITEM_FIELDS) if getattr(item, name)}
    return row | ({"attributes": dict(item.attributes)} if item.attributes else {})


def stripped(items):
    return tuple(Item(**{**vars(item), "color": item.color.strip()}) for item in items)


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_items_are_read_alike_from_every_form(tmp_path):
    items = tiny_items(20)
    rows = list(map(as_row, items))
    paths = [write_lines(tmp_path / "items.jsonl", rows)]
    pairs = [{"query": f"q{number % 3}", "item": row} for number, row in enumerate([*rows, *rows[:5]])]
    paths.append(write_lines(tmp_path / "pairs.jsonl", pairs))
    paths.append(tmp_path / "pairs.parquet")
    write_pairs(paths[-1], [Pair(f"p{number}", "q", item) for number, item in enumerate(items)])
    paths.append(tmp_path / "items.parquet")
    pq.write_table(items_table(items, ["x"] * len(items)), paths[-1])
    paths.append(tmp_path / "items.csv")
    with paths[-1].open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", *ITEM_FIELDS, "attributes.Size"])
        writer.writeheader()
        for item in items:
            texts = {name: getattr(item, name) for name in ("id", *ITEM_FIELDS)}
            writer.writerow(texts | {"attributes.Size": dict(item.attributes).get("Size", "")})
    for path in paths:
        read = read_items(path)
        assert read.items == stripped(items), path
        assert (read.bad, read.n_replaced) == ((), 0)
    renamed = write_lines(tmp_path / "renamed.jsonl", [{"sku": row["id"], "name": row["title"]} for row in rows])
    read = read_items(renamed, ReadOptions({"item.id": "sku", "item.title": "name"}))
    assert [(item.id, item.title) for item in read.items] == [(item.id, item.title) for item in items]


@pytest.mark.parametrize(
    "header",
    ["id,title,brand", "ID,Title,Brand", "item_id,title,brand", "Item ID,Item Title,BRAND", "item.id,Item.Title,brand"],
)
@pytest.mark.parametrize("more", [False, True])
def test_names_of_columns_may_differ_in_case_and_blanks(tmp_path, header, more):
    rows = ["A1,Red shoe,Acme", "A2,Blue shoe,Zen"]
    if more:
        header, rows = f"Query,{header},Attributes.Size", [f"shoes,{row},9" for row in rows]
    (tmp_path / "items.csv").write_text("\n".join([header, *rows]))
    attributes = (("Size", "9"),) if more else ()
    texts = [("A1", "Red shoe", "Acme"), ("A2", "Blue shoe", "Zen")]
    expected = [Item(*each, attributes=attributes) for each in texts]
    read = read_items(tmp_path / "items.csv")
    assert list(read.items) == expected
    assert read.queries == (("shoes",) if more else ())


def test_the_sample_has_its_items():
    read = read_items("sample")
    assert len(read.items) > 1500
    assert all(item.title for item in read.items)


def test_of_rows_with_one_id_the_last_counts_and_bad_rows_are_set_aside(tmp_path):
    rows = [{"id": "a", "title": "one"}, {"id": "b", "title": "two"}, {"id": "a", "title": "three"}]
    path = write_lines(tmp_path / "items.jsonl", [*rows, {"id": "b", "title": "two"}, {"id": "c"}])
    with path.open("a") as file:
        file.write("{broken\n")
    read = read_items(path)
    assert [(item.id, item.title) for item in read.items] == [("a", "three"), ("b", "two")]
    assert (read.n_rows, read.n_replaced) == (4, 1)
    assert [bad.row for bad in read.bad] == [5, 6]


def test_a_table_gives_back_its_items():
    items = tiny_items(10)
    assert table_items(items_table(items, map(str, range(10)))) == items


@pytest.mark.parametrize("content", ["", "\n\n", '{"id": "a"}\n', '{"query": "x"}\n', "[1]\n"])
def test_a_file_without_items_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "items.jsonl"
    path.write_text(content)
    with pytest.raises(UserError) as raised:
        read_items(path)
    assert "\n" not in str(raised.value)
    assert "items.jsonl" in str(raised.value)


def test_the_commands_build_change_search_and_export(tower, cross, tmp_path, capsys):
    items = tiny_items(40)
    path = write_lines(tmp_path / "items.jsonl", [*map(as_row, items), {"id": "no title"}])
    output, export = str(tmp_path / "idx"), tmp_path / "items.parquet"

    def run(*words):
        assert cli.main([*map(str, words)]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    text = run("index", tower, path, "--output", output)
    assert "1 bad rows set aside, the first is row 41: missing title" in text
    assert "40 items, 24 x float32, exact search" in text
    assert "every item was encoded before" in run("index", tower, path, "--output", output)
    changes = write_lines(tmp_path / "changes.jsonl", [{"id": "new", "title": "violet teapot"}])
    assert "1 new, 0 changed, 0 deleted; 1 texts encoded" in run(
        "index", tower, changes, "--output", output, "--update"
    )
    (tmp_path / "ids.txt").write_text("i0001\nnobody\n")
    text = run("index", tower, "--output", output, "--delete", tmp_path / "ids.txt", "--export", export)
    assert "1 deleted; 1 ids are not in the index" in text
    table = read_table(export)
    index = open_index(output)
    assert table.column("id").to_pylist() == [*(item.id for item in items if item.id != "i0001"), "new"]
    products = index.search(table.column("vector").to_pylist()[-1], 1)[1]
    assert pa.types.is_fixed_size_list(table.schema.field("vector").type)
    assert products[0, 0] >= 0.99  # its own vector
    assert "40 items" in run("index", tower, "--output", output, "--compact")
    rows = [json.loads(line) for line in run("search", output, "violet teapot", "-k", 40, "--json").splitlines()]
    assert [row["rank"] for row in rows] == list(range(1, 41))
    assert {row["item"]["id"] for row in rows} == set(table.column("id").to_pylist())
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    text = run("search", output, "shoe", "-k", 40, "--filter", "category=shoe", "attributes.size=1", "--json")
    words = ["--filter", "category=shoe", "--filter", "attributes.size=1"]
    assert run("search", output, "shoe", "-k", 40, *words, "--json") == text
    chosen = {i.id for i in items if i.category == "shoe" and dict(i.attributes).get("Size") == "1"} - {"i0001"}
    assert {json.loads(line)["item"]["id"] for line in text.splitlines()} == chosen
    assert chosen
    assert "score" in run("search", output, "shoe", "-k", 3, "--rerank", cross)
    assert "no item matches the filters" in run("search", output, "shoe", "--filter", "brand=nobody")
    assert "1 new, 0 changed, 1 deleted" in run("index", tower, path, "--output", output, "--sync")


def test_a_mistake_is_one_line(tower, cross, tmp_path, capsys):
    items = write_lines(tmp_path / "items.jsonl", map(as_row, tiny_items(5)))
    output = str(tmp_path / "idx")
    empty = write_lines(tmp_path / "empty.jsonl", [])
    fewer = write_lines(tmp_path / "fewer.jsonl", map(as_row, tiny_items(1)))
    (tmp_path / "none.txt").write_text("\n")
    (tmp_path / "all.txt").write_text("".join(f"i{number:04d}\n" for number in range(5)))
    other = write_tower(tmp_path / "other", seed=9)
    assert cli.main(["index", str(tower), str(items), "--output", output]) == 0
    capsys.readouterr()
    mistakes = {
        ("index", tower, empty, "--output", tmp_path / "x"): "has no rows",
        ("index", tower, tmp_path / "missing.jsonl", "--output", output): "no such file",
        ("index", tower, fewer, "--output", output): "holds an index with 4 items that",
        ("index", tower, "--output", output, "--export", tmp_path / "nosuch" / "x.parquet"): "no such folder",
        ("index", cross, items, "--output", output): "a cross-encoder has no vectors of items",
        ("index", tmp_path, items, "--output", output): "no bundle",
        ("index", tower, "--output", output): "nothing to do",
        ("index", tower, items, "--output", output, "--exact", "--hnsw"): "give one of them",
        ("index", tower, items, "--output", output, "--shard", "3/2"): "N from 1 to M",
        ("index", tower, items, "--output", output, "--shard", "x"): "write N/M",
        ("index", tower, items, "--output", output, "--fields", "x"): "write NAME=VALUE",
        ("index", tower, items, "--output", output, "--compact"): "change an index",
        ("index", tower, "--output", output, "--update"): "needs the file of items",
        ("index", tower, items, "--output", tmp_path / "new", "--update"): "no index",
        ("index", tower, "--output", output, "--delete", tmp_path / "none.txt"): "names no item",
        ("index", tower, "--output", output, "--delete", tmp_path / "all.txt"): "every item of the index",
        ("index", tower, "--output", output, "--export", tmp_path / "x.csv"): "ends in .parquet",
        ("index", other, "--output", output, "--compact"): "another model",
        ("search", output, "x", "-k", "0"): "must be at least 1",
        ("search", output, " "): "the query is empty",
        ("search", output, "x", "--filter", "price=1"): "no such field",
        ("search", output, "x", "--filter", "brand"): "write NAME=VALUE",
        ("search", output, "x", "--bundle", other): "another model",
        ("search", output, "x", "--rerank", tower): "no cross-encoder",
        ("search", output, "x", "--candidates", "3"): "is for --rerank",
        ("search", tmp_path / "nothing", "x"): "no index",
    }
    for words, message in mistakes.items():
        assert cli.main([*map(str, words)]) == 2, words
        error = capsys.readouterr().err
        assert message in error, words
        assert error.count("\n") == 1, error


def test_cells_are_read_as_the_options_say(tmp_path):
    path = tmp_path / "items.csv"
    path.write_text('id^title\nA^"55 inch &amp; <b>black</b>\nB^"mug"\n')
    read = read_items(path, ReadOptions(delimiter="^", quoting="none", html="text"))
    assert [item.title for item in read.items] == ['"55 inch & black', '"mug"']
    with pytest.raises(UserError, match=r"none of its 1 rows is an item .*map other names by --fields$"):
        read_items(write_lines(tmp_path / "none.jsonl", [{"a": 1}]), ReadOptions(from_command=True))


def test_ids_that_may_be_either_of_two_columns_are_refused(tmp_path):
    path = tmp_path / "items.csv"
    path.write_text("ID,Id,title\n1,2,tea\n")
    with pytest.raises(UserError, match=r"the columns \['item.ID', 'item.Id'\] differ in their spelling alone"):
        read_items(path)


def test_an_attribute_is_mapped_in_a_row_of_items_as_in_one_of_pairs(tmp_path):
    path = tmp_path / "items.csv"
    reading = ReadOptions(fields={"item.attributes.size": "size"})
    for header in ("id,title,size", "item_id,title,size"):
        path.write_text(f"{header}\n1,Shoe,9\n2,Boot,\n")
        assert [item.attributes for item in read_items(path, reading).items] == [(("size", "9"),), ()], header


def test_an_item_whose_row_is_bad_is_not_deleted(tower, tmp_path, capsys):
    path, index = tmp_path / "items.jsonl", tmp_path / "index"
    write_lines(path, [{"id": f"{i}", "title": f"shoe {i}"} for i in range(6)])
    assert cli.main(["index", str(tower), str(path), "--output", str(index)]) == 0
    write_lines(path, [{"id": "1", "title": "boot"}, {"id": "2", "title": ""}])
    assert cli.main(["index", str(tower), str(path), "--output", str(index), "--sync"]) == 0
    contents = open_index(index).contents
    present = contents.table.column("id").filter(pa.array(contents.is_visible)).to_pylist()
    assert set(present) == {"1", "2"}
    assert "1 items of bad rows stay as they are" in capsys.readouterr().out
