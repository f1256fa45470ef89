"""Scoring over rationales that the teacher writes, and over annotated ones that it reads: quality and time.

    python scripts/bench/scoring_without_writing.py runs/demo [--repeats 3] [--pairs 256]

Reads a run that has finished `finetune`. Both ways judge the same validation and test pairs; times alternate, after a
pass of each that compiles.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np

from jax_rele.evaluation.bootstrap import interval, metric_samples, paired_difference, positive_probs
from jax_rele.runs import layout
from jax_rele.runs.load import load_teacher, read_run
from jax_rele.runs.rationale_source import rationale_source
from jax_rele.teacher import Teacher, judge
from jax_rele.text import query_id
from jax_rele.types import Pair


def quality(teachers: dict[str, Teacher], pairs: list[Pair]) -> str:
    """One row of the table of quality."""
    schema = teachers["written"].schema
    judged = {name: judge(teacher, pairs) for name, teacher in teachers.items()}
    labels, queries = np.array([schema.index(pair.label) for pair in pairs]), [query_id(pair.query) for pair in pairs]
    samples = {
        name: metric_samples(
            each.label_probs,
            labels,
            queries,
            schema,
            gain_maps={},
            bias=np.zeros(len(schema)),
            temperature=1.0,
            n_bootstrap=1000,
            seed=0,
        )
        for name, each in judged.items()
    }
    a, b = (interval(values["auc"])["value"] for values in samples.values())
    difference = paired_difference(samples["annotated"], samples["written"])["auc"]
    low, high = difference["ci95"]
    written, annotated = (positive_probs(each.label_probs, schema) for each in judged.values())
    verdicts = [each.verdict_probs.argmax(-1) for each in judged.values()]
    return (
        f"| {len(pairs)} | {a:.3f} | {b:.3f} | {difference['value']:+.3f} [{low:+.3f}, {high:+.3f}] | "
        f"{np.corrcoef(written, annotated)[0, 1]:.3f} | {np.mean(verdicts[0] == verdicts[1]):.1%} |"
    )


def seconds(teacher: Teacher, pairs: list[Pair]) -> tuple[float, float]:
    """Wall and processor time of judging pairs."""
    start = time.perf_counter(), time.process_time()
    judge(teacher, pairs)
    return time.perf_counter() - start[0], time.process_time() - start[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=256)
    args = parser.parse_args()
    config = read_run(args.run_dir)
    sections = {
        name: config.model_copy(update={"score": config.score.model_copy(update={"rationale": name})})
        for name in ("written", "annotated")
    }
    teacher = load_teacher(args.run_dir, config=sections["written"])
    reader = dataclasses.replace(teacher, annotator=rationale_source(sections["annotated"], args.run_dir))
    teachers = {"written": teacher, "annotated": reader}
    print("| split | pairs | AUC, written | AUC, annotated | difference [95%] | correlation | same verdicts |")
    print("|---|---|---|---|---|---|---|")
    for split in ("validation", "test"):
        print(f"| {split} {quality(teachers, layout.load_pairs(args.run_dir, split))}", flush=True)
    timed = layout.load_pairs(args.run_dir, "train")[: args.pairs]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in teachers}
    for repeat in range(args.repeats + 1):
        for name, each in teachers.items():
            measured = seconds(each, timed)
            if repeat:
                times[name].append(measured)
    print(f"\n| {len(timed)} training pairs, median of {args.repeats} | wall, ms a pair | processor, ms a pair |")
    print("|---|---|---|")
    medians = {name: np.median(values, axis=0) for name, values in times.items()}
    for name, (wall, processor) in medians.items():
        print(f"| {name} | {wall / len(timed) * 1e3:.2f} | {processor / len(timed) * 1e3:.2f} |")
    ratios = [np.divide(a, b) for a, b in zip(times["written"], times["annotated"])]
    wall, processor = np.median(ratios, axis=0)
    print(f"| written / annotated | {wall:.1f} | {processor:.1f} |")


if __name__ == "__main__":
    main()
