"""A Git LFS pointer or a web page in place of a table, an array or a description is called what it is."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jax_rele.annotation.batch_files import read_results
from jax_rele.config import load
from jax_rele.config.data import HuggingFaceConfig
from jax_rele.data.pairs.table import PairTable
from jax_rele.data.parquet import read_pairs_table, read_schema, read_table
from jax_rele.data.signals.external import read_external_signals
from jax_rele.data.signals.table import is_signals_table, read_signals
from jax_rele.data.sources import hugging_face
from jax_rele.data.sources.shards import read_pairs
from jax_rele.data.tokens.tokenizers import load_tokenizer, train_tokenizer
from jax_rele.deployment.bundle import Manifest, read_record
from jax_rele.deployment.index.files import read_array, read_items_table
from jax_rele.deployment.index.items import read_items
from jax_rele.errors import UserError
from jax_rele.types import LabelSchema

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 134\n"
PAGE = b"\n<!DOCTYPE html><html><title>Sign in</title></html>"
SCHEMA = LabelSchema(("E", "I"), (1.0, 0.0), ("E",))


def with_vocabulary(folder):
    if not (folder / "tokenizer.json").exists():
        train_tokenizer(["red shoe"], 300).save_pretrained(folder / "made")
        (folder / "tokenizer.json").write_bytes((folder / "made" / "tokenizer.json").read_bytes())
    return folder


READERS = {
    "table.parquet": read_table,
    "schema.parquet": read_schema,
    "pairs.parquet": read_pairs_table,
    "prepared.parquet": PairTable,
    "signals.parquet": lambda path: read_signals(path, SCHEMA.names, ("brand",)),
    "is_signals.parquet": is_signals_table,
    "external.parquet": lambda path: read_external_signals(
        path, [], schema=SCHEMA, dimensions=("brand",), fields=("title",)
    ),
    "external.jsonl": lambda path: read_external_signals(
        path, [], schema=SCHEMA, dimensions=("brand",), fields=("title",)
    ),
    "source.parquet": lambda path: read_pairs(path, label_names=SCHEMA.names),
    "items.parquet": read_items,
    "index.parquet": read_items_table,
    "vectors.npy": read_array,
    "bundle.json": lambda path: read_record(path, Manifest, "bundle", "export it again"),
    "config.yaml": load,
    "batch.jsonl": lambda path: read_results([path], [], [], None),
    **{
        name: lambda path: load_tokenizer(with_vocabulary(path.parent), ("pad",))
        for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
    },
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(("content", "words"), [(POINTER, "is a Git LFS pointer"), (PAGE, "is a web page")])
def test_what_stands_for_a_file_is_named(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        READERS[name](path)
    assert str(error.value).startswith(f"{path}: {words}")
    assert "\n" not in str(error.value)


def test_a_pointer_in_a_saved_data_set_is_named(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"query": ["q"], "title": ["t"]}).save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    arrow.write_bytes(POINTER)
    with pytest.raises(UserError, match=rf"^{arrow}: is a Git LFS pointer"):
        hugging_face.load(str(tmp_path / "saved"), HuggingFaceConfig())


def test_whole_files_are_read(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    np.save(tmp_path / "a.npy", np.arange(3))
    assert read_table(tmp_path / "a.parquet").num_rows == 1
    assert read_array(tmp_path / "a.npy").tolist() == [0, 1, 2]
