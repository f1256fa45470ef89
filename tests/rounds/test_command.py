"""Rounds: what the next teacher learns from, when they end, what is refused."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from jax_rele import cli, config
from jax_rele.data import RATIONALES, PairTable, read_table
from jax_rele.rounds import command
from jax_rele.runs import chat_annotators, layout, load
from jax_rele.stages import annotate

pytestmark = pytest.mark.slow

SELECT_ALL = ("--rounds.samples", "2", "--rounds.min_vote_fraction", "0", "--rounds.max_flaws", "null")


@pytest.fixture
def root(tiny, tmp_path):
    """The folder of runs, in which the tiny run is the first round."""
    shutil.copytree(tiny[1], tmp_path / "tiny" / "rounds" / "round_1")
    return tmp_path


def rounds(tiny, root, *options) -> int:
    return cli.main(["rounds", str(tiny[0]), "--run_root", str(root), *SELECT_ALL, *map(str, options)])


def document(root) -> dict:
    return json.loads((root / "tiny" / "rounds" / "rounds.json").read_text("utf-8"))


def rationales(run_dir: Path) -> dict[str, dict]:
    return {row["pair_id"]: row for row in read_table(run_dir / layout.RATIONALES, RATIONALES).to_pylist()}


def test_the_next_teacher_learns_from_the_one_before(tiny, root, capsys, monkeypatch):
    # Of both teachers, which have hardly been trained, the second is the better one here.
    figures = iter((0.5, 0.6))
    monkeypatch.setattr(command, "validation_samples", lambda settings: np.full(3, next(figures)))
    assert rounds(tiny, root, "--rounds", 2) == 0
    first, second = (root / "tiny" / "rounds" / f"round_{number}" for number in (1, 2))
    before, after = rationales(first), rationales(second)
    unlabelled = set(PairTable(second / layout.UNLABELLED).column("pair_id").to_pylist())
    assert unlabelled
    assert {name: row for name, row in after.items() if name not in unlabelled} == before
    assert set(after) - set(before) == unlabelled
    assert {after[name]["annotator"] for name in unlabelled} == {"teacher"}

    written = document(root)
    one, two = written["rounds"]
    assert (written["best"], one["gained"], two["gained"]) == (2, True, True)
    assert (one["selected"], two["selected"]) == (0, len(unlabelled))
    assert sum(two["selected_labels"].values()) == len(unlabelled)
    assert two["rationales"] == len(after)
    assert two["validation_gain"]["value"] == pytest.approx(0.1)
    assert set(one["evaluated"]) == set(two["evaluated"]) > {"teacher"}
    page = (root / "tiny" / "rounds" / "rounds.html").read_text("utf-8")
    assert "Round 2 has the best teacher" in page
    assert "Round 2 has the best teacher" in capsys.readouterr().out


def test_a_round_without_gain_is_the_last_and_trains_no_students(tiny, root, capsys, monkeypatch):
    figures = iter((0.6, 0.6))
    monkeypatch.setattr(command, "validation_samples", lambda settings: np.full(3, next(figures)))
    assert rounds(tiny, root, "--rounds", 5) == 0
    written = document(root)
    assert (written["best"], [each["gained"] for each in written["rounds"]]) == (1, [True, False])
    assert written["rounds"][1]["evaluated"] == {}
    assert not (root / "tiny" / "rounds" / "round_2" / "distill").exists()
    assert "round 2: its teacher is not better" in capsys.readouterr().out


def test_the_validation_figure_is_that_of_the_teacher_and_is_computed_once(tiny, root, capsys, monkeypatch):
    assert rounds(tiny, root, "--rounds", 1) == 0
    settings = command.round_config(config.load(tiny[0]).model_copy(update={"run_root": str(root)}), 1)
    pairs = layout.load_pairs(settings.run_dir, "validation")
    relevant = [pair.label in settings.labels.positive for pair in pairs]
    probs = load.load_teacher(settings.run_dir).predict(pairs).label_probs
    auc = roc_auc_score(relevant, probs[:, settings.labels.schema_.is_positive].sum(axis=1))
    assert document(root)["rounds"][0]["validation"]["value"] == pytest.approx(auc, abs=1e-6)

    samples = command.validation_samples(settings)
    assert samples.shape == (1 + settings.evaluate.bootstrap_samples,)
    monkeypatch.setattr(command, "load_teacher", None)
    capsys.readouterr()
    assert rounds(tiny, root, "--rounds", 1) == 0
    assert "starts" not in capsys.readouterr().out
    # Of another teacher, or with other resamples, it is not used.
    for other in ({"seed": 9}, {"evaluate": settings.evaluate.model_copy(update={"bootstrap_samples": 7})}):
        with pytest.raises(TypeError):
            command.validation_samples(settings.model_copy(update=other))


def test_more_rounds_go_on_and_an_interrupted_one_resumes(tiny, root, capsys, monkeypatch):
    monkeypatch.setattr(command, "validation_samples", lambda settings: np.full(3, float(settings.name[-1])))
    assert rounds(tiny, root, "--rounds", 1) == 0
    second = root / "tiny" / "rounds" / "round_2"

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(annotate, "fit_votes", interrupt)
    with pytest.raises(KeyboardInterrupt):
        command.run(config.from_dict(settings_of(tiny, root)), rounds=2)
    drawn = second / chat_annotators.DRAWN
    assert [path.name for path in drawn.iterdir()] == ["00000.jsonl"]
    monkeypatch.undo()
    monkeypatch.setattr(command, "validation_samples", lambda settings: np.full(3, float(settings.name[-1])))
    monkeypatch.setattr(chat_annotators, "_draw", None)
    command.run(config.from_dict(settings_of(tiny, root)), rounds=2)
    assert not drawn.exists()
    assert document(root)["best"] == 2
    assert "annotate" in document(root)["rounds"][1]["seconds"]
    assert "prepare" not in document(root)["rounds"][1]["seconds"]
    # Another selection is another round.
    assert rounds(tiny, root, "--rounds", 2, "--rounds.samples", 3) == 2
    assert "annotate belongs to another config: annotate.teacher_samples is 3, was 2" in capsys.readouterr().err


def settings_of(tiny, root) -> dict:
    rounds_section = {"samples": 2, "min_vote_fraction": 0.0, "max_flaws": None}
    return config.load(tiny[0]).model_dump(mode="json") | {"run_root": str(root), "rounds": rounds_section}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--teacher.order", "label_only"], "with teacher.order label_only the teacher explains nothing"),
        (["--rounds.min_vote_fraction", "2"], "rounds.min_vote_fraction: .*less than or equal to 1"),
        (["--rounds", "0"], "--rounds"),
        (["--prefer.source", "file", "--prefer.path", "x"], "rounds: prefer.source file is of the first round"),
        (["--name", "none", "--data.candidates.per_query", "0"], "has no unlabelled pairs to explain"),
    ],
)
def test_a_mistake_is_one_line(tiny, root, capsys, options, message):
    try:
        status = rounds(tiny, root, *options)
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_round_that_selects_nothing_says_so(tiny, root, capsys, monkeypatch):
    monkeypatch.setattr(command, "validation_samples", lambda settings: np.full(3, 0.5))
    strict = ["--rounds.samples", "5", "--rounds.temperature", "1e6", "--rounds.min_vote_fraction", "1"]
    assert rounds(tiny, root, "--rounds", 2, *strict, "--rounds.max_flaws", "0") == 2
    error = capsys.readouterr().err
    assert "round 2: annotate: none of the teacher's explanations of" in error
    folder = root / "tiny" / "rounds" / "round_2" / "annotate"
    assert f"lower min_vote_fraction or raise max_flaws, of annotate or of rounds, delete {folder} and" in error
    shutil.rmtree(folder)
    assert rounds(tiny, root, "--rounds", 2) == 0
