"""Files of every kind, whole and damaged: a bad row costs one row, a bad file is named."""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import re
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jax_rele.data.pairs.splits import assign_splits
from jax_rele.data.sources.shards import SAMPLE, WITHOUT_LABEL_COLUMN, open_shards, parse_shards, read_pairs
from jax_rele.errors import UserError
from jax_rele.types import ReadOptions

LABELS = ("Exact", "Irrelevant")
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".json.bz2", ".csv.xz", ".tsv.zst")
OPEN = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def open_plain(path, mode, **options):
    """Opens a file by its suffix, as the other side would write it."""
    if path.suffix == ".zst":
        stream = pa.CompressedOutputStream(pa.OSFile(str(path), "wb"), "zstd")
        return stream if "b" in mode else io.TextIOWrapper(stream, **options)
    return OPEN.get(path.suffix, open)(path, mode, **options)


def row(i, **changes):
    return {"pair_id": f"p{i}", "query": f"query {i}", "title": f"Title {i}", "label": "Exact"} | changes


def write(path, rows):
    """Flat rows in the format that the suffix says."""
    name = re.sub(r"\.(gz|bz2|xz|zst)$", "", path.name)
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    with open_plain(path, "wt", encoding="utf-8", newline="") as file:
        if name.endswith((".json", ".jsonl")):
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if name.endswith(".tsv") else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def read(path, label_map=None, require_label=False, **reading):
    return read_pairs(
        path,
        label_names=LABELS,
        label_map=label_map,
        require_label=require_label,
        reading=ReadOptions(**reading),
    )


def queries(pairs):
    return [pair.query for pair in pairs]


def problems(bad):
    return [(one.row, one.reason) for one in bad]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_the_same_pairs_and_quarantine(tmp_path, suffix):
    odd = 'Söck, "12\' x"\tline\u2028one\nline two'
    rows = [row(1), row(2, query=""), row(3, title=odd), row(4, label="?"), row(1), row(5, label="")]
    path = write(tmp_path / f"data{suffix.upper() if suffix == '.csv' else suffix}", rows)
    pairs, bad = read(path, quoting="standard" if ".tsv" in suffix else "auto")
    assert [(pair.pair_id, pair.item.title, pair.label) for pair in pairs] == [
        ("p1", "Title 1", "Exact"),
        ("p3", odd, "Exact"),
        ("p5", "Title 5", None),
    ]
    lines = {"csv": [2, 3, 4, 6, 7], "tsv": [2, 3, 4, 6, 7]}.get(suffix.split(".")[1], [1, 2, 3, 4, 5])
    assert [one.row for one in bad] == [lines[1], lines[3], lines[4]]
    assert [one.reason.split(":")[0] for one in bad] == [
        "blank query",
        "unknown label '?'",
        f"duplicate pair_id, first seen at row {lines[0]}",
    ]
    assert {one.source for one in bad} == {str(path)}
    assert all(f"p{i}" in one.raw and not one.raw.endswith("\n") for i, one in zip((2, 4, 1), bad))


def test_the_sample():
    label_map = {"E": "Exact", "S": "Irrelevant", "C": "Irrelevant", "I": "Irrelevant"}
    pairs, bad = read(SAMPLE, label_map=label_map, require_label=True)
    assert (len(pairs), bad) == (1526, [])
    assert sum(pair.tags is not None for pair in pairs) == 185
    assert Counter(pair.split for pair in pairs) == {"train": 928, "validation": 161, "test": 437}
    assert assign_splits(pairs, (0.6, 0.2, 0.2), seed=0) == pairs
    assert sum(pair.label == "Exact" for pair in pairs) == 960
    tagged = next(pair for pair in pairs if pair.pair_id == "esci-00014")
    assert [(tag.text, tag.type) for tag in tagged.tags][-1] == ("battery", "core_product_type")
    # Its own labels need no map; others do.
    pairs, bad = read_pairs(SAMPLE, label_names=["Exact", "Substitute", "Complement", "Irrelevant"])
    assert sorted(Counter(pair.label for pair in pairs).values()) == [37, 166, 363, 960]
    assert not bad
    with pytest.raises(UserError, match=r"^sample: none of its 1526 rows is a valid pair \(row 1: unknown label 'S'"):
        read_pairs(SAMPLE, label_names=["good", "bad"])


def test_bad_json_lines_cost_one_row_each(tmp_path):
    good = json.dumps(row(1)).encode()
    lines = [
        b"\xef\xbb\xbf" + good,  # byte order mark
        good.replace(b"p1", b"p2")[:30],
        b"",
        b'{"query": "caf\xe9", "title": "t"}',
        b"[1, 2]",
        b"null",
        b"[" * 100_000,
        b'{"query": ' + b"9" * 5_000 + b"}",
        b'{"query": "\\ud800", "title": "t"}',
        good.replace(b"p1", b"p3") + b"\r",
        good.replace(b"p1", b"p4"),
    ]
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\n".join(lines))  # no newline at the end
    pairs, bad = read(path)
    assert [pair.pair_id for pair in pairs] == ["p1", "p3", "p4"]
    expected = {
        2: "not valid JSON at character",
        4: "not valid UTF-8 at byte 15",
        5: "must be a JSON object, got list",
        6: "must be a JSON object, got NoneType",
        7: "not valid JSON: nested too deeply",
        8: "not valid JSON: Exceeds the limit",
        9: "query is no valid Unicode text",
    }
    assert [one.row for one in bad] == list(expected)
    for one in bad:
        assert one.reason.startswith(expected[one.row])
        assert len(one.raw) <= 500
        one.raw.encode()
    assert bad[1].reason.endswith("if the file has another, set data.encoding")
    assert bad[1].raw == '{"query": "caf\ufffd", "title": "t"}'


def test_bad_csv_rows_cost_one_row_each(tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes(
        b"\xef\xbb\xbfquery , title,color\r\n"
        b"one,t\r\n"  # 2: a cell is missing
        b"two,t,red,x\r\n"  # 3: one too many
        b"\r\n"
        b"caf\xe9,t,red\r\n"  # 5: Latin-1
        b'three,"t, 1\nt 2",red\n'  # 6 and 7: one good row
        b'four,"never closed,red\n'  # 8
        b'five,"t",red\n'
        b'six,t,12" wide\n'  # a quote inside is a character
        b'seven,"t"s,red\n'  # 11
        b"e\0ight,t,red\n"
        b'nine,"open to the end,red\n'  # 13
        b"ten,t,red"
    )
    pairs, bad = read(path)
    assert queries(pairs) == ["three", "five", "six", "eight", "ten"]
    assert pairs[0].item.title == "t, 1\nt 2"
    assert pairs[2].item.color == '12" wide'
    assert [one.row for one in bad] == [2, 3, 5, 8, 11, 13]
    assert [one.reason.split(":")[0] for one in bad] == [
        "2 cells, but the header has 3",
        "4 cells, but the header has 3",
        "not valid UTF-8",
        "broken quotes or cells",
        "broken quotes or cells",
        "broken quotes or cells",
    ]
    assert [one.raw for one in bad][2:4] == ["caf\ufffd,t,red", 'four,"never closed,red']


def test_bad_parquet_rows_cost_one_row_each(tmp_path):
    raw = pa.array([b"one", b"caf\xe9", b"three"])
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())  # invalid UTF-8 under the type string
    attributes = pa.array([[("a", "b")], [], [("a", "b"), ("a", "c")]], pa.map_(pa.string(), pa.string()))
    table = pa.table({"query": text, "item.title": ["x", "y", "z"], "item.attributes": attributes})
    more = pa.table({"query": ["four"], "item.title": ["x"], "item.attributes": attributes[:1]})
    path = tmp_path / "data.parquet"
    pq.write_table(pa.concat_tables([table, more]), path)
    pairs, bad = read(path)
    assert queries(pairs) == ["one", "four"]
    assert pairs[0].item.attributes == (("a", "b"),)
    assert [one.row for one in bad] == [2, 3]
    assert all(one.reason.startswith("cannot be read: ") and "\n" not in one.reason for one in bad)


def test_nested_parquet(tmp_path):
    item = {"id": "i", "title": "t", "bullets": ["a", "b"], "attributes": {"size": "M", "color": None}}
    rows = [
        {"q": "one", "product": item, "tags": {"tokens": ["one"], "labels": ["B-x"]}},
        {"q": "two", "product": None},
    ]
    path = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    pairs, bad = read(path, fields={"query": "q", "item": "product", "query_tags": "tags"})
    assert (pairs[0].item.bullets, pairs[0].item.attributes, pairs[0].tags[0].type) == ("a\nb", (("size", "M"),), "x")
    assert problems(bad) == [(2, "missing item")]
    assert '"q": "two"' in bad[0].raw


def test_csv_records_of_several_lines(tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes(
        b"query,title\n"
        b'zero,"two\nlines",too many\n'  # 2 and 3
        b'one,"never closed\n'  # 4 swallows the lines up to the next quote
        b"two,t\nthree,t\nfour,t\n"
        b'five,"t"\n'
    )
    pairs, bad = read(path)
    assert queries(pairs) == ["two", "three", "four", "five"]
    assert [one.row for one in bad] == [2, 4]
    assert bad[0].raw == 'zero,"two\nlines",too many'


def test_a_table_with_the_wrong_columns_is_not_read_to_its_end(tmp_path):
    rows = [{"search": random.Random(i).randbytes(40).hex(), "title": "t"} for i in range(20_000)]
    path = write(tmp_path / "data.csv.gz", rows)
    path.write_bytes(path.read_bytes()[:-1000])
    assert "no column holds the query" in refusal(path)
    assert "cannot be read" in refusal(path, fields={"query": "search"})


@given(st.binary(max_size=200), st.integers(0, 10))
@example(b"\xfe\xff", 0)
@example(b"\xff\xfe", 0)
@example(b"version https://git-lfs", 0)
@example(b"<!doctype html", 0)
def test_no_bytes_stop_the_reading(tmp_path_factory, noise, index):
    folder = tmp_path_factory.mktemp("noise")
    lines = [json.dumps(row(i)).encode() for i in range(10)]
    lines.insert(index, noise)
    (folder / "data.jsonl").write_bytes(b"\n".join(lines))
    pairs, bad = read(folder / "data.jsonl")
    assert [pair.pair_id for pair in pairs] == [f"p{i}" for i in range(10)]
    seen = noise.removeprefix(b"\xef\xbb\xbf") if index == 0 else noise
    assert len(bad) == sum(bool(line.strip()) for line in seen.splitlines())
    cells = [f"p{i},query {i},title {i}".encode() for i in range(10)]
    cells.insert(index, noise)
    (folder / "data.csv").write_bytes(b"\n".join([b"pair_id,query,title", *cells]))
    pairs, bad = read(folder / "data.csv")
    assert {pair.pair_id for pair in pairs} >= {f"p{i}" for i in range(10)}
    for one in bad:
        (one.reason + one.raw).encode()


def test_folders_and_globs_are_read_in_order(tmp_path):
    write(tmp_path / "b.csv", [row(2), row(1)])
    write(tmp_path / "a.jsonl", [row(1)])
    write(tmp_path / "c.parquet", [row(3)])
    for name in ("README.md", ".hidden.jsonl", "_SUCCESS.json"):
        (tmp_path / name).write_text("no pairs")
    (tmp_path / "folder.jsonl").mkdir()
    pairs, bad = read(tmp_path)
    assert [pair.pair_id for pair in pairs] == ["p1", "p2", "p3"]
    assert problems(bad) == [(3, f"duplicate pair_id, first seen at {tmp_path / 'a.jsonl'} row 1")]
    assert bad[0].source == str(tmp_path / "b.csv")
    assert [pair.pair_id for pair in read(str(tmp_path / "[bc].*"))[0]] == ["p2", "p1", "p3"]
    bracketed = write(tmp_path / "x[1].jsonl", [row(9)])
    assert [pair.pair_id for pair in read(bracketed)[0]] == ["p9"]


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "data.jsonl", [row(1)])
    assert len(read("~/data.jsonl")[0]) == 1


def refusal(path, **options):
    with pytest.raises(UserError) as error:
        read(path, **options)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


def test_missing_and_unknown_files(tmp_path):
    assert "no such file" in refusal(tmp_path / "none.jsonl")
    assert "no file matches the pattern" in refusal(tmp_path / "*.jsonl")
    assert "the folder holds no file of pairs" in refusal(tmp_path)
    for name in ("data.xlsx", "data.gz", "data.parquet.gz", "data"):
        (tmp_path / name).write_text("x")
        assert "unknown suffix; convert the file to one of .jsonl, " in refusal(tmp_path / name)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_empty_files(tmp_path, suffix):
    path = tmp_path / f"data{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table({"query": pa.array([], pa.string())}), path)
    else:
        with open_plain(path, "wb") as file:
            file.write(b" \n" if "json" in suffix else b"")
    assert "the file has no rows" in refusal(path)
    if "sv" in suffix:
        with open_plain(path, "wb") as file:
            file.write(b"query\ttitle\n")
        assert "the file has no rows" in refusal(path)
    # Among others it is passed over; all of them empty are too few.
    other = tmp_path / f"other{suffix}"
    other.write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="none of the 2 files has a row"):
        read(tmp_path)
    write(other, [row(1)])
    assert [pair.pair_id for pair in read(tmp_path)[0]] == ["p1"]


def test_damaged_files(tmp_path):
    path = tmp_path / "data.parquet"
    table = pa.Table.from_pylist([row(i) for i in range(100)])
    pq.write_table(table, path, compression="none", write_page_checksum=True)
    whole = path.read_bytes()
    assert len(read(path)[0]) == 100
    flipped = whole.replace(b"Title 5", b"Title 6", 1)
    header = whole.replace(b"label", b"lab\xe9l")
    assert whole not in (flipped, header)
    for damage in (whole[:-20], b"", b"PAR1" * 10, flipped, header):
        path.write_bytes(damage)
        assert "cannot be read" in refusal(path)
    for compression in ("gz", "bz2", "xz", "zst"):
        path = write(tmp_path / f"data.jsonl.{compression}", [row(i) for i in range(100)])
        whole = path.read_bytes()
        # A zstd file need not hold a checksum: what is changed inside it may go unnoticed.
        changed = [] if compression == "zst" else [whole[:50] + b"\xff" * 20 + whole[70:]]
        for damage in (whole[:-20], b"not compressed", *changed):
            path.write_bytes(damage)
            assert "cannot be read" in refusal(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_absent_columns(tmp_path, suffix):
    rows = [{"search": "a", "title": "b"}, {"search": "c", "title": "d"}]
    path = write(tmp_path / f"data{suffix}", rows)
    assert (
        "no column holds the query; the columns are ['search', 'title']; name the right one in data.fields, e.g. "
        "{query: YOUR_COLUMN}"
    ) in refusal(path)
    assert "no column holds the title" in refusal(path, fields={"query": "search", "item.brand": "title"})
    assert "no column holds the label" in refusal(path, fields={"query": "search"}, require_label=True)
    assert queries(read(path, fields={"query": "search"})[0]) == ["a", "c"]


def test_files_without_a_valid_row(tmp_path):
    path = write(tmp_path / "data.csv", [row(1, label="x"), row(2, title="")])
    assert "none of its 2 rows is a valid pair (row 2: unknown label 'x'" in refusal(path)
    path = tmp_path / "data.json"
    path.write_text(json.dumps([row(1), row(2)], indent=1))
    assert "the file is one JSON array; write one object a line" in refusal(path)
    # One such file among good ones costs its rows alone.
    path.unlink()
    write(tmp_path / "more.csv", [row(3)])
    pairs, bad = read(tmp_path)
    assert ([pair.pair_id for pair in pairs], len(bad)) == (["p3"], 2)


@pytest.mark.parametrize(
    ("header", "message"),
    [(b"query,title,query\n", "names ['query'] twice"), (b'query,"title\n', "broken"), (b"query,t\xe9\n", "UTF-8")],
)
def test_broken_headers(tmp_path, header, message):
    path = tmp_path / "data.csv"
    path.write_bytes(header + b"a,b,c\n")
    assert message in refusal(path)


def test_wrong_mappings(tmp_path):
    path = write(tmp_path / "data.csv", [row(1)])
    with pytest.raises(UserError, match=r"data\.fields: 'titel' is no field"):
        read(path, fields={"titel": "title"})
    with pytest.raises(UserError, match=r"labels\.aliases: 'E' is mapped to 'exact'"):
        read(path, label_map={"E": "exact"})


def test_for_prediction_labels_are_not_read_and_a_pair_may_come_twice(tmp_path):
    row = {"query": "shoes", "item": {"id": "1", "title": "Shoes"}, "label": "none of yours", "split": "dev"}
    file = tmp_path / "pairs.jsonl"
    file.write_text((json.dumps(row) + "\n") * 2 + json.dumps({"query": "shoes", "item": {"id": "2"}}))
    pairs, bad = read_pairs(file, label_names=["Exact", "Other"], for_prediction=True)
    assert [(pair.item.id, pair.label, pair.split) for pair in pairs] == [("1", None, None)] * 2
    assert [(one.row, one.reason) for one in bad] == [(3, "missing title")]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_text_of_ten_megabytes_costs_one_row(tmp_path, suffix):
    path = write(tmp_path / f"data{suffix}", [row(1), row(2, title="x" * 10_000_000), row(3)])
    pairs, bad = read(path)
    assert [pair.pair_id for pair in pairs] == ["p1", "p3"]
    assert len(bad) == 1
    assert len(bad[0].raw) <= 500
    assert len(bad[0].reason) < 200
    assert len(read(path, max_characters=10_000_000)[0]) == 3


@pytest.mark.parametrize("name", ["data.parquet", "data.csv.gz", "data.jsonl.zst", "data.csv", "data.jsonl"])
def test_a_pointer_is_named_under_every_suffix(tmp_path, name):
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n")
    assert "Git LFS pointer" in refusal(path)


def test_unlabelled_rows_without_a_column_for_the_label_are_counted(tmp_path):
    """One file of a folder calls it something else: its rows are pairs, and that they have no label is said."""
    (tmp_path / "a.csv").write_text("query,title,label\nred,shoe,E\nblue,shoe,\n")
    (tmp_path / "b.csv").write_text("query,title,relevance\nred,boot,E\nblue,boot,E\n")
    shards = open_shards(str(tmp_path), ReadOptions(), tmp_path / "cache")
    pairs = list(parse_shards(shards, str(tmp_path), ReadOptions(), label_names=["E"], label_map={}))
    assert len(pairs) == 4
    assert [shard.notes[WITHOUT_LABEL_COLUMN] for shard in shards] == [0, 2]


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz", "zst"])
@pytest.mark.parametrize("trailing", [b"plain rows\n" * 50, "damaged", b"BZ", b"\0\0\0\1"])
def test_what_follows_a_compressed_stream_is_read_or_refused(tmp_path, compression, trailing):
    first, second = (
        write(tmp_path / f"{name}.jsonl.{compression}", [row(i) for i in numbers])
        for name, numbers in (("a", range(100)), ("b", range(100, 200)))
    )
    path = tmp_path / f"both.jsonl.{compression}"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    pairs, bad = read_pairs(path, label_names=LABELS)
    assert (len(pairs), bad) == (200, [])
    content = bytearray(second.read_bytes())
    content[1] ^= 0xFF
    path.write_bytes(first.read_bytes() + (bytes(content) if trailing == "damaged" else trailing))
    with pytest.raises(UserError, match="cannot be read"):
        read_pairs(path, label_names=LABELS)


def test_the_padding_of_xz_is_no_damage(tmp_path):
    parts = [write(tmp_path / f"{i}.jsonl.xz", [row(i)]).read_bytes() for i in range(2)]
    path = tmp_path / "data.jsonl.xz"
    path.write_bytes(parts[0] + bytes(8) + parts[1] + bytes(4))
    assert len(read_pairs(path, label_names=LABELS)[0]) == 2
