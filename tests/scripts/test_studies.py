"""The study of an open LLM: whole on a small file of pairs, and what it says to a file that it cannot read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jax_rele import cli
from jax_rele.models import Encoder, EncoderConfig, to_hf
from jax_rele.runs import layout

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "scripts" / "studies" / "open_llm.sh"
SMALL = (
    *("--distill.recipes", "label_only", "mkd", "--distill.students", "two_tower"),
    *("--finetune.optimization.steps", "2", "--finetune.optimization.checkpoint_every", "2"),
    *("--finetune.optimization.log_every", "2", "--finetune.optimization.batch_size", "8"),
    *("--prefer.optimization.steps", "2", "--prefer.optimization.checkpoint_every", "2"),
    *("--prefer.optimization.log_every", "2", "--prefer.optimization.batch_size", "8", "--prefer.samples", "2"),
    *("--distill.optimization.steps", "2", "--distill.optimization.checkpoint_every", "2"),
    *(
        "--distill.optimization.log_every",
        "2",
        "--distill.optimization.batch_size",
        "8",
        "--distill.length_buckets",
        "1",
    ),
    *("--student.query_length", "8", "--student.item_length", "12", "--student.rationale_length", "16"),
    *("--teacher.prompt_length", "32"),
    *("--evaluate.bootstrap_samples", "20"),
)


def write_pairs(file, labels, queries=24):
    rng = np.random.default_rng(0)
    words = ["red", "blue", "shoe", "lamp", "steel", "wood", "large", "small", "phone", "case"]
    rows = []
    for number in range(queries):
        query = " ".join(rng.choice(words, 2, replace=False)) + f" {number}"
        for label in labels:
            title = f"{query if label == labels[0] else rng.choice(words)} {rng.choice(words)} {len(rows)}"
            rows.append({"query": query, "item": {"id": f"i{len(rows)}", "title": title}, "label": label})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def study(*arguments, **variables):
    """Runs the script with this interpreter's `jax-rele`."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "JAX_PLATFORMS": "cpu", **variables}
    return subprocess.run(
        [SCRIPT, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=900, check=False
    )


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_study_runs_whole_on_three_grades_and_resumes(tiny, tmp_path):
    assert cli.main(["export", str(tiny[1]), "--output", str(tmp_path / "teacher")]) == 0
    model, ids = (
        Encoder(EncoderConfig(640, 40, layers=1, width=32, heads=2, mlp_width=32)),
        jnp.zeros((1, 4), jnp.int32),
    )
    variables = nn.unbox(model.init(jax.random.key(5), ids, ids, ids == 0))
    to_hf(model, variables, tmp_path / "encoder", source=tiny[1] / layout.STUDENT_TOKENIZER)
    pairs = write_pairs(tmp_path / "pairs.jsonl", ["good", "fair", "bad"])
    arguments = (tmp_path / "teacher", tmp_path / "encoder", pairs, tmp_path / "out", *SMALL)
    numbers = {"LABELS": "good fair bad", "FOLDS": "2", "LABELLED": "10 5000", "TEACHER_LABELLED": "0 10"}
    parts = "all labels teacher_labelled cross_encoder orders samples prefer"
    run = study(*arguments, **numbers, TABLES=parts, ORDERS="rationale_first", SAMPLES="2")
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    assert "labelled: 5000 is more than a fold has, left out" in run.stderr
    tables = tmp_path / "out" / "tables"
    assert {folder.name for folder in tables.iterdir()} == {
        *("all", "labels", "teacher_labelled", "cross_encoder", "order_rationale_first", "samples", "prefer"),
        "teachers.md",
    }
    rows = [line.split("|")[1].strip() for line in (tables / "teachers.md").read_text().splitlines() if "|" in line]
    assert rows[0] == "teacher"
    assert rows[2:] == ["rationale_first", "prefer", "samples", "token_overlap", "gradient_boosting"]
    # One teacher serves all three.
    logs = [tmp_path / "out" / "runs" / name for name in ("rationale_first", "samples", "prefer")]
    first, *others = ((log / "compare/2_folds/fold_1/finetune/metrics.jsonl").read_text() for log in logs)
    assert others == [first, first]
    text = (tables / "all" / "comparison.md").read_text("utf-8")
    for row in ("majority", "gradient_boosting", "embedding_cosine", "teacher", "zero-shot", "two_tower mkd"):
        assert row in text, row
    again = study(*arguments, **numbers, TABLES="all")
    assert again.returncode == 0
    assert ": trained" not in again.stdout
    assert (tables / "all" / "comparison.md").read_text("utf-8") == text


def test_the_recipes_of_the_config_fit_both_students_and_numbers_are_labels(tmp_path):
    """What is refused before any training is refused here: the whole study above has other recipes."""
    pairs = tmp_path / "pairs.jsonl"
    rows = [
        {"query": f"lamp {n // 3}", "item": {"id": str(n), "title": f"lamp {n}"}, "label": (3, 1.33, 0)[n % 3]}
        for n in range(60)
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    arguments = ("bundled:decoder", "bundled:encoder", pairs, tmp_path)
    command = [sys.executable, SCRIPT.with_name("open_llm_config.py"), *arguments]
    subprocess.run(command, check=True, env={**os.environ, "FOLDS": "2", "TEACHER_LABELLED": "0", "LABELLED": "5"})
    assert cli.main(["prepare", str(tmp_path / "open_llm.yaml"), "--run_root", str(tmp_path / "runs")]) == 0
    for split in ("train", "test"):
        pairs_of_split = layout.load_pairs(tmp_path / "runs" / "open_llm", split)
        assert {pair.label for pair in pairs_of_split} == {"3", "1.33", "0"}


@pytest.mark.parametrize(
    ("labels", "variables", "message"),
    [
        (["good", "bad"], {}, "LABELS: the order of the labels bad, good is not known"),
        (["good", "bad"], {"LABELS": "good fair"}, "LABELS: the file has bad too"),
        (["1"], {}, "needs pairs of at least two labels"),
        (["3", "1", "0"], {"TABLES": "al"}, "TABLES: there is no table al"),
        (["3", "1", "0"], {"FOLDS": "0"}, "FOLDS: '0' is not one whole number of at least 2"),
        (["3", "1", "0"], {"LABELLED": "300 many"}, "LABELLED: '300 many' is not whole numbers of at least 1"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, labels, variables, message):
    pairs = write_pairs(tmp_path / "pairs.jsonl", labels, queries=3)
    run = study("bundled:decoder", "bundled:encoder", pairs, tmp_path / "out", **variables)
    assert run.returncode != 0
    assert message in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a=nowhere"], "nowhere: holds no fold_1"),
        (["nowhere"], "teachers are NAME=FOLDER"),
        (["a=nowhere", "--mean", "b"], "--mean: b is not of a"),
    ],
)
def test_teachers_that_are_not_there_are_named(arguments, message):
    command = [sys.executable, SCRIPT.with_name("teachers.py"), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert message in run.stderr
    assert "Traceback" not in run.stderr
