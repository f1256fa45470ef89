"""A run with another teacher's signals: no teacher stage, no teacher folder, and what cannot be used is refused."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from jax_rele import cli, config
from jax_rele.data import read_pairs_table, read_signals, read_table, write_pairs
from jax_rele.errors import UserError
from jax_rele.rationale import parse, render
from jax_rele.runs import external_signals as external_signals
from jax_rele.runs import layout
from jax_rele.types import VERDICTS, Comparison, Rationale

pytestmark = pytest.mark.slow

TINY = """
name: other
run_root: {folder}/runs
labels: {labels}
data: {{path: {folder}/pairs.jsonl, item_fields: [title], candidates: {{per_query: {per_query}}}}}
rationale: {{dimensions: [category, color], tag_map: {{}}}}
score: {{batch_size: 16, signals: {signals}}}
student:
  random: {{vocab_size: 300, layers: 1, width: 16, heads: 2, mlp_width: 16}}
  query_length: 8
  item_length: 12
distill:
  students: [two_tower]
  recipes: [{recipe}]
  group_size: 2
  optimization: {{steps: 2, batch_size: 16, checkpoint_every: 2, log_every: 2}}
evaluate: {{bootstrap_samples: 20, report_pairs: 4}}
"""
FOUR = "{}"
TWO = "{names: [Bad, Good], gains: [0.0, 1.0], positive: [Good]}"
NAMES = {FOUR: ("Exact", "Substitute", "Complement", "Irrelevant"), TWO: ("Bad", "Good")}


def jax_rele(*arguments) -> int:
    return cli.main([str(argument) for argument in arguments])


def rows_of(labels):
    """Queries of three pairs each; one of each training query is unlabelled."""
    rows = []
    for number in range(48):
        split = ("train", "train", "validation", "test")[number // 3 % 4]
        row = {
            "pair_id": f"p{number}",
            "query": f"red shoes {number // 3}",
            "item": {
                "id": str(number),
                "title": f"{('red', 'blue')[number % 2]} {('shoes', 'boots')[number % 3 == 0]}",
            },
            "split": split,
        }
        if split != "train" or number % 3:
            row["label"] = NAMES[labels][number % 2]
        rows.append(row)
    return rows


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make(folder, signals=None, *, labels=FOUR, recipe="score_kd", per_query=0):
    """The config file of a run over `rows_of(labels)`, with signals.jsonl written from the given rows."""
    write_lines(folder / "pairs.jsonl", rows_of(labels))
    if signals is not None:
        write_lines(folder / "signals.jsonl", signals)
    file = folder / "other.yaml"
    path = folder / "signals.jsonl" if signals is not None else '""'
    file.write_text(TINY.format(folder=folder, labels=labels, signals=path, recipe=recipe, per_query=per_query))
    return file


def scores(rows):
    rng = np.random.default_rng(0)
    return [{"pair_id": row["pair_id"], "score": float(rng.random())} for row in rows]


def explained(rows):
    signals_path = []
    for row in rows:
        words = row["item"]["title"].split()
        comparisons = (
            Comparison("category", ("shoes",), (words[1],), "match" if words[1] == "shoes" else "mismatch"),
            Comparison("color", ("red",), (words[0],), "match" if words[0] == "red" else "mismatch"),
        )
        wrong = sum(comparison.verdict == "mismatch" for comparison in comparisons)
        rationale = Rationale(comparisons, NAMES[FOUR][(0, 1, 3)[wrong]])
        signals_path.append({"pair_id": row["pair_id"], "rationale": render(rationale, "label_first")})
    return signals_path


def no_teacher(run_dir):
    return not any((run_dir / name).exists() for name in ("annotate", "adapt", "finetune"))


def test_scores_alone_become_a_student(tmp_path, capsys):
    file = make(tmp_path, scores(rows_of(TWO)), labels=TWO)
    assert jax_rele("run", file) == 0
    out = capsys.readouterr().out
    assert out.count("skipped: score.signals takes the teacher's place") == 3
    run_dir = tmp_path / "runs" / "other"
    assert no_teacher(run_dir)
    metrics = json.loads((run_dir / "evaluate" / "metrics.json").read_text())
    assert list(metrics["models"]) == ["teacher", "two_tower:score_kd"]
    assert metrics["rationales"]["written"] == 0
    assert read_table(run_dir / "evaluate" / "rationales.parquet").num_rows == 0
    assert jax_rele("run", file) == 0
    assert capsys.readouterr().out.count("nothing to do") == 4


def test_rationales_become_verdicts_and_are_shown(tmp_path):
    file = make(tmp_path, explained(rows_of(FOUR)), recipe="mkd")
    assert jax_rele("run", file) == 0
    run_dir = tmp_path / "runs" / "other"
    assert no_teacher(run_dir)
    settings = config.load(file)
    signals = read_signals(run_dir / layout.SIGNALS, settings.labels.names, settings.rationale.dimensions)
    learned = layout.load_pairs(run_dir, "train") + read_pairs_table(run_dir / layout.UNLABELLED)
    assert signals.pair_ids == tuple(pair.pair_id for pair in learned)
    assert not np.isnan(signals.verdict_probs).any()
    assert all(signals.evidence)
    metrics = json.loads((run_dir / "evaluate" / "metrics.json").read_text())
    assert list(metrics["models"]) == ["teacher", "two_tower:mkd"]
    assert metrics["rationales"]["written"] == metrics["rationales"]["parsed"] == metrics["n_pairs"] == 12
    for row in read_table(run_dir / "evaluate" / "rationales.parquet").to_pylist():
        assert {comparison.verdict for comparison in parse(row["text"]).comparisons} <= set(VERDICTS)
    assert "The teacher concludes" in (run_dir / "evaluate" / "report.html").read_text("utf-8")


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """(config file, run folder) of a run from scores, not evaluated yet; none of them is of a validation pair."""
    folder = tmp_path_factory.mktemp("scored")
    rows = [row for row in rows_of(TWO) if row["split"] != "validation"]
    file = make(folder, scores(rows), labels=TWO)
    for stage in ("prepare", "score", "distill"):
        assert jax_rele(stage, file) == 0
    return file, folder / "runs" / "other"


def copy_of(scored, tmp_path):
    shutil.copytree(scored[1], tmp_path / "other")
    return tmp_path / "other", ("--run_root", tmp_path)


def test_score_needs_prepare_alone_and_keeps_held_out_rows_apart(scored):
    file, run_dir = scored
    assert no_teacher(run_dir)
    held_out = layout.load_held_out(config.load(file), run_dir)
    assert set(held_out.pair_ids) == {row["pair_id"] for row in rows_of(TWO) if row["split"] == "test"}
    train = read_signals(run_dir / layout.SIGNALS, NAMES[TWO], ("category", "color"))
    assert set(train.pair_ids) == {row["pair_id"] for row in rows_of(TWO) if row["split"] == "train"}
    manifest = json.loads((run_dir / "score" / "manifest.json").read_text())
    assert manifest["counts"] == {"pairs": 24, "held-out pairs": 12, "pairs left out": 0, "rows of other pairs": 0}
    assert list(manifest["inputs"]) == ["score.signals signals.jsonl", "prepare"]


def test_a_teacher_that_does_not_cover_both_splits_has_no_figures(scored, tmp_path, capsys):
    run_dir, options = copy_of(scored, tmp_path)
    assert jax_rele("evaluate", scored[0], *options) == 0
    assert "no figures of the teacher: score.signals says nothing of 12 of 24 pairs of" in capsys.readouterr().out
    metrics = json.loads((run_dir / "evaluate" / "metrics.json").read_text())
    assert list(metrics["models"]) == ["two_tower:score_kd"]


def test_a_changed_file_is_noticed(scored, tmp_path, capsys):
    path = scored[0].parent / "signals.jsonl"
    original = path.read_bytes()
    try:
        path.write_bytes(original + b"\n")
        assert jax_rele("run", scored[0]) == 2
        assert "its input score.signals" in capsys.readouterr().err
        path.unlink()
        assert jax_rele("run", scored[0]) == 2
        assert "cannot be read: No such file" in capsys.readouterr().err
    finally:
        path.write_bytes(original)


def test_commands_say_that_there_is_no_teacher(scored, tmp_path, capsys):
    run_dir, source = scored[1], tmp_path / "new.jsonl"
    write_lines(source, rows_of(TWO)[:3])
    target = tmp_path / "scores.parquet"
    assert jax_rele("predict", run_dir, "--model", "teacher", "--input", source, "--output", target) == 2
    assert "the run has no teacher" in capsys.readouterr().err
    assert jax_rele("export", run_dir, "--output", tmp_path / "teacher") == 2
    assert "the run has no teacher to export" in capsys.readouterr().err
    assert jax_rele("explain", run_dir, "--query", "red shoes", "--title", "red boots") == 0
    out = capsys.readouterr().out
    assert "it learned from the signals of another one" in out
    assert "two_tower:score_kd" in out


# ---- check-signals


@pytest.fixture(scope="module")
def finished_prepare(tmp_path_factory):
    """A config file whose run has finished `prepare`, with one candidate a query."""
    file = make(tmp_path_factory.mktemp("prepared"), per_query=1)
    assert jax_rele("prepare", file) == 0
    return file


def expected(file):
    run_dir = config.load(file).run_dir
    pairs = [pair for name in (layout.PAIRS, layout.UNLABELLED) for pair in read_pairs_table(run_dir / name)]
    return list({pair.pair_id: pair for pair in pairs}.values())


def test_check_signals_says_what_a_file_holds(finished_prepare, tmp_path, capsys):
    rows = {
        pair.pair_id: {"pair_id": pair.pair_id, "label": "Exact", "model": "x"} for pair in expected(finished_prepare)
    }
    for row in explained(rows_of(FOUR)[:3]):
        rows[row["pair_id"]] = row
    rows["p1"] = {"pair_id": "p1", "label_probs": [0.5, 0.5, 0, 0], "rationale": "?"}
    write_lines(tmp_path / "s.jsonl", [*rows.values(), {"pair_id": "unknown"}])
    assert jax_rele("check-signals", finished_prepare, tmp_path / "s.jsonl") == 0
    out = " ".join(capsys.readouterr().out.split())
    learned = 24 + len(read_pairs_table(config.load(finished_prepare).run_dir / layout.UNLABELLED)) - 8
    for message in (
        "train 16 of 16 pairs",
        f"unlabelled {learned - 16} of {learned - 16} pairs",
        "validation 12 of 12 pairs",
        "test 12 of 12 pairs",
        "other 1 rows of pairs that the run does not have",
        "not read columns model",
        "rationales 1 of 3 do not parse, row 2: no label",
        f"entropy {np.log(2) / learned:.3f} nats in the mean, of at most 1.386",
        f"verdicts {2 / learned:.1%} of the pairs to learn from",
        f"evidence {2 / learned:.1%} of the pairs",
        f"rationale {2 / learned:.1%} of the pairs",
        "embedding 0.0% of the pairs",
        "of 16 training pairs have the label that people gave them",
    ):
        assert message in out, message


def test_missing_pairs_are_an_error_or_left_out(finished_prepare, tmp_path, capsys):
    pairs = expected(finished_prepare)
    learned = [pair for pair in pairs if pair.split == "train"]
    rows = [{"pair_id": pair.pair_id, "label": "Exact"} for pair in pairs]
    write_lines(tmp_path / "s.jsonl", [row for row in rows if row["pair_id"] not in ("p1", learned[-1].pair_id)])
    assert jax_rele("check-signals", finished_prepare, tmp_path / "s.jsonl") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no signals for 2 of" in error
    assert "the first is 'p1'; add them, or set score.allow_missing" in error
    assert jax_rele("check-signals", finished_prepare, tmp_path / "s.jsonl", "--score.allow_missing", "true") == 0
    assert "train 15 of 16 pairs" in " ".join(capsys.readouterr().out.split())
    settings = config.load(finished_prepare)
    allowing = settings.model_copy(update={"score": settings.score.model_copy(update={"allow_missing": True})})
    matched = external_signals.read(allowing, settings.run_dir, str(tmp_path / "s.jsonl"))
    assert [pair.pair_id for pair in matched.missing] == ["p1", learned[-1].pair_id]
    copy = shutil.copytree(settings.run_dir, tmp_path / "copy")
    external_signals.write(
        allowing.model_copy(
            update={
                "score": settings.score.model_copy(update={"allow_missing": True, "signals": str(tmp_path / "s.jsonl")})
            }
        ),
        copy,
    )
    signals = read_signals(copy / layout.SIGNALS, settings.labels.names, settings.rationale.dimensions)
    assert set(signals.pair_ids) == {pair.pair_id for pair in learned} - {"p1", learned[-1].pair_id}
    write_lines(tmp_path / "none.jsonl", [{"pair_id": "unknown", "label": "Exact"}])
    with pytest.raises(UserError, match=r"no signals for .*; give it the pair_ids of this run"):
        external_signals.read(allowing, settings.run_dir, str(tmp_path / "none.jsonl"))


def test_check_signals_needs_prepare_with_this_config(finished_prepare, tmp_path, capsys):
    write_lines(tmp_path / "s.jsonl", [{"pair_id": "p0", "label": "Exact"}])
    assert jax_rele("check-signals", finished_prepare, tmp_path / "s.jsonl", "--run_root", tmp_path) == 2
    assert "the stage prepare has not finished; run `jax-rele prepare CONFIG` first" in capsys.readouterr().err
    assert jax_rele("check-signals", finished_prepare, tmp_path / "s.jsonl", "--seed", "5") == 2
    assert "belongs to another config" in capsys.readouterr().err
    assert jax_rele("check-signals", finished_prepare, tmp_path / "none.jsonl") == 2
    assert "no such file of signals" in capsys.readouterr().err


def test_bad_signals_leave_no_score_folder_behind(finished_prepare, tmp_path, capsys):
    write_lines(tmp_path / "s.jsonl", [{"pair_id": "p1", "label": "Great"}])
    assert jax_rele("score", finished_prepare, "--score.signals", tmp_path / "s.jsonl") == 2
    error = capsys.readouterr().err
    assert "s.jsonl row 1 (pair_id 'p1'): label says 'Great'" in error
    assert error.count("\n") == 1
    assert not (config.load(finished_prepare).run_dir / "score").exists()


def test_sections_about_our_own_teacher_are_not_read_beside_signals(scored, tmp_path, capsys):
    """Not even where they would be refused; the run is the same with and without them."""
    run_dir, options = copy_of(scored, tmp_path)
    own = ["--teacher.init", tmp_path / "nowhere", "--teacher.quantize", "int8", "--finetune.pack_to", "7"]
    own += ["--annotate.annotator", "teacher", "--annotate.teacher_run", "nowhere", "--adapt.pack_to", "3"]
    for stage in ("prepare", "score", "distill"):
        assert jax_rele(stage, scored[0], *options, *own) == 0
        out = capsys.readouterr().out
        assert out.count("annotate, adapt, finetune, teacher: not read, since the signals are those of") == 1
        assert "nothing to do" in out
    assert jax_rele("evaluate", scored[0], *options, *own) == 0
    assert (run_dir / "evaluate" / "metrics.json").exists()
    assert no_teacher(run_dir)
    capsys.readouterr()
    assert jax_rele("run", scored[0], *options) == 0
    out = capsys.readouterr().out
    assert "not read" not in out
    assert out.count("nothing to do") == 4


def test_what_our_own_teacher_left_is_no_part_of_the_run(scored, tmp_path):
    """Folders of the stages that are skipped may be of any config."""
    run_dir, options = copy_of(scored, tmp_path)
    shutil.copytree(run_dir / "prepare", run_dir / "annotate")
    assert jax_rele("evaluate", scored[0], *options) == 0
    inputs = json.loads((run_dir / "evaluate" / "manifest.json").read_text())["inputs"]
    assert sorted(inputs) == ["distill", "prepare", "score"]
    shutil.rmtree(run_dir / "evaluate")
    assert jax_rele("run", scored[0], *options) == 0


# ---- another run's signals


def copy_of_prepare(scored, tmp_path):
    """A run of the same pairs, with nothing but them."""
    shutil.copytree(scored[1] / "prepare", tmp_path / "other" / "prepare")
    return tmp_path / "other", ("--run_root", tmp_path, "--score.signals", scored[1])


def test_another_runs_signals_are_those_of_its_table(scored, tmp_path, capsys):
    run_dir, options = copy_of_prepare(scored, tmp_path)
    assert jax_rele("check-signals", scored[0], scored[1], *options) == 0
    assert "test       12 of 12 pairs" in capsys.readouterr().out
    assert jax_rele("score", scored[0], *options) == 0
    for table in (layout.SIGNALS, layout.HELD_OUT):
        assert read_table(run_dir / table).equals(read_table(scored[1] / table))
    manifest = json.loads((run_dir / "score" / "manifest.json").read_text())
    assert manifest["counts"] == {"pairs": 24, "held-out pairs": 12, "pairs left out": 0, "rows of other pairs": 0}
    assert list(manifest["inputs"]) == [f"score.signals {scored[1].name}", "prepare"]


def test_a_change_of_another_runs_signals_is_noticed(scored, tmp_path, capsys):
    other, _ = copy_of(scored, tmp_path)
    _, options = copy_of_prepare((scored[0], other), tmp_path / "runs")
    assert jax_rele("score", scored[0], *options) == 0
    (other / "distill" / "tokenizer" / "note.txt").write_text("not read")
    assert jax_rele("score", scored[0], *options) == 0
    capsys.readouterr()
    (other / layout.SIGNALS).write_bytes((other / layout.SIGNALS).read_bytes() + b"x")
    assert jax_rele("score", scored[0], *options) == 2
    assert f"its input score.signals {other.name} has changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("--labels.names", "Good", "Bad"),
            "labels.names of the run {other} are ['Bad', 'Good'], here they are ['Good',",
        ),
        (
            ("--rationale.dimensions", "color"),
            "rationale.dimensions of the run {other} are ['category', 'color'], here",
        ),
        (lambda other: shutil.rmtree(other / "score"), "the run {other} has not finished its stage score; finish it"),
        (lambda other: unfinish(other), "the run {other} has not finished its stage score; finish it"),
        (lambda other: (other / "config.yaml").unlink(), "{other} is not the folder of a run; give one that"),
        (lambda other: (other / layout.SIGNALS).write_bytes(b"PAR1"), "{other}/score/signals.parquet"),
        (lambda other: rename_items(other), "24 of 36 pairs of the run {other} have another query or item here, the"),
    ],
)
def test_another_run_that_cannot_be_used_is_one_line(scored, tmp_path, capsys, change, message):
    other, _ = copy_of(scored, tmp_path)
    run_dir, options = copy_of_prepare((scored[0], other), tmp_path / "runs")
    if callable(change):
        change(other)
    else:
        shutil.rmtree(run_dir)
        options += change
    command = "score" if callable(change) else "run"
    assert jax_rele(command, scored[0], *options) == 2
    error = capsys.readouterr().err
    assert message.format(other=other) in error
    assert error.count("\n") == 1
    assert not (run_dir / "score").exists()
    if not callable(change):
        assert not (run_dir / "prepare").exists()


def unfinish(run_dir):
    path = run_dir / "score" / "manifest.json"
    path.write_text(path.read_text().replace('"finished"', '"running"'))


def rename_items(run_dir):
    """Other texts under the names of the training pairs."""
    pairs = read_pairs_table(run_dir / layout.PAIRS)
    changed = [
        dataclasses.replace(pair, item=dataclasses.replace(pair.item, title="other")) if pair.split == "train" else pair
        for pair in pairs
    ]
    for table in (layout.PAIRS, layout.UNLABELLED):
        names = {pair.pair_id for pair in read_pairs_table(run_dir / table)}
        write_pairs(run_dir / table, [pair for pair in changed if pair.pair_id in names])


def test_a_run_does_not_learn_from_its_own_folder(scored, tmp_path, capsys):
    run_dir, options = copy_of(scored, tmp_path)
    shutil.rmtree(run_dir / "score")
    assert jax_rele("score", scored[0], *options, "--score.signals", run_dir) == 2
    assert "is the folder of this run itself; give that of another one" in capsys.readouterr().err


def test_a_run_learns_from_another_ones_own_teacher(tiny, tmp_path, capsys):
    file, other = tiny
    options = ["--run_root", tmp_path, "--score.signals", other, "--distill.recipes", "score_kd"]
    assert jax_rele("run", file, *options, "--distill.students", "two_tower") == 0
    out = capsys.readouterr().out
    assert "adapt, finetune, prefer, teacher: not read" in out
    assert "no figures of the teacher" in out
    assert read_table(tmp_path / "tiny" / layout.SIGNALS).equals(read_table(other / layout.SIGNALS))
    assert not (tmp_path / "tiny" / layout.HELD_OUT).exists()
