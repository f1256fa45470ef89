"""What the benchmarks of the teacher and of the students share: cases, options, timing in turns and printed figures."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from worker import Side

ENVIRONMENT = {
    "cpu": {"ours": {"JAX_PLATFORMS": "cpu"}, "theirs": {"CUDA_VISIBLE_DEVICES": ""}},
    "gpu": {
        # Both models are on one GPU: ours reserves its part of the memory at once, theirs allocates from the rest.
        "ours": {"JAX_PLATFORMS": "cuda", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.55"},
        "theirs": {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
    },
}
ALONE = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
"""What changes on our side of a GPU where no other process holds its memory."""
CASE_SECONDS = {"cpu": 300, "gpu": 90}
"""After so long a case that does not end is given up, where the sides run one after the other; by device."""

Prepare = Callable[["Case", str, Side, dict[str, Any]], "Case"]
"""(case, name of a side, its process, results by side) -> the case; prepares it on that side and adds its result."""


@dataclass
class Case:
    """One row of the table.

    Attributes:
      name, unit: what is timed, and what `amount` of one run counts.
      ours, theirs: the case's name and arguments on each side; () where it does not run there.
      amount: of `unit` in one run.
      flops, read: operations and bytes that one run needs at least, for (ours, theirs); 0 where they are not the limit.
      goal: the printed target, by device.
      compared: the name of a case whose time over this one's is printed too.
      seconds: of each turn, by side.
      cores: seconds of all processor cores in each turn, by side; on a shared machine these vary less.
      compile: seconds that the first run took longer than the second, by side.
      checked: the difference of the two sides' results, in words.
      missing: why a side has no times, by side.
      failed: whether one of the reasons is an error.
    """

    name: str
    unit: str
    ours: tuple
    theirs: tuple
    amount: float
    flops: tuple[float, float] = (0, 0)
    read: tuple[float, float] = (0, 0)
    goal: dict[str, str] = field(default_factory=dict)
    compared: str = ""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    cores: dict[str, list[float]] = field(default_factory=dict)
    compile: dict[str, float] = field(default_factory=dict)
    checked: str = ""
    missing: dict[str, str] = field(default_factory=dict)
    failed: bool = False

    def median(self, side: str, clock: str = "seconds") -> float:
        return float(np.median(getattr(self, clock)[side]))

    def ratio(self, clock: str = "seconds") -> str:
        """Torch's time over ours, turn by turn (or run by run): the median and the quartiles; "–" without both."""
        times = getattr(self, clock)
        if len(times) < 2:
            return "–"
        low, middle, high = np.quantile(np.divide(times["theirs"], times["ours"]), (0.25, 0.5, 0.75))
        return f"{middle:.2f} ({low:.2f} – {high:.2f})"


# ---- options


def make_parser(description: str | None, parts: Sequence[str], more: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The options that the benchmarks have in common; the parts are run unless some are chosen, `more` only then."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "gpu"), required=True)
    parser.add_argument("--parts", default=",".join(parts), help=f"of {', '.join((*parts, *more))}")
    parser.add_argument("--sides", choices=("both", "ours"), default="both")
    parser.add_argument("--repeats", type=int, help="turns of each case")
    parser.add_argument("--json", type=Path, help="file for every single time")
    parser.add_argument(
        "--apart",
        metavar="OURS,THEIRS",
        type=lambda text: dict(zip(("ours", "theirs"), map(float, text.split(",")), strict=True)),
        help="the sides run one after the other, as long as so many seconds, and not in turns",
    )
    return parser


def selected_parts(parser: argparse.ArgumentParser, options: argparse.Namespace, parts: Sequence[str]) -> list[str]:
    """The parts of `--parts`, in the benchmark's order; ends the program where one is unknown."""
    selected = options.parts.split(",")
    if unknown := set(selected) - set(parts):
        parser.error(f"--parts: {', '.join(sorted(unknown))} is not of {', '.join(parts)}")
    return [part for part in parts if part in selected]


def side_names(options: argparse.Namespace, packages: Collection[str]) -> list[str]:
    """`ours`, and `theirs` where it is not left out and its packages are installed."""
    both = options.sides == "both" and all(map(importlib.util.find_spec, packages))
    return ["ours", "theirs"] if both else ["ours"]


# ---- timing


def time_in_turns(case: Case, sides: Mapping[str, Side], prepare: Prepare, repeats: int) -> Case:
    """Prepares a case on every side and times it in turns."""
    results: dict[str, Any] = {}
    for name, side in sides.items():
        case = prepare(case, name, side, results)
    take_turns(case, sides, repeats)
    return case


def take_turns(case: Case, sides: Mapping[str, Side], repeats: int) -> None:
    """Times a case that every side has prepared; the sides take turns, each time in the other order."""
    case.seconds, case.cores = ({side: [] for side in sides} for _ in range(2))
    for turn in range(repeats):
        for side in sorted(sides, reverse=turn % 2 == 1):
            seconds, cores = sides[side].time()
            case.seconds[side].append(seconds)
            case.cores[side].append(cores)


def time_apart(
    cases: list[Case],
    seconds: Mapping[str, float],
    open_side: Callable[[str, float], Side],
    prepare: Prepare,
    repeats: int,
    save: Callable[[dict[str, str]], None],
    case_seconds: float,
) -> dict[str, str]:
    """Times all cases on one side and then on the other, so that one process at a time holds the device's memory.

    A case that fails on a side leaves the reason in `missing`, and the next one goes on. One that has not ended after
    `case_seconds`, or when its side's time is up, is given up with its process; the next one gets a new process.

    Args:
      cases: changed to those that were timed.
      seconds: how long each side may take, in order; what one leaves is the next one's.
      open_side: a side's name and its first deadline, by `time.monotonic` -> its process.
      prepare: see `Prepare`.
      repeats: runs of each case.
      save: called with the result whenever a case has ended.
      case_seconds: the longest that a case, or the start of its process, may take.

    Returns:
      The versions and the device of each side that could be opened.
    """
    abouts: dict[str, str] = {}
    results: list[dict[str, Any]] = [{} for _ in cases]
    start = end = time.monotonic()
    for name, limit in seconds.items():
        end += limit
        side, refusal = None, ""
        for number, case in enumerate(cases):
            if not getattr(case, name):
                continue
            if not refusal and time.monotonic() >= end:
                refusal = "not run, the time was up"
            if refusal:
                case.missing[name] = refusal
                continue
            print(f"{time.monotonic() - start:4.0f} s  {name}: {case.name}", file=sys.stderr)
            try:
                if side is None:
                    side = opened(open_side, name, min(end, time.monotonic() + case_seconds))
                    abouts[name] = side.about
                side.deadline = min(end, time.monotonic() + case_seconds)
                case = cases[number] = prepare(case, name, side, results[number])
                runs = [side.time() for _ in range(repeats)]
                case.seconds[name], case.cores[name] = (list(times) for times in zip(*runs))
            except (RuntimeError, EOFError, OSError) as error:
                case.missing[name], case.failed = reason(error), True
                if not isinstance(error, RuntimeError):
                    # The process has ended or was killed.
                    side = None
                if isinstance(error, OpeningError):
                    refusal = case.missing[name]
            save(abouts)
        if side is not None:
            side.close()
        # With the reasons of what was not run.
        save(abouts)
    return abouts


class OpeningError(RuntimeError):
    """A side's process could not be made ready."""


def opened(open_side: Callable[[str, float], Side], name: str, deadline: float) -> Side:
    try:
        return open_side(name, deadline)
    except (RuntimeError, EOFError, OSError) as error:
        raise OpeningError(reason(error)) from error


def reason(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, TimeoutError):
        return "given up, it did not end in time"
    if not isinstance(error, RuntimeError):
        return "the process was ended by the system"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200].replace("|", "/")


def load_cases(rows: Sequence[Mapping[str, Any]]) -> list[Case]:
    """Cases from the JSON of `dataclasses.asdict`."""
    return [Case(**{**row, "ours": tuple(row["ours"]), "theirs": tuple(row["theirs"])}) for row in rows]


# ---- printing


def scaled(value: float) -> str:
    """A number with three digits and a unit prefix."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "


def format_notes(cases: Sequence[Case], abouts: Mapping[str, str], notes: Sequence[str] = ()) -> str:
    """Markdown: versions and devices of the sides, notes, and each case's compilation, check and what it lacks."""
    lines = [f"{about}; {len(os.sched_getaffinity(0))} CPU cores" for about in abouts.values()] + list(notes)
    for case in cases:
        spent = ", ".join(f"{seconds:.1f} s ({side})" for side, seconds in case.compile.items())
        parts = [f"first run longer by {spent}"] if spent else []
        parts += [case.checked] if case.checked else []
        parts += [f"not measured ({side}): {why}" for side, why in case.missing.items()]
        lines.append(f"{case.name}: {'; '.join(parts)}")
    return "\n".join(f"- {line}" for line in lines)
