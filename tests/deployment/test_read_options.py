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
    given = read_options(["item=product"], "cp1252", "tab", "none", "text", 9)
    assert given == ReadOptions({"item": "product"}, "cp1252", "\t", "none", "text", 9, from_command=True)
    assert data.reading == ReadOptions({"item": "product"}, "cp1252", "\t", "none", "text", 9)
    path = tmp_path / "a.csv"
    path.write_bytes(b"a,b\n1,\xff\n")
    for reading, option in ((DataConfig().reading, "data.encoding"), (read_options(), "--encoding")):
        ((_, error, _),) = read_file(SourceFile("a.csv", str(path)), reading)
        assert str(error).endswith(f"set {option}")
    with pytest.raises(UserError, match="--fields item: is given twice"):
        read_options(["item=a", "item=b"])
