"""predict: rows that are set aside are named by their file and number, whatever set them aside."""

import json

import pyarrow.parquet as pq
import pytest

from jax_rele import cli
from jax_rele.cli import judge
from jax_rele.deployment import export_student
from jax_rele.deployment.scorer import Scorer
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

    monkeypatch.setattr(judge, "unreadable_texts", unreadable)


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
        monkeypatch.setattr(
            Scorer,
            "unreadable_pairs",
            lambda self, encoded, pairs: {i: ("item", "x") for i, each in enumerate(pairs) if "ᚠ" in each.item.title},
        )
        assert cli.main(["predict", str(tmp_path / "bundle"), "--input", str(path), "--output", str(output)]) == 0
    assert len(pq.read_table(output)) == 2
    assert "1 pairs have the same tokens as another pair" in capsys.readouterr().out
