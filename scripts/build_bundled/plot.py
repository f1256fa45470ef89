"""Plots loss and held-out metrics of a build over its steps.

    python scripts/build_bundled/plot.py WORK OUTPUT.svg

WORK is the work folder of decoder.py or encoder.py. Dashed lines are the metrics of the most frequent answer, another
model or rules on the same pairs.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "bundled"

import matplotlib.pyplot as plt  # noqa: E402

FIGURE = "eval/"
LEVELS = ("_majority", "_overlap", "_minilm", "_rules")


def draw(work: Path, output: Path) -> None:
    """Reads `metrics.jsonl`, and `majority.json` where there is one."""
    path = work / "metrics.jsonl"
    if not path.is_file():
        sys.exit(f"error: {path}: no such file; give the work folder of a build")
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    measured = [line for line in lines if any(name.startswith(FIGURE) for name in line)]
    if not measured:
        sys.exit(f"error: {path}: nothing was measured yet; continue the build")
    figures = {name.removeprefix(FIGURE): value for name, value in measured[-1].items() if name.startswith(FIGURE)}
    levels = {name: value for name, value in figures.items() if name.endswith(LEVELS)}
    if (work / "majority.json").is_file():
        majority = json.loads((work / "majority.json").read_text("utf-8"))
        levels |= {name if name.endswith(LEVELS) else f"{name}_majority": value for name, value in majority.items()}
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    left.plot([line["step"] for line in lines], [line["loss"] for line in lines], color="0.3")
    left.set(title="training loss", xlabel="step", yscale="log")
    colors = {}
    for name in (name for name in figures if name not in levels):
        points = [(line["step"], line[FIGURE + name]) for line in measured]
        colors[name] = right.plot(*zip(*points), marker="o", markersize=3, label=name)[0].get_color()
    for name, value in levels.items():
        color = colors.get(name.rpartition("_")[0], "0.5")
        right.axhline(value, color=color, linewidth=0.8, linestyle="--")
        right.annotate(name, (0, value), fontsize=6, color=color, va="bottom")
    right.set(title="held-out figures", xlabel="step", xlim=(0, None))
    right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    fig.savefig(output, metadata={"Date": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    draw(arguments.work, arguments.output)
