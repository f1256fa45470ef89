"""The accuracy that a quantized base loses, before and after adapters are trained over it.

    python scripts/bench/quantization.py [--seeds 3] [--output docs/benchmarks/quantization.md]

Needs the extra `quant`; about five minutes on two CPU cores. For each seed a small decoder is trained in float32 on
rule rationales of the sample's texts. Its projections are then stored in float32, bfloat16, int8 or nf4, and adapters
are trained over each on the labelled pairs' rationales. Held-out losses are means over completion tokens of pairs whose
queries were not trained on. A cell is the median over the seeds, and the least and the largest; differences are taken
within a seed.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jax_rele import losses
from jax_rele.config import Config, MeshConfig, OptimizationConfig, from_dict
from jax_rele.data import candidates, recombine
from jax_rele.data.batches import loader
from jax_rele.data.batches.loader import batches
from jax_rele.data.tokens.prompts import AnswerEncoder, encode_prompts, language_rows
from jax_rele.models import Decoder, build_teacher
from jax_rele.models.decoder import init_decoder
from jax_rele.models.quantize import dequantize_params, quantize_params, stored_bytes
from jax_rele.rationale import RuleAnnotator
from jax_rele.runs import layout, load, pipeline
from jax_rele.stages import finetune
from jax_rele.training import (
    init_state,
    make_evaluate,
    make_mesh,
    make_optimizer,
    make_train_step,
    shard_batch,
    shard_step,
)

KINDS = ("float32", "bfloat16", "int8", "nf4")
CONFIG = {
    "labels": {
        "names": ["Exact", "Substitute", "Complement", "Irrelevant"],
        "gains": [1.0, 0.1, 0.01, 0.0],
        "positive": ["Exact"],
        "aliases": {"E": "Exact", "S": "Substitute", "C": "Complement", "I": "Irrelevant"},
    },
    "data": {
        "path": "sample",
        "fields": {"item": "product", "query_tags": "queryner"},
        "item_fields": ["brand", "color", "title"],
        "splits": {"train": 0.6, "validation": 0.35, "test": 0.05},
    },
    "teacher": {
        "random": {
            "vocab_size": 1024,
            "layers": 2,
            "width": 128,
            "heads": 4,
            "kv_heads": 2,
            "head_dim": 32,
            "mlp_width": 256,
        },
        "lora": {"rank": 8, "alpha": 16.0},
        "order": "rationale_first",
    },
}
BASE = OptimizationConfig(steps=300, batch_size=16, learning_rate=4e-3)
TUNING = OptimizationConfig(steps=80, batch_size=16, learning_rate=4e-3)


def rows_of_rationales(config: Config, run_dir: Path, tokenizer):
    """Rows to train the base on, rows to train adapters on, and held-out rows for each of the two."""
    train, validation = (layout.load_pairs(run_dir, split) for split in ("train", "validation"))
    annotator = RuleAnnotator.fit(train, config.rationale.dimensions, config.rationale.tag_map)
    free = recombine(train, 8000, config.seed)
    free += candidates(train, [pair.item for pair in train], 10, config.seed, bm25=config.data.candidates.bm25)
    encoder = AnswerEncoder(tokenizer, config.teacher.order, config.teacher.value_length)
    prompts = encode_prompts(tokenizer, free, config.data.item_fields, config.teacher.prompt_length)
    answers = [encoder(rationale) for rationale in annotator.annotate(free)]
    base = language_rows(prompts, answers, tokenizer.pad_token_id, prompt_weight=0.1)
    labelled, held_out = (finetune.encode(config, run_dir, tokenizer, pairs)[1:] for pairs in (train, validation))
    return (
        base,
        language_rows(*labelled, tokenizer.pad_token_id),
        # The base was trained without labels.
        language_rows(*held_out, tokenizer.pad_token_id, kind_weights={"label": 0.0}),
        language_rows(*held_out, tokenizer.pad_token_id),
    )


class Experiment:
    """Training and evaluation of one kind of base; compiled once for all seeds."""

    def __init__(self, model: Decoder, collection: str, optimization: OptimizationConfig, mesh: jax.sharding.Mesh):
        self.model, self.collection, self.optimization, self.mesh = model, collection, optimization, mesh
        self.tx, self.step, self.measures = make_optimizer(optimization), None, {}
        self.loss = losses.combine(loss=losses.term(losses.next_token_cross_entropy))

    def start(self, frozen: dict, seed: int):
        init = init_decoder(self.model)
        return init_state(init, self.collection, frozen, self.tx, self.mesh, seed)

    def train(self, state, rows, seed: int):
        if self.step is None:
            self.step = shard_step(make_train_step(self.model.apply, self.loss, self.tx), self.mesh, state)
        data = batches(loader.rows(rows), loader.shuffled(len(rows["targets"]), self.optimization.batch_size, seed))
        for _ in range(self.optimization.steps):
            state, _ = self.step(state, shard_batch(next(data), self.mesh))
        return state

    def measure(self, name: str, state, rows) -> float:
        if name not in self.measures:
            self.measures[name] = make_evaluate(self.model.apply, self.loss, rows, 32, self.mesh)
        return self.measures[name](state)["loss"]


def stored(params: dict, kind: str) -> dict:
    """The base as this kind stores it."""
    if kind == "float32":
        return params
    if kind == "bfloat16":
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    return quantize_params(params, kind)


def error(params: dict, stored_params: dict) -> float:
    """Root mean square error of the projections' kernels over their root mean square."""
    pairs = zip(
        jax.tree.leaves(params["layers"]), jax.tree.leaves(dequantize_params(stored_params, jnp.float32)["layers"])
    )
    kernels = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs if a.ndim == 3]
    return float(np.sqrt(sum(((a - b) ** 2).sum() for a, b in kernels) / sum((a**2).sum() for a, _ in kernels)))


def run(seeds: int) -> tuple[dict[str, list[dict[str, float]]], str]:
    """One dict of figures for each kind and seed, and what they were measured on."""
    mesh = make_mesh(MeshConfig())
    with tempfile.TemporaryDirectory() as folder:
        config = from_dict({**CONFIG, "name": "quantization", "run_root": folder})
        pipeline.run(config, ("prepare", "annotate"))
        model, tokenizer = load.teacher_model(config, config.run_dir)
        base_rows, tuning_rows, base_held, tuned_held = rows_of_rationales(config, config.run_dir, tokenizer)
    half = build_teacher(config.teacher.model_copy(update={"dtype": "bfloat16"}), len(tokenizer))
    first = Experiment(model, "params", BASE, mesh)
    over = {kind: Experiment(half if kind == "bfloat16" else model, "lora", TUNING, mesh) for kind in KINDS}
    results = {kind: [] for kind in KINDS}
    for seed in range(seeds):
        params = first.train(first.start({}, seed), base_rows, seed).trainable["params"]
        for kind, experiment in over.items():
            stored_params = stored(params, kind)
            state = experiment.start({"params": stored_params}, seed)
            # Adapters start as the identity.
            figures = {"error": error(params, stored_params), "base": experiment.measure("base", state, base_held)}
            figures["tuned"] = experiment.measure("tuned", experiment.train(state, tuning_rows, seed), tuned_held)
            figures["bytes"] = stored_bytes(stored_params["layers"]) / stored_bytes(params["layers"])
            results[kind].append(figures)
            print(seed, kind, {name: round(value, 4) for name, value in figures.items()}, flush=True)
    shape = model.config
    weights = sum(x.size for x in jax.tree.leaves(params))
    about = (
        f"{seeds} seeds; {shape.layers} layers of width {shape.width}, {weights:,} weights; base: {BASE.steps} steps "
        f"of {BASE.batch_size} rows; adapters of rank {shape.lora.rank}: {TUNING.steps} steps of {TUNING.batch_size}; "
        f"trained on {len(tuning_rows['targets'])} pairs, held out {len(base_held['targets'])}"
    )
    return results, about


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """The figures as a Markdown table."""

    def cell(kind, name, less=None):
        values = [row[name] - (other[name] if less else 0) for row, other in zip(results[kind], results["float32"])]
        sign = "+" if less else ""
        return f"{statistics.median(values):{sign}.4f} ({min(values):{sign}.4f} to {max(values):{sign}.4f})"

    lines = [
        "| base | bytes | error | base alone: held-out loss | against float32 | with adapters: held-out loss | against "
        "float32 |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, rows in results.items():
        fraction, rms = rows[0]["bytes"], statistics.median(row["error"] for row in rows)
        cells = [cell(kind, "base"), cell(kind, "base", less=True), cell(kind, "tuned"), cell(kind, "tuned", less=True)]
        lines.append(f"| {kind} | {fraction:.3f} | {rms:.2%} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="a file to write the table to, with what it was measured on")
    args = parser.parse_args()
    results, about = run(args.seeds)
    device = f"{jax.devices()[0].device_kind}, {platform.machine()}, jax {jax.__version__}"
    text = f"{table(results)}\n\n{about}; {device}; {time.process_time():.0f} s of processor time."
    print(f"\n{text}")
    if args.output:
        args.output.write_text(PAGE.format(table=text), "utf-8")


PAGE = """# The accuracy of a quantized base

    python scripts/bench/quantization.py --output docs/benchmarks/quantization.md

A small decoder is trained in float32 on rule rationales of the bundled sample's texts. Its projections are then kept
in float32, bfloat16 (activations too), int8 (a scale an output channel) or nf4 (a scale a tile of 64 weights), and
adapters are trained over each on rationales of labelled pairs. Cells are the median over the seeds and, in brackets,
the least and the largest; differences are taken within a seed. Losses are nats a token, over completions of pairs whose
queries were not trained on; the base's leaves the label out, which it has never seen. Bytes and errors are those of the
projections.

{table}

A model this small shows that the arithmetic is right, not what 4 bits cost a model of 8 billion weights: there the
paper (Dettmers et al., arXiv 2305.14314) reports that nf4 under adapters matches 16-bit fine-tuning. Measure your own
run by `finetune.evaluate_every`, once with `teacher.quantize: none` and once without.
"""


if __name__ == "__main__":
    main()
