"""`jax-rele index` refuses a catalogue in a language that the student does not know, before it encodes anything."""

import json

import pytest

from jax_rele import cli
from jax_rele.cli import search
from jax_rele.data.rows import id_text
from jax_rele.data.tokens.text_loss import TextLoss
from jax_rele.deployment.scorer import Scorer
from jax_rele.errors import UserError


@pytest.fixture
def items_file(tmp_path, items):
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps({"id": item.id, "title": item.title}) + "\n" for item in items[:8]))
    return path


@pytest.fixture
def half_unknown(monkeypatch):
    monkeypatch.setattr(search, "summarize", lambda losses: TextLoss(8, characters=100, unknown_characters=50))


@pytest.mark.parametrize("changes", [[], ["--update"], ["--sync"]])
def test_text_that_the_student_does_not_know_is_refused(tower, items_file, tmp_path, half_unknown, capsys, changes):
    command = ["index", str(tower), str(items_file), "--output", str(tmp_path / "idx")]
    if changes:
        assert cli.main([*command, "--max-unknown", "0.5"]) == 0
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert cli.main([*command, *changes]) == 2
    error = capsys.readouterr().err
    assert "50.0% of the characters are unknown to the student's tokenizer, more than --max-unknown 0.25" in error
    assert str(items_file) in error
    assert sorted(tmp_path.rglob("*")) == before


def test_the_option_lets_it_pass_with_a_warning(tower, items_file, tmp_path, half_unknown, capsys):
    command = ["index", str(tower), str(items_file), "--output", str(tmp_path / "idx"), "--max-unknown", "0.6"]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert "warning: " in out
    assert "50 of 100 characters unknown" in out


@pytest.mark.parametrize("value", ["-0.1", "1.5", "nan"])
def test_the_option_is_a_fraction(tower, items_file, tmp_path, capsys, value):
    command = ["index", str(tower), str(items_file), "--output", str(tmp_path / "idx"), f"--max-unknown={value}"]
    assert cli.main(command) == 2
    assert "--max-unknown: is a fraction from 0 to 1" in capsys.readouterr().err


def test_items_that_cannot_be_read_count_as_unknown(tower, items_file, tmp_path, monkeypatch, capsys):
    counted = []

    def text_loss(scorer, items):
        counted.append(len(items))
        return TextLoss(len(items), characters=100, unknown_characters=0, merged_pairs=8 - len(items))

    monkeypatch.setattr(search, "_text_loss", text_loss)
    monkeypatch.setattr(Scorer, "unreadable", lambda self, items: {0: "runes"})
    assert cli.main(["index", str(tower), str(items_file), "--output", str(tmp_path / "idx")]) == 0
    assert counted == [8, 7]
    assert "1 pairs have the same tokens" in capsys.readouterr().out


def test_a_pointer_in_place_of_a_list_of_ids_is_named(tower, items_file, tmp_path, capsys):
    command = ["index", str(tower), "--output", str(tmp_path / "idx")]
    assert cli.main([*command[:2], str(items_file), *command[2:]]) == 0
    ids = tmp_path / "ids.txt"
    ids.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    capsys.readouterr()
    assert cli.main([*command, "--delete", str(ids)]) == 2
    assert "is a Git LFS pointer, not the file" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_ids_in_the_encodings_of_editors(tmp_path, encoding):
    path = tmp_path / "ids.txt"
    path.write_bytes("é1\r\n\r\n 2.0\n３\n".encode(encoding))
    assert search._read_ids(path) == [id_text(text, "id") for text in ("é1", " 2.0", "３")]


def test_ids_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_bytes(b"\xff\xfa1\n")
    with pytest.raises(UserError, match="no UTF-8 text"):
        search._read_ids(path)
    with pytest.raises(UserError, match="No such file"):
        search._read_ids(tmp_path / "missing.txt")
