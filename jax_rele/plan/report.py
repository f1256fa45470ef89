"""A plan as tables."""

from __future__ import annotations

from typing import Any, TypeAlias

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

PlanData: TypeAlias = dict[str, Any]
"""A plan, or a message of the process that makes it, as plain JSON data."""

GIB = 2**30
KINDS = {"base": "base", "trained": "trained", "optimizer": "optim.", "batch": "batch", "cache": "cache"}
"""Resident arrays by kind, and the column of each."""

RESOURCES = {"compute": "compute", "memory": "HBM", "links": "links", "network": "DCN"}
"""What a step's time goes to, and the column of each; the data-centre network joins slices of TPUs."""


def print_plan(plan: PlanData, console: Console) -> None:
    """Prints a plan of `jax_rele.plan.__main__`: memory, time, collectives and attention of each step."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    console.print(f"{plan['config']} on {plan['topology']}: {plan['devices']} chips, mesh {mesh}", highlight=False)
    for step in plan["steps"]:
        console.print(f"{step['step']}: {step['shape']}", highlight=False)
    for table in (_memory(plan), _time(plan), _collectives(plan), _attention(plan)):
        if table.row_count:
            console.print(table)
    for note in notes(plan):
        console.print(note, style="dim", highlight=False)


def _memory(plan: PlanData) -> Table:
    steps, limit = plan["steps"], plan["steps"][0]["bytes_per_chip"]["limit"]
    table = _table(f"memory: GiB per chip, of {limit / GIB:.2f}", "step", *KINDS.values(), "allocated", "total", "fits")
    for step in steps:
        sizes = step["bytes_per_chip"]
        cells = (_gib(sizes.get(kind, 0)) for kind in (*KINDS, "made", "total"))
        table.add_row(step["step"], *cells, "yes" if step["fits"] else "[red]no[/]")
    return table


def _time(plan: PlanData) -> Table:
    resources = {name: title for name, title in RESOURCES.items() if name in plan["steps"][0]["seconds"]}
    rates = ("step", "limit", "MFU", "tokens/s")
    table = _table("time, at least", "step", "TFLOP", *resources.values(), *rates)
    for step in plan["steps"]:
        times = [format_seconds(step["seconds"][name]) for name in resources]
        rate = ["-"] * len(rates)
        if step["fits"]:
            rate = [format_seconds(step["step_seconds"]), RESOURCES[step["bound_by"]], f"{step['mfu']:.0%}"]
            rate += [f"{step['tokens_per_second']:,.0f}"]
        table.add_row(step["step"], f"{step['flops']['executed'] / 1e12:,.3g}", *times, *rate)
    return table


def _collectives(plan: PlanData) -> Table:
    table = _table("collectives", "step", "kind", "runs a step", "GB sent a chip")
    for step in plan["steps"]:
        for kind, count, size in by_kind(step["collectives"]):
            table.add_row(step["step"], kind, f"{count:,}", f"{size / 1e9:,.3f}")
    return table


def _attention(plan: PlanData) -> Table:
    by_step = {step["step"]: step["bytes_per_chip_by_attention"] for step in plan["steps"]}
    names = sorted({name for sizes in by_step.values() for name in sizes})
    table = _table("memory by attention", "step", *names)
    for step, sizes in by_step.items():
        if sizes:
            table.add_row(step, *(_gib(sizes.get(name)) for name in names))
    return table


def notes(plan: PlanData) -> list[str]:
    """What the figures assume, a sentence each."""
    chip = plan["chip"]
    peak = f"{chip['flops'] / 1e12:g} TFLOP/s bfloat16, {chip['bandwidth'] / 1e9:g} GB/s HBM, "
    peak += f"{chip['link'] / 1e9:g} GB/s {'NVLink' if chip['kind'] == 'gpu' else 'a link'} one way"
    if any("network" in step["seconds"] for step in plan["steps"]):
        peak += f", {chip['network'] / 1e9:g} GB/s a chip between slices"
    sentences = [
        f"{chip['name']}: {peak}. {plan['reserve']:.0%} of its memory is left to the runtime.",
        "Times are lower bounds: peak rates, all of them overlapping. MFU counts the operations "
        "without remat; MFU and tokens/s include padding.",
    ]
    if chip["kind"] == "tpu":
        return [*sentences, "Compiled for this topology; nothing was run or allocated."]
    return [
        *sentences,
        "By analysis, not compiled for GPUs. Resident bytes are exact. Allocated bytes are those of the CPU's "
        "compiler, which widens bfloat16 to float32: a GPU needs less. HBM time reads resident arrays once. The memory "
        "of cudnn is that of splash, which keeps as little, with cuDNN's mask.",
        f"Set XLA_PYTHON_CLIENT_MEM_FRACTION={1 - plan['reserve']:.2f}; by default JAX takes 0.75 of a GPU's memory.",
    ]


def by_kind(collectives: list[PlanData]) -> list[tuple[str, int, int]]:
    """(kind, runs per step, bytes that a chip sends), most bytes first."""
    totals: dict[str, tuple[int, int]] = {}
    for collective in collectives:
        kind = kind_label(collective)
        count, size = totals.get(kind, (0, 0))
        totals[kind] = count + collective["count"], size + collective["sent_per_chip"]
    return sorted(((kind, *total) for kind, total in totals.items()), key=lambda row: -row[2])


def kind_label(collective: PlanData) -> str:
    """A collective's kind, and whether it goes between slices."""
    return collective["kind"] + (" (DCN)" if collective["network"] else "")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index and column != "kind" else "left", no_wrap=True)
    return table


def _gib(size: int | None) -> str:
    return "?" if size is None else f"{size / GIB:.2f}"


def format_seconds(value: float) -> str:
    """A time in the unit that fits it."""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms" if value >= 1e-3 else f"{value * 1e6:.0f} us"
