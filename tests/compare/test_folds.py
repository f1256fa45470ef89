"""`jax-rele compare --folds K`: every pair judged once, each fold a run of its own, one compile, nothing repeated."""

import json
from collections import Counter

import numpy as np
import pytest
import sklearn.metrics

from jax_rele import cli
from jax_rele.cli.overrides import read_config
from jax_rele.compare import command
from jax_rele.compare.trainings import PREDICTIONS
from jax_rele.data import read_external_signals, read_pairs_table, read_table
from jax_rele.distillation import trainer
from jax_rele.evaluation import BASELINES
from jax_rele.students import prediction
from jax_rele.teacher import language_model
from jax_rele.text import text_key
from jax_rele.training import shard_step

pytestmark = pytest.mark.slow

FOLDS = 2
RECIPES = ("label_only", "score_kd")
OVERRIDES = ("--data.splits.existing", "ignore", "--distill.group_size", "1")
OPTIONS = ("--students", "two_tower", "--recipes", *RECIPES, *OVERRIDES)


def compare(file, *options) -> int:
    return cli.main(["compare", str(file), *OPTIONS, *map(str, options)])


def settings(file, root):
    """The config of `compare` with `OPTIONS`."""
    selected = ("--distill.students", "two_tower", "--distill.recipes", *RECIPES)
    return read_config(str(file), [*selected, *OVERRIDES, "--run_root", str(root)])


class Interrupted(Exception):
    """What ends the first attempt."""


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """(config file, root, what was compiled) of a comparison that was interrupted in the second fold and resumed."""
    root = tmp_path_factory.mktemp("folds")
    config = settings(tiny[0], root)
    steps, teacher_steps, sizes = [], [], []
    language_model._compiled_step.cache_clear()

    def recording(compiled):
        def recorded(*args):
            compiled.append(shard_step(*args))
            return compiled[-1]

        return recorded

    def counting(line):
        if line.endswith(": trained"):
            sizes.append(prediction._apply._cache_size())

    def interrupting(line):
        counting(line)
        if line.startswith("fold 2/2: compare two_tower label_only") and line.endswith("seed 0: trained"):
            raise Interrupted

    trainer.shard_step, language_model.shard_step = recording(steps), recording(teacher_steps)
    try:
        with pytest.raises(Interrupted):
            command.run(config, seeds=2, folds=FOLDS, say=interrupting)
        first = list(steps)
        steps.clear()
        command.run(config, seeds=2, folds=FOLDS, say=counting)
    finally:
        trainer.shard_step = language_model.shard_step = shard_step
    return tiny[0], root, {"first": first, "resumed": list(steps), "teacher": teacher_steps, "predict": sizes}


def folder(root):
    return root / "tiny" / "compare" / f"{FOLDS}_folds"


def fold_pairs(root, number):
    return read_pairs_table(folder(root) / f"fold_{number}" / "prepare" / "pairs.parquet")


def cells_of(root, number):
    """{(recipe, seed): {split: {pair_id: distribution}}} of a fold's run."""
    cells = {}
    for path in (folder(root) / f"fold_{number}" / "compare" / "two_tower").glob("*/*/seed_*/predictions.parquet"):
        splits = cells.setdefault((path.parts[-4], path.parts[-2]), {})
        for row in read_table(path, PREDICTIONS).to_pylist():
            splits.setdefault(row["split"], {})[row["pair_id"]] = row["label_probs"]
    return cells


def test_every_labelled_pair_is_tested_once_by_models_that_learn_from_no_pair_of_its_query(run):
    _, root, _ = run
    tested, everyone = Counter(), set()
    for number in range(1, FOLDS + 1):
        queries: dict[str, set[str]] = {}
        pairs = fold_pairs(root, number)
        for pair in pairs:
            queries.setdefault(pair.split, set()).add(text_key(pair.query))
        assert queries["test"].isdisjoint(queries["train"] | queries["validation"])
        tested.update(pair.pair_id for pair in pairs if pair.split == "test" and pair.label is not None)
        everyone |= {pair.pair_id for pair in pairs if pair.label is not None}
        unlabelled = read_pairs_table(folder(root) / f"fold_{number}" / "prepare" / "unlabelled.parquet")
        assert queries["test"].isdisjoint({text_key(pair.query) for pair in unlabelled})
        for splits in cells_of(root, number).values():
            assert set(splits["test"]) == {pair.pair_id for pair in pairs if pair.split == "test"}
    assert set(tested.values()) == {1}
    assert set(tested) == everyone
    document = json.loads((folder(root) / "comparison.json").read_text())
    assert document["n_pairs"] == len(everyone)
    assert document["folds"] == FOLDS


def test_the_figures_are_the_weighted_means_of_the_folds(run):
    _, root, _ = run
    document = json.loads((folder(root) / "comparison.json").read_text())
    assert set(document["others"]["all"]) == {*BASELINES, "teacher"}
    for cell in document["cells"]:
        for index, seed in enumerate(document["seeds"]):
            values, sizes = [], []
            for number in range(1, FOLDS + 1):
                probs = cells_of(root, number)[cell["recipe"], f"seed_{seed}"]["test"]
                label_of = {pair.pair_id: pair.label for pair in fold_pairs(root, number)}
                relevant = [label_of[pair_id] == "Exact" for pair_id in probs]
                values.append(sklearn.metrics.roc_auc_score(relevant, [row[0] for row in probs.values()]))
                sizes.append(len(probs))
            expected = np.average(values, weights=sizes)
            assert cell["slices"]["all"]["auc"]["by_seed"][index] == pytest.approx(expected, abs=1e-9)
    text = (folder(root) / "comparison.md").read_text()
    assert "in 2 folds of a cross-validation" in text
    assert "two_tower score_kd" in text


def test_a_fold_is_the_same_as_a_comparison_of_its_own(run, tmp_path):
    """Of the second one, which was interrupted."""
    file, root, _ = run
    assert compare(file, "--run_root", tmp_path, "--seeds", 2, "--data.splits.fold", 2, FOLDS) == 0
    plain = {}
    for path in (tmp_path / "tiny" / "compare" / "two_tower").glob("*/*/seed_*/predictions.parquet"):
        rows = read_table(path, PREDICTIONS).to_pylist()
        plain[path.parts[-4], path.parts[-2]] = {
            split: {row["pair_id"]: row["label_probs"] for row in rows if row["split"] == split}
            for split in ("validation", "test")
        }
    assert len(plain) == 4
    assert plain == cells_of(root, 2)


def test_the_step_and_the_forward_pass_are_compiled_once_for_all_folds(run):
    compiled = run[2]
    # The first attempt trains both recipes in the first fold and one of them in the second, the resumed one the rest.
    assert len(compiled["first"]) == len(compiled["resumed"]) == len(RECIPES)
    for step in compiled["first"] + compiled["resumed"]:
        assert step.compiled._cache_size() == 1
    # Of `adapt`, `finetune` and `prefer`, in all folds.
    assert len(compiled["teacher"]) == 3
    assert len(compiled["predict"]) == 2 * FOLDS * len(RECIPES)
    assert set(compiled["predict"]) == {compiled["predict"][0]}


def test_the_same_command_trains_nothing_and_writes_the_same(run, capsys):
    file, root, _ = run
    before = (folder(root) / "comparison.json").read_text()
    assert compare(file, "--run_root", root, "--seeds", 2, "--folds", FOLDS) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.endswith((": trained", " starts", " resumes"))]
    assert (folder(root) / "comparison.json").read_text() == before


def test_the_predictions_of_all_folds_are_written_and_can_be_read_as_signals(run):
    file, root, _ = run
    config = settings(file, root)
    tested = [pair for number in (1, 2) for pair in fold_pairs(root, number) if pair.split == "test" and pair.label]
    models = {path.stem: path for path in (folder(root) / "predictions").glob("*.parquet")}
    assert set(models) == {"teacher", *BASELINES, *(f"two_tower_{recipe}" for recipe in RECIPES)}
    labels, dimensions = config.labels.schema_, config.rationale.dimensions
    pooled = {}
    for name, path in models.items():
        signals = read_external_signals(path, tested, schema=labels, dimensions=dimensions, fields=()).signals
        pooled[name] = dict(zip(signals.pair_ids, signals.label_probs))
        assert set(pooled[name]) == {pair.pair_id for pair in tested}
    for number in (1, 2):
        cells = cells_of(root, number)
        seeds = [cells["score_kd", f"seed_{seed}"]["test"] for seed in (0, 1)]
        for pair_id in seeds[0]:
            mean = np.mean([each[pair_id] for each in seeds], axis=0)
            np.testing.assert_allclose(pooled["two_tower_score_kd"][pair_id], mean, rtol=1e-6)


def test_a_curve_has_a_point_for_every_number(run, monkeypatch):
    file, root, _ = run
    # The plots take longer than the trainings.
    monkeypatch.setattr(command, "write_page", lambda *args: None)
    monkeypatch.setattr(command, "figures", lambda document: {})
    options = ("--seeds", 1, "--folds", FOLDS, "--labelled", 20, "--teacher-labelled", 0, "--reference", "score_kd")
    assert compare(file, "--run_root", root, *options) == 0
    document = json.loads((folder(root) / "comparison.json").read_text())
    sizes = [(cell["labelled"], cell["teacher_labelled"]) for cell in document["cells"][::2]]
    assert sizes[0][0] == 20
    assert sizes[0][1] > 0
    assert sizes[1][0] > 20
    assert sizes[1][1] == 0
    assert document["reference"] == "score_kd"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--folds", 1), "--folds: 1 is too few"),
        (("--folds", 0), "--folds: 0 is too few"),
        (("--folds", 500), "fold 1 of 500: "),
        (("--folds", 500), "500 folds need as many queries, there are 148; ask for fewer folds"),
        (("--folds", 3, "--labelled", 100000), "--labelled: 100000 is not within the"),
        (("--folds", 3, "--teacher-labelled", 100000), "--teacher-labelled: 100000 is not within the"),
        (("--folds", 3, "--evaluate.split", "validation"), "evaluate.split: --folds tests every pair once"),
        (("--folds", 3, "--data.splits.fold", 1, 3), "data.splits.fold: is one fold's"),
        (("--folds", 3, "--data.splits.existing", "keep"), "rows bring a split, and folds divide all queries anew"),
        (("--folds", 3, "--data.splits.fold", 4, 3), "fold: [k, K] needs K of 2 or more"),
        (
            ("--folds", 13, "--labels.positive", "Complement"),
            "its test pairs hold no positive one (labels.positive: Complement)",
        ),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_trained(tiny, tmp_path, capsys, options, message):
    assert compare(tiny[0], "--run_root", tmp_path, "--seeds", 1, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("**/finetune"))


def test_signals_of_another_teacher_serve_every_fold(tiny, tmp_path):
    signals = tmp_path / "signals.jsonl"
    pairs = read_pairs_table(tiny[1] / "prepare" / "pairs.parquet")
    names = ("Exact", "Substitute", "Complement", "Irrelevant")
    with signals.open("w") as stream:
        for number, pair in enumerate(pairs):
            probs = np.random.default_rng(number).dirichlet(np.ones(4) + 4.0 * (np.array(names) == pair.label))
            stream.write(json.dumps({"pair_id": pair.pair_id, "label_probs": dict(zip(names, probs.tolist()))}) + "\n")
    options = ("--score.signals", signals, "--data.candidates.per_query", 0, "--run_root", tmp_path / "runs")
    assert compare(tiny[0], *options, "--seeds", 1, "--folds", 2) == 0
    document = json.loads((tmp_path / "runs" / "tiny" / "compare" / "2_folds" / "comparison.json").read_text())
    assert "teacher" in document["others"]["all"]
    assert not list((tmp_path / "runs").glob("**/finetune/lora"))
