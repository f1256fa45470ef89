"""What the faults are tried on: a tiny run that ended well, and how another one is compared with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common import compare, run, run_well, tail, tiny_config

EARLY = ("prepare", "annotate", "adapt")


@dataclass(frozen=True)
class Outcome:
    """Of one fault: what is stated, what is seen, and whether it passes; None where it cannot be tried."""

    fault: str
    stated: str
    seen: str
    passed: bool | None


@dataclass(frozen=True)
class Bench:
    """A tiny run that ended well, on an ordinary disk.

    Attributes:
      folder: to work in.
      config: its config file.
      whole: its folder.
      steps: of each training.
      times: how often a fault with a random moment or place is tried.
    """

    folder: Path
    config: Path
    whole: Path
    steps: int
    times: int
    seed: int


def make_bench(folder: Path, steps: int, times: int, seed: int) -> Bench:
    config = tiny_config(folder, steps)
    for name in (*EARLY, "finetune"):
        run_well([name, config], folder / "log.txt")
    whole = folder / "whole"
    shutil.copytree(folder / "runs" / "tiny", whole, dirs_exist_ok=True)
    return Bench(folder, config, whole, steps, times, seed)


# ---- what is seen


def refusal(log: Path) -> str:
    """The one line of a command that was refused; empty where there is none, more than one, or a traceback."""
    text = log.read_text("utf-8", "replace") if log.exists() else ""
    lines = [line for line in text.splitlines() if line.startswith("jax-rele: ")]
    return lines[0] if len(lines) == 1 and "Traceback" not in text else ""


def differences(bench: Bench, root: Path, stages: Sequence[str], without: str = "") -> list[str]:
    """What differs between the unbroken run and another; files of the name `without` are not compared."""
    lines = [f"{name}/{line}" for name in stages for line in compare(bench.whole / name, root / name).differences]
    return [line for line in lines if not without or f"/{without}:" not in line]


def broken_and_resumed(
    bench: Bench, root: Path, stages: Sequence[str], fail: Callable[[str, Path], int], expected: str = ""
) -> tuple[bool, str]:
    """Runs stages with a fault until one fails, then all without it: whether that is as stated, and what is seen.

    Args:
      root: where runs are.
      fail: runs a stage with the fault, its output in a file; returns its status.
      expected: what the line of a refusal holds.
    """
    log = bench.folder / "fault.txt"
    seen = "no stage fails"
    for name in stages:
        log.unlink(missing_ok=True)
        status = fail(name, log)
        if status == 0:
            continue
        line = refusal(log)
        if status != 2 or expected not in line or not line:
            return False, f"{name} ends with {status}: {line or tail(log, 1)[:200]}"
        seen = f"{name} is refused: {line.removeprefix('jax-rele: ')[:160]}"
        break
    return True, seen


def end_well(bench: Bench, root: Path, stages: Sequence[str], seen: str) -> tuple[bool, str]:
    """Runs stages without a fault and compares with the unbroken run."""
    log = bench.folder / "fault.txt"
    for name in stages:
        log.unlink(missing_ok=True)
        status, _ = run([name, bench.config, "--run_root", root], log)
        if status:
            return False, f"{seen}; then {name} ends with {status}: {tail(log, 1)[:200]}"
    lines = differences(bench, root / "tiny", stages)
    return not lines, f"{seen}; then {'every artefact is equal' if not lines else '; '.join(lines[:3])}"
