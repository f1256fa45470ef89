"""A plan as tables."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

GIB = 2**30
KINDS = {"base": "base", "trained": "trained", "optimizer": "optim.", "batch": "batch", "cache": "cache"}
"""What is held, and its heading."""


def print_plan(plan: dict[str, Any], console: Console) -> None:
    """Prints a plan, as `jax_rele.plan.__main__` makes it: memory, time, collectives and attention of each step."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    console.print(f"{plan['config']} on {plan['topology']}: {plan['devices']} chips, mesh {mesh}", highlight=False)
    for step in plan["steps"]:
        console.print(f"{step['step']}: {step['shape']}", highlight=False)
    for table in (_memory(plan), _time(plan), _collectives(plan), _attention(plan)):
        if table.row_count:
            console.print(table)
    for note in notes(plan):
        console.print(note, style="dim", highlight=False)


def _memory(plan: dict[str, Any]) -> Table:
    steps, limit = plan["steps"], plan["steps"][0]["bytes_per_chip"]["limit"]
    table = _table(f"memory: GiB per chip, of {limit / GIB:.2f}", "step", *KINDS.values(), "made", "total", "fits")
    for step in steps:
        sizes = step["bytes_per_chip"]
        cells = (_gib(sizes.get(kind, 0)) for kind in (*KINDS, "made", "total"))
        table.add_row(step["step"], *cells, "yes" if step["fits"] else "[red]no[/]")
    return table


def _time(plan: dict[str, Any]) -> Table:
    table = _table("time, at least", "step", "TFLOP", "compute", "HBM", "links", "step", "MFU", "tokens/s")
    for step in plan["steps"]:
        times = [_seconds(step["seconds"][name]) for name in ("compute", "memory", "links")]
        rate = ["-", "-", "-"]
        if step["fits"]:
            rate = [_seconds(step["step_seconds"]), f"{step['mfu']:.0%}", f"{step['tokens_per_second']:,.0f}"]
        table.add_row(step["step"], f"{step['flops']['executed'] / 1e12:,.3g}", *times, *rate)
    return table


def _collectives(plan: dict[str, Any]) -> Table:
    table = _table("collectives", "step", "kind", "runs a step", "GB sent a chip")
    for step in plan["steps"]:
        for kind, count, size in by_kind(step["collectives"]):
            table.add_row(step["step"], kind, f"{count:,}", f"{size / 1e9:,.3f}")
    return table


def _attention(plan: dict[str, Any]) -> Table:
    by_step = {step["step"]: step["bytes_per_chip_by_attention"] for step in plan["steps"]}
    names = sorted({name for sizes in by_step.values() for name in sizes})
    table = _table("memory by attention", "step", *names)
    for step, sizes in by_step.items():
        if sizes:
            table.add_row(step, *(_gib(sizes.get(name)) for name in names))
    return table


def notes(plan: dict[str, Any]) -> list[str]:
    """What the figures rest on, a sentence each."""
    chip = plan["chip"]
    peak = f"{chip['flops'] / 1e12:g} TFLOP/s bfloat16, {chip['bandwidth'] / 1e9:g} GB/s HBM, "
    peak += f"{chip['link'] / 1e9:g} GB/s {'NVLink' if chip['kind'] == 'gpu' else 'a link'} one way"
    sentences = [
        f"{chip['name']}: {peak}. {plan['reserve']:.0%} of its memory is left to the runtime.",
        "Times are the least that is possible: peak rates, and compute, HBM and links at once. MFU counts what would "
        "be computed without remat; it and tokens/s count padding.",
    ]
    if chip["kind"] == "tpu":
        return [*sentences, "Compiled for this topology; nothing was run or allocated."]
    return [
        *sentences,
        "By analysis, not compiled for GPUs. What is held is exact. What is made is that of the CPU's compiler, which "
        "widens bfloat16 to float32: a GPU needs less. HBM time is what is held, read once. cudnn is splash, which "
        "keeps as little, and cuDNN's mask.",
        f"Set XLA_PYTHON_CLIENT_MEM_FRACTION={1 - plan['reserve']:.2f}; by default JAX takes 0.75 of a GPU's memory.",
    ]


def by_kind(collectives: list[dict[str, Any]]) -> list[tuple[str, int, int]]:
    """(kind, runs per step, bytes that a chip sends), most bytes first."""
    totals: dict[str, tuple[int, int]] = {}
    for collective in collectives:
        count, size = totals.get(collective["kind"], (0, 0))
        totals[collective["kind"]] = count + collective["count"], size + collective["sent_per_chip"]
    return sorted(((kind, *total) for kind, total in totals.items()), key=lambda row: -row[2])


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index and column != "kind" else "left", no_wrap=True)
    return table


def _gib(size: int | None) -> str:
    return "?" if size is None else f"{size / GIB:.2f}"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms" if value >= 1e-3 else f"{value * 1e6:.0f} us"
