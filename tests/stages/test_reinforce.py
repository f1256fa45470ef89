"""reinforce: the teacher of a run is the one it trains, interrupted or not; and when it ends early."""

import json
import shutil

import jax
import numpy as np
import pytest

from jax_rele import cli, config
from jax_rele.errors import UserError
from jax_rele.rationale import parse_output
from jax_rele.runs import layout, load, pipeline
from jax_rele.runs.stages import STAGES, teacher_stage
from jax_rele.stages import reinforce
from jax_rele.teacher import language_model
from jax_rele.training import make_mesh

pytestmark = pytest.mark.slow

OPTIONS = {
    **{"enabled": True, "iterations": 2, "pairs": 12, "samples": 3, "pack_to": 384},
    "optimization": config.IterationConfig(steps=4, batch_size=8, learning_rate=1e-3, checkpoint_every=2, log_every=2),
}


@pytest.fixture
def copy(tiny, tmp_path):
    """(settings, run folder) of the tiny run as it was before reinforce."""
    folder = tmp_path / "runs" / "tiny"
    later = ("reinforce", "score", "distill", "evaluate")
    shutil.copytree(tiny[1], folder, ignore=lambda path, names: later if path == str(tiny[1]) else ())
    settings = config.load(tiny[0])
    section = settings.reinforce.model_copy(update=OPTIONS)
    return settings.model_copy(update={"run_root": str(folder.parent), "reinforce": section}), folder


def train(settings):
    pipeline.run(settings, ["reinforce"], whole=False, say=lambda line: None)


def adapters(settings, run_dir):
    model, _ = load.teacher_model(settings, run_dir)
    return jax.device_get(load.load_lora(settings, model, run_dir, make_mesh(settings.mesh)))


def test_the_teacher_is_the_one_that_it_trains_and_an_interrupted_run_ends_like_an_unbroken_one(copy, monkeypatch):
    settings, run_dir = copy
    before = adapters(settings.model_copy(update={"reinforce": config.ReinforceConfig()}), run_dir)
    train(settings)
    after = adapters(settings, run_dir)
    assert teacher_stage(settings) == "reinforce"
    assert max(np.abs(a - b).max() for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after))) > 1e-5
    teacher = jax.device_get(load.load_teacher(run_dir, config=settings).variables["lora"])
    jax.tree.map(np.testing.assert_array_equal, teacher, after["lora"])

    folder = run_dir / "reinforce"
    figures = [json.loads(path.read_text()) for path in sorted(folder.glob("iteration_*/figures.json"))]
    assert len(figures) == 3  # before each training, and after the last
    assert figures[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert figures[1]["kl"] > 1e-6
    assert all(0 < each["reward"] < 1 and 0 < each["groups"] <= 12 for each in figures)
    counts = json.loads((folder / "manifest.json").read_text())["counts"]
    assert (counts["iterations"], counts["without_rationale"]) == (2, 0)
    assert (counts["reward_first"], counts["reward_last"]) == tuple(round(figures[n]["reward"], 4) for n in (0, 2))
    lines = (folder / "rewards.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[-3:]] == ["0 times", "1 times", "2 times"]
    assert [path.parent.name for path in folder.glob("iteration_*/lora")] == ["iteration_000002"]

    shutil.rmtree(folder)
    original, calls = language_model.train, []

    def interrupted(step, state, data, **options):
        def counted(*arguments):
            calls.append(0)
            if len(calls) > 7:  # in the second iteration, after its first checkpoint
                raise KeyboardInterrupt
            return step(*arguments)

        return original(counted, state, data, **options)

    monkeypatch.setattr(language_model, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(settings)
    monkeypatch.undo()
    draw, drawn = reinforce.sample, []

    def counted_draw(*arguments, **options):
        drawn.append(0)
        return draw(*arguments, **options)

    monkeypatch.setattr(reinforce, "sample", counted_draw)
    train(settings)
    assert len(drawn) == 1  # after the last training alone: nothing is drawn again
    jax.tree.map(np.testing.assert_array_equal, adapters(settings, run_dir), after)


def test_what_is_trained_on_is_what_was_drawn(copy):
    """The log-probabilities are of tokens that the guided decoder wrote, as it wrote them."""
    settings, run_dir = copy
    model, tokenizer = load.teacher_model(settings, run_dir)
    task = reinforce._Task.make(settings, tokenizer, model)
    pairs = layout.load_pairs(run_dir, "train")[:10]
    devices = reinforce._Devices.load(settings, run_dir, model)
    drawn = reinforce._draw(task, devices, run_dir / "drawn", None, 0, pairs)
    assert [len(of_pair) for of_pair in drawn] == [3] * 10
    dimensions = settings.rationale.dimensions
    for answer in (answer for of_pair in drawn for answer in of_pair):
        assert len(answer.ids) == len(answer.decided) <= task.form.longest
        text = tokenizer.decode(answer.ids[:-1], clean_up_tokenization_spaces=False)
        assert parse_output(text, dimensions=dimensions, labels=settings.labels.names) == answer.rationale
        assert answer.ids[-1] == task.form.end
        # Two values and a verdict of each dimension, and the label.
        assert sum(answer.decided) >= 3 * len(dimensions) + 1
    assert reinforce._draw(task, devices, run_dir / "drawn", None, 0, pairs) == drawn


def test_it_ends_where_the_teacher_has_gone_too_far(copy, capsys):
    settings, run_dir = copy
    section = settings.reinforce.model_copy(update={"iterations": 3, "max_kl": 1e-9, "kl_weight": 0.0})
    train(settings.model_copy(update={"reinforce": section}))
    assert "ends after 1 of 3 iterations: the divergence from the teacher before" in capsys.readouterr().out
    assert len(list((run_dir / "reinforce").glob("iteration_*/figures.json"))) == 2
    assert (run_dir / layout.REINFORCED_LORA).exists()


def test_without_differences_nothing_is_learnt(copy, capsys, monkeypatch):
    settings, run_dir = copy
    settings = settings.model_copy(update={"reinforce": settings.reinforce.model_copy(update={"iterations": 9})})
    monkeypatch.setattr(reinforce, "reward_parts", lambda *_: dict.fromkeys(reinforce.PARTS, 1.0))
    train(settings)
    assert "ends after 2 of 9 iterations: in 3 iterations all answers to a pair had" in capsys.readouterr().out
    before = adapters(settings.model_copy(update={"reinforce": config.ReinforceConfig()}), run_dir)
    jax.tree.map(np.testing.assert_array_equal, adapters(settings, run_dir), before)


def test_rows_too_short_are_refused_before_anything_is_drawn(copy):
    settings, run_dir = copy
    section = settings.reinforce.model_copy(update={"pack_to": 40})
    with pytest.raises(UserError, match=r"reinforce.pack_to: prompt and answer can take \d+ tokens"):
        train(settings.model_copy(update={"reinforce": section}))
    assert not list((run_dir / "reinforce").glob("iteration_*"))


def test_without_it_nothing_differs(tiny):
    settings = config.load(tiny[0])
    on = settings.model_copy(update={"reinforce": settings.reinforce.model_copy(update={"enabled": True})})
    for name, stage in STAGES.items():
        if name != "reinforce":
            added = set(pipeline.sections(on, stage)) - set(pipeline.sections(settings, stage))
            assert added == ({"reinforce.enabled"} if name in ("score", "evaluate") else set())
            assert "reinforce" not in stage.needs(settings)
            assert ("reinforce" in stage.needs(on)) == (name in ("score", "evaluate"))


def test_a_mistake_is_named(tiny, capsys):
    none = ("--reinforce.label_weight", "0", "--reinforce.verdict_weight", "0")
    assert cli.main(["reinforce", str(tiny[0]), "--reinforce.enabled", "true", *none]) == 2
    assert "nothing is rewarded" in capsys.readouterr().err
    assert cli.main(["reinforce", str(tiny[0])]) == 2
    assert "reinforce.enabled is false: set it to true" in capsys.readouterr().err
