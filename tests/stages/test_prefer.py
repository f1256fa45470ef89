"""prefer: where preferences come from, what is refused of them, and that the run's teacher is the one it trains."""

import json
import shutil

import jax
import numpy as np
import pytest

from jax_rele import cli, config
from jax_rele.data import RATIONALES, REFERENCES, read_table, write_table
from jax_rele.data.preferences import read_preferences
from jax_rele.errors import UserError
from jax_rele.rationale import render
from jax_rele.runs import layout, load, pipeline
from jax_rele.runs.stages import STAGES
from jax_rele.stages import prefer
from jax_rele.teacher import language_model
from jax_rele.training import make_mesh
from jax_rele.types import Rationale

pytestmark = pytest.mark.slow

PREFERRED, REJECTED = render(Rationale((), "Exact")), render(Rationale((), "Irrelevant"))


@pytest.fixture
def copy(tiny, tmp_path):
    """(config file, its settings, run folder) of the tiny run as it was before prefer."""
    folder = tmp_path / "runs" / "tiny"
    later = ("prefer", "score", "distill", "evaluate")
    shutil.copytree(tiny[1], folder, ignore=lambda path, names: later if path == str(tiny[1]) else ())
    settings = config.load(tiny[0])
    return tiny[0], settings.model_copy(update={"run_root": str(folder.parent)}), folder


def run_prefer(copy, *options) -> int:
    file, _, folder = copy
    return cli.main(["prefer", str(file), "--run_root", str(folder.parent), *map(str, options)])


def changed(settings, **fields):
    return settings.model_copy(update={"prefer": settings.prefer.model_copy(update=fields)})


def adapters(settings, run_dir):
    model, _ = load.teacher_model(settings, run_dir)
    return jax.device_get(load.load_lora(settings, model, run_dir, make_mesh(settings.mesh)))


def ids_of(run_dir, split):
    return [pair.pair_id for pair in layout.load_pairs(run_dir, split)]


def written(tmp_path, *rows):
    path = tmp_path / "preferences.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_the_teacher_is_the_one_that_is_trained_on_preferences(tiny):
    settings, run_dir = pipeline.read_config(tiny[1]), tiny[1]
    before = adapters(changed(settings, enabled=False), run_dir)
    after = adapters(settings, run_dir)
    teacher = jax.device_get(load.load_teacher(run_dir).variables["lora"])
    jax.tree.map(np.testing.assert_array_equal, teacher, after["lora"])
    assert max(np.abs(a - b).max() for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after))) > 1e-5


def test_a_preference_is_a_rationale_with_the_human_label_against_one_without(tiny):
    settings, run_dir = pipeline.read_config(tiny[1]), tiny[1]
    labels = {pair.pair_id: pair.label for pair in layout.load_pairs(run_dir, "train")}
    preferences = read_preferences(
        run_dir / layout.PREFERENCES, labels, settings.labels.names, settings.rationale.dimensions
    )
    counts = json.loads((run_dir / "prefer" / "manifest.json").read_text())["counts"]
    assert counts["pairs"] == settings.prefer.max_pairs
    assert (
        len(preferences)
        == sum(counts[kind] for kind in ("label", "rules", "verdicts"))
        == counts["preferences"] + counts["equal_as_tokens"]
    )
    for preference in preferences:
        assert preference.chosen.label == labels[preference.pair_id]
        assert (preference.rejected.label != labels[preference.pair_id]) == (preference.reason == "label")


def test_the_reference_is_the_teacher_before(tiny):
    """At step 0 nothing has been learnt: the loss of DPO is log 2, see the first line of the log."""
    references = read_table(tiny[1] / layout.REFERENCES, REFERENCES)
    first = json.loads((tiny[1] / "prefer" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["term/preference"] == pytest.approx(np.log(2), abs=0.02)
    assert np.all(references["chosen_log_prob"].to_numpy() < 0)


def test_without_it_nothing_differs(tiny):
    """Neither a hash nor a line: a run that does not enable the stage is the run of before."""
    settings = config.load(tiny[0])
    off = changed(settings, enabled=False)
    for name, stage in STAGES.items():
        if name != "prefer":
            values = pipeline.sections(off, stage)
            assert not any(path.startswith("prefer") for path in values)
            on = pipeline.sections(settings, stage)
            assert {path for path in on if path not in values} == (
                {"prefer.enabled"} if name in ("reinforce", "score", "evaluate") else set()
            )
            assert "prefer" not in stage.needs(off)


def test_a_run_without_it_says_how_to_enable_it(copy, capsys):
    assert run_prefer(copy, "--prefer.enabled", "false") == 2
    assert "prefer.enabled is false: set it to true" in capsys.readouterr().err


def test_an_interrupted_training_ends_like_an_unbroken_one(tiny, copy, monkeypatch):
    _, settings, run_dir = copy
    train = language_model.train

    def interrupted(step, state, data, **options):
        calls = []

        def counted(*arguments):
            calls.append(0)
            if len(calls) > 3:
                raise KeyboardInterrupt
            return step(*arguments)

        return train(counted, state, data, **options)

    monkeypatch.setattr(language_model, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(settings, ["prefer"], whole=False, say=lambda line: None)
    monkeypatch.undo()
    assert (run_dir / "prefer" / "checkpoints" / "2").is_dir()
    # What is drawn and computed before the training is not drawn and computed again.
    monkeypatch.setattr(prefer, "draw", None)
    monkeypatch.setattr(prefer, "compute_log_probs", None)
    pipeline.run(settings, ["prefer"], whole=False, say=lambda line: None)
    jax.tree.map(np.testing.assert_array_equal, adapters(settings, run_dir), adapters(settings, tiny[1]))


def test_preferences_of_a_file(copy, tmp_path, capsys):
    _, settings, run_dir = copy
    train = ids_of(run_dir, "train")[:9]
    rows = [{"pair_id": name, "chosen": PREFERRED, "rejected": REJECTED} for name in train]
    path = written(tmp_path, *rows)
    options = ("--prefer.source", "file", "--prefer.path", path, "--prefer.pack_to", 256, "--prefer.sft_weight", 0.1)
    assert run_prefer(copy, *options) == 0
    assert "pairs 9, repeated 0, contradicting 0, preferences 9, equal_as_tokens 0" in capsys.readouterr().out
    assert [
        each.pair_id
        for each in read_preferences(
            run_dir / layout.PREFERENCES, train, settings.labels.names, settings.rationale.dimensions
        )
    ] == train
    line = json.loads((run_dir / "prefer" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"term/preference", "term/chosen_cross_entropy", "accuracy", "margin", "chosen_log_ratio"} <= line.keys()
    path.write_text(path.read_text() + "\n")
    assert run_prefer(copy, *options) == 2
    assert "its input prefer.path preferences.jsonl has changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"pair_id": "test", "chosen": PREFERRED, "rejected": REJECTED}], (), "line 1: the pair '.*' is held out"),
        (
            [{"pair_id": "train", "chosen": PREFERRED, "rejected": PREFERRED}],
            (),
            "line 1: chosen and rejected are equal",
        ),
        ([{"pair_id": "none", "chosen": PREFERRED, "rejected": REJECTED}], (), "line 1: there is no pair 'none'"),
        ([], (), "there is no preference"),
        (
            [{"pair_id": "train", "chosen": PREFERRED, "rejected": REJECTED}],
            ("--prefer.pack_to", "16"),
            r"prefer.pack_to: the two texts of a preference of the pair '.*' take \d+ tokens, a row has 16",
        ),
    ],
)
def test_what_is_no_preference_is_refused(copy, tmp_path, capsys, rows, options, message):
    *_, run_dir = copy
    for row in rows:
        if row["pair_id"] in ("train", "test"):
            row = row.update(pair_id=ids_of(run_dir, row["pair_id"])[0])
    path = written(tmp_path, *rows)
    assert run_prefer(copy, "--prefer.source", "file", "--prefer.path", path, *options) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    with pytest.raises(UserError, match=message):
        raise UserError(error)


def test_answers_of_chat_models_that_disagree_are_preferences(copy):
    _, settings, run_dir = copy
    settings = changed(settings, source="annotators")
    (run_dir / "prefer").mkdir()
    with pytest.raises(UserError, match=r"votes.parquet is missing: annotate ran with an earlier version"):
        prefer.collect(settings, run_dir)
    pairs = layout.load_pairs(run_dir, "train")[:3]
    other = {pair.pair_id: "Irrelevant" if pair.label == "Exact" else "Exact" for pair in pairs}

    def row(pair, label, model):
        return {"pair_id": pair.pair_id, "text": render(Rationale((), label)), "annotator": model}

    agreeing = [row(pair, pair.label, model) for pair in pairs for model in ("a", "b")]
    write_table(run_dir / layout.VOTES, agreeing, RATIONALES)
    with pytest.raises(UserError, match="answers of annotate to 3 labelled pairs give no preference"):
        prefer.collect(settings, run_dir)
    write_table(run_dir / layout.VOTES, [*agreeing, row(pairs[1], other[pairs[1].pair_id], "c")], RATIONALES)
    assert prefer.collect(settings, run_dir) == {
        "pairs": 3,
        "label": 1,
        "rules": 0,
        "verdicts": 0,
        "ties": 2,
        "disputed": 0,
        "unreadable": 0,
    }
    (preference,) = read_preferences(
        run_dir / layout.PREFERENCES, other, settings.labels.names, settings.rationale.dimensions
    )
    assert (preference.pair_id, preference.chosen.label) == (pairs[1].pair_id, pairs[1].label)


def test_samples_that_all_agree_are_no_preferences(copy, monkeypatch):
    _, settings, run_dir = copy
    monkeypatch.setattr(
        prefer, "draw", lambda config, teacher, pairs, progress: [[Rationale((), pair.label)] * 2 for pair in pairs]
    )
    with pytest.raises(
        UserError, match="the 2 rationales that the teacher drew for each of 40 pairs give no preference"
    ):
        prefer.collect(settings, run_dir)
    # What is drawn again after a change must not be bound to what was drawn before.
    assert not (run_dir / "prefer" / "shards").exists()


def test_a_file_that_was_refused_may_be_corrected(copy, tmp_path, capsys):
    *_, run_dir = copy
    (name, *_) = ids_of(run_dir, "train")
    path = written(tmp_path, {"pair_id": name, "chosen": PREFERRED, "rejected": REJECTED})
    options = ("--prefer.source", "file", "--prefer.path", path)
    assert run_prefer(copy, *options, "--prefer.pack_to", 16) == 2
    assert "prefer.pack_to" in capsys.readouterr().err
    assert run_prefer(copy, *options, "--prefer.pack_to", 512) == 0


def test_a_fold_leaves_out_the_preferences_of_pairs_that_it_holds_out(copy, tmp_path):
    _, settings, run_dir = copy
    names = [*ids_of(run_dir, "train")[:2], ids_of(run_dir, "test")[0]]
    rows = [{"pair_id": name, "chosen": PREFERRED, "rejected": REJECTED} for name in names]
    settings = changed(settings, source="file", path=str(written(tmp_path, *rows)))
    splits = settings.data.splits.model_copy(update={"fold": (1, 2)})
    settings = settings.model_copy(update={"data": settings.data.model_copy(update={"splits": splits})})
    (run_dir / "prefer").mkdir()
    assert prefer.collect(settings, run_dir) == {"pairs": 2, "held_out": 1, "repeated": 0, "contradicting": 0}


def test_repeated_and_contradicting_rows_are_counted(copy, tmp_path):
    _, settings, run_dir = copy
    names = ids_of(run_dir, "train")[:2]
    rows = [{"pair_id": name, "chosen": PREFERRED, "rejected": REJECTED} for name in names]
    rows += [rows[0], {"pair_id": names[1], "chosen": REJECTED, "rejected": PREFERRED}]
    (run_dir / "prefer").mkdir()
    counts = prefer.collect(changed(settings, source="file", path=str(written(tmp_path, *rows))), run_dir)
    assert counts == {"pairs": 2, "repeated": 1, "contradicting": 2}
