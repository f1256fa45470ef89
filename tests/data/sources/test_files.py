"""Files elsewhere: found, read and told apart as those here; what cannot be reached is named."""

import gzip
import json

import fsspec
import pytest

from jax_rele.config import DataConfig
from jax_rele.data.sources.files import find_files, fingerprint
from jax_rele.data.sources.shards import open_shards, read_pairs, source_hash
from jax_rele.errors import UserError
from jax_rele.io import hash_folder
from jax_rele.types import ReadOptions


def line(i):
    return json.dumps({"pair_id": f"p{i}", "query": f"q{i}", "title": "t"}).encode() + b"\n"


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    system.pipe(
        {
            "/data/b.jsonl.gz": gzip.compress(line(2)),
            "/data/a.jsonl": line(1),
            "/data/c.csv": b"pair_id,query,title\np3,q,t\n",
            "/data/_SUCCESS.json": b"",
            "/data/README.md": b"",
            "/data/deep/d.jsonl": line(4),
        }
    )
    yield system
    system.rm("/", recursive=True)


def ids(path):
    return [pair.pair_id for pair in read_pairs(path, label_names=["a", "b"])[0]]


def test_remote_files_folders_and_globs(memory):
    assert ids("memory://data/a.jsonl") == ["p1"]
    assert ids("memory://data") == ids("memory://data/") == ["p1", "p2", "p3"]
    assert ids("memory://data/*.jsonl*") == ["p1", "p2"]
    assert ids("memory://data/**/*.jsonl") == ["p1", "p4"]
    assert [file.name for file in find_files("memory://data/[ab].*")] == [
        "memory:///data/a.jsonl",
        "memory:///data/b.jsonl.gz",
    ]


def test_parquet_elsewhere(memory, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"query": ["q"], "title": ["t"], "pair_id": ["p"]}), tmp_path / "t.parquet")
    memory.pipe("/t.parquet", (tmp_path / "t.parquet").read_bytes())
    assert ids("memory://t.parquet") == ["p"]


def test_what_is_not_there(memory):
    for path in ("memory://none.jsonl", "memory://data/*.tsv", "memory://data/deep/deeper"):
        with pytest.raises(UserError, match=r"no file of pairs is there; check the address"):
            find_files(path)
    with pytest.raises(UserError, match=r"README\.md: unknown suffix"):
        find_files("memory://data/README.md")


@pytest.mark.parametrize(("path", "package"), [("gs://b/a.jsonl", "gcsfs"), ("s3://b/a.jsonl", "s3fs")])
def test_a_missing_package_is_named(path, package, monkeypatch):
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda _: (_ for _ in ()).throw(ImportError("Please install it")))
    with pytest.raises(UserError) as error:
        read_pairs(path, label_names=["a", "b"])
    protocol = path.partition(":")[0]
    assert str(error.value) == f"{path}: a package that reads {protocol}:// is not installed; pip install {package}"


def test_an_unknown_protocol():
    with pytest.raises(UserError, match=r"^nope://a\.jsonl: Protocol not known: nope; check the part before ://$"):
        find_files("nope://a.jsonl")


def test_a_file_system_that_fails_is_named(memory, monkeypatch):
    shards = open_shards("memory://data/a.jsonl", ReadOptions(), None)

    def fails(*_, **__):
        raise RuntimeError("401\nUnauthorized")

    for name, act in (
        ("open", lambda: list(shards[0].rows())),
        ("info", lambda: fingerprint(find_files("memory://data/a.jsonl"))),
        ("isfile", lambda: find_files("memory://data/a.jsonl")),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(type(memory), name, fails)
            with pytest.raises(UserError, match=r"a\.jsonl: cannot be reached \(401 Unauthorized\); check"):
                act()


def test_fingerprints_change_with_the_content(memory, tmp_path, monkeypatch):
    data = DataConfig(path="memory://data/*.jsonl")
    before = source_hash(data)
    assert source_hash(data) == before
    memory.pipe("/data/a.jsonl", line(7))
    assert source_hash(data) != before
    # A checksum of the file system is taken before a time: a copied file is the same one.
    info = {"size": 5, "etag": "x", "mtime": 1}
    monkeypatch.setattr(type(memory), "info", lambda *_, **__: dict(info))
    files = find_files("memory://data/a.jsonl")
    before = fingerprint(files)
    info["mtime"] = 2
    assert fingerprint(files) == before
    info["etag"] = "y"
    assert fingerprint(files) != before


def test_a_file_here_is_read_again_only_when_it_has_changed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(line(1))
    before = fingerprint(find_files(path))
    assert before == fingerprint(find_files(path))
    path.write_bytes(line(2))
    assert fingerprint(find_files(path)) != before
    path.write_bytes(line(1))
    assert fingerprint(find_files(path)) == before


def test_a_folders_hash_covers_names_and_content(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a").write_text("1")
    before = hash_folder(tmp_path)
    assert hash_folder(tmp_path) == before
    (tmp_path / "deep" / "a").rename(tmp_path / "a")
    moved = hash_folder(tmp_path)
    (tmp_path / "a").write_text("2")
    assert len({before, moved, hash_folder(tmp_path)}) == 3
