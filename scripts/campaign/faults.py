"""What fails below us, one fault after the other: the outcome that is stated, the one that is seen, and the verdict.

    python scripts/campaign/faults.py [--faults disk read-only handles clock slow-disk sigterm peers ...] [--times 5]
        [--steps 20] [--work DIR] [--seed 0]

A fault passes if the command ends with status 0, or with 2 and one line that names file and remedy; if it then,
without the fault, ends well by the same command; and if every artefact is that of an unbroken run (see
`common.compare`; the log of a training after SIGTERM apart, whose first line after the resume is a mean over fewer
steps). Full and read-only disks are small tmpfs mounts and need root; clock jumps need libfaketime, a slow disk cc.
What cannot be tried is skipped with its reason.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench import EARLY, Bench, Outcome, broken_and_resumed, differences, end_well, make_bench, refusal
from common import HERE, command, run, seeded, table, tail
from preloaded import clock_jumps, slow_disk

PEER_SECONDS = 100
"""Within which a process must end after another one is lost: `distributed.ALIVE_SECONDS` and the time to end."""
SIGTERM_SECONDS = 20
"""Within which a training must end after SIGTERM: a step and a checkpoint."""


# ---- disks


@contextmanager
def small_disk(folder: Path, megabytes: int = 64) -> Iterator[str]:
    """Mounts a small tmpfs; yields why it cannot."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        yield f"a tmpfs cannot be mounted: {done.stderr.strip()}"
        return
    try:
        yield ""
    finally:
        subprocess.run(["umount", "-l", folder], check=False)


def full_disk(bench: Bench) -> Iterator[Outcome]:
    stated = "status 2 and one line: the disk is full; then, with room, equal artefacts"
    stages, rng = (*EARLY, "finetune"), seeded(bench.seed, "disk")
    used = sum(path.stat().st_size for path in bench.whole.rglob("*") if path.is_file())
    for _ in range(bench.times):
        disk = bench.folder / "disk"
        free = rng.randrange(4096, 2 * used, 4096)
        with small_disk(disk) as reason:
            if reason:
                yield Outcome("full disk", stated, reason, None)
                return
            ballast = disk / "ballast"
            size = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
            ballast.write_bytes(bytes(size - free))

            def fail(name: str, log: Path, disk: Path = disk) -> int:
                return run([name, bench.config, "--run_root", disk / "runs", "--cache_dir", disk / "cache"], log)[0]

            passed, seen = broken_and_resumed(bench, disk / "runs", stages, fail, "disk is full")
            ballast.unlink()
            if passed:
                passed, seen = end_well(bench, disk / "runs", stages, seen)
        yield Outcome(f"full disk, {free >> 10} KB free", stated, seen, passed)


def read_only_disk(bench: Bench) -> Iterator[Outcome]:
    disk = bench.folder / "disk"
    stated = "status 2 and one line that names the folder"
    done = "status 0 and a line that nothing is left to do, or status 2 and one line"
    with small_disk(disk) as reason:
        if reason:
            yield Outcome("read-only disk", stated, reason, None)
            return
        (disk / "runs").mkdir()
        shutil.copytree(bench.whole, disk / "whole" / "tiny")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        log = bench.folder / "fault.txt"
        log.unlink(missing_ok=True)
        status, _ = run(["prepare", bench.config, "--run_root", disk / "runs"], log)
        line = refusal(log)
        yield Outcome("read-only disk, new run", stated, f"{status}: {line[:160]}", status == 2 and "/runs" in line)
        log.unlink(missing_ok=True)
        status, _ = run(["prepare", bench.config, "--run_root", disk / "whole"], log)
        line = refusal(log) if status else tail(log, 1)
        yield Outcome(
            "read-only disk, finished stage", done, f"{status}: {line[:160]}", status in (0, 2) and bool(line)
        )


def no_handles(bench: Bench) -> Iterator[Outcome]:
    stated = "status 2 and one line that names the limit; then equal artefacts"
    stages, rng = ("prepare", "annotate", "finetune"), seeded(bench.seed, "handles")
    for _ in range(bench.times):
        limit, root = rng.randint(16, 255), bench.folder / "handles"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(bench.whole / "adapt", root / "tiny" / "adapt")

        def fail(name: str, log: Path, limit: int = limit, root: Path = root) -> int:
            return run([name, bench.config, "--run_root", root], log, {resource.RLIMIT_NOFILE: limit})[0]

        passed, seen = broken_and_resumed(bench, root, stages, fail, "ulimit -n")
        if passed:
            passed, seen = end_well(bench, root, stages, seen)
        yield Outcome(f"out of file handles, {limit}", stated, seen, passed)


# ---- clock and signals


def interrupted(bench: Bench, root: Path, name: str, ready: Callable[[], bool]) -> tuple[int, float, Path]:
    """Sends SIGTERM to a stage when it is ready: its status, the seconds until its end, and its output."""
    log = bench.folder / "fault.txt"
    log.unlink(missing_ok=True)
    process = command([name, bench.config, "--run_root", root], log)
    while process.exitcode is None and not ready():
        process.join(0.02)
    start = time.perf_counter()
    if process.exitcode is None:
        os.kill(process.pid, signal.SIGTERM)
    process.join()
    return int(process.exitcode or 0), time.perf_counter() - start, log


def trained_steps(folder: Path) -> int:
    log = folder / "metrics.jsonl"
    return log.read_text("utf-8", "replace").count("\n") if log.exists() else 0


def sigterm(bench: Bench) -> Iterator[Outcome]:
    stated = f"a checkpoint of that step and status 0 within {SIGTERM_SECONDS} s, one line; then equal artefacts"
    rng = seeded(bench.seed, "sigterm")
    for _ in range(bench.times):
        root, line = bench.folder / "sigterm", rng.randint(1, max(1, bench.steps // 2 - 3))
        shutil.rmtree(root, ignore_errors=True)
        for name in EARLY:
            shutil.copytree(bench.whole / name, root / "tiny" / name)
        folder = root / "tiny" / "finetune"
        status, seconds, log = interrupted(
            bench, root, "finetune", lambda folder=folder, line=line: trained_steps(folder) >= line
        )
        message, steps = refusal(log), saved_steps(folder)
        seen = f"status {status} after {seconds:.1f} s, {message.removeprefix('jax-rele: ')}"
        passed = status == 0 and seconds < SIGTERM_SECONDS and f"step {max(steps, default=0)} is saved" in message
        if passed:
            status, _ = run(["finetune", bench.config, "--run_root", root], log)
            lines = differences(bench, root / "tiny", ["finetune"], "metrics.jsonl") if not status else ["no end"]
            passed, seen = not lines, f"{seen}; then {lines or 'every artefact is equal'}"
        yield Outcome(f"SIGTERM in step {2 * line} or later", stated, seen, passed)


def saved_steps(folder: Path) -> list[int]:
    checkpoints = folder / "checkpoints"
    return (
        sorted(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit()) if checkpoints.exists() else []
    )


# ---- other processes


def lost_peer(bench: Bench) -> Iterator[Outcome]:
    for work in ("collective", "barrier"):
        for victim in (1, 0):
            line = "one line" if victim else "JAX's own report, as the store of the processes is gone"
            stated = f"ends within {PEER_SECONDS} s with another status than 0 and {line}"
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                port = listener.getsockname()[1]
            outputs = [bench.folder / f"peer{number}.txt" for number in range(2)]
            processes = []
            for number, output in enumerate(outputs):
                variables = {
                    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                    "JAX_NUM_PROCESSES": "2",
                    "JAX_PROCESS_ID": str(number),
                }
                with output.open("w") as file:
                    arguments = [sys.executable, str(HERE / "peer.py"), work]
                    processes.append(
                        subprocess.Popen(arguments, env={**os.environ, **variables}, stdout=file, stderr=file)
                    )
            try:
                deadline = time.monotonic() + 300
                while not all("up" in output.read_text() for output in outputs) and time.monotonic() < deadline:
                    time.sleep(0.2)
                processes[victim].kill()
                start = time.perf_counter()
                try:
                    status = processes[1 - victim].wait(PEER_SECONDS)
                except subprocess.TimeoutExpired:
                    status = 0
                seconds = time.perf_counter() - start
            finally:
                for process in processes:
                    process.kill()
            message = refusal(outputs[1 - victim])
            passed = status != 0 and (bool(message) or victim == 0)
            seen = f"status {status} after {seconds:.1f} s: {message.removeprefix('jax-rele: ')[:160] or 'a report'}"
            yield Outcome(f"process {victim} of two killed, {work}", stated, seen, passed)


# ---- checkpoints


def flipped_byte(bench: Bench) -> Iterator[Outcome]:
    stated = "one line that names the checkpoint, and the one before is used once it is deleted; or equal artefacts"
    root, rng = bench.folder / "flip", seeded(bench.seed, "flip")
    begun = bench.folder / "begun"
    for folder in (root, begun):
        shutil.rmtree(folder, ignore_errors=True)
    for name in EARLY:
        shutil.copytree(bench.whole / name, root / "tiny" / name)
    folder = root / "tiny" / "finetune"
    status, _, log = interrupted(bench, root, "finetune", lambda: len(saved_steps(folder)) >= 2)
    if status or len(saved_steps(folder)) < 2:
        yield Outcome("a flipped byte", stated, f"no two checkpoints to begin with: {tail(log, 1)}", False)
        return
    shutil.copytree(root / "tiny", begun)
    counts = {"refused": 0, "harmless": 0, "silent": 0, "not resumed": 0}
    example = ""
    for _ in range(bench.times):
        shutil.rmtree(root / "tiny")
        shutil.copytree(begun, root / "tiny")
        newest = folder / "checkpoints" / str(saved_steps(folder)[-1])
        files = sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size)
        file = rng.choices(files, [path.stat().st_size for path in files])[0]
        content = bytearray(file.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
        log.unlink(missing_ok=True)
        status, _ = run(["finetune", bench.config, "--run_root", root], log)
        if status:
            if status != 2 or str(newest) not in refusal(log):
                counts["not resumed"] += 1
                example = f"{file.relative_to(newest)}: status {status}: {tail(log, 1)[:200]}"
                continue
            counts["refused"] += 1
            shutil.rmtree(newest)
            status, _ = run(["finetune", bench.config, "--run_root", root], log)
        lines = ["no end"] if status else differences(bench, root / "tiny", ["finetune"], "metrics.jsonl")
        if lines:
            counts["silent"] += 1
            example = f"{file.relative_to(newest)}: {lines[0]}"
        elif not refusal(log):
            counts["harmless"] += 1
    seen = ", ".join(f"{count} {name}" for name, count in counts.items()) + (f" ({example})" if example else "")
    yield Outcome(f"a flipped bit in the newest checkpoint, {bench.times} times", stated, seen, not example)


FAULTS: dict[str, Callable[[Bench], Iterator[Outcome]]] = {
    "disk": full_disk,
    "read-only": read_only_disk,
    "handles": no_handles,
    "clock": clock_jumps,
    "slow-disk": slow_disk,
    "sigterm": sigterm,
    "peers": lost_peer,
    "checkpoint": flipped_byte,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", nargs="+", default=tuple(FAULTS), choices=FAULTS)
    parser.add_argument("--times", type=int, default=5, help="of faults with a random moment, size or place; 5")
    parser.add_argument("--steps", type=int, default=20, help="of each training; 20")
    parser.add_argument("--work", type=Path, help="folder to work in; by default a temporary one")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.work or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        bench = make_bench(folder, options.steps, options.times, options.seed)
        outcomes = []
        for name in options.faults:
            for outcome in FAULTS[name](bench):
                outcomes.append(outcome)
                print(f"{outcome.fault}: {outcome.passed}: {outcome.seen}", file=sys.stderr, flush=True)
    verdicts = {True: "pass", False: "FAIL", None: "skipped"}
    rows = [[each.fault, each.stated, each.seen.replace("|", "/"), verdicts[each.passed]] for each in outcomes]
    print(table(["fault", "stated", "seen", ""], rows))
    return 1 if any(outcome.passed is False for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
