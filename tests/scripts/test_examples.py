"""The examples run, and a loss of one's own teaches the student something."""

import importlib.util
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "scripts" / "examples"


def load_example(name: str):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_own_loss_trains_a_student():
    example = load_example("own_loss")
    assert example.main(150) < example.main(1)


def test_judge_pairs_prints_scores_of_a_run(tiny, capsys):
    load_example("judge_pairs").main(str(tiny[1]), "red shoes", "red running shoes", "blue lamp")
    lines = capsys.readouterr().out.splitlines()
    assert sum("score" in line and "inner product" in line for line in lines) == 2
    assert sum("rationale:" in line for line in lines) == 2


def test_distill_learns_the_teachers_scores():
    example = load_example("distill")
    assert example.main(150)["train"] > 0.75
    assert len((FOLDER / "distill.py").read_text("utf-8").splitlines()) <= 80
