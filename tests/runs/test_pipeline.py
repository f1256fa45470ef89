"""A whole tiny run, and what must hold of it: formats, skipping, refusing, resuming, and predictions from it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jax_rele import cli, config
from jax_rele.data import read_pairs, read_signals, read_table
from jax_rele.errors import UserError
from jax_rele.rationale import parse
from jax_rele.runs import layout, pipeline
from jax_rele.teacher import language_model
from jax_rele.types import VERDICTS

pytestmark = pytest.mark.slow

MODELS = ["teacher", "cross_encoder:label_only", "cross_encoder:mkd", "two_tower:label_only", "two_tower:mkd"]
METRICS = ["auc", "neg_ap", "macro_f1", "micro_f1", "spearman", "ndcg_paper", "ndcg_esci_data", "ece", "ece_calibrated"]


def jax_rele(*arguments) -> int:
    return cli.main([str(argument) for argument in arguments])


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file but the lock, with its time of change and content."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", "config.yaml"))
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_every_stage_leaves_a_manifest(tiny):
    _, run_dir = tiny
    programs = 0
    for name in (name for name in pipeline.STAGES if name != "reinforce"):  # which is off
        manifest = json.loads((run_dir / name / "manifest.json").read_text())
        assert manifest["status"] == "finished"
        programs += manifest["compiled"]["programs"]
        assert manifest["packages"]["jax"]
        assert manifest["wall_seconds"] > 0
        assert (manifest["compiled"]["programs"] > 0) == (manifest["compiled"]["seconds"] > 0)
        assert manifest["config_hash"]
        assert manifest["counts"]
    assert programs


def test_metrics_have_the_documented_form(tiny):
    metrics = json.loads((tiny[1] / "evaluate" / "metrics.json").read_text())
    assert metrics["split"] == "test"
    assert metrics["label_schema"]["names"] == ["Exact", "Substitute", "Complement", "Irrelevant"]
    assert list(metrics["baselines"]) == ["majority", "token_overlap", "bm25", "gradient_boosting"]
    assert list(metrics["models"]) == MODELS
    for figures in [*metrics["baselines"].values(), *metrics["models"].values()]:
        assert list(figures) == METRICS
        for figure in figures.values():
            if figure["value"] is not None:
                low, high = figure["ci95"]
                assert low <= high
    assert metrics["models"]["teacher"]["ndcg_paper"]["value"] is not None
    for part in metrics["slices"].values():
        assert part["n_pairs"] <= metrics["n_pairs"]
        assert list(part["models"]) == MODELS
    assert {"long_tail", "head"} <= metrics["slices"].keys()
    assert metrics["rationales"]["parsed"] == metrics["rationales"]["written"] == metrics["n_pairs"]


def test_the_splits_share_no_query(tiny):
    rows = read_table(tiny[1] / "prepare" / "pairs.parquet").to_pylist()
    split_of = {}
    for row in rows:
        assert split_of.setdefault(row["query"].casefold(), row["split"]) == row["split"]
    assert set(split_of.values()) == {"train", "validation", "test"}


def test_signals_cover_labelled_and_unlabelled_training_pairs(tiny):
    _, run_dir = tiny
    settings = pipeline.read_config(run_dir)
    signals = read_signals(run_dir / "score/signals.parquet", settings.labels.names, settings.rationale.dimensions)
    rows = read_table(run_dir / "prepare" / "pairs.parquet").to_pylist()
    crossed = read_table(run_dir / "prepare" / "unlabelled.parquet").to_pylist()
    assert crossed
    expected = [row["pair_id"] for row in rows if row["split"] == "train"] + [row["pair_id"] for row in crossed]
    assert sorted(signals.pair_ids) == sorted(expected)
    assert not np.isnan(signals.verdict_probs).any()
    for text, probs in zip(signals.rationales, signals.label_probs):
        assert parse(text).label == settings.labels.names[int(probs.argmax())]


def test_the_report_holds_the_pairs_and_escapes_them(tiny):
    html = (tiny[1] / "evaluate" / "report.html").read_text("utf-8")
    assert html.count(" · pair ") == 20
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert "<script" not in html


def test_training_is_logged_to_jsonl_and_tensorboard(tiny):
    for part in ("adapt", "finetune", "prefer", "distill/cross_encoder/mkd"):
        lines = [json.loads(line) for line in (tiny[1] / part / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == ([2, 4] if part in ("finetune", "prefer") else [2, 4, 6])
        assert any((tiny[1] / part / "tensorboard").iterdir())
    assert {"term/label", "term/score", "term/margin", "term/list", "term/verdict", "term/evidence"} <= lines[0].keys()


def test_a_second_run_does_nothing_but_say_so(tiny, capsys):
    file, run_dir = tiny
    before = snapshot(run_dir)
    assert jax_rele("run", file) == 0
    assert capsys.readouterr().out.count("nothing to do") == len(pipeline.STAGES) - 1  # without reinforce
    assert snapshot(run_dir) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--distill.optimization.steps", "7"], "distill.optimization.steps is 7, was 6"),
        (["--seed", "1"], "seed is 1, was 0"),
        (["--teacher.order", "label_only"], "teacher.order is 'label_only', was 'label_first'"),
        (["--labels.positive", "Exact", "Substitute"], "labels.positive is"),
    ],
)
def test_a_run_of_another_config_is_refused_and_left_alone(tiny, capsys, change, message):
    file, run_dir = tiny
    before = snapshot(run_dir)
    assert jax_rele("run", file, *change) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert "belongs to another config" in error
    assert snapshot(run_dir) == before


def test_changed_data_is_refused(tiny, capsys):
    file, run_dir = tiny
    data = run_dir.parent.parent / "pairs.jsonl"
    original = data.read_bytes()
    try:
        data.write_bytes(original + b"\n")
        assert jax_rele("run", file) == 2
        assert "its input data.path" in capsys.readouterr().err
    finally:
        data.write_bytes(original)


def test_the_weights_of_the_config_reach_the_rows(tiny, tmp_path, monkeypatch):
    file, run_dir = tiny
    copy = tmp_path / "tiny"
    shutil.copytree(run_dir, copy)
    shutil.rmtree(copy / "finetune" / "lora")
    values = config.load(file).model_dump(mode="json")
    values["adapt"] |= {"text_weight": 0.3, "verdict_weight": 5.0}
    values["finetune"] |= {"label_weight": 7.0}
    settings, seen = config.from_dict(values), {}
    for name in ("adapt", "finetune"):
        stage = pipeline.STAGES[name].module
        make = stage.language_rows
        monkeypatch.setattr(
            stage,
            "language_rows",
            lambda *args, name=name, make=make, **kw: seen.update({name: kw}) or make(*args, **kw),
        )
        monkeypatch.setattr(language_model, "train", lambda step, state, data, **_: state)
        stage.run(settings, copy)
    assert seen["adapt"] == {"prompt_weight": 0.3, "kind_weights": {"verdict": 5.0}}
    assert seen["finetune"] == {"kind_weights": {"label": 7.0}}


def test_a_killed_distill_ends_like_an_unbroken_one(tiny, tmp_path):
    file, run_dir = tiny
    root = tmp_path / "runs"
    shutil.copytree(run_dir, root / "tiny")
    shutil.rmtree(root / "tiny" / "distill")
    shutil.rmtree(root / "tiny" / "evaluate")
    command = [sys.executable, "-m", "jax_rele.cli", "run", str(file), "--run_root", str(root)]
    # A long pause at the third step stands for a long training.
    pause = (
        "import sys, time, jax; jax.config.update('jax_num_cpu_devices', 8)\n"
        "from jax_rele import cli; from jax_rele.training import loop\n"
        "shard_batch, calls = loop.shard_batch, []\n"
        "def slow(*args):\n"
        "    calls.append(0); time.sleep(60 if len(calls) == 10 else 0); return shard_batch(*args)\n"
        "loop.shard_batch = slow\n"
        f"sys.exit(cli.main({command[3:]!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", pause], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    waiting = root / "tiny" / "distill" / "cross_encoder" / "mkd" / "checkpoints" / "2"
    deadline = time.time() + 200
    while not (waiting / "commit_success.txt").exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.2)
    assert process.poll() is None, "the run ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert waiting.exists()
    assert jax_rele(*command[3:]) == 0
    whole, resumed = (json.loads((path / "evaluate/metrics.json").read_text()) for path in (run_dir, root / "tiny"))
    assert whole == resumed
    for student in ("cross_encoder", "two_tower"):
        for recipe in ("label_only", "mkd"):
            logs = [
                [
                    {**json.loads(line), "pairs_per_second": 0, "input_wait": 0}
                    for line in (path / "distill" / student / recipe / "metrics.jsonl").read_text().splitlines()
                ]
                for path in (run_dir, root / "tiny")
            ]
            assert logs[0] == logs[1]


def test_a_damaged_artefact_is_named(tiny, tmp_path, capsys):
    file, run_dir = tiny
    copy = tmp_path / "runs" / "tiny"
    shutil.copytree(run_dir, copy)
    shutil.rmtree(copy / "evaluate")
    for path in (copy / "prefer" / "lora").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    assert jax_rele("run", file, "--run_root", copy.parent) == 2
    error = capsys.readouterr().err
    assert str(copy / "prefer" / "lora") in error
    assert error.count("\n") == 1
    manifest = copy / "distill" / "manifest.json"
    whole = json.loads(manifest.read_text())
    for damaged in ("{", "[]", json.dumps({**whole, "inputs": []}), json.dumps({**whole, "config": None})):
        manifest.write_text(damaged)
        assert jax_rele("run", file, "--run_root", copy.parent) == 2
        assert "manifest.json: damaged; delete the folder" in capsys.readouterr().err


def test_a_run_of_another_version_is_refused_before_its_config_is_read(tiny, tmp_path, capsys):
    file, run_dir = tiny
    copy = tmp_path / "runs" / "tiny"
    shutil.copytree(run_dir, copy)
    manifest = copy / "prepare" / "manifest.json"
    values = json.loads(manifest.read_text())
    assert values.pop("format") == pipeline.FORMAT
    manifest.write_text(json.dumps(values))
    (copy / "config.yaml").write_text("no_such_key: 1\n")
    for command in (("run", file, "--run_root", copy.parent), ("evaluate", file, "--run_root", copy.parent)):
        assert jax_rele(*command) == 2
        error = capsys.readouterr().err
        assert f"{copy}: was written by another version of jax_rele (run format 1" in error
        assert error.count("\n") == 1
    with pytest.raises(UserError, match="another version of jax_rele"):
        pipeline.read_config(copy)
    for damaged in ("2", None, 2.0, [2], True):
        manifest.write_text(json.dumps({**values, "format": damaged}))
        with pytest.raises(UserError, match=r"manifest\.json: damaged"):
            pipeline.read_config(copy)


# ---- predict and explain


def write_pairs(path: Path, count: int) -> list[dict]:
    rows = [
        {
            "pair_id": f"p{number}",
            "query": f"query {number % 7}",
            "item": {"id": f"i{number}", "title": f"title {number}"},
        }
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


@pytest.mark.parametrize("model", ["teacher", "cross_encoder", "two_tower"])
def test_predict_keeps_the_order_and_sets_bad_rows_aside(tiny, tmp_path, capsys, model):
    source, target = tmp_path / "new.jsonl", tmp_path / "scores.parquet"
    rows = write_pairs(source, 70)
    lines = source.read_text().splitlines()
    lines[40] = '{"query": "half a li'
    lines[41] = '{"query": "no title", "item": {"id": "1"}}'
    source.write_text("\n".join(lines))
    assert jax_rele("predict", tiny[1], "--model", model, "--input", source, "--output", target) == 0
    table = pq.read_table(target).to_pydict()
    names = ["Exact", "Substitute", "Complement", "Irrelevant"]
    assert list(table) == ["pair_id", "score", *names]
    assert table["pair_id"] == [row["pair_id"] for number, row in enumerate(rows) if number not in (40, 41)]
    probs = np.array([table[name] for name in names]).T
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(table["score"], probs @ [1.0, 0.1, 0.01, 0.0], atol=1e-9)
    quarantine = pq.read_table(tmp_path / "scores.quarantine.parquet").to_pylist()
    assert [row["row"] for row in quarantine] == [41, 42]
    assert "2 bad rows set aside" in capsys.readouterr().out


def test_predict_scores_a_pair_alike_wherever_it_stands(tiny, tmp_path):
    source, one, all_ = (tmp_path / name for name in ("new.jsonl", "one.parquet", "all.parquet"))
    rows = write_pairs(source, 66)
    assert jax_rele("predict", tiny[1], "--model", "cross_encoder", "--input", source, "--output", all_) == 0
    source.write_text(json.dumps(rows[65]))
    assert jax_rele("predict", tiny[1], "--model", "cross_encoder", "--input", source, "--output", one) == 0
    assert pq.read_table(one)["score"][0].as_py() == pytest.approx(pq.read_table(all_)["score"][65].as_py(), abs=1e-6)


def test_predict_writes_the_embeddings_of_the_two_tower(tiny, tmp_path, capsys):
    source, target = tmp_path / "new.jsonl", tmp_path / "scores.parquet"
    write_pairs(source, 3)
    arguments = ["predict", tiny[1], "--input", source, "--output", target, "--embeddings", "--model"]
    assert jax_rele(*arguments, "two_tower") == 0
    table, settings = pq.read_table(target), pipeline.read_config(tiny[1])
    queries, items = (np.array(table[f"{side}_embedding"].to_pylist()) for side in ("query", "item"))
    width, dimensions = settings.student.two_tower.embedding_width, len(settings.rationale.dimensions)
    for vectors in (queries, items):
        np.testing.assert_allclose(np.linalg.norm(vectors[:, :width], axis=1), 1, atol=1e-5)
    gates, ones = (np.linalg.norm(x[:, width:].reshape(3, dimensions, -1), axis=2) for x in (queries, items))
    np.testing.assert_allclose(ones, 1, atol=1e-5)
    assert ((gates > 0) & (gates < 1)).all()
    # Logits are affine in the inner product.
    log_odds, products = np.log(table["Exact"]) - np.log(table["Irrelevant"]), (queries * items).sum(axis=1)
    slope = (log_odds[2] - log_odds[0]) / (products[2] - products[0])
    np.testing.assert_allclose(log_odds - log_odds[0], slope * (products - products[0]), atol=1e-3)
    assert jax_rele(*arguments, "cross_encoder") == 2
    assert "use --model two_tower" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("predict {run} --model teacher --input {tmp}/none.jsonl --output {tmp}/o.parquet", "no such file"),
        ("predict {tmp} --model teacher --input x.jsonl --output {tmp}/o.parquet", "not a run folder"),
        ("predict {run} --model teacher --input sample --output {tmp}/o.csv", "ends in .parquet"),
        ("predict {run} --model teacher --input sample --output {tmp}/a/o.parquet", "no such folder"),
        ("explain {run} --title x --query=", "must not be empty"),
        ("explain {tmp} --title x --query q", "not a run folder"),
        ("explain {run} --title x --query \udcff", "--query is not valid UTF-8"),
        ("predict {run} --model teacher --input sample --output {run}", "ends in .parquet"),
    ],
)
def test_wrong_arguments_give_one_line_and_write_nothing(tiny, tmp_path, capsys, arguments, message):
    assert jax_rele(*arguments.format(run=tiny[1], tmp=tmp_path).split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_config_that_is_not_the_one_of_the_stages_is_refused(tiny, tmp_path, capsys):
    copy = tmp_path / "tiny"
    shutil.copytree(tiny[1], copy)
    settings = copy / "config.yaml"
    settings.write_text(settings.read_text().replace("view_width: 16", "view_width: 8"))
    assert jax_rele("explain", copy, "--query", "q", "--title", "t") == 2
    assert "is not the config that the stage distill ran with" in capsys.readouterr().err


def test_the_teacher_without_rationales_shows_none(tiny, tmp_path, capsys):
    """The same run with `label_only`: no verdict appears anywhere, and recipes that need one are refused."""
    file, run_dir = tiny
    copy = tmp_path / "tiny"
    shutil.copytree(run_dir, copy)
    for name in ("finetune", "prefer", "score", "distill", "evaluate"):
        shutil.rmtree(copy / name)
    change = ["--run_root", tmp_path, "--teacher.order", "label_only"]
    (copy / "adapt" / "manifest.json").unlink()  # the base does not depend on the order
    assert jax_rele("run", file, *change) == 2
    assert "distill.recipes: mkd learns from verdicts, and the signals hold none" in capsys.readouterr().err
    shutil.rmtree(copy / "distill", ignore_errors=True)
    assert jax_rele("run", file, *change, "--distill.recipes", "label_only", "score_kd") == 0
    html = (copy / "evaluate" / "report.html").read_text("utf-8")
    assert "The teacher wrote a label without a comparison" in html
    assert json.loads((copy / "evaluate" / "metrics.json").read_text())["rationales"]["written"] == 0


def test_explain_prints_rationale_verdicts_and_scores(tiny, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    title = "INIU [bold]Portable[/] Charger"
    status = jax_rele(
        "explain", tiny[1], "--query", "small portable iphone battery", "--title", title, "--brand", "INIU"
    )
    assert status == 0
    out = capsys.readouterr().out
    assert title in out
    for name in [*MODELS, "category", "audience", "Exact", "Irrelevant"]:
        assert name in out
    assert any(verdict in out for verdict in VERDICTS)


# ---- bad input


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "no rows"),
        (b'{"query": "a"}\n', "item"),
        (b'{"query": "q", "item": {"id": "1", "title": "t"}, "label": "Great"}\n', "Great"),
        (b'{"query": "q", "item": {"id": "1", "title": "t"}, "label": "E"}\n', "all 1 rows have one query"),
        (b'{"query": "\xff", "item": {"id": "1", "title": "t"}, "label": "E"}\n', "UTF-8"),
    ],
)
def test_bad_data_gives_one_line_and_leaves_no_folder_behind(tiny, tmp_path, capsys, content, message):
    data = tmp_path / "data.jsonl"
    if content is not None:
        data.write_bytes(content)
    status = jax_rele("prepare", tiny[0], "--data.path", data, "--run_root", tmp_path / "runs", "--data.fields", "{}")
    assert status == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs" / "tiny" / "prepare").exists()


def test_labels_of_the_same_tokens_are_refused_before_any_training(tiny, tmp_path, capsys):
    names = "[Exact, exact, Complement, Irrelevant]"
    options = [
        "--labels.names",
        names,
        "--labels.aliases",
        "{E: Exact, S: exact, C: Complement, I: Irrelevant}",
        "--rules",
        "[]",
    ]
    assert jax_rele("run", tiny[0], *options, "--run_root", tmp_path) == 2
    error = capsys.readouterr().err
    assert "labels.names: 'Exact' and 'exact' are the same tokens" in error
    assert not (tmp_path / "tiny" / layout.TEACHER_TOKENIZER).exists()
    assert not (tmp_path / "tiny" / layout.BASE).exists()


def test_a_stage_names_the_one_that_it_needs(tiny, tmp_path, capsys):
    assert jax_rele("distill", tiny[0], "--run_root", tmp_path) == 2
    assert "distill needs the stage prepare, which has not finished" in capsys.readouterr().err


def test_one_process_at_a_time(tiny, capsys):
    file, run_dir = tiny
    with pipeline._lock(run_dir):
        assert jax_rele("run", file) == 2
    assert "another process is at work" in capsys.readouterr().err


def test_csv_and_parquet_give_the_same_pairs(tiny, tmp_path):
    pairs, _ = read_pairs(write_flat(tmp_path / "pairs.csv"), label_names=["Exact", "Other"])
    again, _ = read_pairs(write_flat(tmp_path / "pairs.parquet"), label_names=["Exact", "Other"])
    assert pairs == again
    assert [pair.item.title for pair in pairs] == ["Shoes, red", "Socks"]


def write_flat(path: Path) -> Path:
    import pyarrow as pa
    import pyarrow.csv

    columns = {
        "query": ["a", "b"],
        "item_id": ["1", "2"],
        "title": ["Shoes, red", "Socks"],
        "label": ["Exact", "Other"],
    }
    write = pyarrow.csv.write_csv if path.suffix == ".csv" else pq.write_table
    write(pa.table(columns), path)
    return path
