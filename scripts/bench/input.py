"""The cost of input: memory, pairs per second, and the time that a student of MiniLM's size waits for its batches.

    python scripts/bench/input.py [--pairs 5000000] [--steps 16] [--output docs/benchmarks/input.md]
    python scripts/bench/input.py --rows 200000 [--turns 2] [--other CHECKOUT]

About 25 minutes on two CPU cores, 6 GB of disk. Pairs and signals of random words are written as `prepare` and `score`
write them; then the columns that a cross-encoder learns from by `mkd` are made (tokens, evidence, labels, signals), the
loader is run alone, and the student is trained for some steps. The last row is the full size; the rows before it show
how memory grows. Each size runs in a process of its own. Memory is anonymous memory (RssAnon): the system can reclaim
pages of mapped files.

With `--rows`, files of as many labelled rows are written instead, ten rows a query, and the stage `prepare` reads each,
without candidates, in a process that may use one core and in one that may use all. Times are processor time of it and
the processes that it starts, so that other work on the machine counts little, and in the last column by the clock.
`--other` names another checkout of the package, which reads the same files in turn.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WORDS, CHUNK, CANDIDATES, TURNS = 20_000, 50_000, 9, 3
LENGTHS = {"query_length": 16, "item_length": 48}
MINILM = {"vocab_size": 30_522, "layers": 6, "width": 384, "heads": 12, "mlp_width": 1536}


@contextmanager
def peak(results: dict, name: str):
    """Measures a block: its seconds, and its peak anonymous memory in MB."""
    done, most = threading.Event(), [0]

    def sample():
        while not done.wait(0.05):
            most[0] = max(most[0], anonymous())

    thread = threading.Thread(target=sample)
    thread.start()
    begin = time.perf_counter()
    try:
        yield
    finally:
        results[name] = {"seconds": time.perf_counter() - begin}
        done.set()
        thread.join()
        results[name]["mb"] = max(most[0], anonymous()) / 1024


def anonymous() -> int:
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.split("RssAnon:")[1].split()[0])


def texts(rng, words, count, low, high):
    lengths = rng.integers(low, high + 1, count)
    # Word frequencies follow Zipf's law.
    picked = words[np.minimum(rng.zipf(1.2, lengths.sum()), len(words)) - 1]
    ends = np.cumsum(lengths)
    return [" ".join(picked[end - length : end]) for end, length in zip(ends, lengths)]


def write_tables(folder: Path, count: int, config) -> None:
    """One labelled pair a query and `CANDIDATES` unlabelled ones, with the signals of all."""
    from jax_rele.data import PAIRS, join_tables
    from jax_rele.data.signals.table import SCHEMA
    from jax_rele.runs import layout

    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.unique(["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(WORDS)])
    rng.shuffle(words)
    labels, dimensions = config.labels.names, config.rationale.dimensions
    metadata = {b"jax_rele.labels": json.dumps(labels), b"jax_rele.dimensions": json.dumps(dimensions)}
    paths = [folder / name for name in (layout.PAIRS, layout.UNLABELLED, layout.SIGNALS)]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    parts = [folder / name for name in ("labelled_signals.parquet", "other_signals.parquet")]
    options = {"compression": "zstd", "write_page_checksum": True}
    with (
        pq.ParquetWriter(paths[0], PAIRS, **options) as labelled_pairs,
        pq.ParquetWriter(paths[1], PAIRS, **options) as unlabelled_pairs,
        pq.ParquetWriter(parts[0], SCHEMA.with_metadata(metadata), **options) as labelled_signals,
        pq.ParquetWriter(parts[1], SCHEMA.with_metadata(metadata), **options) as other_signals,
    ):
        for start in range(0, count, CHUNK):
            size = min(CHUNK, count - start)
            number = np.arange(start, start + size)
            queries = texts(rng, words, -(-size // (1 + CANDIDATES)), 1, 6)
            titles, brands = texts(rng, words, size, 6, 22), texts(rng, words, size, 1, 1)
            has_label = number % (1 + CANDIDATES) == 0
            rows = [
                {
                    "pair_id": f"p{n}",
                    "query": queries[i // (1 + CANDIDATES)],
                    "item": {
                        **dict.fromkeys(("color", "category", "bullets", "description"), ""),
                        "id": f"i{n}",
                        "title": title,
                        "brand": brand,
                        "attributes": [],
                    },
                    "label": labels[n % len(labels)] if labelled else None,
                    "locale": "us",
                    "split": "train",
                    **dict.fromkeys(("tags", "query_frequency", "long_tail")),
                }
                for i, (n, title, brand, labelled) in enumerate(zip(number, titles, brands, has_label))
            ]
            table = pa.Table.from_pylist(rows, schema=PAIRS)
            labelled_pairs.write_table(table.filter(pa.array(has_label)), row_group_size=4096)
            unlabelled_pairs.write_table(table.filter(pa.array(~has_label)), row_group_size=4096)
            probs = rng.dirichlet(np.ones(len(labels)), size).astype(np.float32)
            verdicts = rng.dirichlet(np.ones(3), (size, len(dimensions))).astype(np.float32)
            signals = pa.Table.from_pydict(
                {
                    "pair_id": [f"p{n}" for n in number],
                    "label_probs": list(probs),
                    "verdict_probs": [list(row) for row in verdicts],
                    "evidence": [
                        [{"source": "title", "start": 0, "end": title.index(" "), "dimension": "brand"}]
                        for title in titles
                    ],
                    "rationale": [f"brand: - | {brand} | absent" for brand in brands],
                    "confidence": np.ones(size, np.float32),
                    "rationale_embedding": [None] * size,
                },
                schema=SCHEMA,
            ).replace_schema_metadata(metadata)
            labelled_signals.write_table(signals.filter(pa.array(has_label)))
            other_signals.write_table(signals.filter(pa.array(~has_label)))
    join_tables(paths[2], parts)  # in the order of the tables of pairs


def work(count: int, steps: int, folder: Path) -> dict:
    """The measurements at one size."""
    import jax

    from jax_rele.config import from_dict
    from jax_rele.data import PairTable
    from jax_rele.data.tokens.tokenizers import train_tokenizer
    from jax_rele.runs import layout
    from jax_rele.stages import distill

    n_steps = max(steps, 1)
    optimization = {"steps": n_steps, "batch_size": 32, "learning_rate": 1e-5}
    optimization |= dict.fromkeys(("log_every", "checkpoint_every"), n_steps)
    config = from_dict(
        {
            "cache_dir": str(folder / "cache"),
            "student": {"random": MINILM, **LENGTHS},
            "distill": {
                "students": ["cross_encoder"],
                "recipes": ["mkd"],
                "length_buckets": 4,
                "optimization": optimization,
            },
        }
    )
    results: dict = {"pairs": count}
    with peak(results, "write"):
        write_tables(folder, count, config)
    table = PairTable(folder / layout.UNLABELLED)
    sample = [f"{pair.query} {pair.item.title}" for pair in table[: min(2000, len(table))]]
    train_tokenizer(sample, 8000, encoder=True).save_pretrained(folder / layout.STUDENT_TOKENIZER)
    with peak(results, "columns"):
        trainer = distill.prepare(config, folder).trainer("mkd", ["cross_encoder"])
    with peak(results, "again"):
        distill.prepare(config, folder).trainer("mkd", ["cross_encoder"])
    batches = trainer.batches(0)
    next(batches)
    read = 0
    with peak(results, "loader"):
        for _ in range(min(2000, count // 32)):
            read += int(next(batches)["mask"].sum())
    results["loader"]["pairs"] = read
    results["disk_mb"] = sum(path.stat().st_size for path in (folder / "cache").rglob("*") if path.is_file()) / 2**20
    del batches
    if steps:
        trainer.fit(0, folder / "first", "first")  # compiles
        results["waits"], results["step_pairs"] = [], []
        for turn in range(TURNS):
            with peak(results, "train"):
                trainer.fit(0, folder / f"train{turn}", "train")
            (line,) = (folder / f"train{turn}" / "metrics.jsonl").read_text("utf-8").splitlines()
            results["waits"].append(json.loads(line)["input_wait"])
            results["step_pairs"].append(json.loads(line)["pairs_per_second"])
    results["jax"] = jax.__version__
    return results


# ---- rows


def write_rows(folder: Path, count: int) -> list[Path]:
    """Files of the same rows; one text in a thousand is not ASCII, one row in twenty needs quotes in CSV."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.unique(["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(WORDS)])
    words = np.concatenate([words, ["café", "größe", "靴", '12"', "a,b"]])
    rng.shuffle(words)
    queries = texts(rng, words, -(-count // 10), 1, 6)
    columns: dict[str, list] = {
        "pair_id": [f"p{n}" for n in range(count)],
        "query": [f"{queries[n // 10]} {n // 10}" for n in range(count)],
        "item_id": [f"i{n}" for n in range(count)],
        "title": texts(rng, words, count, 6, 22),
        "brand": texts(rng, words, count, 1, 1),
        "color": texts(rng, words, count, 1, 1),
        "label": np.array(["Exact", "Substitute", "Complement", "Irrelevant"])[rng.integers(0, 4, count)].tolist(),
        "locale": ["us"] * count,
    }
    table = pa.table(columns)
    paths = [folder / f"rows{count}.{suffix}" for suffix in ("jsonl", "csv", "parquet")]
    with paths[0].open("w", encoding="utf-8") as file:
        for row in table.to_pylist():
            item = {"id": row.pop("item_id")} | {name: row.pop(name) for name in ("title", "brand", "color")}
            file.write(json.dumps({**row, "item": item}, ensure_ascii=False) + "\n")
    with paths[1].open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values()))
    pq.write_table(table, paths[2])
    return paths


def processor_seconds() -> np.ndarray:
    """[2] of this process, and of those that it has waited for."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return np.array([usage.ru_utime + usage.ru_stime for usage in usages])


def prepare_rows(path: str, one_core: bool, folder: Path) -> dict:
    """Runs `prepare` on a file."""
    from jax_rele.config import from_dict
    from jax_rele.stages import prepare

    if one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    vocabulary = {"random": {"vocab_size": 320}}
    data = {"path": path, "candidates": {"per_query": 0}}
    config = from_dict({"run_root": str(folder), "data": data, "teacher": vocabulary, "student": vocabulary})
    results: dict = {}
    begin = processor_seconds()
    with peak(results, "prepare"):
        counts = prepare.run(config, config.run_dir)
    seconds = processor_seconds() - begin
    return {
        "rows": counts["rows"]["read"],
        "seconds": seconds.sum(),
        "own_seconds": seconds[0],
        "wall_seconds": results["prepare"]["seconds"],
        "mb": results["prepare"]["mb"],
    }


def measure_rows(count: int, turns: int, other: str | None, folder: Path) -> str:
    """Runs `prepare` in turns; a Markdown table of the medians."""
    checkouts = [str(Path(__file__).parents[2]), *([other] if other else [])]

    def run(path: Path, one_core: bool, checkout: str) -> dict:
        command = [sys.executable, __file__, "--prepare", str(path), "--folder", str(folder)]
        environment = {**os.environ, "PYTHONPATH": checkout}
        command += ["--one-core"] if one_core else []
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        return json.loads(done.stdout.splitlines()[-1])

    header = ["file", "rows/s, one core", "rows/s of a core, all cores", "of them in the main process"]
    header.append("rows/s by the clock, all cores")
    lines = [f"| {' | '.join([*header, *(['the other, one core', 'times'] if other else [])])} |"]
    lines.append("|---" + "|---:" * (lines[0].count("|") - 2) + "|")
    for path in write_rows(folder, count):
        results: list[list[dict]] = []
        for _ in range(turns):
            results.append([run(path, True, checkout) for checkout in checkouts] + [run(path, False, checkouts[0])])
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)
        speeds = [statistics.median(count / turn[i]["seconds"] for turn in results) for i in range(len(results[0]))]
        in_main = statistics.median(turn[-1]["own_seconds"] / turn[-1]["seconds"] for turn in results)
        by_clock = statistics.median(count / turn[-1]["wall_seconds"] for turn in results)
        cells = [path.suffix[1:], f"{speeds[0]:,.0f}", f"{speeds[-1]:,.0f}", f"{in_main:.0%}", f"{by_clock:,.0f}"]
        cells += [f"{speeds[1]:,.0f}", f"{speeds[0] / speeds[1]:.1f}"] if other else []
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


# ---- reports


def report(rows: list[dict]) -> str:
    phases = ("columns", "loader", "train")
    names = (
        "pairs",
        "columns made, pairs/s",
        "again, s",
        "loader, pairs/s",
        f"peak MB: {phases[0]}",
        *phases[1:],
        "cache MB",
    )
    lines = [f"| {' | '.join(names)} |", "|---:" * len(names) + "|"]
    for row in rows:
        making = row["columns"]["seconds"] - row["again"]["seconds"]
        cells = [
            f"{row['pairs']:,}",
            f"{row['pairs'] / making:,.0f}",
            f"{row['again']['seconds']:.1f}",
            f"{row['loader']['pairs'] / row['loader']['seconds']:,.0f}",
            *(f"{row[phase]['mb']:.0f}" if phase in row else "–" for phase in phases),
            f"{row['disk_mb']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    last = rows[-1]
    waits, speed = (statistics.median(last[name]) for name in ("waits", "step_pairs"))
    alone = last["loader"]["pairs"] / last["loader"]["seconds"]
    cores = len(os.sched_getaffinity(0))
    lines += [
        "",
        f"The student's steps take {speed:.1f} pairs/s, the loader alone gives {alone / speed:,.0f} times as many. "
        f"Fraction of the training's time spent waiting for input: median {waits:.2%}, most {max(last['waits']):.2%}, "
        f"over {len(last['waits'])} trainings.",
        "",
        f"{platform.machine()}, {cores} cores, Python {platform.python_version()}, jax {last['jax']}.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5_000_000)
    parser.add_argument("--steps", type=int, default=16, help="of the student, at the largest size")
    parser.add_argument("--folder", default=None, help="where the tables go; a temporary folder by default")
    parser.add_argument("--output", default=None, help="a Markdown file to write as well")
    parser.add_argument("--rows", type=int, default=0, help="measure `prepare` on files of so many rows instead")
    parser.add_argument("--turns", type=int, default=2, help="with --rows: how often each file is read")
    parser.add_argument("--other", default=None, help="with --rows: another checkout of the package")
    parser.add_argument("--worker", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--prepare", default="", help=argparse.SUPPRESS)
    parser.add_argument("--one-core", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rows or options.prepare:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            if options.prepare:
                print(json.dumps(prepare_rows(options.prepare, options.one_core, Path(folder))), flush=True)
            else:
                print(measure_rows(options.rows, options.turns, options.other, Path(folder)))
        return
    if options.worker:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            print(json.dumps(work(options.worker, options.steps, Path(folder))), flush=True)
        return
    sizes = [size for size in (options.pairs // 100, options.pairs // 10, options.pairs) if size >= 200]
    rows = []
    for size in sizes:
        command = [
            sys.executable,
            __file__,
            "--worker",
            str(size),
            "--steps",
            str(options.steps if size == sizes[-1] else 0),
        ]
        if options.folder:
            command += ["--folder", options.folder]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    text = report(rows)
    print(text)
    if options.output:
        Path(options.output).write_text(f"# Input\n\n{__doc__.strip()}\n\n{text}\n", "utf-8")


if __name__ == "__main__":
    main()
