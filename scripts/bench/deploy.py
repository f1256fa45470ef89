"""What an exported student costs: its export, ONNX Runtime beside sentence-transformers, 8-bit weights, batch scoring.

    python scripts/bench/deploy.py RUN [--parts export,onnx,load,int8,batch] [--seconds 10] [--json OUT]

RUN is a finished run with `student.verdict_pooling: pooled`, whose students sentence-transformers can load too. The
parts onnx and load need torch and sentence-transformers. Both sides have the same weights, texts, lengths and threads
and take turns in one process, each time in the other order; a figure is the median of ratios within a turn. `load`
offers pairs at times that are fixed beforehand, and a latency is counted from the intended time. See
docs/benchmarks/deploy.md.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jax_rele.deployment import load_bundle
from jax_rele.errors import UserError
from jax_rele.runs import layout

PARTS = ("export", "onnx", "load", "int8", "batch")
TURNS = 7
LOADS = (0.3, 0.6, 0.8)
Row = dict[str, object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load")
    parser.add_argument("--pairs", type=int, default=2000, help="of the batch measurement")
    parser.add_argument("--turns", type=int, default=3, help="of the batch measurement")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rates", type=float, nargs="*", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        return measure_side(options)
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--parts: there is no {unknown.pop()}; there are {', '.join(PARTS)}")
    print(f"{processor()}, {options.threads} threads\n")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for part in PARTS:
            if part in parts:
                rows += globals()[part](options, folder)
    print_table(rows)
    if options.json:
        options.json.write_text(json.dumps({"processor": processor(), "rows": rows}, indent=2) + "\n", "utf-8")


def processor() -> str:
    """The processor's name and the instructions that matter for products of matrices."""
    text = Path("/proc/cpuinfo").read_text("utf-8") if Path("/proc/cpuinfo").exists() else ""
    name = next(
        (line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "processor"
    )
    flags = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8") if f" {flag}" in text]
    return f"{name} ({', '.join(flags)})"


def exported(options: argparse.Namespace, folder: Path, model: str, form: str, *more: str) -> Path:
    """An export of the run; made once."""
    output = folder / "-".join([model, form, *more])
    if not output.exists():
        command = ["export", str(options.run), "--model", model, "--format", form, "--output", str(output), *more]
        subprocess.run([sys.executable, "-m", "jax_rele.cli", *command], check=True, stdout=subprocess.DEVNULL)
    return output


def export(options: argparse.Namespace, folder: Path) -> list[Row]:
    """Time, memory and imports of an export in a process of its own."""
    rows: list[Row] = []
    code = (
        "import sys, resource, time; start = time.perf_counter(); from jax_rele.deployment import export_student; "
        "export_student(*sys.argv[1:]); print(time.perf_counter() - start, "
        "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "
        "'torch' in sys.modules)"
    )
    for model in ("cross_encoder", "two_tower"):
        command = [sys.executable, "-c", code, str(options.run), str(folder / f"timed-{model}"), model]
        seconds, kilobytes, torch = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[
            -3:
        ]
        rows.append(row(f"export of the {model}, s", float(seconds), "≤ 10"))
        rows.append(row(f"export of the {model}, peak memory, MB", int(kilobytes) / 1024, "≤ 1,000"))
        rows.append(row(f"export of the {model}, torch imported", torch == "True", "no"))
        for form in ("onnx", "stablehlo", "sentence-transformers"):
            parity = json.loads((exported(options, folder, model, form) / "parity.json").read_text("utf-8"))
            differences = {
                k: v for k, v in parity["largest_difference"].items() if k in ("label_logits", "score", "inner_product")
            }
            name = f"{form} of the {model} against JAX, largest difference, {'/'.join(differences)}"
            rows.append(
                row(
                    name,
                    max(differences.values()),
                    "≤ 1e-5; the same order" if parity["same_order"] else "ORDER DIFFERS",
                )
            )
    return rows


def texts_of(options: argparse.Namespace) -> tuple[list, list[tuple[str, str]]]:
    """Pairs of the test split, and their texts as sentence-transformers takes them."""
    pairs = layout.load_pairs(options.run, "test")
    fields = ("brand", "color", "title")
    return pairs, [(pair.query, " ".join(text for _, text in pair.item.texts(fields))) for pair in pairs]


def theirs(options: argparse.Namespace, folder: Path):
    """The cross-encoder in sentence-transformers, on its torch backend."""
    import torch
    from sentence_transformers import CrossEncoder

    torch.set_num_threads(options.threads)
    return CrossEncoder(str(exported(options, folder, "cross_encoder", "sentence-transformers")), device="cpu")


def onnx(options: argparse.Namespace, folder: Path) -> list[Row]:
    """ONNX Runtime beside sentence-transformers' torch backend, from texts to scores."""
    pairs, texts = texts_of(options)
    # First, as torch's threads are many times slower where a session of ONNX Runtime was made before them.
    other = theirs(options, folder)
    other.predict(texts[:4], show_progress_bar=False)
    scorer, rows = load_bundle(exported(options, folder, "cross_encoder", "onnx"), threads=options.threads), []
    difference = np.abs(scorer.predict(pairs[:64]).scores - other.predict(texts[:64], show_progress_bar=False)).max()
    rows.append(row("scores of the two sides, largest difference", float(difference), "≤ 1e-5"))
    for size, count, goal in ((1, 40, "≥ 2.0"), (32, 4, "≥ 1.3")):
        starts = [n * size % (len(pairs) - size) for n in range(count)]

        def ours_once(starts: Sequence[int] = starts, size: int = size) -> None:
            for start in starts:
                scorer.predict(pairs[start : start + size])

        def theirs_once(starts: Sequence[int] = starts, size: int = size) -> None:
            for start in starts:
                other.predict(texts[start : start + size], batch_size=size, show_progress_bar=False)

        ratio, seconds = take_turns(ours_once, theirs_once)
        rows.append(
            row(
                f"sentence-transformers' time / ours, batch {size}", ratio, goal, f"ours {seconds / count * 1e3:.1f} ms"
            )
        )
    return rows


def load(options: argparse.Namespace, folder: Path) -> list[Row]:
    """Latency of single pairs that arrive at random times, at fractions of what sentence-transformers can do.

    Each side is a process of its own: torch's threads and those of ONNX Runtime wait for each other in one.
    """
    for form in ("onnx", "sentence-transformers"):
        exported(options, folder, "cross_encoder", form)

    def measure(side: str, rates: Sequence[float]) -> list[float]:
        command = [sys.executable, __file__, str(options.run), "--side", side, "--folder", str(folder)]
        command += ["--seconds", str(options.seconds), "--threads", str(options.threads), "--rates", *map(str, rates)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return [float(word) for word in done.stdout.split()]

    (capacity,) = measure("theirs", [0])
    rates = [fraction * capacity for fraction in LOADS]
    ours, theirs = measure("ours", rates), measure("theirs", rates)
    return [
        row(
            f"p95 at {fraction:.0%} of what sentence-transformers can do ({rate:.0f} pairs/s), theirs / ours",
            b / a,
            "> 1",
            f"ours {a * 1e3:.1f} ms, theirs {b * 1e3:.1f} ms",
        )
        for fraction, rate, a, b in zip(LOADS, rates, ours, theirs)
    ]


def measure_side(options: argparse.Namespace) -> None:
    """Prints the p95 of one side in seconds at each rate; at the rate 0, how many pairs a second it can do."""
    pairs, texts = texts_of(options)
    if options.side == "ours":
        scorer = load_bundle(options.folder / "cross_encoder-onnx", threads=options.threads)

        def call(n: int) -> None:
            scorer.predict([pairs[n % len(pairs)]])
    else:
        model = theirs(options, options.folder)

        def call(n: int) -> None:
            model.predict([texts[n % len(texts)]], show_progress_bar=False)

    for n in range(20):
        call(n)
    for rate in options.rates:
        if rate == 0:
            start = time.perf_counter()
            for n in range(60):
                call(n)
            print(60 / (time.perf_counter() - start))
        else:
            arrivals = np.cumsum(np.random.default_rng(0).exponential(1 / rate, int(rate * options.seconds)))
            print(float(np.quantile(open_loop(call, arrivals), 0.95)))


def open_loop(call: Callable[[int], object], arrivals: np.ndarray) -> np.ndarray:
    """Latencies of calls one after the other, each from the time at which it was to begin."""
    latencies, begin = [], time.perf_counter()
    for number, arrival in enumerate(arrivals):
        wait = arrival - (time.perf_counter() - begin)
        if wait > 0:
            time.sleep(wait)
        call(number)
        latencies.append(time.perf_counter() - begin - arrival)
    return np.array(latencies)


def int8(options: argparse.Namespace, folder: Path) -> list[Row]:
    """8-bit weights beside float32 ones, where the gate lets them pass."""
    pairs, rows = texts_of(options)[0], []
    for model in ("cross_encoder", "two_tower"):
        full = load_bundle(exported(options, folder, model, "onnx"), threads=options.threads)
        try:
            small = folder / f"{model}-int8"
            from jax_rele.deployment import export_student

            parity = export_student(options.run, small, model, int8="any")
        except UserError as error:
            rows.append(
                row(
                    f"int8 of the {model}",
                    False,
                    "gate passed, or not offered",
                    str(error).split("refused: ")[-1][:120],
                )
            )
            continue
        quantised = load_bundle(small, threads=options.threads)
        ratio, _ = take_turns(lambda: quantised.predict(pairs[:128]), lambda: full.predict(pairs[:128]))  # noqa: B023
        figures = parity["int8"]
        assert isinstance(figures, dict)
        shown = ", ".join(f"{k} {v:.4f}" for k, v in figures.items() if isinstance(v, float))
        rows.append(row(f"float32's time / int8's, {model}", ratio, "≥ 1.3, gate passed", shown))
    return rows


def batch(options: argparse.Namespace, folder: Path) -> list[Row]:
    """Shards by one process beside a plain loop, and by two processes beside one."""
    bundle, pairs = exported(options, folder, "cross_encoder", "onnx"), texts_of(options)[0]
    file = folder / "pairs.jsonl"
    lines = [json.dumps({"query": p.query, "item": {"id": p.item.id or "i", "title": p.item.title}}) for p in pairs]
    file.write_text("\n".join((lines * (1 + options.pairs // len(lines)))[: options.pairs]) + "\n", "utf-8")
    code = (
        "import sys, time; from jax_rele.deployment.batch import Worker, predict_shards; import json\n"
        "from jax_rele.deployment import load_bundle; from jax_rele.data import read_pairs\n"
        "bundle, file, out, worker, kind = sys.argv[1:]; start = time.perf_counter()\n"
        "if kind == 'loop':\n"
        "    number, count = map(int, worker.split('/'))\n"
        "    scorer = load_bundle(bundle, threads=1); pairs, _ = read_pairs(file, label_names=(), "
        "for_prediction=True)\n"
        "    starts = range((number - 1) * 256, len(pairs), count * 256)\n"
        "    begin = time.perf_counter()\n"
        "    for n in starts: scorer.predict(pairs[n : n + 256])\n"
        "    print(256 * len(starts) / (time.perf_counter() - begin))\n"
        "else:\n"
        "    ends = [(time.perf_counter(), 0)]\n"
        "    def on_shard(rows): ends.append((time.perf_counter(), rows))\n"
        "    predict_shards(bundle, file, out, rows=256, worker=Worker.parse(worker), threads=1, progress=on_shard)\n"
        "    print(sum(rows for _, rows in ends[2:]) / (ends[-1][0] - ends[1][0]))\n"
        "print(time.perf_counter() - start)"
    )

    def start_process(kind: str, part: str, out: Path) -> subprocess.Popen:
        command = [sys.executable, "-c", code, str(bundle), str(file), str(out), part, kind]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def measure(kind: str, count: int, out: Path) -> tuple[float, float]:
        """Seconds until the last process has ended, and rows per second of all after the first shard of each."""
        running = [start_process(kind, f"{n + 1}/{count}", out) for n in range(count)]
        words = [process.communicate()[0].split() for process in running]
        return max(float(each[-1]) for each in words), sum(float(each[0]) for each in words)

    kinds = {"loop": ("loop", 1), "loops": ("loop", 2), "one": ("shards", 1), "two": ("shards", 2)}
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    for turn in range(options.turns):
        for name in list(kinds)[:: 1 if turn % 2 else -1]:
            turns[name].append(measure(*kinds[name], folder / f"{name}-{turn}"))
    loops, pairs_of_loops, ones, twos = turns.values()
    note = f"{options.pairs} pairs, median of {options.turns} turns"
    return [
        row(
            "plain loop's time / one process's, both with start-up",
            statistics.median(a[0] / b[0] for a, b in zip(loops, ones)),
            "≥ 0.95",
        ),
        row(
            "one process's time / two processes', with start-up",
            statistics.median(a[0] / b[0] for a, b in zip(ones, twos)),
            "≥ 1.8 on two cores",
            note,
        ),
        row(
            "two processes' rate / one's, without start-up",
            statistics.median(b[1] / a[1] for a, b in zip(ones, twos)),
            "≥ 1.8 on two cores",
            note,
        ),
        row(
            "two plain loops' rate / one's: what this machine's two cores give",
            statistics.median(b[1] / a[1] for a, b in zip(loops, pairs_of_loops)),
            "",
            note,
        ),
        row("pairs per second, one process, one thread", options.pairs / statistics.median(a for a, _ in ones), ""),
        row("peak memory of this process, MB", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, ""),
    ]


def take_turns(ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[float, float]:
    """The median over turns of their time divided by ours, and our median time in seconds."""
    ours(), theirs()
    ratios, times = [], []
    for turn in range(TURNS):
        spent = {}
        for name, call in (("ours", ours), ("theirs", theirs))[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            call()
            spent[name] = time.perf_counter() - start
        ratios.append(spent["theirs"] / spent["ours"])
        times.append(spent["ours"])
    return statistics.median(ratios), statistics.median(times)


def row(what: str, value: float | bool, goal: str, note: str = "") -> Row:
    """A line of the table."""
    return {"what": what, "value": value, "goal": goal, "note": note}


def print_table(rows: Sequence[Row]) -> None:
    """Prints the rows as Markdown."""
    print("| what | measured | target | |\n|---|---|---|---|")
    for each in rows:
        value = each["value"]
        shown = ("yes" if value else "no") if isinstance(value, bool) else f"{value:.3g}"
        print(f"| {each['what']} | {shown} | {each['goal']} | {each['note']} |")


if __name__ == "__main__":
    main()
