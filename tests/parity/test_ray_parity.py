"""Batch scores by the workers of a Ray cluster: the bytes of one process, also when workers are killed."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from jax_rele import cli
from jax_rele.deployment import export_student
from jax_rele.deployment.batch import predict_shards

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def workers():
    """Process ids of the workers that judge."""
    pids = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                if b"ray::_work" in (folder / "cmdline").read_bytes():
                    pids.append(int(folder.name))
            except OSError:
                continue
    return pids


def test_workers_that_are_killed_lose_and_repeat_nothing(tiny, tmp_path, capsys):
    bundle, pairs = tmp_path / "bundle", tmp_path / "pairs.jsonl"
    export_student(tiny[1], bundle, "cross_encoder")
    rows = [{"query": f"red shoe {n}", "item": {"id": str(n), "title": f"shoe number {n} " * 8}} for n in range(3000)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{bad\n", "utf-8")
    predict_shards(bundle, str(pairs), tmp_path / "one", rows=20)
    killed = []

    def kill():
        deadline = time.monotonic() + 300
        while len(killed) < 3 and time.monotonic() < deadline:
            done = len(list((tmp_path / "ray").glob("part-*.parquet"))) if (tmp_path / "ray").exists() else 0
            if done >= 5 * (len(killed) + 1) and (alive := workers()):
                os.kill(alive[0], signal.SIGKILL)
                killed.append(alive[0])
            time.sleep(0.05)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    command = ["predict", str(bundle), "--input", str(pairs), "--shards", str(tmp_path / "ray"), "--rows", "20"]
    assert cli.main([*command, "--ray", "local", "--workers", "2"]) == 0
    thread.join(1)
    assert killed
    assert "3001 rows read = 3000 pairs + 1 bad rows set aside" in capsys.readouterr().out
    parts = [{file.name: file.read_bytes() for file in (tmp_path / name).glob("part-*")} for name in ("one", "ray")]
    assert parts[0] == parts[1]
