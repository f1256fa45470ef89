"""predict: rows that are set aside are named by their file and number, whatever set them aside."""

import json

import pyarrow.parquet as pq
import pytest

from jax_rele import cli
from jax_rele.cli import judge
from jax_rele.deployment import export_student
from jax_rele.errors import UserError

pytestmark = pytest.mark.timeout(600)


def line(number, query="red shoe", title="A shoe"):
    return json.dumps({"pair_id": f"p{number}", "query": query, "item": {"id": f"{number}", "title": title}})


@pytest.fixture
def folder(tmp_path):
    """Two files: of the first, line 2 is broken and line 4 in a language that is not known; of the second, line 2."""
    (tmp_path / "in").mkdir()
    first = [line(1), '{"query": ', line(2, "a lamp"), line(3, "ᚠᚢᚦ"), line(4, title="A lamp")]
    second = [line(5, "blue shoe"), line(6, title="ᚠᚢᚦ"), line(7, "ᚠᚢᚦᚨ")]
    for name, lines in (("a.jsonl", first), ("b.jsonl", second)):
        (tmp_path / "in" / name).write_text("\n".join(lines) + "\n", "utf-8")
    return tmp_path / "in"


@pytest.fixture
def runes_are_unknown(monkeypatch):
    def unreadable(tokenizer, texts, rows=None):
        return {index: "runes" for index, text in enumerate(texts) if "ᚠ" in text}

    monkeypatch.setattr("jax_rele.data.tokens.student_inputs.unreadable_texts", unreadable)


def test_a_runs_rows_are_named_where_they_are(tiny, folder, runes_are_unknown, capsys):
    output = folder.parent / "scores.parquet"
    judge.predict_by_run(tiny[1], "cross_encoder", str(folder), output)
    assert pq.read_table(output)["pair_id"].to_pylist() == ["p1", "p2", "p4", "p5"]
    bad = pq.read_table(output.with_suffix(".quarantine.parquet")).to_pylist()
    assert {(row["source"].rpartition("/")[2], row["row"]) for row in bad} == {
        *(("a.jsonl", 2), ("a.jsonl", 4)),
        *(("b.jsonl", 2), ("b.jsonl", 3)),
    }
    assert (
        f"4 bad rows set aside, the first is row 2 of {folder / 'a.jsonl'}: not valid JSON" in capsys.readouterr().out
    )


def test_where_nothing_can_be_read_the_first_row_is_named(tiny, tmp_path, runes_are_unknown):
    path = tmp_path / "runes.jsonl"
    path.write_text(f"\n{line(1, 'ᚠ')}\n{line(2, 'ᚠ')}\n", "utf-8")
    with pytest.raises(UserError, match=r"none of its 2 pairs can be read \(row 2: pair p1: the query: runes\)"):
        judge.predict_by_run(tiny[1], "two_tower", str(path), tmp_path / "scores.parquet")
    assert not (tmp_path / "scores.parquet").exists()


@pytest.mark.parametrize("form", ["run", "bundle"])
def test_pairs_that_are_set_aside_are_merged_with_nothing(tiny, tmp_path, runes_are_unknown, monkeypatch, capsys, form):
    path, output = tmp_path / "pairs.jsonl", tmp_path / "scores.parquet"
    # Of all the tokens are taken for the same: of the two that are read one is merged with the other.
    texts = ["ᚠ one", "ᚠ two", "ᚠ ONE", "lamp", "shoe"]
    path.write_text("".join(f"{line(number, title=text)}\n" for number, text in enumerate(texts)), "utf-8")
    monkeypatch.setattr("jax_rele.data.tokens.text_loss.hash_tokens", lambda ids: 0)
    if form == "run":
        judge.predict_by_run(tiny[1], "cross_encoder", str(path), output)
    else:
        export_student(tiny[1], tmp_path / "bundle", "cross_encoder")
        assert cli.main(["predict", str(tmp_path / "bundle"), "--input", str(path), "--output", str(output)]) == 0
    assert len(pq.read_table(output)) == 2
    assert "1 pairs have the same tokens as another pair" in capsys.readouterr().out


def test_what_is_lost_is_a_fraction_of_all_pairs_set_aside_or_not(tiny, tmp_path, runes_are_unknown, capsys):
    path, output = tmp_path / "pairs.jsonl", tmp_path / "scores.parquet"
    texts = ["ᚠ one " * 50, "ᚠ two " * 50, "ᚠ", "lamp", "shoe " * 50]
    path.write_text("".join(f"{line(number, title=text)}\n" for number, text in enumerate(texts)), "utf-8")
    export_student(tiny[1], tmp_path / "bundle", "two_tower")
    output_of = {}
    for form, command in (("run", [tiny[1], "--model", "two_tower"]), ("bundle", [tmp_path / "bundle"])):
        words = ["predict", *command, "--input", path, "--output", output]
        assert cli.main([*map(str, words)]) == 0
        assert pq.read_table(output)["pair_id"].to_pylist() == ["p3", "p4"]
        output_of[form] = capsys.readouterr().out
    for text in output_of.values():
        assert "0 queries and 3 items of 5 pairs cut" in text
    assert "60.0% of the pairs lose the end of their query or item" in output_of["bundle"]


def test_a_text_whose_known_words_are_cut_off_is_set_aside_by_a_run_as_by_its_bundle(tiny, tmp_path, monkeypatch):
    def unreadable(tokenizer, texts, rows):
        return {index: "nothing" for index, ids in enumerate(rows) if "lamp" not in tokenizer.decode(ids)}

    monkeypatch.setattr("jax_rele.data.tokens.student_inputs.unreadable_texts", unreadable)
    path, output = tmp_path / "pairs.jsonl", tmp_path / "scores.parquet"
    rows = [line(1, "lamp", "lamp"), line(2, "lamp", "shoe " * 60 + "lamp"), line(3, "red " * 60 + "lamp", "lamp")]
    path.write_text("\n".join(rows) + "\n", "utf-8")
    for model in ("two_tower", "cross_encoder"):
        bundle = tmp_path / model
        export_student(tiny[1], bundle, model)
        for command in ([tiny[1], "--model", model], [bundle]):
            words = ["predict", *command, "--input", path, "--output", output]
            assert cli.main([*map(str, words)]) == 0
            assert pq.read_table(output)["pair_id"].to_pylist() == ["p1"], command
