"""The configs of the benchmarks run end to end on small files of the official form, by overriding one path."""

import json
import sys
from pathlib import Path

import pytest

from jax_rele import cli, config

pytestmark = pytest.mark.slow

CONFIGS = Path(config.__file__).resolve().parents[2] / "configs"
NAMES = sorted(path.stem for kind in ("esci_task*", "wands_*") for path in CONFIGS.glob(f"{kind}.yaml"))
FEW_STEPS = [
    argument
    for stage in ("adapt", "finetune", "distill")
    for name, value in (("steps", 2), ("checkpoint_every", 2), ("log_every", 1), ("batch_size", 8))
    for argument in (f"--{stage}.optimization.{name}", str(value))
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The folder of ESCI's files, and that of WANDS'."""
    sys.path.insert(0, str(Path(__file__).parent / "data" / "sources" / "benchmarks"))
    try:
        import official
    finally:
        sys.path.pop(0)
    folder = tmp_path_factory.mktemp("official")
    official.write_esci(folder / "esci", queries=60)
    official.write_wands(folder / "wands", queries=40)
    return folder


def options(name, files, folder):
    return [
        str(CONFIGS / f"{name}.yaml"),
        "--data.manual_dir",
        str(files / name.partition("_")[0]),
        "--run_root",
        folder,
    ]


def test_there_are_configs_of_both_benchmarks():
    assert {name.partition("_")[0] for name in NAMES} == {"esci", "wands"}
    assert {config.load(CONFIGS / f"{name}.yaml").data.path for name in NAMES} == {
        "tfds:esci/task1_us",
        "tfds:esci/task2_all",
        "tfds:esci/task3_us",
        "tfds:wands",
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_pairs_are_prepared(name, files, tmp_path):
    assert cli.main(["prepare", *options(name, files, str(tmp_path))]) == 0
    counts = json.loads((tmp_path / name / "prepare" / "manifest.json").read_text("utf-8"))["counts"]
    assert all(counts["pairs"][split] > 0 for split in ("train", "validation", "test"))
    assert counts["unlabelled"] > 0
    assert counts["quarantined"] == 0


@pytest.mark.parametrize("name", ["esci_task2", "wands_graded"])
def test_a_config_runs_to_the_end(name, files, tmp_path):
    # Compiling takes the time: the other students and recipes are tested where they are at home.
    small = ["--distill.students", "two_tower", "--distill.recipes", "mkd", "--evaluate.bootstrap_samples", "20"]
    small += ["--teacher.random.layers", "1", "--student.random.layers", "1", "--adapt.pack_to", "0"]
    assert cli.main(["run", *options(name, files, str(tmp_path)), *FEW_STEPS, *small]) == 0
    metrics = json.loads((tmp_path / name / "evaluate" / "metrics.json").read_text("utf-8"))
    assert metrics["split"] == "test"
    assert metrics["n_pairs"] > 10
    ndcg = {metric for model in metrics["models"].values() for metric in model if metric.startswith("ndcg")}
    assert len(ndcg) == len(config.load(CONFIGS / f"{name}.yaml").labels.gain_maps_)
