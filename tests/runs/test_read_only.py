"""A run on media that cannot be written: with nothing to do it says so, otherwise why it cannot start."""

import errno
import json
import os
from pathlib import Path

import pytest

from jax_rele import cli, config
from jax_rele.errors import UserError
from jax_rele.runs import pipeline

LABELS = ("Exact", "Substitute", "Complement", "Irrelevant")


@pytest.fixture
def settings(tmp_path):
    rows = [{"query": f"q {i}", "title": f"t {i}", "label": LABELS[i % 4]} for i in range(30)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = {"vocab_size": 600, "layers": 1, "width": 32, "heads": 2, "mlp_width": 32}
    return config.from_dict(
        {
            "run_root": str(tmp_path / "runs"),
            "data": {"path": str(tmp_path / "pairs.jsonl")},
            "teacher": {"init": "random", "random": {**model, "kv_heads": 1}},
            "student": {"init": "random", "random": model},
        }
    )


@pytest.fixture
def make_read_only(monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    return lambda: [monkeypatch.setattr(Path, name, refuse) for name in ("touch", "mkdir", "write_text")]


def run(settings, *names):
    lines = []
    pipeline.run(settings, names, say=lines.append, whole=False)
    return lines


def test_a_finished_run_says_that_there_is_nothing_to_do(settings, make_read_only):
    run(settings, "prepare")
    make_read_only()
    (line,) = run(settings, "prepare")
    assert line.startswith("prepare   finished before in ")
    assert line.endswith("nothing to do")


def test_another_config_is_refused_there_as_elsewhere(settings, make_read_only):
    run(settings, "prepare")
    make_read_only()
    with pytest.raises(UserError, match="seed is 7, was 0"):
        run(settings.model_copy(update={"seed": 7}), "prepare")


def test_an_unfinished_run_says_why_it_cannot_start(settings, make_read_only):
    make_read_only()
    with pytest.raises(UserError, match="cannot be written: Read-only file system"):
        run(settings, "prepare")


def test_a_name_that_is_too_long_is_not_called_damage(tmp_path, capsys):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"query": "q", "title": "t", "label": "Exact"}\n', "utf-8")
    file = tmp_path / "config.yaml"
    file.write_text(f"data: {{path: {pairs}}}\nrun_root: {tmp_path}\n", "utf-8")
    assert cli.main(["prepare", str(file), "--name", "x" * 300]) == 2
    assert "cannot be read: File name too long; choose another `name` or run_root" in capsys.readouterr().err
