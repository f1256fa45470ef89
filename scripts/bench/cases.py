"""What the benchmarks of the teacher and of the students share: cases, options, timing in turns and printed figures."""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

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


@dataclass
class Case:
    """One row of the table.

    Attributes:
      name, unit: what is timed, and what `amount` of one run counts.
      ours, theirs: the case's name and arguments on each side.
      amount: of `unit` in one run.
      flops, read: operations and bytes that one run needs at least, for (ours, theirs); 0 where they are not the limit.
      goal: the printed target, by device.
      seconds: of each turn, by side.
      cores: seconds of all processor cores in each turn, by side; on a shared machine these vary less.
      compile: seconds that the first run took longer than the second, by side.
      checked: the difference of the two sides' results, in words.
    """

    name: str
    unit: str
    ours: tuple
    theirs: tuple
    amount: float
    flops: tuple[float, float] = (0, 0)
    read: tuple[float, float] = (0, 0)
    goal: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    cores: dict[str, list[float]] = field(default_factory=dict)
    compile: dict[str, float] = field(default_factory=dict)
    checked: str = ""

    def median(self, side: str, clock: str = "seconds") -> float:
        return float(np.median(getattr(self, clock)[side]))

    def ratio(self, clock: str = "seconds") -> str:
        """Torch's time over ours, turn by turn: the median and the quartiles."""
        times = getattr(self, clock)
        if "theirs" not in times:
            return "–"
        low, middle, high = np.quantile(np.divide(times["theirs"], times["ours"]), (0.25, 0.5, 0.75))
        return f"{middle:.2f} ({low:.2f} – {high:.2f})"


# ---- options


def make_parser(description: str | None, parts: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "gpu"), required=True)
    parser.add_argument("--parts", default=",".join(parts), help=f"of {', '.join(parts)}")
    parser.add_argument("--sides", choices=("both", "ours"), default="both")
    parser.add_argument("--repeats", type=int, help="turns of each case")
    parser.add_argument("--json", type=Path, help="file for every single time")
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


def take_turns(case: Case, sides: Mapping[str, Side], repeats: int) -> None:
    """Times a case that every side has prepared; the sides take turns, each time in the other order."""
    case.seconds, case.cores = ({side: [] for side in sides} for _ in range(2))
    for turn in range(repeats):
        for side in sorted(sides, reverse=turn % 2 == 1):
            seconds, cores = sides[side].time()
            case.seconds[side].append(seconds)
            case.cores[side].append(cores)


# ---- printing


def scaled(value: float) -> str:
    """A number with three digits and a unit prefix."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "


def print_notes(measured: Sequence[Case], abouts: Mapping[str, str], notes: Sequence[str] = ()) -> None:
    """Prints the versions and devices of the sides, further notes, and the compilation and the check of each case."""
    for about in abouts.values():
        print(f"- {about}; {len(os.sched_getaffinity(0))} CPU cores")
    for note in notes:
        print(f"- {note}")
    for case in measured:
        spent = ", ".join(f"{seconds:.1f} s ({side})" for side, seconds in case.compile.items())
        print(f"- {case.name}: first run longer by {spent}" + (f"; {case.checked}" if case.checked else ""))
