"""Every command on a bundle reads files as its options say, and its messages name the options that it has."""

import json

import pyarrow.parquet as pq
import pytest

from jax_rele import cli
from jax_rele.cli.options import read_options
from jax_rele.config import DataConfig
from jax_rele.data.sources.readers import read_file
from jax_rele.data.sources.shards import SourceFile
from jax_rele.errors import UserError
from jax_rele.types import ReadOptions

FILES = {"predict": "--input", "index": None, "threshold": None, "drift": "--input"}


def command(name, bundle, path, tmp_path):
    output = {
        "predict": ["--output", tmp_path / "scores.parquet"],
        "index": ["--output", tmp_path / "index"],
        "threshold": ["--at-most-irrelevant", "0.1"],
        "drift": ["--reference", path],
    }[name]
    files = [path] if FILES[name] is None else [FILES[name], path]
    return [name, *map(str, [bundle, *files, *output])]


def refusal(capsys, words):
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


@pytest.fixture(params=FILES)
def name(request):
    return request.param


@pytest.fixture
def bundle(name, cross_bundle, tower_bundle):
    return tower_bundle if name == "index" else cross_bundle


def test_messages_name_the_options_that_a_command_has(name, bundle, tmp_path, capsys):
    path = tmp_path / "pairs.csv"
    words = command(name, bundle, path, tmp_path)
    path.write_text("a^b\nc^d\n")
    assert "--fields" in refusal(capsys, words)
    path.write_bytes("query,title,label\nq,\xe9,Exact\n".encode("latin-1"))
    assert "set --encoding" in refusal(capsys, words)
    assert "--encoding: 'klingon' is no text encoding" in refusal(capsys, [*words, "--encoding", "klingon"])
    assert "--delimiter '::': must be one character" in refusal(capsys, [*words, "--delimiter", "::"])
    path.write_text('query,title,label\nq,"a,Exact\n')
    assert "see --quoting" in refusal(capsys, words)
    path.write_text("query,title,label\nq,a,Exact,b\n")
    assert "see --delimiter and --quoting" in refusal(capsys, words)
    path.write_text("query,title,label\nqqqqqqqqq,a,Exact\n")
    assert "more than --max-characters 5" in refusal(capsys, [*words, "--max-characters", "5"])
    path.write_text("query,title,label\nq,t,Wrong\n")
    if name == "threshold":
        assert "or of --aliases" in refusal(capsys, words)
        assert "labels by --aliases" in refusal(capsys, words)


def test_a_bundle_judges_a_file_of_any_form(cross_bundle, tmp_path, capsys):
    rows = [("red shoe", '"55 inch &amp; red'), ("blue hose", "<b>blue</b> hose"), ("shirt", "green shirt")]
    path, plain = tmp_path / "pairs.csv", tmp_path / "pairs.jsonl"
    path.write_text("query^name\n" + "".join("^".join(row) + "\n" for row in rows), "latin-1")
    titles = ['"55 inch & red', "blue hose", "green shirt"]
    items = [{"query": query, "title": title} for (query, _), title in zip(rows, titles)]
    plain.write_text("".join(json.dumps(row) + "\n" for row in items))
    options = ["--delimiter", "^", "--quoting", "none", "--html", "text", "--encoding", "latin-1"]
    words = command("predict", cross_bundle, path, tmp_path)
    assert cli.main([*words, *options, "--fields", "item.title=name"]) == 0
    ours = pq.read_table(tmp_path / "scores.parquet").to_pydict()
    assert cli.main(command("predict", cross_bundle, plain, tmp_path)) == 0
    assert ours == pq.read_table(tmp_path / "scores.parquet").to_pydict()
    shards = ["predict", str(cross_bundle), "--input", str(path), "--shards", str(tmp_path / "shards")]
    assert cli.main([*shards, *options, "--fields", "item.title=name"]) == 0
    capsys.readouterr()
    assert "was begun with --fields" in refusal(capsys, [*shards, *options])
    assert "was begun with --quoting none" in refusal(
        capsys, [*shards, "--delimiter", "^", "--html", "text", "--fields", "item.title=name", "--encoding", "latin-1"]
    )


def test_the_first_bad_row_is_said(cross_bundle, tmp_path, capsys):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"query": "red shoe", "title": "red shoe"}\n{"query": "red shoe"}\n')
    assert cli.main(command("predict", cross_bundle, path, tmp_path)) == 0
    printed = capsys.readouterr().out
    assert "scores.quarantine.parquet: 1 bad rows set aside, the first is row 2: missing item" in printed


def test_a_config_and_a_command_give_the_same_options(tmp_path):
    data = DataConfig(
        fields={"item": "product"}, encoding="cp1252", delimiter="tab", quoting="none", html="text", max_characters=9
    )
    options = read_options(["item=product"], "cp1252", "tab", "none", "text", 9)
    assert options == ReadOptions({"item": "product"}, "cp1252", "\t", "none", "text", 9, from_command=True)
    assert data.reading == ReadOptions({"item": "product"}, "cp1252", "\t", "none", "text", 9)
    path = tmp_path / "a.csv"
    path.write_bytes(b"a,b\n1,\xff\n")
    for reading, option in ((DataConfig().reading, "data.encoding"), (read_options(), "--encoding")):
        ((_, error, _),) = read_file(SourceFile("a.csv", str(path)), reading)
        assert str(error).endswith(f"set {option}")
    with pytest.raises(UserError, match="--fields item: is given twice"):
        read_options(["item=a", "item=b"])


UNKNOWN = "\u7ea2\u8272"


@pytest.mark.parametrize("kind", ["cross_encoder", "two_tower"])
def test_a_pair_of_which_nothing_is_known_is_a_bad_row(word_bundles, kind, tmp_path, capsys):
    path = tmp_path / "pairs.jsonl"
    texts = [("red shoes", "red shoes"), ("red", UNKNOWN), (UNKNOWN, "red"), ("red shirt", f"{UNKNOWN} red shirt")]
    path.write_text("".join(json.dumps({"query": q, "title": t, "pair_id": q + t}) + "\n" for q, t in texts))
    words = command("predict", word_bundles[kind], path, tmp_path)
    assert "more than --max-unknown 0.1" in refusal(capsys, [*words, "--max-unknown", "0.1"])
    assert cli.main([*words, "--max-unknown", "1"]) == 0
    assert pq.read_table(tmp_path / "scores.parquet").column("pair_id").to_pylist() == [q + t for q, t in texts[::3]]
    bad = pq.read_table(tmp_path / "scores.quarantine.parquet").to_pylist()
    assert [row["row"] for row in bad] == [2, 3]
    assert bad[0]["reason"].startswith(f"the item: the model knows nothing of '{UNKNOWN}'")
    assert bad[1]["reason"].startswith(f"the query: the model knows nothing of '{UNKNOWN}'")
    assert "4 rows read = 2 pairs + 2 bad rows" in capsys.readouterr().out
    path.write_text(json.dumps({"query": UNKNOWN, "title": "red"}) + "\n")
    assert "none of its 1 rows is a pair (row 1: the query" in refusal(capsys, [*words, "--max-unknown", "1"])


def test_an_item_of_which_nothing_is_known_is_not_indexed(word_bundles, tmp_path, capsys):
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps({"id": t, "title": t}) + "\n" for t in ("red", UNKNOWN, "shoes")))
    words = command("index", word_bundles["two_tower"], path, tmp_path)
    assert cli.main(words) == 0
    bad = pq.read_table(tmp_path / "index" / "quarantine.parquet").to_pylist()
    assert [(row["row"], row["source"]) for row in bad] == [(2, str(path))]
    assert "the model knows nothing of" in bad[0]["reason"]
    assert cli.main(["search", str(tmp_path / "index"), "red", "--json"]) == 0
    hits = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert {json.loads(line)["item"]["id"] for line in hits} == {"red", "shoes"}
    assert "query: the model knows nothing of" in refusal(capsys, ["search", str(tmp_path / "index"), UNKNOWN])
    path.write_text(json.dumps({"id": "a", "title": UNKNOWN}) + "\n")
    words = command("index", word_bundles["two_tower"], path, tmp_path / "other")
    assert "none of its items can be read (row 1: the item: " in refusal(capsys, words)


def test_cut_offs_are_not_chosen_on_pairs_of_which_nothing_is_known(word_bundles, tmp_path, capsys):
    path = tmp_path / "pairs.jsonl"
    rows = [{"query": "red shoes", "title": "red shoes", "label": "Exact", "split": "whatever"}] * 3
    rows += [{"query": "red", "title": UNKNOWN, "label": "Irrelevant", "pair_id": "p"}]
    path.write_text("".join(json.dumps({"pair_id": str(n)} | row) + "\n" for n, row in enumerate(rows)))
    words = command("threshold", word_bundles["cross_encoder"], path, tmp_path)
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "1 pairs left out, the first is p: item: the model knows nothing of" in printed
    assert "3 pairs of 1 queries" in printed
    path.write_text(json.dumps(rows[-1]) + "\n")
    assert "the model can read none of the pairs" in refusal(capsys, words)
