"""The teacher's SFT step, scoring and decoding against torch, transformers and peft, side by side in one run.

    python scripts/bench/teacher.py --device cpu|gpu [--parts sft,score,decode] [--json OUT]

Needs torch, transformers and peft beside jax_rele; without them, or with `--sides ours`, only our side runs. Each side
is a process of its own. Every case is prepared (compiled and run twice) on both sides, then they take turns, each time
in the other order. A ratio is torch's time over ours of one turn, by the clock and, on the CPU, by the time of all
cores; the table gives the medians over the turns, and of the ratio the quartiles. The same device, shapes, texts and,
on the CPU, weights; see docs/benchmarks/teacher.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from shapes import SHAPES, Shape, packed, score_rows, seen_causal, seen_packed
from worker import Side

PARTS = ("sft", "score", "decode")
ITEMS = (1, 10, 100)
PEAKS = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12}
"""Dense bfloat16 operations a second by the datasheet of the chip that a device's name holds."""
ENVIRONMENT = {
    "cpu": {"ours": {"JAX_PLATFORMS": "cpu"}, "theirs": {"CUDA_VISIBLE_DEVICES": ""}},
    "gpu": {
        # Both models are on the one GPU; ours takes its share of the memory at once, theirs what it needs of the rest.
        "ours": {"JAX_PLATFORMS": "cuda", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.55"},
        "theirs": {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
    },
}
TOLERANCE = 1e-4
"""By how much the first loss (relative) and label probabilities of the two sides may differ in float32."""


@dataclass
class Case:
    """One row of the table.

    Attributes:
      name, unit: what is timed, and what `amount` of one run counts.
      ours, theirs: the case's name and arguments on each side.
      amount: of `unit` in one run.
      flops, read: operations and bytes that one run needs at least, for (ours, theirs); 0 where they are not the limit.
      goal: the target that is printed beside, by device.
      seconds: of each turn, by side.
      cores: seconds of all processor cores in each turn, by side; less moved by what else a shared machine does.
      compile: seconds that the first run took longer than the second, by side.
      checked: how far the sides' results are apart, in words.
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


# ---- what is timed


def machine_cases(shape: Shape) -> Iterator[Case]:
    (size, products), (elements, times) = shape.matmul, shape.stream
    flops, moved = 2 * size**3 * products, 8 * elements * times
    yield Case(f"matrix product, {size}², {shape.dtype}", "FLOP", ("matmul",), ("matmul",), flops, (flops, flops))
    name = "array scaled in place, bytes read and written"
    yield Case(name, "B", ("stream",), ("stream",), moved, read=(moved, moved))


def sft_cases(shape: Shape) -> Iterator[Case]:
    batch = packed(shape)
    tokens = batch["tokens"].size
    flops = shape.sft_flops(tokens, seen_packed(batch), int(batch["targets_mask"].sum()))
    for ours, theirs in shape.remats:
        same = ours if ours == theirs else f"{ours} (ours), {theirs} (torch)"
        goal = {"cpu": "ratio ≥ 1", "gpu": "MFU ≥ 55%, ratio ≥ 1.3"}
        yield Case(
            f"LoRA SFT step, remat {same}", "tokens", ("sft", ours), ("sft", theirs), tokens, (flops, flops), goal=goal
        )


def score_flops(shape: Shape, items: int, share_prefix: bool) -> float:
    """Operations of all pairs; the label's few rows of the output embedding are left out."""
    total, prefix = 0, shape.prefix_length
    for number, row in enumerate(score_rows(shape, items)[0]):
        if not share_prefix:
            total += shape.forward_flops(len(row), seen_causal(len(row)))
            continue
        if number % items == 0:
            total += shape.forward_flops(prefix, seen_causal(prefix))
        total += shape.forward_flops(len(row) - prefix, seen_causal(len(row) - prefix, prefix))
    return total


def score_cases(shape: Shape) -> Iterator[Case]:
    # Prompts that are read whole have a query each, so that there is nothing to share.
    for share_prefix, items in [(False, 1), *((True, items) for items in ITEMS)]:
        flops = score_flops(shape, items, share_prefix)
        kind = "shared" if share_prefix else "naive"
        name = (
            f"label scoring, shared prefix, {items} items a query"
            if share_prefix
            else "label scoring, every prompt whole"
        )
        goal = {"cpu": "ratio ≥ 1", "gpu": "≥ 4× naive" if items == 100 and share_prefix else "≥ 60% of matmul"}
        yield Case(
            name.replace("1 items", "1 item"), "pairs", (kind, items), (kind, items), shape.pairs, (flops, flops),
            goal=goal,
        )  # fmt: skip


def decode_cases(shape: Shape) -> Iterator[Case]:
    rows = shape.decode_batch
    prompt, new = shape.plain
    read = new * shape.decode_bytes(rows, prompt + new / 2)
    goal = {"cpu": "ratio ≥ 1", "gpu": "≥ 60% of bandwidth"}
    yield Case(
        f"greedy decoding, {rows} rows", "tokens", ("plain", rows, prompt, new), ("plain", rows, prompt, new),
        rows * new, read=(read, read), goal=goal,
    )  # fmt: skip
    prompt, value_length = shape.guided
    # Amount and bytes are known once ours has written its rationales: torch is to write as many tokens, one by one.
    yield Case(
        f"guided rationales, {rows} slots", "tokens", ("guided", 2 * rows, prompt, value_length),
        ("guided", 2 * rows, prompt), 0, goal={"cpu": "ratio ≥ 1", "gpu": "ratio ≥ 1"},
    )  # fmt: skip


def cases(shape: Shape, parts: list[str]) -> list[Case]:
    makers = {"sft": sft_cases, "score": score_cases, "decode": decode_cases}
    return [*machine_cases(shape), *(case for part in PARTS if part in parts for case in makers[part](shape))]


# ---- how it is timed


def measure(case: Case, sides: dict[str, Side], shape: Shape, same_weights: bool) -> Case:
    """The case with its turns; raises RuntimeError where the two sides' results are not the same."""
    results = {}
    case.compile["ours"], results["ours"] = sides["ours"].prepare(*case.ours)
    if case.ours[0] == "guided":
        case = of_rationales(case, shape, *results["ours"])
    if "theirs" in sides:
        case.compile["theirs"], results["theirs"] = sides["theirs"].prepare(*case.theirs)
        if same_weights:
            case.checked = compare(case, **results)
    case.seconds, case.cores = ({side: [] for side in sides} for _ in range(2))
    for turn in range(shape.repeats):
        for side in sorted(sides, reverse=turn % 2 == 1):
            for values, value in zip((case.seconds, case.cores), sides[side].time()):
                values[side].append(value)
    return case


def of_rationales(case: Case, shape: Shape, emitted: int, decided: int, passes: int) -> Case:
    """The case once it is known what was written."""
    rows, prompt = case.ours[1:3]
    each = round(emitted / rows)
    step = shape.decode_bytes(shape.decode_batch, prompt + each / 2)
    return replace(
        case,
        theirs=(*case.theirs, each),
        amount=emitted,
        read=(passes * step, each * rows / shape.decode_batch * step),
        checked=f"{emitted} tokens emitted, {decided} decided, {passes} forward passes of {shape.decode_batch} slots",
    )


def compare(case: Case, ours: Any, theirs: Any) -> str:
    kind = case.ours[0]
    if kind == "sft":
        apart = abs(ours - theirs) / abs(theirs)
        message = f"first losses {ours:.5f} and {theirs:.5f}"
    elif kind in ("naive", "shared"):
        apart = float(np.abs(ours - theirs).max())
        message = f"label probabilities at most {apart:.0e} apart"
    elif kind == "plain":
        equal = float((np.array(ours) == np.array(theirs)).mean())
        # After a near-tie two greedy texts go different ways, so a few rows may.
        apart = 0.0 if equal > 0.8 else np.inf
        message = f"{equal:.1%} of the tokens are the same"
    else:
        return case.checked
    if not apart <= TOLERANCE:
        raise RuntimeError(f"{case.name}: the two sides do not compute the same: {message}")
    return message


# ---- the table


def scaled(value: float) -> str:
    """A number with three digits and a unit prefix."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "


def utilization(case: Case, side: str, ceilings: dict[str, float], clock: str, peak: float | None) -> str:
    """Of the machine's own rate, and of the datasheet's where that is known."""
    index, seconds = ("ours", "theirs").index(side), case.median(side, clock)
    if case.flops[index]:
        rate = case.flops[index] / seconds
        text = f"{rate / ceilings['matmul']:.0%} of matmul"
        return text + (f" ({rate / peak:.0%} of datasheet)" if peak else "")
    return f"{case.read[index] / seconds / ceilings['stream']:.0%} of bandwidth" if case.read[index] else ""


def table(measured: list[Case], device: str, peak: float | None) -> str:
    """Markdown."""
    # On a CPU that others use too, the time of all cores says more than the clock: rates are compared by it.
    clock = "cores" if device == "cpu" else "seconds"
    ceilings = {
        case.ours[0]: max(case.amount / case.median(side, clock) for side in case.seconds) for case in measured[:2]
    }
    lines = [
        "| case | jax_rele | torch | ratio (quartiles) | of core time | jax_rele reaches | torch reaches | target |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for case in measured:
        rates = {side: f"{scaled(case.amount / case.median(side))}{case.unit}/s" for side in case.seconds}
        reached = {side: utilization(case, side, ceilings, clock, peak) for side in case.seconds}
        columns = [
            case.name,
            rates["ours"],
            rates.get("theirs", "–"),
            case.ratio(),
            case.ratio("cores") if device == "cpu" else "",
            reached["ours"],
            reached.get("theirs", "–"),
            case.goal.get(device, ""),
        ]
        lines.append(f"| {' | '.join(columns)} |")
    naive = next((case for case in measured if case.ours[0] == "naive"), None)
    for case in measured:
        if naive and case.ours[0] == "shared":
            gains = [f"{naive.median(side, clock) / case.median(side, clock):.2f}×" for side in case.seconds]
            gains += ["–"] * (2 - len(gains))
            goal = "≥ 4×" if device == "gpu" and case.ours[1] == 100 else ""
            name = case.name.replace("label scoring, shared prefix", "shared prefix over whole prompts")
            lines.append(f"| {name} | {gains[0]} | {gains[1]} | | | | | {goal} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "gpu"), required=True)
    parser.add_argument("--parts", default=",".join(PARTS), help="of sft, score, decode")
    parser.add_argument("--shape", choices=SHAPES, help="small on the CPU, 8b on a GPU")
    parser.add_argument("--sides", choices=("both", "ours"), default="both")
    parser.add_argument("--repeats", type=int, help="turns of each case")
    parser.add_argument("--minutes", type=float, default=8.5, help="no case is begun after so long")
    parser.add_argument("--json", type=Path, help="file for every single time")
    options = parser.parse_args(arguments)
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--parts: {', '.join(sorted(unknown))} is not of {', '.join(PARTS)}")
    shape = SHAPES[options.shape or {"cpu": "small", "gpu": "8b"}[options.device]]
    shape = replace(shape, repeats=options.repeats or shape.repeats)
    names = ["ours"]
    if options.sides == "both" and all(map(importlib.util.find_spec, ("torch", "peft"))):
        names.append("theirs")

    start = time.monotonic()
    # Weights that are written and read again are the same on both sides; for a large model that takes too long.
    same_weights = options.device == "cpu"
    with tempfile.TemporaryDirectory() as folder:
        weights = str(Path(folder, "model")) if same_weights else ""
        sides = {name: Side(name, ENVIRONMENT[options.device][name], shape, options.device, weights) for name in names}
    measured, left = [], cases(shape, parts)
    while left and time.monotonic() - start < 60 * options.minutes:
        print(f"{time.monotonic() - start:4.0f} s  {left[0].name}", file=sys.stderr)
        measured.append(measure(left.pop(0), sides, shape, same_weights))
        if options.json:
            abouts = {name: side.about for name, side in sides.items()}
            rows = [asdict(case) for case in measured]
            options.json.write_text(json.dumps({"shape": asdict(shape), "sides": abouts, "cases": rows}, indent=1))
    peak = next((peak for chip, peak in PEAKS.items() if chip in sides["ours"].about), None)
    print(table(measured, options.device, peak if options.device == "gpu" else None))
    print()
    for side in sides.values():
        print(f"- {side.about}; {len(os.sched_getaffinity(0))} CPU cores")
    for case in measured:
        spent = ", ".join(f"{seconds:.1f} s ({side})" for side, seconds in case.compile.items())
        print(f"- {case.name}: first run longer by {spent}" + (f"; {case.checked}" if case.checked else ""))
    for case in left:
        print(f"- {case.name}: not run, the time was up")
    for side in sides.values():
        side.close()


if __name__ == "__main__":
    main()
