"""`jax-rele tune`: what it writes, that it goes on where it was, what it never reads and what it refuses."""

import dataclasses
import json
import os
import shutil
import signal
import sys

import numpy as np
import pytest
import yaml
from sklearn.metrics import log_loss, roc_auc_score

from jax_rele import cli, config
from jax_rele.data import read_pairs_table, read_table, write_pairs
from jax_rele.distillation.trainer import Trainer
from jax_rele.io import lock
from jax_rele.runs import layout
from jax_rele.stages import distill
from jax_rele.students import label_probs, predict
from jax_rele.training import distributed, preemption
from jax_rele.training.metric_log import DivergedError
from jax_rele.tune.command import PREDICTIONS
from jax_rele.tune.space import config_fragment, hyperparameters

pytestmark = pytest.mark.slow

CONFIG = """
name: tuned
run_root: {folder}/runs
labels: {{names: [Bad, Good], gains: [0.0, 1.0], positive: [Good]}}
data: {{path: {folder}/pairs.jsonl, item_fields: [title], candidates: {{per_query: 1}}}}
rationale: {{dimensions: [category, color], tag_map: {{}}}}
score: {{batch_size: 16, signals: {folder}/signals.jsonl, allow_missing: true}}
student:
  random: {{vocab_size: 300, layers: 1, width: 16, heads: 2, mlp_width: 16}}
  query_length: 8
  item_length: 12
distill:
  students: [two_tower, cross_encoder]
  recipes: [label_only, mkd]
  group_size: 2
  objectives: {{mine: {{base: score_kd, terms: {{margin: {{weight: 0}}}}}}}}
  optimization: {{steps: 4, batch_size: 16, checkpoint_every: 4, log_every: 2}}
evaluate: {{bootstrap_samples: 20}}
"""


def write_data(folder):
    """Queries of three items in every split; a teacher that knows the label, with verdicts."""
    folder.mkdir(exist_ok=True)
    rng, rows, signals = np.random.default_rng(0), [], []
    for number in range(96):
        good = number % 3 == 0
        split = ("train", "train", "validation", "test")[number // 3 % 4]
        title = f"{('blue', 'red')[good]} shoes {rng.integers(9)}"
        item = {"id": str(number), "title": title}
        label = ("Bad", "Good")[good]
        rows.append(
            {"pair_id": f"p{number}", "query": f"red shoes {number // 3}", "item": item, "split": split, "label": label}
        )
        if split == "train":  # candidates, which no signals are of, are left out
            sure = 0.7 + 0.2 * rng.random()
            probs = {"Good": sure if good else 1 - sure, "Bad": 1 - sure if good else sure}
            color = "match" if good else "mismatch"
            signals.append(
                {"pair_id": f"p{number}", "label_probs": probs, "verdicts": {"category": "match", "color": color}}
            )
    for name, written in (("pairs", rows), ("signals", signals)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written), "utf-8")
    file = folder / "config.yaml"
    file.write_text(CONFIG.format(folder=folder), "utf-8")
    return file


def tune(file, *options) -> int:
    return cli.main(["tune", str(file), *map(str, options)])


def document_of(folder, student="two_tower", recipe="mkd", name="tuned"):
    return json.loads((folder / "runs" / name / "tune" / student / recipe / "tune.json").read_text())


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """(folder, config file) of a run whose two-tower's mkd was tuned with five trials."""
    folder = tmp_path_factory.mktemp("tuned")
    file = write_data(folder)
    assert tune(file, "--trials", 5) == 0
    return folder, file


def test_everything_is_written(tuned):
    folder, _ = tuned
    document = document_of(folder)
    trials = document["trials"]
    assert [trial["number"] for trial in trials] == list(range(5))
    assert document["seeds"] == [0, 1]
    assert document["n_pairs"] == 24
    assert trials[0]["values"]["learning_rate"] == 1e-3
    assert trials[0]["values"]["weight.list"] == 16.0
    complete = [trial for trial in trials if trial["outcome"] == "complete"]
    for trial in complete:
        assert trial["value"] == pytest.approx(np.mean(trial["by_seed"]))
        assert len(trial["by_seed"]) == 2
        assert all(low <= trial["values"][name] <= high for name, (low, high) in document["ranges"].items())
    best = trials[document["best"]]
    assert best["value"] == max(trial["value"] for trial in complete)
    auc = document["metrics"]["auc"]
    assert auc["best"]["value"] == pytest.approx(best["value"])
    assert auc["first"]["value"] == pytest.approx(trials[0]["value"])
    assert auc["difference"]["value"] == pytest.approx(best["value"] - trials[0]["value"])
    text = (folder / "runs/tuned/tune/two_tower/mkd/tune.md").read_text()
    assert "Trial 1 has the numbers of the config" in text
    assert text.count("(best)") == 1
    assert not list((folder / "runs/tuned/tune").rglob("checkpoints"))


def test_sigterm_saves_the_step_and_the_same_command_goes_on(tuned, tmp_path, monkeypatch, capsys):
    file, is_due = write_data(tmp_path), preemption.is_due
    seen = []

    def stopped(number, *rest):
        seen.append(number)
        if len(seen) == 6:  # in the second training
            os.kill(os.getpid(), signal.SIGTERM)
        return is_due(number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(preemption, "is_due", stopped)
        assert tune(file, "--trials", 5) == 0
    assert ": stopped by SIGTERM, step 3 is saved; the same command resumes" in capsys.readouterr().err
    assert tune(file, "--trials", 5) == 0
    expected, actual = document_of(tuned[0]), document_of(tmp_path)
    assert actual == expected


def test_a_figure_is_that_of_the_predictions(tuned):
    folder, file = tuned
    settings = config.load(file)
    pairs = [pair for pair in read_pairs_table(settings.run_dir / layout.PAIRS) if pair.split == "validation"]
    good = [pair.label == "Good" for pair in pairs]
    document = document_of(folder)
    aucs, losses = [], []
    for seed in (0, 1):
        (path,) = (settings.run_dir / "tune/two_tower/mkd/trials").glob(f"0000_*/seed_{seed}/validation.parquet")
        rows = read_table(path, PREDICTIONS).to_pylist()
        assert [row["pair_id"] for row in rows] == [pair.pair_id for pair in pairs]
        scores = [row["label_probs"][1] for row in rows]
        aucs.append(roc_auc_score(good, scores))
        losses.append(log_loss(good, scores))
    assert document["trials"][0]["by_seed"] == pytest.approx(aucs)
    assert document["metrics"]["log_loss"]["first"]["value"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_same_command_does_nothing_and_more_trials_go_on(tuned, capsys):
    folder, file = tuned
    shutil.copytree(folder / "runs", folder / "again")
    before = (folder / "again/tuned/tune/two_tower/mkd/tune.json").read_text()
    assert tune(file, "--run_root", folder / "again", "--trials", 5) == 0
    assert "5 trials finished before, nothing to do" in capsys.readouterr().out
    assert (folder / "again/tuned/tune/two_tower/mkd/tune.json").read_text() == before
    assert tune(file, "--run_root", folder / "again", "--trials", 6) == 0
    trials = json.loads((folder / "again/tuned/tune/two_tower/mkd/tune.json").read_text())["trials"]
    assert trials[:5] == json.loads(before)["trials"]
    assert len(trials) == 6


def test_an_interrupted_search_ends_like_an_uninterrupted_one(tuned, monkeypatch, capsys):
    folder, file = tuned
    root = folder / "interrupted"
    fits, fit = [], Trainer.fit

    def dying(self, seed, directory, title):
        fits.append(title)
        if len(fits) in (1, 4):
            # Half of the steps were trained and saved.
            half = dataclasses.replace(self, optimization=self.optimization.model_copy(update={"steps": 2}))
            fit(half, seed, directory, title)
            raise KeyboardInterrupt
        return fit(self, seed, directory, title)

    monkeypatch.setattr(Trainer, "fit", dying)
    codes = [tune(file, "--run_root", root, "--trials", trials) for trials in (5, 5, 2, 5)]
    assert codes == [130, 130, 0, 0]
    assert "the same command resumes the work" in capsys.readouterr().err
    document = json.loads((root / "tuned/tune/two_tower/mkd/tune.json").read_text())
    expected = document_of(folder)
    assert document["trials"] == expected["trials"]
    assert document["metrics"] == expected["metrics"]


def test_nothing_of_the_test_split_is_read(tuned):
    """Without its pairs, all trials are the same."""
    folder, file = tuned
    root = folder / "without_test"
    shutil.copytree(folder / "runs", root)
    shutil.rmtree(root / "tuned/tune")
    path = root / "tuned" / layout.PAIRS
    pairs = read_pairs_table(path)
    remaining = [pair for pair in pairs if pair.split != "test"]
    assert 0 < len(remaining) < len(pairs)
    write_pairs(path, remaining)
    assert tune(file, "--run_root", root, "--cache_dir", root / "cache", "--trials", 5) == 0
    document = json.loads((root / "tuned/tune/two_tower/mkd/tune.json").read_text())
    assert document["trials"] == document_of(folder)["trials"]


def test_compare_accepts_the_best_numbers(tuned):
    folder, file = tuned
    values, best = (yaml.safe_load(path.read_text()) for path in (file, best_file(folder)))
    values["distill"]["objectives"] |= best["distill"]["objectives"]
    values["distill"]["optimization"] |= best["distill"]["optimization"]
    (folder / "best.yaml").write_text(yaml.safe_dump(values), "utf-8")
    options = ("--students", "two_tower", "--recipes", "mkd_tuned", "--seeds", "1")
    assert cli.main(["compare", str(folder / "best.yaml"), *options]) == 0


def best_file(folder):
    return folder / "runs/tuned/tune/two_tower/mkd/best.yaml"


def test_the_compiled_step_trains_with_any_numbers_as_if_they_were_the_configs(tuned, tmp_path):
    """One compile; and the student is that of a training with the numbers in the config."""
    settings = config.load(tuned[1])
    recipe, students = "mine", {"students": ("two_tower",), "recipes": ("mine",)}
    settings = settings.model_copy(update={"distill": settings.distill.model_copy(update=students)})
    pairs = layout.load_pairs(settings.run_dir, "validation")
    defaults = {"weight.score": 1.0, "temperature.score": 2.0, "learning_rate": 1e-3}
    values = {"weight.score": 5.0, "temperature.score": 1.3, "learning_rate": 4e-3}
    distillation = distill.prepare(settings, settings.run_dir, tmp_path / "tokenizer")
    trainer = distillation.trainer(recipe, ["two_tower"], hyperparameters=hyperparameters(defaults))

    def probs(trained_by, name):
        params = trained_by.fit(3, tmp_path / name, name)["two_tower"]
        student = dataclasses.replace(distillation.students["two_tower"], variables={"params": params})
        return label_probs(predict(student, pairs))

    def log(name):
        return [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]

    before = probs(trainer, "defaults")
    after = probs(trainer.with_hyperparameters(hyperparameters(values)), "values")
    assert trainer.step.compiled._cache_size() == 1
    assert abs(before - after).max() > 1e-3

    fragment = yaml.safe_load(config_fragment(settings.distill, recipe, values))["distill"]
    fragment |= {"recipes": [f"{recipe}_tuned"], "students": ["two_tower"], "group_size": 2}
    fragment["optimization"] = settings.distill.optimization.model_dump() | fragment["optimization"]
    own = config.from_dict({**settings.model_dump(mode="json"), "distill": fragment})
    plain = distill.prepare(own, settings.run_dir, tmp_path / "tokenizer")
    # Adam turns rounding into steps where a gradient is zero, so outputs are compared and not parameters.
    expected = probs(plain.trainer(f"{recipe}_tuned", ["two_tower"]), "plain")
    np.testing.assert_allclose(after, expected, atol=1e-4)
    assert len(log("values")) == len(log("plain")) == 2
    for one, other in zip(log("values"), log("plain")):
        for key in ("loss", "learning_rate", "term/score", "term/list"):
            assert one[key] == pytest.approx(other[key], rel=1e-3), key


def test_a_trial_that_diverges_is_recorded_and_the_first_ends_the_search(tuned, monkeypatch, capsys):
    folder, file = tuned
    diverging, fit = [2], Trainer.fit
    calls = []

    def diverge(self, seed, directory, title):
        calls.append(title)
        if len(calls) in diverging:
            raise DivergedError("loss nan")
        return fit(self, seed, directory, title)

    monkeypatch.setattr(Trainer, "fit", diverge)
    assert tune(file, "--recipe", "label_only", "--seeds", 1, "--trials", 3) == 0
    trials = document_of(folder, recipe="label_only")["trials"]
    assert [trial["outcome"] for trial in trials] == ["complete", "diverged", "complete"]
    assert trials[1]["value"] is None
    calls.clear()
    diverging[:] = [1]
    assert tune(file, "--recipe", "mine", "--seeds", 1, "--trials", 1) == 2
    assert "loss nan" in capsys.readouterr().err
    # Nothing was finished, so another rate may begin anew.
    diverging.clear()
    options = ("--recipe", "mine", "--seeds", 1, "--trials", 1, "--distill.optimization.learning_rate", 1e-4)
    assert tune(file, *options) == 0
    assert document_of(folder, recipe="mine")["trials"][0]["values"]["learning_rate"] == 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--trials", 0), "argument --trials: '0' is not a whole number above 0"),
        (("--trials", 1, "--seeds", 0), "argument --seeds: '0' is not a whole number above 0"),
        ((), "--trials"),
        (("--trials", 1, "--student", "two_towers"), "--student: there is no student 'two_towers'; there are cross_"),
        (("--trials", 1, "--recipe", "mdk"), "--recipe: there is no recipe 'mdk'; there are label_only"),
        (("--trials", 1, "--metric", "roc"), "--metric: there is no metric 'roc'; there are auc, "),
        (("--trials", 1, "--metric", "macro_f1"), "--metric: there is no metric 'macro_f1'"),
        (("--trials", 1, "--recipe", "rationale_guided"), "rationale_guided needs the head"),
        (("--trials", 6, "--distill.optimization.learning_rate", 0.01), "was tuned with another config"),
        (("--trials", 6, "--distill.temperature", 3), "was tuned with another config"),
        (("--trials", 6, "--seeds", 3), "was tuned with another config, number of seeds or metric"),
        (("--trials", 6, "--metric", "log_loss"), "was tuned with another config, number of seeds or metric"),
        (("--trials", 6, "--tune.learning_rate", "{low: 1, high: 2}"), "tune.learning_rate: 1 to 2 does not hold"),
        (("--trials", 6, "--tune.weights", "{scores: {low: 1, high: 2}}"), "tune.weights.scores: mkd has no term"),
    ],
)
def test_a_mistake_is_one_line(tuned, capsys, options, message):
    _, file = tuned
    assert tune(file, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda row: {"split": "train"}, (), "the validation split is empty"),
        (lambda row: {"label": "Bad"}, (), "all 24 validation pairs are labelled Bad"),
        (
            lambda row: {"query": f"red shoes {row['pair_id']}"},
            ("--metric", "ndcg_gains"),
            "--metric ndcg_gains: is undefined on the 24 validation pairs",
        ),
    ],
)
def test_validation_pairs_that_cannot_tell_trials_apart_are_refused(tmp_path, capsys, change, options, message):
    file = write_data(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    rows = [row | change(row) if row["split"] == "validation" else row for row in rows]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    fractions = ("--data.splits.validation", 0, "--data.splits.train", 0.8)
    assert tune(file, "--trials", 1, *fractions, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs/tuned/tune").exists()
    assert not (tmp_path / "runs/tuned/score").exists()


def test_without_optuna_one_line_says_what_to_install(tuned, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert tune(tuned[1], "--trials", 1) == 2
    assert capsys.readouterr().err == "jax-rele: tune needs the package optuna: pip install 'jax_rele[tune]'\n"


def test_it_is_one_process_at_a_time(tuned, monkeypatch, capsys):
    folder, file = tuned
    with lock(folder / "runs/tuned/tune/two_tower/.mkd.lock"):
        assert tune(file, "--trials", 6) == 2
    assert "another process tunes it" in capsys.readouterr().err
    monkeypatch.setattr(distributed, "process_count", lambda: 2)
    assert tune(file, "--trials", 6) == 2
    assert "tune is one process; start it without a launcher" in capsys.readouterr().err
