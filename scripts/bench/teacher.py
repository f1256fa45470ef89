"""The teacher's SFT step, scoring and decoding against torch, transformers and peft, side by side in one run.

    python scripts/bench/teacher.py --device cpu|gpu [--parts sft,score,decode] [--json OUT]

Needs torch, transformers and peft beside jax_rele; without them, or with `--sides ours`, only our side runs. Each side
is a process of its own. Every case is prepared (compiled and run twice) on both sides, then they take turns, each time
in the other order. A ratio is torch's time over ours of one turn, by the clock and, on the CPU, by the time of all
cores; the table gives the medians over the turns, and the quartiles of the ratio. Both sides have the same device,
shapes, texts and, on the CPU, weights; see docs/benchmarks/teacher.md.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from cases import ENVIRONMENT, Case, make_parser, print_notes, scaled, selected_parts, side_names, take_turns
from shapes import SHAPES, Shape, packed, score_rows, seen_causal, seen_packed
from worker import Side

PARTS = ("sft", "score", "decode")
ITEMS = (1, 10, 100)
PEAKS = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12}
"""Dense bfloat16 operations a second by the datasheet of the chip that a device's name holds."""
TOLERANCE = 1e-4
"""By how much the first loss (relative) and label probabilities of the two sides may differ in float32."""


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
    # Prompts that are computed whole have a query each, so that no prefix could be shared.
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
    # Amount and bytes are set once ours has written its rationales: torch writes as many tokens, one by one.
    yield Case(
        f"guided rationales, {rows} slots", "tokens", ("guided", 2 * rows, prompt, value_length),
        ("guided", 2 * rows, prompt), 0, goal={"cpu": "ratio ≥ 1", "gpu": "ratio ≥ 1"},
    )  # fmt: skip


def cases(shape: Shape, parts: list[str]) -> list[Case]:
    makers = {"sft": sft_cases, "score": score_cases, "decode": decode_cases}
    return [*machine_cases(shape), *(case for part in parts for case in makers[part](shape))]


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
    take_turns(case, sides, shape.repeats)
    return case


def of_rationales(case: Case, shape: Shape, emitted: int, decided: int, passes: int) -> Case:
    """The case with the amount and the bytes of the tokens that were written."""
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
        # Greedy texts diverge after a near-tie, so a few rows may differ.
        apart = 0.0 if equal > 0.8 else np.inf
        message = f"{equal:.1%} of the tokens are the same"
    else:
        return case.checked
    if not apart <= TOLERANCE:
        raise RuntimeError(f"{case.name}: the two sides do not compute the same: {message}")
    return message


# ---- the table


def utilization(case: Case, side: str, ceilings: dict[str, float], clock: str, peak: float | None) -> str:
    """The fraction of the machine's measured rate, and of the datasheet's where that is known."""
    index, seconds = ("ours", "theirs").index(side), case.median(side, clock)
    if case.flops[index]:
        rate = case.flops[index] / seconds
        text = f"{rate / ceilings['matmul']:.0%} of matmul"
        return text + (f" ({rate / peak:.0%} of datasheet)" if peak else "")
    return f"{case.read[index] / seconds / ceilings['stream']:.0%} of bandwidth" if case.read[index] else ""


def table(measured: list[Case], device: str, peak: float | None) -> str:
    """Markdown."""
    # On a shared CPU the time of all cores varies less than the clock, so rates are compared by it.
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
    parser = make_parser(__doc__, PARTS)
    parser.add_argument("--shape", choices=SHAPES, help="small on the CPU, 8b on a GPU")
    parser.add_argument("--minutes", type=float, default=8.5, help="no case starts after so long")
    options = parser.parse_args(arguments)
    parts = selected_parts(parser, options, PARTS)
    shape = SHAPES[options.shape or {"cpu": "small", "gpu": "8b"}[options.device]]
    shape = replace(shape, repeats=options.repeats or shape.repeats)
    names = side_names(options, ("torch", "peft"))

    start = time.monotonic()
    # Weights are the same on both sides where ours writes them to a file; for a large model that takes too long.
    same_weights = options.device == "cpu"
    with tempfile.TemporaryDirectory() as folder:
        weights = str(Path(folder, "model")) if same_weights else ""
        sides = {name: Side(name, ENVIRONMENT[options.device][name], shape, options.device, weights) for name in names}
    abouts = {name: side.about for name, side in sides.items()}
    measured, left = [], cases(shape, parts)
    while left and time.monotonic() - start < 60 * options.minutes:
        print(f"{time.monotonic() - start:4.0f} s  {left[0].name}", file=sys.stderr)
        measured.append(measure(left.pop(0), sides, shape, same_weights))
        if options.json:
            rows = [asdict(case) for case in measured]
            options.json.write_text(json.dumps({"shape": asdict(shape), "sides": abouts, "cases": rows}, indent=1))
    peak = next((peak for chip, peak in PEAKS.items() if chip in sides["ours"].about), None)
    print(table(measured, options.device, peak if options.device == "gpu" else None))
    print()
    print_notes(measured, abouts)
    for case in left:
        print(f"- {case.name}: not run, the time was up")
    for side in sides.values():
        side.close()


if __name__ == "__main__":
    main()
