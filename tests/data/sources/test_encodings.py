"""Text files in other encodings than UTF-8: read as they say, and a row that does not fit costs one row."""

import csv
import json

import pytest

from jax_rele.data.sources.shards import read_pairs
from jax_rele.errors import UserError
from jax_rele.types import ReadOptions


def row(i, title="Title"):
    return {"pair_id": f"p{i}", "query": f"query {i}", "title": title, "label": "Exact"}


def write(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return path


def read(path, encoding):
    return read_pairs(path, label_names=("Exact", "Irrelevant"), reading=ReadOptions(encoding=encoding))


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "shift_jis", "gb18030", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_encodings(tmp_path, suffix, encoding):
    word = (
        "caf\u00e9 \u00e0" if encoding in ("latin-1", "cp1252") else "\u30bd\u8868\u4e0a"
    )  # with trail bytes that are ASCII
    path = write(tmp_path / f"data{suffix}", [row(i, title=f"{word} {i}") for i in range(300)])
    path.write_bytes(path.read_text("utf-8").encode(encoding))
    pairs, bad = read(path, encoding=encoding)
    assert (len(pairs), bad) == (300, [])
    assert pairs[-1].item.title == f"{word} 299"


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@pytest.mark.parametrize(("encoding", "spoilt"), [("utf-8", b"\xe9"), ("gb18030", b"\xff"), ("utf-16-le", b"\x00\xdc")])
def test_a_row_in_another_encoding_costs_one_row(tmp_path, suffix, encoding, spoilt):
    path = write(tmp_path / f"data{suffix}", [row(i, title="Title @" if i == 1 else "Title") for i in range(3)])
    path.write_bytes(path.read_text("utf-8").encode(encoding).replace("@".encode(encoding), spoilt))
    pairs, bad = read(path, encoding=encoding)
    assert [pair.pair_id for pair in pairs] == ["p0", "p2"]
    assert [one.row for one in bad] == [2 if suffix == ".jsonl" else 3]
    assert bad[0].reason.startswith("not valid")
    assert "set data.encoding" in bad[0].reason


def test_unknown_encodings(tmp_path):
    path = write(tmp_path / "data.csv", [row(1)])
    for encoding in ("utf8x", "base64", "hex", ""):
        with pytest.raises(UserError, match=r"^data\.encoding: .* is no text encoding"):
            read(path, encoding=encoding)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_mark_is_enough_for_texts_of_two_byte_letters(tmp_path, suffix, encoding):
    path = write(tmp_path / f"data{suffix}", [row(i, title="\u9774\u5b50" * 300) for i in range(50)])
    path.write_bytes(("\ufeff" + path.read_text("utf-8")).encode(encoding))
    pairs, bad = read(path, encoding="utf-8")
    assert (len(pairs), bad) == (50, [])


def test_a_character_that_stands_for_lost_bytes_is_read_alike_in_every_encoding(tmp_path):
    path = write(tmp_path / "data.jsonl", [row(i, title="a\ufffdb") for i in range(3)])
    text = path.read_text("utf-8")
    for encoding in ("utf-8", "utf-16", "utf-32", "gb18030"):
        path.write_bytes(text.encode(encoding))
        pairs, bad = read(path, encoding=encoding)
        assert ([pair.item.title for pair in pairs], bad) == (["a\ufffdb"] * 3, []), encoding


def test_a_file_that_begins_with_a_mark_and_is_none_costs_its_first_row(tmp_path):
    path = write(tmp_path / "data.jsonl", [row(i) for i in range(3)])
    path.write_bytes(b"\xff\xfe" + path.read_bytes())
    pairs, bad = read(path, encoding="utf-8")
    assert ([pair.pair_id for pair in pairs], [one.row for one in bad]) == (["p1", "p2"], [1])
