"""annotate with chat models: every pair ends once, a killed run equals an unbroken one, a mistake costs nothing."""

import csv
import hashlib
import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "annotation"))

from server import Plan, running

from jax_rele import config as configs
from jax_rele.annotation.review import decisions_from_arrow
from jax_rele.annotation.votes import digest
from jax_rele.cli import main
from jax_rele.data import read_pairs_table, read_table
from jax_rele.rationale import parse
from jax_rele.runs import layout, load
from jax_rele.stages import finetune

pytestmark = pytest.mark.slow

LABELS = ("Exact", "Substitute", "Irrelevant")
DIMENSIONS = ("category", "color")
FAULTS = {"429": 0.1, "429_after": 0.05, "500": 0.1, "cut": 0.05, "malformed": 0.05}
PAIRS = [
    {
        "pair_id": f"p{n}",
        "query": f"red shoe {n // 2}",
        "item": {"id": f"i{n}", "title": f"red shoe number {n}", "color": "red", "category": "shoe"},
        "label": LABELS[n % 3],
    }
    for n in range(48)
]
GOLD = {pair["item"]["title"]: pair["label"] for pair in PAIRS}


def answer(messages, model, sample):
    """Mostly right, by a hash of what was asked, save of some pairs that every model gets wrong."""
    results = messages[-1]["content"]
    titles = re.findall(r'title: "(red shoe number \d+)', "".join(message["content"] for message in messages))
    draw = random.Random(hashlib.sha256(f"{results} {model} {sample}".encode()).hexdigest())
    label = GOLD[titles[-1]] if titles and draw.random() < 0.75 else draw.choice(LABELS)
    if titles and titles[-1].endswith("5"):
        label = "Substitute"  # whatever one says to them
    values = {name: ["red"] if name == "color" else ["shoe"] for name in DIMENSIONS}
    verdicts = {name: draw.choice(["match", "match", "absent"]) for name in DIMENSIONS}
    return json.dumps({"query_attributes": values, "item_attributes": values, "verdicts": verdicts, "label": label})


def write(folder, url, **annotate):
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS), "utf-8")
    endpoint = {"base_url": url, "samples": 3, "input_price": 1.0, "output_price": 2.0, "timeout": 5}
    endpoints = [{**endpoint, "name": name, "model": name} for name in ("one", "two")]
    values = {
        "name": "run",
        "run_root": str(folder / "runs"),
        "labels": {"names": LABELS, "gains": [1.0, 0.1, 0.0]},
        "data": {"path": str(folder / "pairs.jsonl"), "candidates": {"per_query": 1}},
        "rationale": {"dimensions": DIMENSIONS, "tag_map": {}},
        "teacher": {"random": {"vocab_size": 320}},
        "student": {"random": {"vocab_size": 320}},
        "annotate": {"annotator": "llm", "endpoints": endpoints, **annotate},
    }
    file = folder / "config.json"  # JSON is YAML
    file.write_text(json.dumps(values), "utf-8")
    return file


def jax_rele(*options):
    return main([str(argument) for argument in options])


def decisions(folder):
    return decisions_from_arrow(read_table(folder / "runs" / "run" / layout.DECISIONS))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A finished run against a server that misbehaves."""
    folder = tmp_path_factory.mktemp("unbroken")
    with running(Plan(rates=FAULTS), answer) as server:
        file = write(folder, server.url, injection_pairs=1)
        assert jax_rele("prepare", file) == 0
        assert jax_rele("annotate", file) == 0
        return file, folder, server.counts()


def test_every_pair_ends_once_and_accepted_rationales_agree_with_the_gold_label(unbroken):
    _, folder, _ = unbroken
    pairs = {pair.pair_id: pair for pair in read_pairs_table(folder / "runs/run" / layout.PAIRS)}
    expected_answers = [name for name, pair in pairs.items() if pair.split != "test"]
    created = decisions(folder)
    assert sorted(one.pair_id for one in created) == sorted(expected_answers)
    assert {one.status for one in created} <= {"accepted", "rejected"}
    assert all(one.reason for one in created if one.status == "rejected")
    selected = read_table(folder / "runs/run" / layout.RATIONALES).to_pylist()
    assert sorted(row["pair_id"] for row in selected) == sorted(
        one.pair_id for one in created if one.status == "accepted"
    )
    assert all(parse(row["text"]).label == pairs[row["pair_id"]].label for row in selected)
    assert any(one.asked_again for one in created)
    quality = json.loads((folder / "runs/run" / layout.QUALITY).read_text("utf-8"))
    assert quality["injection"]["overall"]["n"] > 0
    assert set(quality["slices"]["all"]["models"]) == {"one", "two", "consensus"}
    page = (folder / "runs/run/annotate/report.html").read_text("utf-8")
    assert "against the gold label" in page or "asked again" in page


def test_no_test_pair_is_shown_to_a_model(unbroken):
    _, folder, _ = unbroken
    pairs = read_pairs_table(folder / "runs/run" / layout.PAIRS)
    stored = "".join(path.read_text("utf-8") for path in (folder / "runs/answers").rglob("*.jsonl"))
    test = [pair.pair_id for pair in pairs if pair.split == "test"]
    assert test
    assert not any(f'"{name}"' in stored for name in test)


def test_a_killed_and_resumed_run_equals_an_unbroken_one(unbroken, tmp_path):
    with running(Plan(rates=FAULTS, latency=(0.0, 0.02)), answer) as server:
        file = write(tmp_path, server.url, injection_pairs=1)
        assert jax_rele("prepare", file) == 0
        for _ in range(2):
            process = subprocess.Popen([sys.executable, "-m", "jax_rele.cli", "annotate", str(file)])
            answers = tmp_path / "runs" / "answers" / "segments"
            begun, limit = len(list(answers.glob("*.jsonl"))), time.monotonic() + 60
            while time.monotonic() < limit and process.poll() is None:
                if len(list(answers.glob("*.jsonl"))) > begun:
                    break
                time.sleep(0.01)
            time.sleep(0.1)
            process.kill()
            process.wait()
        assert jax_rele("annotate", file) == 0
    assert digest(decisions(tmp_path)) == digest(decisions(unbroken[1]))
    for name in (layout.RATIONALES, layout.QUALITY):
        ours, theirs = (folder / "runs/run" / name for folder in (tmp_path, unbroken[1]))
        if name == layout.RATIONALES:
            assert read_table(ours).equals(read_table(theirs))


def test_a_rerun_needs_no_server_and_pays_nothing(unbroken, tmp_path, capsys):
    file, folder, _ = unbroken
    capsys.readouterr()
    assert jax_rele("prepare", file, "--name", "again") == 0
    assert jax_rele("annotate", file, "--name", "again") == 0
    created = decisions_from_arrow(read_table(folder / "runs/again" / layout.DECISIONS))
    assert digest(created) == digest(decisions(folder))


def test_a_budget_ends_the_run_in_one_line_and_more_of_it_goes_on(tmp_path, capsys):
    with running(Plan(), answer) as server:
        file = write(tmp_path, server.url)
        assert jax_rele("prepare", file) == 0
        capsys.readouterr()
        assert jax_rele("annotate", file, "--annotate.budget", "0.05") == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert re.search(r"\d+ of \d+ pairs have not all of their answers \(budget", error)
        spent = server.counts()
        assert 0.02 < (spent["input_tokens"] + 2 * spent["output_tokens"]) / 1e6 < 0.05 + 0.01  # the trial calls' too
        assert jax_rele("annotate", file) == 0
    assert all(one.status != "pending" for one in decisions(tmp_path))


def test_workers_and_batches_fill_the_same_store(tmp_path, capsys):
    with running(Plan(), answer) as server:
        file = write(tmp_path, server.url)
        assert jax_rele("prepare", file) == 0
        assert jax_rele("annotate", "batch", "write", file, "one", tmp_path / "requests.jsonl") == 0
        requests = [json.loads(line) for line in (tmp_path / "requests-001.jsonl").read_text("utf-8").splitlines()]
        results = []
        for request in reversed(requests):
            body, sample = request["body"], request["body"].get("seed", 0)
            text = answer(body["messages"], body["model"], sample)
            message = {"role": "assistant", "content": text}
            response = {
                "id": "x",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
            }
            results.append({"custom_id": request["custom_id"], "response": {"status_code": 200, "body": response}})
        (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in results), "utf-8")
        (tmp_path / "other.jsonl").write_text('{"a": 1}\nno JSON\n')
        capsys.readouterr()
        assert jax_rele("annotate", "batch", "read", file, tmp_path / "other.jsonl") == 2
        shown = capsys.readouterr()
        assert "damaged: " in shown.out
        assert "other.jsonl:" in shown.out
        assert "other.jsonl: no line answers a request of this run" in shown.err
        assert jax_rele("annotate", "batch", "read", file, tmp_path / "results.jsonl") == 0
        assert f"{len(requests)} answers stored" in capsys.readouterr().out
        assert jax_rele("annotate", "work", file) == 0
        assert f"{2 * len(requests)} of {2 * len(requests)} answers" in capsys.readouterr().out
    # Only what is asked again has no answer; without that nothing needs the server, which is gone.
    assert jax_rele("annotate", file, "--annotate.gold_filter", "drop") == 0


def test_a_persons_review_is_fed_back(unbroken, tmp_path):
    file, folder, _ = unbroken
    rejected = [one for one in decisions(folder) if one.status == "rejected" and one.label is not None]
    with (folder / "runs/run/annotate/review.csv").open(encoding="utf-8-sig", newline="") as table:
        rows = list(csv.DictReader(table))
    assert {row["pair_id"] for row in rows} == {one.pair_id for one in decisions(folder) if one.status == "rejected"}
    name = rejected[0].pair_id
    with (tmp_path / "edited.csv").open("w", encoding="utf-8", newline="") as table:
        writer = csv.DictWriter(table, rows[0])
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {**row, **({"decision": "accept", "label": "Irrelevant"} if row["pair_id"] == name else {})}
            )
    assert jax_rele("prepare", file, "--name", "reviewed") == 0
    assert jax_rele("annotate", file, "--name", "reviewed", "--annotate.reviews", tmp_path / "edited.csv") == 0
    created = {
        one.pair_id: one for one in decisions_from_arrow(read_table(folder / "runs/reviewed" / layout.DECISIONS))
    }
    assert (created[name].status, created[name].label, created[name].reviewed) == ("accepted", "Irrelevant", True)
    selected = {row["pair_id"]: row for row in read_table(folder / "runs/reviewed" / layout.RATIONALES).to_pylist()}
    assert parse(selected[name]["text"]).label == "Irrelevant"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "{folder}/bad.j2"}, "bad.j2:1: the field 'dimensios' is unknown"),
        ({"annotator": "teacher", "teacher_run": "nowhere"}, "annotate.teacher_run: nowhere"),
        ({"reviews": "nowhere.csv"}, "annotate.reviews: nowhere.csv cannot be read"),
        ({}, "endpoint one: nothing answers at"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_mistake_is_one_line_before_any_cost(tmp_path, capsys, change, message):
    (tmp_path / "bad.j2").write_text(
        "{% block system %}{{ dimensios }}{% endblock %}{% block user %}{{ query }}{{ item }}{% endblock %}"
        "{% block again %}{% endblock %}"
    )
    change = json.loads(json.dumps(change).replace("{folder}", str(tmp_path)))
    file = write(tmp_path, "http://127.0.0.1:9/v1", **change)
    assert jax_rele("prepare", file) == 0
    capsys.readouterr()
    assert jax_rele("annotate", file) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_a_prompt_is_shown_filled_in(unbroken, capsys):
    file, *_ = unbroken
    settings = configs.load(file)
    pair = layout.load_pairs(settings.run_dir, "train")[1]
    capsys.readouterr()
    assert jax_rele("annotate", "show-prompt", file, pair.pair_id) == 0
    shown = capsys.readouterr().out
    assert json.dumps(pair.query) in shown
    assert json.dumps(pair.item.title) in shown
    assert '"enum"' in shown
    assert jax_rele("annotate", "show-prompt", file, "nobody") == 2
    assert "no labelled training pair 'nobody'" in capsys.readouterr().err


def test_the_teacher_of_a_run_explains_the_unlabelled_pairs_of_the_next(tiny, tmp_path):
    file, run_dir = tiny
    options = ("--run_root", tmp_path, "--annotate.annotator", "teacher", "--annotate.teacher_run", run_dir)
    options += (
        "--annotate.unlabelled",
        "true",
        "--annotate.gold_filter",
        "keep",
        "--annotate.min_vote_fraction",
        "0",
    )
    assert jax_rele("prepare", file, *options) == 0
    assert jax_rele("annotate", file, *options) == 0
    settings = configs.load(file)
    run = tmp_path / settings.name
    unlabelled = {pair.pair_id for pair in read_pairs_table(run / layout.UNLABELLED)}
    selected = {row["pair_id"]: row for row in read_table(run / layout.RATIONALES).to_pylist()}
    assert unlabelled
    assert unlabelled <= set(selected)
    assert {parse(selected[name]["text"]).label for name in unlabelled} <= set(settings.labels.names)
    assert {row["annotator"] for row in selected.values()} == {"teacher"}
    _, tokenizer = load.teacher_model(settings, run_dir)
    pairs = read_pairs_table(run / layout.UNLABELLED)
    assert len(finetune.encode(settings, run, tokenizer, pairs)[0]) == len(pairs)
