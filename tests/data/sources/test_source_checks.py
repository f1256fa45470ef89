"""What is known of a source before its rows are used: its hash, its name, and how many of its rows are bad."""

import re

import pytest

from jax_rele.config import DataConfig
from jax_rele.data.rows import Quarantined
from jax_rele.data.sources.shards import check_bad_fraction, open_source, read_pairs, source_hash
from jax_rele.errors import UserError

LABELS = ("Exact", "Irrelevant")


def test_the_hash_is_that_of_the_files_that_are_read(tmp_path):
    for name in ("b.jsonl", "a.csv", "notes.md"):
        (tmp_path / name).write_text("x")
    data = DataConfig(path=str(tmp_path))
    assert [shard.name for shard in open_source(data, tmp_path)] == [str(tmp_path / n) for n in ("a.csv", "b.jsonl")]
    before = source_hash(data)
    (tmp_path / "notes.md").write_text("y")
    assert source_hash(data) == before
    (tmp_path / "b.jsonl").write_text("y!")
    assert source_hash(data) != before
    assert re.fullmatch("[0-9a-f]{16}", source_hash(DataConfig()))
    with pytest.raises(UserError, match="no such file"):
        source_hash(DataConfig(path=str(tmp_path / "none")))


def test_the_fraction_of_bad_rows():
    bad = [Quarantined("f.csv", i, reason, "") for i, reason in enumerate(["a", "a", "b", "c", "d"], 1)]
    check_bad_fraction(100, 5, bad, 0.05, "f.csv")
    check_bad_fraction(0, 0, [], 0.0, "f.csv")
    with pytest.raises(UserError) as error:
        check_bad_fraction(99, 5, bad[1:4], 0.05, "data")
    assert str(error.value) == (
        "data: 5 of 99 rows are bad (5.1%), more than data.max_bad_fraction 5.0% (row 2 of f.csv: a; row 3 of f.csv: "
        "b; row 4 of f.csv: c); fix them, or raise data.max_bad_fraction"
    )


def test_names_without_a_source():
    for path in ("hf:", "tfds:"):
        with pytest.raises(UserError, match=f"^{path}: give a name after the colon"):
            read_pairs(path, label_names=LABELS)
