"""Tables: exact round trips, all or nothing on disk, damage found."""

import errno
import os
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_rele.data import (
    PAIRS,
    RATIONALES,
    Quarantined,
    join_tables,
    read_pairs,
    read_pairs_table,
    read_table,
    write_pairs,
    write_quarantine,
    write_table,
)
from jax_rele.data import (
    parquet as tables,
)
from jax_rele.data.parquet import new_files, pairs_to_arrow, write_batches
from jax_rele.errors import UserError
from jax_rele.names import SPLITS
from jax_rele.types import ITEM_FIELDS, Item, Pair, Tag

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
items = st.builds(
    Item,
    **dict.fromkeys(("id", *ITEM_FIELDS), text),
    attributes=st.lists(st.tuples(text, text), max_size=3).map(tuple),
)
pairs = st.builds(
    Pair,
    pair_id=text,
    query=text,
    item=items,
    label=st.none() | text,
    locale=text,
    split=st.none() | st.sampled_from(SPLITS),
    tags=st.none() | st.lists(st.builds(Tag, text, text), max_size=3).map(tuple),
    query_frequency=st.none() | st.integers(0, 2**63 - 1),
    long_tail=st.none() | st.booleans(),
)
SOME = [
    Pair(f"p{i}", "réd shoe", Item(str(i), "t", attributes=(("a", "b"),)), tags=None if i % 2 else (Tag("réd", "c"),))
    for i in range(30)
]


@given(st.lists(pairs, max_size=6))
def test_pairs_survive_exactly(tmp_path_factory, written):
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    write_pairs(path, written)
    assert read_pairs_table(path) == written


def test_many_pairs_keep_their_order(tmp_path):
    written = [replace(SOME[i % 30], pair_id=str(i)) for i in range(10_000)]
    write_pairs(tmp_path / "pairs.parquet", iter(written))
    assert read_pairs_table(tmp_path / "pairs.parquet") == written


def test_a_table_of_pairs_is_in_the_documented_format(tmp_path):
    path = tmp_path / "pairs.parquet"
    write_pairs(path, SOME)
    read, bad = read_pairs(path, label_names=("a", "b"))
    assert bad == []
    assert read == [replace(pair, tags=None) for pair in SOME]


def test_rows_and_columns_give_the_same_table(tmp_path):
    columns = {"pair_id": ["a", "b"], "text": ["x", ""], "annotator": ["rules", "llm"]}
    rows = [{"pair_id": "a", "text": "x", "annotator": "rules"}, {"pair_id": "b", "text": "", "annotator": "llm"}]
    write_table(tmp_path / "new" / "columns.parquet", columns, RATIONALES)
    write_table(tmp_path / "rows.parquet", iter(rows), RATIONALES)
    assert read_table(tmp_path / "new" / "columns.parquet", RATIONALES).to_pydict() == columns
    assert read_table(tmp_path / "rows.parquet").to_pylist() == rows
    write_table(tmp_path / "none.parquet", [], RATIONALES)
    assert read_table(tmp_path / "none.parquet", RATIONALES).num_rows == 0


@pytest.mark.parametrize(
    "data",
    [
        [{"pair_id": "a", "text": "x"}],
        [{"pair_id": "a", "text": "x", "annotator": "y", "more": 1}],
        {"pair_id": ["a"], "text": ["x"]},
        {"pair_id": ["a"], "text": ["x"], "annotator": ["y"], "more": [1]},
        [{"pair_id": None, "text": "x", "annotator": "y"}],
        [{"pair_id": 3, "text": "x", "annotator": "y"}],
        [{"pair_id": "\ud800", "text": "x", "annotator": "y"}],
        {"pair_id": ["a", "b"], "text": ["x"], "annotator": ["y"]},
    ],
)
def test_data_that_do_not_fit_leave_the_old_table(tmp_path, data):
    path = tmp_path / "t.parquet"
    write_table(path, [{"pair_id": "old", "text": "", "annotator": ""}], RATIONALES)
    with pytest.raises((ValueError, TypeError)):
        write_table(path, data, RATIONALES)
    assert read_table(path)["pair_id"].to_pylist() == ["old"]
    assert os.listdir(tmp_path) == ["t.parquet"]


def test_a_write_that_fails_half_way_leaves_the_old_table(tmp_path, monkeypatch):
    path = tmp_path / "pairs.parquet"
    write_pairs(path, SOME)

    def stops(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    def is_full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tables.pq.ParquetWriter, "write_table", stops)
    with pytest.raises(UserError, match=rf"^{path}: cannot be written: Input/output error$"):
        write_pairs(path, SOME[:1])
    monkeypatch.setattr(tables.pq.ParquetWriter, "write_table", is_full)
    with pytest.raises(UserError, match=rf"^{path}: the disk is full; make room, then run the same command again$"):
        write_pairs(path, SOME[:1])
    assert read_pairs_table(path) == SOME
    assert os.listdir(tmp_path) == ["pairs.parquet"]


def write_and_fail(folder, error):
    with new_files(folder) as temporary:
        (temporary / "table").write_text("2")
        raise error


def test_new_files_appear_together_or_not_at_all(tmp_path):
    folder = tmp_path / "stage"
    (folder / ".making-left-by-a-kill").mkdir(parents=True)
    with new_files(folder) as temporary:
        (temporary / "table").write_text("1")
        (temporary / "tokenizer").mkdir()
        (temporary / "tokenizer" / "vocab").write_text("1")
        assert os.listdir(folder) == [temporary.name]
    assert sorted(os.listdir(folder)) == ["table", "tokenizer"]
    for error, raised in ((OSError(errno.ENOSPC, "full"), UserError), (KeyError(1), KeyError)):
        with pytest.raises(raised):
            write_and_fail(folder, error)
    with pytest.raises(UserError, match=r"stage: the disk is full"), new_files(folder):
        raise Exception("No space left on device (os error 28)")  # as the tokenizers say it
    assert sorted(os.listdir(folder)) == ["table", "tokenizer"]
    assert (folder / "table").read_text() == "1"
    with new_files(folder) as temporary:
        (temporary / "tokenizer").mkdir()
    assert os.listdir(folder / "tokenizer") == []


def test_batches_become_row_groups_of_one_size(tmp_path):
    parts = [pairs_to_arrow(SOME[start:stop]) for start, stop in ((0, 3), (3, 3), (3, 20), (20, 30))]
    assert write_batches(tmp_path / "t.parquet", parts, PAIRS, rows=8) == 30
    assert read_pairs_table(tmp_path / "t.parquet") == SOME
    metadata = pq.ParquetFile(tmp_path / "t.parquet").metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [8, 8, 8, 6]


def test_tables_of_an_earlier_version_lack_the_long_tail(tmp_path):
    pq.write_table(pairs_to_arrow(SOME).drop_columns("long_tail"), tmp_path / "t.parquet")
    assert read_pairs_table(tmp_path / "t.parquet") == SOME


def test_what_is_renamed_is_whole_and_on_disk(tmp_path, monkeypatch):
    synced, renamed = [], []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (synced.append(os.fstat(number).st_ino), fsync(number)))

    def checked_rename(source, target):
        assert os.stat(source).st_ino in synced
        assert pq.read_table(source).num_rows == len(SOME)
        assert os.path.dirname(source) == os.path.dirname(target)
        renamed.append(str(target))
        rename(source, target)

    monkeypatch.setattr(os, "replace", checked_rename)
    write_pairs(tmp_path / "pairs.parquet", SOME)
    assert renamed == [str(tmp_path / "pairs.parquet")]
    assert synced[-1] == os.stat(tmp_path).st_ino


@pytest.fixture(scope="module")
def some_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("some") / "pairs.parquet"
    write_pairs(path, SOME)
    return path.read_bytes()


@settings(max_examples=300)
@given(st.data())
def test_damage_is_named_or_harmless(some_bytes, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damage") / "pairs.parquet"
    at = data.draw(st.integers(0, len(some_bytes) - 1))
    cut = data.draw(st.booleans())
    flipped = bytes([some_bytes[at] ^ data.draw(st.integers(1, 255))])
    path.write_bytes(some_bytes[:at] if cut else some_bytes[:at] + flipped + some_bytes[at + 1 :])
    message = None
    try:
        read = read_pairs_table(path)
    except UserError as error:
        message = str(error)
    if message is None:
        assert not cut
        assert read == SOME
    else:
        assert message.startswith(f"{path}: ")
        assert "\n" not in message


def test_unusable_tables_are_named(tmp_path):
    path = tmp_path / "t.parquet"
    with pytest.raises(UserError, match=r"t\.parquet: no such table; run the stage"):
        read_table(path)
    path.write_bytes(b"not Parquet")
    with pytest.raises(UserError, match=r"t\.parquet: the table is damaged .* delete it"):
        read_table(path)
    pq.write_table(pa.table({"pair_id": ["a"], "text": ["x"]}), path)
    with pytest.raises(UserError, match=r"t\.parquet: the table has no column \['annotator'\]"):
        read_table(path, RATIONALES)
    for annotator in ([[1]], [None]):
        pq.write_table(pa.table({"pair_id": ["a"], "text": ["x"], "annotator": annotator}), path)
        with pytest.raises(UserError, match=r"t\.parquet: the columns have other types"):
            read_table(path, RATIONALES)


def test_invalid_text_is_found_without_checksums(tmp_path):
    path = tmp_path / "t.parquet"
    text = pa.Array.from_buffers(pa.string(), 1, pa.array([b"caf\xe9"]).buffers())
    pq.write_table(pa.table(dict.fromkeys(RATIONALES.names, text)), path)
    with pytest.raises(UserError, match=r"t\.parquet: the table is damaged"):
        read_table(path, RATIONALES)


def test_columns_of_like_types_are_cast(tmp_path):
    path = tmp_path / "t.parquet"
    columns = {name: pa.array(["a"], pa.large_string()) for name in RATIONALES.names}
    pq.write_table(pa.table({"more": [1], **columns}), path)
    assert read_table(path, RATIONALES).schema.equals(RATIONALES)
    assert read_table(path).column_names[0] == "more"


def test_joined_tables_hold_the_rows_of_their_parts(tmp_path):
    schema = RATIONALES.with_metadata({"labels": "a"})
    parts = [tmp_path / "1.parquet", tmp_path / "2.parquet"]
    for path, names in zip(parts, ("ab", "c")):
        write_table(path, [{"pair_id": name, "text": "x", "annotator": "y"} for name in names], schema)
    joined = tmp_path / "new" / "joined.parquet"
    join_tables(joined, parts)
    assert read_table(joined)["pair_id"].to_pylist() == ["a", "b", "c"]
    assert read_table(joined).schema.metadata[b"labels"] == b"a"
    # What cannot be joined leaves the old table.
    parts[1].write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"2\.parquet: the table is damaged"):
        join_tables(joined, parts)
    with pytest.raises(ValueError, match="no parts"):
        join_tables(joined, [])
    assert read_table(joined)["pair_id"].to_pylist() == ["a", "b", "c"]
    assert os.listdir(joined.parent) == ["joined.parquet"]


def test_quarantine(tmp_path):
    bad = [Quarantined("f.csv", 3, "missing title", "a,,\nb"), Quarantined("f.csv", 2**40, "x", "\ufffd")]
    for rows in (bad, []):
        write_quarantine(tmp_path / "quarantine.parquet", rows)
        assert [Quarantined(**row) for row in read_table(tmp_path / "quarantine.parquet").to_pylist()] == rows


def test_metadata_of_the_schema_are_kept(tmp_path):
    path = tmp_path / "pairs.parquet"
    write_table(path, [], PAIRS.with_metadata({"key": "value"}))
    assert read_table(path, PAIRS).schema.metadata[b"key"] == b"value"
