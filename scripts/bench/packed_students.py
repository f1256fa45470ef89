"""A training step of the students on packed rows beside one on padded rows, in turns.

    python scripts/bench/packed_students.py [--shapes demo,minilm] [--students NAME ...] [--pack-to 128] [--repeats 9]

The pairs are those of the sample in the package, in batches of the shape's size; the recipe is mkd with random signals.
Every step is compiled and run once before; then packed and padded steps take turns over the same batches. The table
gives the median and the quartiles of the ratios of the turns, of wall time and of the time of all cores, which on a
shared machine varies less. `docs/benchmarks/packed_rows.md` holds one.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import jax
import numpy as np

from jax_rele import config, losses
from jax_rele.data import SAMPLE, read_pairs
from jax_rele.data.batches.packed_rows import Parts, choose_rows, pack_rows, row_length
from jax_rele.data.tokens.tokenizers import load_tokenizer
from jax_rele.distillation.fields import batch_fields
from jax_rele.models.bundled import folder
from jax_rele.names import STUDENTS
from jax_rele.students import InputSpec, build_student
from jax_rele.students.base import padded_inputs
from jax_rele.training import init_state, make_mesh, make_optimizer, make_train_step, shard_batch, shard_step
from jax_rele.training.sharding import batch_shards

LABELS = ("Exact", "Substitute", "Complement", "Irrelevant")
GAINS = (1.0, 0.1, 0.01, 0.0)
FIELDS = ("brand", "color", "title")
MINILM = {"vocab_size": 30522, "layers": 6, "width": 384, "heads": 12, "mlp_width": 1536}
TINY = {"vocab_size": 30522, "layers": 1, "width": 16, "heads": 2, "mlp_width": 16}
GROUP = 3
BATCHES = 2
"""Batches of a turn."""


@dataclass(frozen=True)
class Shape:
    """An encoder, the tokens of the texts, and the pairs of a batch."""

    title: str
    student: config.StudentConfig
    pairs: int


def shapes() -> dict[str, Shape]:
    bundled = {"init": "bundled:encoder", "query_length": 20, "item_length": 60, "verdict_pooling": "pooled"}
    demo = config.StudentConfig.model_validate({**bundled, "two_tower": {"embedding_width": 0}})
    minilm = config.StudentConfig.model_validate({"random": MINILM, "query_length": 24, "item_length": 72})
    short = config.StudentConfig.model_validate({**bundled, "query_length": 8, "item_length": 20})
    return {
        "demo": Shape("bundled:encoder, 20 + 60", demo, 36),
        "few": Shape("bundled:encoder, 20 + 60", demo, 12),
        "short": Shape("bundled:encoder, 8 + 20: most texts fill their rows", short, 36),
        "minilm": Shape("MiniLM's shape, 24 + 72", minilm, 36),
        "tiny": Shape("one layer, 24 + 72", config.StudentConfig.model_validate({"random": TINY}), 12),
    }


@dataclass
class Case:
    """Steps over the same batches with packed and with padded rows.

    Attributes:
      title: of the table's row.
      tokens: positions that the layers read of a batch, by kind.
      seconds, cores: of a step in each turn, by kind.
    """

    title: str
    runs: dict[str, Callable[[], None]]
    tokens: dict[str, int]
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"padded": [], "packed": []})
    cores: dict[str, list[float]] = field(default_factory=lambda: {"padded": [], "packed": []})

    def turn(self, number: int) -> None:
        for kind in sorted(self.runs, reverse=number % 2 == 1):
            wall, cores = time.perf_counter(), time.process_time()
            self.runs[kind]()
            self.seconds[kind].append((time.perf_counter() - wall) / BATCHES)
            self.cores[kind].append((time.process_time() - cores) / BATCHES)

    def row(self) -> str:
        def ratio(times: dict[str, list[float]]) -> str:
            low, middle, high = np.quantile(np.divide(times["padded"], times["packed"]), (0.25, 0.5, 0.75))
            return f"{middle:.2f} ({low:.2f} – {high:.2f})"

        columns = [self.title, f"{self.tokens['padded']:,} → {self.tokens['packed']:,}"]
        columns += [f"{1e3 * np.median(self.cores[kind]):.0f}" for kind in ("padded", "packed")]
        return f"| {' | '.join([*columns, ratio(self.seconds), ratio(self.cores)])} |"


def cases(shape: Shape, students: Sequence[str], pack_to: int) -> Iterator[Case]:
    mesh = make_mesh(config.MeshConfig())
    tokenizer = load_tokenizer(folder("bundled:encoder"), ("pad", "cls", "sep"))
    pairs, _ = read_pairs(SAMPLE, label_names=LABELS)
    pairs = [pairs[index] for index in np.random.default_rng(0).permutation(len(pairs))]
    spec = InputSpec(FIELDS, shape.student.query_length, shape.student.item_length)
    for name in students:
        vocab_size = MINILM["vocab_size"] if shape.student.init == "random" else len(tokenizer)
        model = build_student(name, shape.student, vocab_size, len(LABELS), 7)
        inputs = padded_inputs(model, tokenizer, pairs, spec)
        parts = Parts(batch_shards(mesh), 1, GROUP)
        starts = range(0, len(pairs) - shape.pairs + 1, shape.pairs)
        packed_rows = {}
        for key in (key for key in inputs if key.endswith("valid")):
            lengths, padded = inputs[key].sum(axis=1), inputs[key].shape[1]
            sampled = [lengths[start:][: shape.pairs] for start in starts]
            packed_rows[key] = choose_rows(sampled, padded, row_length(padded, pack_to), parts)
        terms = losses.recipe("mkd", gains=GAINS, temperature=2.0, heads=model.heads)
        labels = np.array([LABELS.index(pair.label) for pair in pairs], np.int32)
        padded = [
            signals(batch_fields(model, spec, [terms]), {key: x[start:][: shape.pairs] for key, x in inputs.items()},
                    labels[start:][: shape.pairs])
            for start in starts[:BATCHES]
        ]  # fmt: skip
        packed = [pack(batch, packed_rows, pack_to, parts) for batch in padded]
        step_of = make_steps(model, terms, {key: x[:1] for key, x in inputs.items()}, mesh)
        tokens = {"padded": sum(inputs[key].shape[1] * shape.pairs for key in packed_rows)}
        sources = {key: packed[0]["inputs"].get(key.replace("valid", "packing")) for key in packed_rows}
        tokens["packed"] = sum(
            inputs[key].shape[1] * shape.pairs if source is None else source["source"].size
            for key, source in sources.items()
        )
        title = f"{shape.title}; {shape.pairs} pairs; {name.replace('_', '-')}; rows of {pack_to}"
        runs = {kind: step_of(batches) for kind, batches in (("padded", padded), ("packed", packed))}
        yield Case(title, runs, tokens)


def signals(fields, inputs, labels):
    """A batch of these inputs and labels, with random signals."""
    rng, count = np.random.default_rng(0), len(labels)
    batch = {"inputs": inputs, "segments": np.arange(count, dtype=np.int32) // GROUP}
    batch |= {"mask": np.ones(count, bool), "segments_mask": np.ones(count, bool)}
    for name, each in fields.items():
        if name == "inputs":
            continue
        shape = count, *each.shape
        if each.dtype == np.float32:
            batch[name] = rng.dirichlet(np.ones(shape[-1]), shape[:-1]).astype(np.float32)
        else:
            batch[name] = np.ones(shape, each.dtype)
    return {**batch, "labels": labels, "confidence": np.ones(count, np.float32)}


def pack(batch, packed_rows, pack_to, parts):
    inputs = dict(batch["inputs"])
    for key, rows in packed_rows.items():
        valid = batch["inputs"][key]
        padded = valid.shape[1]
        packing = pack_rows(valid.sum(axis=1), padded, rows, row_length(padded, pack_to), parts) if rows else None
        if packing is not None:
            inputs[key.replace("valid", "packing")] = packing
    return {**batch, "inputs": inputs}


def make_steps(model, terms, one, mesh):
    """batches -> a function that runs a step on each; it is compiled and run once."""

    def steps(batches):
        tx = make_optimizer(config.OptimizationConfig())
        state = init_state(lambda rng: model.init(rng, **one), "params", {}, tx, mesh, 0)
        step = shard_step(make_train_step(model.apply, losses.combine(**terms), tx, group_size=GROUP), mesh, state)
        sharded = [shard_batch(batch, mesh) for batch in batches]

        def run():
            nonlocal state
            for batch in sharded:
                state, _ = step(state, batch)
            jax.block_until_ready(state)

        run()
        return run

    return steps


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="demo,few,short,minilm", help="of demo, few, short, minilm, tiny")
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=STUDENTS)
    parser.add_argument("--pack-to", default="128", help="tokens of a packed row, several with commas")
    parser.add_argument("--repeats", type=int, default=9, help="turns of each case")
    options = parser.parse_args(arguments)
    known = shapes()
    if unknown := set(options.shapes.split(",")) - set(known):
        parser.error(f"--shapes: {sorted(unknown)[0]} is not of {', '.join(known)}")
    print("| student | positions of a step | padded, core ms | packed, core ms | ratio of wall | of core time |")
    print("|---|---|---:|---:|---:|---:|")
    for name in options.shapes.split(","):
        for pack_to in map(int, options.pack_to.split(",")):
            for case in cases(known[name], options.students, pack_to):
                for number in range(options.repeats):
                    case.turn(number)
                print(case.row(), flush=True)
    print(f"\n- jax {jax.__version__}, {jax.devices()[0].device_kind}, {len(os.sched_getaffinity(0))} processor cores")


if __name__ == "__main__":
    main()
