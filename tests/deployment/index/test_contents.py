"""An index whose files do not fit each other is refused in one line, whatever its description says of them."""

import json
import shutil

import numpy as np
import pytest

from jax_rele.deployment.index import build_index, delete_items, open_index, update_index
from jax_rele.errors import UserError
from jax_rele.io import hash_file
from jax_rele.types import Item


@pytest.fixture(scope="module")
def changed(tower, tmp_path_factory):
    """An index with a scale, a delta and deletions."""
    folder = tmp_path_factory.mktemp("changed") / "idx"
    build_index(tower, [Item(str(number), f"red shoe {number}") for number in range(20)], folder, vectors="int8")
    update_index(tower, folder, [Item("3", "blue shoe"), Item("x", "green hose")])
    delete_items(tower, folder, ["5"])
    return folder


@pytest.fixture
def folder(changed, tmp_path):
    shutil.copytree(changed, tmp_path / "idx")
    return tmp_path / "idx"


def describe(folder, **changes):
    """Writes a description without a checksum, as earlier versions did, that owns to the files as they are."""
    values = json.loads((folder / "index.json").read_text())
    values.pop("checksum", None)
    files = {name: hash_file(folder / name) for name in values["files"] if (folder / name).is_file()}
    (folder / "index.json").write_text(json.dumps(values | {"files": files} | changes))


def refusal(folder):
    with pytest.raises(UserError) as raised:
        open_index(folder)
    assert "\n" not in str(raised.value)
    assert str(folder) in str(raised.value)
    return str(raised.value)


def test_its_own_form_is_accepted(folder):
    assert len(open_index(folder).contents.vectors) == 22
    describe(folder)
    assert len(open_index(folder).contents.vectors) == 22


@pytest.mark.parametrize(
    "changes",
    [
        {"items": 0},
        {"items": -1},
        {"items": 19},
        {"rows": 21},
        {"rows": 10**30},
        {"delta_rows": 10**30},
        {"delta_rows": 0},
        {"deleted": 1},
        {"deleted": 0},
        {"width": 8},
        {"vectors": "float32"},
        {"recall": -1},
        {"ef_search": -1},
        {"number": -1},
    ],
)
def test_counts_that_are_not_those_of_the_files(folder, changes):
    describe(folder, **changes)
    assert "damaged" in refusal(folder)


@pytest.mark.parametrize("stem", ["vectors", "scale", "delta-vectors", "deleted"])
@pytest.mark.parametrize(
    "array",
    [
        np.array([10**6, 0]),
        np.array([-1, 0]),
        np.array([0.5, 1.0]),
        np.array(["a", "b"]),
        np.zeros((2, 2)),
        np.full((20, 32), np.nan, np.float32),
    ],
)
def test_arrays_of_another_form(folder, stem, array):
    (path,) = (file for file in folder.glob(f"{stem}-*.npy") if file.name.rpartition("-")[0] == stem)
    np.save(path, array)
    describe(folder)
    assert "damaged" in refusal(folder)


def test_numbers_that_are_not_finite(folder):
    (path,) = folder.glob("delta-vectors-*.npy")
    values = np.load(path)
    values[0, 0] = np.inf
    np.save(path, values)
    describe(folder)
    assert "no finite numbers" in refusal(folder)


def test_a_change_of_the_description(folder):
    values = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(values | {"ef_search": 7}))
    assert "was changed since the index was written" in refusal(folder)
