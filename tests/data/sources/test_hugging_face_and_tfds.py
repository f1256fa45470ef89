"""Data sets of Hugging Face and of TFDS as rows of pairs."""

import json
import subprocess
import sys

import datasets
import numpy as np
import pytest

from jax_rele.config import DataConfig, HuggingFaceConfig
from jax_rele.data.rows import RoundedFloat
from jax_rele.data.sources import hugging_face
from jax_rele.data.sources import tfds as tfds_source
from jax_rele.data.sources.shards import open_source, parse_shards, read_pairs, source_hash
from jax_rele.errors import UserError

LABELS = ("Exact", "Irrelevant")


def rows(start, stop, **more):
    return {
        "query": [f"q{i}" for i in range(start, stop)],
        "title": [f"Réd {i}" for i in range(start, stop)],
        "label": [i % 3 - 1 for i in range(start, stop)],
        **{name: [value] * (stop - start) for name, value in more.items()},
    }


def hub_set(**splits):
    """Splits with class numbers as labels, -1 for none."""
    data_set = datasets.DatasetDict({name: datasets.Dataset.from_dict(columns) for name, columns in splits.items()})
    return data_set.cast_column("label", datasets.ClassLabel(names=list(LABELS)))


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "saved"
    hub_set(train=rows(0, 5), dev=rows(5, 8), extra=rows(8, 10), valid=rows(10, 12, split="test")).save_to_disk(folder)
    return folder


EXPECTED = [
    *((f"q{i}", (None, *LABELS)[i % 3], "train") for i in range(5)),
    *((f"q{i}", (None, *LABELS)[i % 3], "validation") for i in range(5, 8)),
    *((f"q{i}", (None, *LABELS)[i % 3], None) for i in range(8, 10)),
    *((f"q{i}", (None, *LABELS)[i % 3], "test") for i in range(10, 12)),  # the rows bring one themselves
]


def facts_of(pairs):
    return [(pair.query, pair.label, pair.split) for pair in pairs]


def test_a_saved_folder(saved, tmp_path):
    pairs, bad = read_pairs(f"hf:{saved}", label_names=LABELS)
    assert (facts_of(pairs), bad) == (EXPECTED, [])
    assert pairs[0].item.title == "Réd 0"
    single = tmp_path / "single"
    hub_set(train=rows(0, 5))["train"].save_to_disk(single)
    assert facts_of(read_pairs(f"hf:{single}", label_names=LABELS)[0]) == [(*row[:2], None) for row in EXPECTED[:5]]


def test_a_saved_folders_hash_is_that_of_its_files(saved):
    data = DataConfig(path=f"hf:{saved}")
    before = source_hash(data)
    assert source_hash(data) == before
    file = saved / "train" / "state.json"
    file.write_text(file.read_text() + " ")
    assert source_hash(data) != before


def test_folders_of_something_else(tmp_path):
    with pytest.raises(UserError, match=r"was not written by save_to_disk; give a folder of files without `hf:`"):
        read_pairs(f"hf:{tmp_path}", label_names=LABELS)
    with pytest.raises(UserError, match=r"hf:.*none: no such folder"):
        read_pairs(f"hf:{tmp_path}/none", label_names=LABELS)
    (tmp_path / "dataset_dict.json").write_text("{")
    with pytest.raises(UserError, match=r"^hf:.*the data set cannot be loaded"):
        read_pairs(f"hf:{tmp_path}", label_names=LABELS)


@pytest.mark.parametrize("streaming", [False, True])
def test_the_hub(monkeypatch, streaming):
    asked = {}

    def load_dataset(name, subset, *, revision, streaming):
        asked.update(name=name, subset=subset, revision=revision)
        data_set = hub_set(train=rows(0, 5), validation=rows(5, 8))
        if streaming:
            return datasets.IterableDatasetDict({name: part.to_iterable_dataset() for name, part in data_set.items()})
        return data_set

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    options = HuggingFaceConfig(subset="small", revision="v1", streaming=streaming)
    data = DataConfig(path="hf:org/name", hugging_face=options)
    shards = open_source(data, None)
    parsed = list(parse_shards(shards, data.path, data.reading, label_names=LABELS, label_map={}))
    assert facts_of(pair for _, _, pair, _ in parsed) == EXPECTED[:8]
    assert [(shard, number) for shard, number, _, _ in parsed] == [(0, i) for i in range(1, 6)] + [
        (1, i) for i in range(1, 4)
    ]
    assert asked == {"name": "org/name", "subset": "small", "revision": "v1"}
    assert [shard.name for shard in shards] == ["hf:org/name train", "hf:org/name validation"]


def test_a_stream_that_breaks_is_named(monkeypatch):
    def breaks():
        yield {"query": "q", "title": "t"}
        raise ConnectionError("reset\nby peer")

    stream = datasets.IterableDataset.from_generator(breaks)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.IterableDatasetDict(train=stream))
    with pytest.raises(UserError, match=r"^hf:org/name train after row 1: cannot be reached \(reset by peer\)"):
        read_pairs("hf:org/name", label_names=LABELS)


def test_the_hubs_fingerprint(monkeypatch):
    class Builder:
        hash = "a" * 40

    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: Builder)
    assert source_hash(DataConfig(path="hf:org/name")) == "a" * 16
    pinned = HuggingFaceConfig(revision="b" * 40)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: 1 / 0)
    assert hugging_face.fingerprint("org/name", pinned) == "b" * 16


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("Couldn't reach 'org/name' on the Hub"), "cannot be reached"),
        (datasets.exceptions.DatasetNotFoundError("no such name"), "cannot be loaded"),
        (
            ValueError("Config name is missing.\nPlease pick one among: a, b"),
            r"pick one among: a, b.*hugging_face\.subset",
        ),
    ],
)
def test_data_sets_that_cannot_be_loaded(monkeypatch, error, message):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fails)
    monkeypatch.setattr(datasets, "load_dataset_builder", fails)
    for act in (
        lambda: read_pairs("hf:org/name", label_names=LABELS),
        lambda: source_hash(DataConfig(path="hf:org/name")),
    ):
        with pytest.raises(UserError, match=message) as caught:
            act()
        assert "\n" not in str(caught.value)


BUILD = """
import numpy as np
import tensorflow_datasets as tfds

class ShopPairs(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
        text = tfds.features.Text()
        item = tfds.features.FeaturesDict({"title": text, "bullets": tfds.features.Sequence(text)})
        label = tfds.features.ClassLabel(names=["Exact", "Irrelevant"])
        features = {"query": text, "item": item, "label": label, "query_frequency": np.int32}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 6), "test": self._generate_examples(6, 9)}

    def _generate_examples(self, start, stop):
        for i in range(start, stop):
            item = {"title": f"R\u00e9d {i}", "bullets": ["a", "b"]}
            yield i, {"query": f"q{i}", "item": item, "label": i % 3 - 1, "query_frequency": i}

ShopPairs(data_dir=DATA_DIR, file_format="array_record").download_and_prepare()
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A data set that another process has prepared."""
    folder = tmp_path_factory.mktemp("tfds")
    script = BUILD.replace("DATA_DIR", json.dumps(str(folder)))
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    return folder


def test_a_prepared_data_set(data_dir, monkeypatch):
    import tensorflow_datasets as tfds

    tfds.core.add_data_dir(str(data_dir))
    pairs, bad = read_pairs("tfds:shop_pairs", label_names=LABELS)
    assert bad == []
    assert sorted(facts_of(pairs)) == [
        (f"q{i}", (None, *LABELS)[i % 3], "train" if i < 6 else "test") for i in range(9)
    ]
    first = next(pair for pair in pairs if pair.query == "q0")
    assert (first.item.title, first.item.bullets, first.query_frequency) == ("Réd 0", "a\nb", 0)
    assert source_hash(DataConfig(path="tfds:shop_pairs")) == source_hash(DataConfig(path="tfds:shop_pairs:1.2.0"))
    assert "tensorflow" not in sys.modules


def test_data_sets_that_are_not_prepared(tmp_path):
    with pytest.raises(UserError, match=r"^tfds:no_such_set: no such data set .*TFDS_DATA_DIR") as error:
        read_pairs("tfds:no_such_set", label_names=LABELS)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    with pytest.raises(UserError, match=r"^tfds:mnist: not prepared for random access in ") as error:
        tfds_source.load("mnist", data_dir=str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_text_that_is_not_utf8_costs_one_row():
    class Source:
        class dataset_info:
            features = None

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return {"query": b"caf\xe9" if index else b"q", "n": np.int64(3)}

    (_, good, _), (number, bad, _) = tfds_source.rows(Source(), "s")
    assert good == {"query": "q", "n": 3}
    assert number == 2
    assert str(bad).startswith("not valid UTF-8")


@pytest.mark.parametrize("streaming", [False, True])
def test_floats_of_32_bits_are_the_same_loaded_and_streamed(streaming):
    features = {"item_id": datasets.Value("float32"), "sizes": datasets.List(datasets.Value("float32"))}
    columns = {"item_id": [123456792.0, 7.0], "sizes": [[0.1], [2.0, None]]}
    data_set = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    read = [row for _, row, _ in hugging_face.rows(data_set.to_iterable_dataset() if streaming else data_set, "d")]
    assert [row["sizes"] for row in read] == [[0.1], [2.0, None]]
    assert [(row["item_id"], type(row["item_id"])) for row in read] == [(123456792.0, RoundedFloat), (7.0, float)]
