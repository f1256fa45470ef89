"""The teacher's SFT step, scoring and decoding against torch, transformers and peft, side by side in one run.

    python scripts/bench/teacher.py --device cpu|gpu [--parts sft,score,decode] [--apart OURS,THEIRS] [--json OUT]

Needs torch, transformers and peft beside jax_rele; without them, or with `--sides ours`, only our side runs. Each side
is a process of its own. Every case is prepared (compiled and run twice) on both sides, then they take turns, each time
in the other order. A ratio is torch's time over ours of one turn, by the clock and, on the CPU, by the time of all
cores; the table gives the medians over the turns, and the quartiles of the ratio. Both sides have the same device,
shapes, texts and, on the CPU, weights; see docs/benchmarks/teacher.md. With `--apart` one side runs after the other,
each as long as so many seconds. The parts `attention` and `precision` are of our side alone.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cases import (
    ALONE,
    CASE_SECONDS,
    ENVIRONMENT,
    Case,
    format_notes,
    make_parser,
    scaled,
    selected_parts,
    side_names,
    time_apart,
    time_in_turns,
)
from shapes import SHAPES, Shape, packed, score_rows, seen_causal, seen_packed
from worker import Side

PARTS = ("sft", "score", "decode")
OURS_ALONE = ("attention", "precision")
PEAKS = {
    "NVIDIA H200": (989.4e12, 4.8e12),
    "NVIDIA H100 80GB HBM3": (989.4e12, 3.35e12),
    "NVIDIA A100-SXM4-80GB": (312e12, 2.039e12),
    "NVIDIA A100-SXM4-40GB": (312e12, 1.555e12),
}
"""Dense bfloat16 operations and bytes of memory a second, by the datasheet of the device of this name."""
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
    for share_prefix, items in [(False, 1), *((True, items) for items in shape.items)]:
        flops = score_flops(shape, items, share_prefix)
        kind = "shared" if share_prefix else "naive"
        name = (
            f"label scoring, shared prefix, {items} items a query"
            if share_prefix
            else "label scoring, every prompt whole"
        )
        goal = {"cpu": "ratio ≥ 1"} | ({} if share_prefix else {"gpu": "≥ 60% of matmul"})
        yield Case(
            name.replace("1 items", "1 item"), "pairs", (kind, items), (kind, items), shape.pairs, (flops, flops),
            goal=goal, compared="label scoring, every prompt whole" if share_prefix else "",
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


def attention_cases(shape: Shape, device: str) -> Iterator[Case]:
    """cuDNN's attention, on a GPU, and XLA's: of a layer, and XLA's in a whole step too."""
    batch = packed(shape)
    tokens, seen = batch["tokens"].size, seen_packed(batch)
    flops = 3 * shape.attention_flops(seen)
    name = "attention of the layers, forward and backward, {}"
    cudnn = Case(name.format("cudnn"), "tokens", ("attention", "cudnn"), (), tokens, (flops, 0))
    yield cudnn if device == "gpu" else without(cudnn, "cuDNN's attention runs on NVIDIA GPUs alone")
    yield Case(name.format("xla"), "tokens", ("attention", "xla"), (), tokens, (flops, 0), compared=cudnn.name)
    flops = shape.sft_flops(tokens, seen, int(batch["targets_mask"].sum()))
    step = next(sft_cases(shape))
    ours = (*step.ours, "xla")
    yield Case(f"{step.name}, attention xla", "tokens", ours, (), tokens, (flops, 0), compared=step.name)


def precision_cases(shape: Shape) -> Iterator[Case]:
    """Where numbers of 8 bits gain: products of two such matrices, and decoding with projections in int8."""
    product, _ = machine_cases(shape)
    size = shape.matmul[0]
    for dtype in ("float8_e4m3fn", "int8"):
        name = f"matrix product, {size}², {dtype}"
        yield Case(name, "FLOP", ("product", dtype), (), product.amount, compared=product.name)
    plain = next(decode_cases(shape))
    _, rows, prompt, new = plain.ours
    read = new * shape.decode_bytes(rows, prompt + new / 2, 1)
    case = Case(
        f"{plain.name}, projections in int8", "tokens", ("plain_quantized", "int8", rows, prompt, new), (), rows * new,
        read=(read, 0), compared=plain.name,
    )  # fmt: skip
    yield case if importlib.util.find_spec("qwix") else without(case, "qwix is not installed")


def without(case: Case, why: str) -> Case:
    """The case that our side cannot run."""
    return replace(case, ours=(), missing={"ours": why})


def cases(shape: Shape, parts: list[str], device: str) -> list[Case]:
    makers = {
        "sft": sft_cases,
        "score": score_cases,
        "decode": decode_cases,
        "attention": partial(attention_cases, device=device),
        "precision": precision_cases,
    }
    return [*machine_cases(shape), *(case for part in parts for case in makers[part](shape))]


# ---- how it is timed


def prepare(case: Case, name: str, side: Side, results: dict[str, Any], *, shape: Shape, same_weights: bool) -> Case:
    """Prepares a case on one side; raises RuntimeError where the two sides' results are not the same."""
    if name == "theirs" and case.ours[0] == "guided" and not case.amount:
        raise RuntimeError("as many tokens as our side has written, which are unknown")
    case.compile[name], results[name] = side.prepare(*getattr(case, name))
    if name == "ours" and case.ours[0] == "guided":
        case = of_rationales(case, shape, *results["ours"])
    if len(results) == 2 and same_weights:
        case.checked = compare(case, **results)
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
    if kind in ("matmul", "stream"):
        return ""
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


def utilization(case: Case, side: str, ceilings: Mapping[str, float], clock: str, peaks: Sequence[float]) -> str:
    """The fraction of the machine's measured rate, and of the datasheet's where that is known; "" without a rate."""
    index = ("ours", "theirs").index(side)
    amount, kind, name = (
        (case.flops[index], "matmul", "matmul") if case.flops[index] else (case.read[index], "stream", "bandwidth")
    )
    if not amount or kind not in ceilings:
        return ""
    rate = amount / case.median(side, clock)
    text = f"{rate / ceilings[kind]:.0%} of {name}"
    return text + (f" ({rate / peaks[kind == 'stream']:.0%} of datasheet)" if peaks else "")


def table(cases: Sequence[Case], device: str, about: str) -> str:
    """Markdown.

    Args:
      cases: those without times are left out.
      device: `cpu` or `gpu`.
      about: ends with the device's name.
    """
    # On a shared CPU the time of all cores varies less than the clock, so rates are compared by it.
    clock = "cores" if device == "cpu" else "seconds"
    peaks = next((peaks for chip, peaks in PEAKS.items() if about.endswith(chip)), ()) if device == "gpu" else ()
    measured = [case for case in cases if case.seconds]
    ceilings = {
        case.ours[0]: max(case.amount / case.median(side, clock) for side in case.seconds)
        for case in measured
        if case.ours[0] in ("matmul", "stream")
    }
    lines = [
        "| case | jax_rele | torch | ratio (quartiles) | of core time | jax_rele reaches | torch reaches | target |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for case in measured:
        rates = {side: f"{scaled(case.amount / case.median(side))}{case.unit}/s" for side in case.seconds}
        reached = {side: utilization(case, side, ceilings, clock, peaks) for side in case.seconds}
        columns = [
            case.name,
            rates.get("ours", "–"),
            rates.get("theirs", "–"),
            case.ratio(),
            case.ratio("cores") if device == "cpu" else "",
            reached.get("ours", "–"),
            reached.get("theirs", "–"),
            case.goal.get(device, ""),
        ]
        lines.append(f"| {' | '.join(columns)} |")
    names = {case.name: case for case in measured}
    for case in measured:
        if other := names.get(case.compared):
            sides = [side for side in ("ours", "theirs") if side in case.seconds and side in other.seconds]
            gains = {side: f"{other.median(side, clock) / case.median(side, clock):.2f}×" for side in sides}
            name = (
                case.name.replace("label scoring, shared prefix", "shared prefix over whole prompts")
                if case.ours[0] == "shared"
                else f"{case.name} over {case.compared}"
            )
            goal = "≥ 4×" if device == "gpu" and case.ours[:2] == ("shared", 100) else ""
            lines.append(f"| {name} | {gains.get('ours', '–')} | {gains.get('theirs', '–')} | | | | | {goal} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser(__doc__, PARTS, OURS_ALONE)
    parser.add_argument("--shape", choices=SHAPES, help="small on the CPU, 8b on a GPU")
    parser.add_argument("--minutes", type=float, default=8.5, help="no case starts after so long; not with --apart")
    options = parser.parse_args(arguments)
    parts = selected_parts(parser, options, (*PARTS, *OURS_ALONE))
    shape = SHAPES[options.shape or {"cpu": "small", "gpu": "8b"}[options.device]]
    shape = replace(shape, repeats=options.repeats or shape.repeats)
    names = side_names(options, ("torch", "peft"))

    # Weights are the same on both sides where ours writes them to a file; for a large model that takes too long.
    same_weights = options.device == "cpu"
    get_ready = partial(prepare, shape=shape, same_weights=same_weights)
    timed = cases(shape, parts, options.device)

    def save(abouts: dict[str, str]) -> None:
        if options.json:
            rows = [asdict(case) for case in timed]
            document = {"device": options.device, "shape": asdict(shape), "sides": abouts, "cases": rows}
            options.json.write_text(json.dumps(document, indent=1))

    with tempfile.TemporaryDirectory() as folder:
        weights = str(Path(folder, "model")) if same_weights else ""

        def open_side(name: str, deadline: float = math.inf) -> Side:
            environment = ENVIRONMENT[options.device][name] | (ALONE if options.apart else {})
            return Side(name, environment, shape, options.device, weights, deadline=deadline)

        if options.apart:
            seconds = {name: options.apart[name] for name in names}
            longest = CASE_SECONDS[options.device]
            abouts = time_apart(timed, seconds, open_side, get_ready, shape.repeats, save, longest)
        else:
            start = time.monotonic()
            sides = {name: open_side(name) for name in names}
            abouts = {name: side.about for name, side in sides.items()}
            for number, case in enumerate(timed):
                used = {name: side for name, side in sides.items() if getattr(case, name)}
                if used and time.monotonic() - start >= 60 * options.minutes:
                    case.missing |= dict.fromkeys(used, "not run, the time was up")
                elif used:
                    print(f"{time.monotonic() - start:4.0f} s  {case.name}", file=sys.stderr)
                    timed[number] = time_in_turns(case, used, get_ready, shape.repeats)
                    save(abouts)
            for side in sides.values():
                side.close()
    print(table(timed, options.device, next(iter(abouts.values()), "")))
    print()
    print(format_notes(timed, abouts))
    if any(case.failed for case in timed):
        sys.exit("some cases failed; see above")


if __name__ == "__main__":
    main()
