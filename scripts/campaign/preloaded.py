"""Faults by libraries that are preloaded: a clock that jumps, by libfaketime, and a slow disk, by `slow_disk.c`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench import EARLY, Bench, Outcome, differences, refusal
from common import HERE, seeded, tail

FAKETIME = tuple(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
SLOW = {"SLOW_DISK_BYTES": "1000000", "SLOW_DISK_MS": "5", "SLOW_DISK_SYNC_MS": "300"}
"""Bytes a second, milliseconds of every call, and of an fsync."""
STAGE_SECONDS, MOST_REFUSALS = 600, 20
"""After which a stage counts as one that does not end, and a run as one that does not resume."""
DAYS = 60
"""The longest jump of the clock."""


def start(name: str, bench: Bench, root: Path, variables: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Starts a stage as a process of its own, as what is preloaded needs."""
    arguments = [sys.executable, "-m", "jax_rele.cli", name, str(bench.config), "--run_root", str(root)]
    arguments += ["--cache_dir", str(root / "cache")]
    with log.open("w") as output:
        return subprocess.Popen(arguments, env={**os.environ, **variables}, stdout=output, stderr=output)


def clock_jumps(bench: Bench) -> Iterator[Outcome]:
    stated = "equal artefacts; a save during which the clock jumps may be refused, with one line"
    if not FAKETIME:
        yield Outcome("clock jumps", stated, "libfaketime is not installed (apt-get install faketime)", None)
        return
    rng = seeded(bench.seed, "clock")
    for _ in range(bench.times):
        root, moment = bench.folder / "clock", bench.folder / "moment"
        shutil.rmtree(root, ignore_errors=True)
        # Only the time of day jumps: nothing sets the monotonic clock of a machine that runs.
        variables = {
            "LD_PRELOAD": str(FAKETIME[0]),
            "FAKETIME_TIMESTAMP_FILE": str(moment),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        log, stages = bench.folder / "fault.txt", (*EARLY, "finetune")
        jumps, refusals, failure = 0, 0, ""
        for name in stages:
            status = 2
            while status == 2 and not failure:
                _write_moment(moment, "+0")
                process, began = start(name, bench, root, variables, log), time.monotonic()
                while process.poll() is None and time.monotonic() < began + STAGE_SECONDS:
                    time.sleep(rng.uniform(0.5, 4.0))
                    _write_moment(moment, f"{rng.choice('+-')}{rng.randint(1, DAYS)}d")
                    jumps += 1
                process.kill()
                status = process.wait()
                refusals += status == 2
                if status and (status != 2 or not refusal(log) or refusals > MOST_REFUSALS):
                    failure = f"{name} ends with {status}, {refusals} refusals: {tail(log, 1)}"
                    shutil.copy(log, bench.folder / "clock_failure.txt")
        wrong = failure or differences(bench, root / "tiny", stages) or ""
        seen = f"{jumps} jumps of up to {DAYS} days, {refusals} refusals; {wrong or 'every artefact is equal'}"
        yield Outcome("clock jumps", stated, seen, not wrong)


def _write_moment(file: Path, offset: str) -> None:
    # In one step: libfaketime may read the file at any time, and an empty one ends the process.
    whole = file.with_suffix(".whole")
    whole.write_text(offset)
    os.replace(whole, file)


def slow_disk(bench: Bench) -> Iterator[Outcome]:
    stated = "status 0 and equal artefacts; SIGTERM in a save waits for it, and loses no step"
    fault = "slow disk: 1 MB/s, 5 ms a call, 300 ms an fsync"
    library, root, log = bench.folder / "slow_disk.so", bench.folder / "slow", bench.folder / "fault.txt"
    compiler = shutil.which("cc")
    if compiler is None:
        yield Outcome(fault, stated, "there is no C compiler to build slow_disk.c", None)
        return
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, HERE / "slow_disk.c", "-ldl"], check=True)
    stages, rng = (*EARLY, "finetune"), seeded(bench.seed, "slow")
    for _ in range(bench.times):
        shutil.rmtree(root, ignore_errors=True)
        variables = {"LD_PRELOAD": str(library), "SLOW_DISK": str(root), **SLOW}
        began, stops, status = time.perf_counter(), 0, 0
        for name in stages:
            process = start(name, bench, root, variables, log)
            saved = root / "tiny" / name / "checkpoints"
            while name == "finetune" and process.poll() is None:
                # In the middle of a save, whose files are of a temporary name until it is whole.
                if saved.exists() and any("tmp" in path.name for path in saved.iterdir()):
                    time.sleep(rng.uniform(0, 1))
                    process.terminate()
                    stops += 1
                    break
                time.sleep(0.02)
            status = process.wait()
            if stops and name == "finetune" and status == 0:
                status = start(name, bench, root, variables, log).wait()
            if status:
                break
        seconds = time.perf_counter() - began
        lines = differences(bench, root / "tiny", stages, "metrics.jsonl") if not status else [tail(log, 1)]
        seen = f"{seconds:.0f} s, {stops} SIGTERM in a save; {lines or 'every artefact is equal'}"
        yield Outcome(fault, stated, seen, not lines)
