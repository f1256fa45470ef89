"""`jax-rele compare`: what it writes, that it goes on where it was, and what it refuses."""

import json
import os
import shutil
import signal

import pytest

from jax_rele import cli
from jax_rele.evaluation import BASELINES
from jax_rele.training import preemption

pytestmark = pytest.mark.slow

OPTIONS = ("--students", "two_tower", "--recipes", "label_only", "score_kd")


def compare(file, *options) -> int:
    return cli.main(["compare", str(file), *OPTIONS, *map(str, options)])


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """(config file, folder of the comparison) of a copy of the tiny run, compared with two seeds.

    That run has trained other recipes, which is nothing to a comparison, and stays as it is.
    """
    root = tmp_path_factory.mktemp("compare")
    shutil.copytree(tiny[1], root / "tiny")
    assert compare(tiny[0], "--run_root", root, "--seeds", 2) == 0
    return tiny[0], root


def test_the_run_is_left_as_it_was(run, tiny):
    for file in ("config.yaml", "distill/manifest.json", "evaluate/metrics.json"):
        assert (run[1] / "tiny" / file).read_text() == (tiny[1] / file).read_text()


def test_everything_is_written(run):
    folder = run[1] / "tiny" / "compare"
    document = json.loads((folder / "comparison.json").read_text())
    assert [(cell["student"], cell["recipe"]) for cell in document["cells"]] == [
        ("two_tower", "label_only"),
        ("two_tower", "score_kd"),
    ]
    assert document["seeds"] == [0, 1]
    assert set(document["others"]["all"]) == {*BASELINES, "teacher"}
    difference = document["cells"][1]["slices"]["all"]["auc"]["difference"]
    by_seed = [cell["slices"]["all"]["auc"]["by_seed"] for cell in document["cells"]]
    assert difference["value"] == pytest.approx(sum(by_seed[1]) / 2 - sum(by_seed[0]) / 2)
    assert "two_tower score_kd" in (folder / "comparison.md").read_text()
    assert "two_tower" in (folder / "comparison.html").read_text()
    assert list((folder / "figures").glob("difference_auc_*.svg"))


def test_the_same_command_trains_nothing_and_more_seeds_only_those(run, capsys):
    file, root = run
    before = (root / "tiny" / "compare" / "comparison.json").read_text()
    assert compare(file, "--run_root", root, "--seeds", 2) == 0
    assert ": trained" not in capsys.readouterr().out
    assert (root / "tiny" / "compare" / "comparison.json").read_text() == before
    assert compare(file, "--run_root", root, "--seeds", 3) == 0
    trained = [line for line in capsys.readouterr().out.splitlines() if line.endswith(": trained")]
    assert len(trained) == 2
    assert all("seed 2" in line for line in trained)


def test_sigterm_saves_the_step_and_the_same_command_goes_on(run, tiny, tmp_path, monkeypatch, capsys):
    shutil.copytree(tiny[1], tmp_path / "tiny")
    is_due = preemption.is_due

    def stopped(number, *rest):
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return is_due(number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(preemption, "is_due", stopped)
        assert compare(tiny[0], "--run_root", tmp_path, "--seeds", 2) == 0
    assert ": stopped by SIGTERM, step 2 is saved; the same command resumes" in capsys.readouterr().err
    assert not (tmp_path / "tiny" / "compare" / "comparison.json").exists()
    assert compare(tiny[0], "--run_root", tmp_path, "--seeds", 2) == 0
    assert compare(tiny[0], "--run_root", run[1], "--seeds", 2) == 0
    name = "tiny/compare/comparison.json"
    assert (tmp_path / name).read_text() == (run[1] / name).read_text()


def test_a_curve_has_a_point_for_every_number(run):
    file, root = run
    assert compare(file, "--run_root", root, "--seeds", 1, "--labelled", 20, "--teacher-labelled", 0) == 0
    cells = json.loads((root / "tiny" / "compare" / "comparison.json").read_text())["cells"]
    sizes = [(cell["labelled"], cell["teacher_labelled"]) for cell in cells[::2]]
    assert sizes[0][0] == 20
    assert sizes[0][1] > 0
    assert sizes[1][0] > 20
    assert sizes[1][1] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--labelled", 100000), "--labelled: 100000 is not within the"),
        (("--labelled", 0), "--labelled: 0 is not within the"),
        (("--teacher-labelled", 100000), "--teacher-labelled: 100000 is not within the"),
        (("--recipes", "mdk"), "there is no recipe 'mdk'"),
        (("--distill.optimization.learning_rate", "0.5"), "was trained with another config"),
        (("--student.two_tower.head", "mlp"), "was trained with another config"),
    ],
)
def test_a_mistake_is_one_line(run, capsys, options, message):
    file, root = run
    assert compare(file, "--run_root", root, "--seeds", 1, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
