"""Builds the bundled decoder: a small base, in Qwen3 form, that compares attributes before any fine-tuning.

    python scripts/build_bundled/decoder.py FOLDER --work WORK --output OUTPUT

FOLDER is what corpus.py describes. WORK keeps checkpoints, `metrics.jsonl` (loss and held-out metrics over time) and
`settings.json`; the same command again resumes the build. OUTPUT gets the weights (float16 safetensors), the
tokenizer and checksums, and appears whole or not at all.

Examples are written by rules alone (examples.py): rationales with their label for synthetic and judged pairs, and for
each word of a query whether the item has it. Held-out metrics are of queries and products that no example has: `words`,
accuracy of the word task; `asked`, accuracy of verdicts on the dimensions that the query asks for, given the values
before them; `auc`, of Exact on judged pairs, by the label's probability.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from corpus import DEMO, Corpus, check, check_positive, load
from examples import ORDERS, Rules, Writer, dense, fit_rules, made_up, only_asked, short, texts
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec
from shipping import ship
from sklearn.metrics import roc_auc_score
from transformers import PreTrainedTokenizerBase

from jax_rele import config, losses
from jax_rele.data import candidates
from jax_rele.data.batches.loader import batches, rows, shuffled
from jax_rele.data.tokens.packing import pad
from jax_rele.data.tokens.prompts import language_rows
from jax_rele.data.tokens.tokenizers import load_tokenizer, train_tokenizer
from jax_rele.errors import UserError
from jax_rele.io import write_json
from jax_rele.models import Decoder, DecoderConfig
from jax_rele.models.files import read_json
from jax_rele.models.rope import Rope
from jax_rele.teacher import check_verbalizers
from jax_rele.training import TrainState, create_state, make_mesh, make_train_step, shard_step, train
from jax_rele.training.optimizer import learning_rate, make_optimizer
from jax_rele.types import VERDICTS

ROW = 256
"""Tokens of a packed row."""

KIND_WEIGHTS = {"fixed": 0.1, "name": 0.0, "query_values": 0.7, "item_values": 0.7, "verdict": 6.0, "label": 8.0}
TEXT_WEIGHT = 0.1

JUDGED_FRACTION, WORDS_FRACTION, DENSE_FRACTION, SHORT_FRACTION = 0.06, 0.08, 0.14, 0.36
"""Fractions of the examples: judged pairs, repeated; the word task on synthetic pairs, and on short texts; rationales
of short pairs. The rest are rationales of synthetic pairs."""

LOG_EVERY = 40
"""Most steps between two lines of the log; fewer where it does not divide the steps between checkpoints."""

HELD_OUT = 200
"""Pairs of each held-out metric."""


def make_rows(
    corpus: Corpus,
    rules: Rules,
    tokenizer: PreTrainedTokenizerBase,
    teacher: config.TeacherConfig,
    count: int,
    seed: int,
) -> dict[str, Any]:
    """Packed rows of `count` examples, in the form of `language_rows`."""
    rng, draws = random.Random(seed), np.random.default_rng(seed)
    writer = Writer(tokenizer, teacher.prompt_length, teacher.value_length)
    judged = [pair for pair in corpus.judged if pair.label is not None]
    fractions = (JUDGED_FRACTION, WORDS_FRACTION, DENSE_FRACTION, SHORT_FRACTION)
    n_judged, n_words, n_dense, n_short = (round(count * fraction) for fraction in fractions)
    pairs = made_up(corpus, count - n_judged - n_dense - n_short, seed)
    rng.shuffle(pairs)
    brief = short(corpus, n_short, seed)
    asked, compared = pairs[:n_words] + dense(corpus, n_dense, seed), pairs[n_words:] + brief
    rationales = rules.annotator.annotate(compared)
    drawn = [draws.choice(rules.labels, p=probs / probs.sum()) for probs in rules.probs(compared, rationales)]
    rationales = [dataclasses.replace(rationale, label=str(label)) for rationale, label in zip(rationales, drawn)]
    whole = len(compared) - len(brief)
    rationales = rationales[:whole] + [only_asked(rationale) for rationale in rationales[whole:]]
    again = [judged[n % len(judged)] for n in range(n_judged)]
    rationales += rules.annotator.annotate(again)
    compared += again
    orders = rng.choices([*ORDERS], [*ORDERS.values()], k=len(compared))
    prompts, answers = (
        one + other for one, other in zip(writer.judge(compared, rationales, orders), writer.words(asked))
    )
    fits = [n for n in range(len(prompts)) if len(prompts[n]) + len(answers[n].ids) <= ROW]
    return language_rows(
        [prompts[n] for n in fits],
        [answers[n] for n in fits],
        tokenizer.pad_token_id,
        ROW,
        prompt_weight=TEXT_WEIGHT,
        kind_weights=KIND_WEIGHTS,
    )


# ---- held-out figures


def make_measure(
    model: Decoder,
    corpus: Corpus,
    rules: Rules,
    tokenizer: PreTrainedTokenizerBase,
    teacher: config.TeacherConfig,
    seed: int,
) -> tuple[Callable[[TrainState], dict[str, float]], dict[str, float]]:
    """A function that measures a state on the held-out pairs, and the metrics of the most frequent answer."""
    writer = Writer(tokenizer, teacher.prompt_length, teacher.value_length)
    items = [pair.item for pair in corpus.held_out]
    crossed = candidates([*corpus.held_out_queries, *corpus.held_out], items, 1, seed, bm25=0.5)
    random.Random(seed).shuffle(crossed)
    crossed = crossed[:HELD_OUT]
    judged = corpus.held_out
    explained = rules.annotator.annotate(crossed)
    tasks = {
        "words": writer.words(crossed),
        "asked": writer.judge(crossed, explained, ["rationale_first"] * len(crossed)),
        "auc": writer.judge(judged, rules.annotator.annotate(judged), ["label_first"] * len(judged)),
    }
    first = {
        "verdict": [writer.ids(f" {verdict}", "verdict")[0] for verdict in VERDICTS],
        "label": [writer.ids(f" {name}", "label")[0] for name in rules.labels],
    }
    n_verdicts = len(first["verdict"])
    columns = np.array(first["verdict"] + first["label"])

    @jax.jit
    def logits(variables, tokens):
        outputs = model.apply(variables, tokens)
        picked = outputs.output_embedding[columns]
        return jnp.einsum("ble,ce->blc", outputs.hidden, picked, preferred_element_type=jnp.float32)

    def over(variables, name: str) -> np.ndarray:
        prompts, answers = tasks[name]
        full = [[*prompt, *answer.ids] for prompt, answer in zip(prompts, answers)]
        array = pad(full, max(map(len, full)), tokenizer.pad_token_id)
        parts = [logits(variables, array[n : n + 50]) for n in range(0, len(array), 50)]
        return np.concatenate(jax.device_get(parts))

    def verdicts(name: str, answer_logits: np.ndarray | None = None) -> tuple[list[int], list[int]]:
        """The true verdicts of a task, and those with the largest of `answer_logits`."""
        prompts, answers = tasks[name]
        truth, predicted = [], []
        for row in range(len(prompts)):
            positions = [n for n, kind in enumerate(answers[row].kinds) if kind == "verdict"]
            starts = [n for n in positions if answers[row].ids[n] in first["verdict"]]
            if name == "asked":
                is_asked = [bool(comparison.query_values) for comparison in explained[row].comparisons]
                starts = [start for start, asked in zip(starts, is_asked) if asked]
            for start in starts:
                truth.append(first["verdict"].index(answers[row].ids[start]))
                if answer_logits is not None:
                    predicted.append(int(answer_logits[row, len(prompts[row]) + start - 1, :n_verdicts].argmax()))
        return truth, predicted

    def measure(state: TrainState) -> dict[str, float]:
        figures = {}
        for name in ("words", "asked"):
            truth, predicted = verdicts(name, over(state.variables, name))
            figures[name] = float(np.mean(np.equal(truth, predicted)))
        prompts, _ = tasks["auc"]
        outputs = over(state.variables, "auc")
        label_positions = [len(prompt) + len(writer.ids("label:", "fixed")) - 1 for prompt in prompts]
        of_labels = outputs[np.arange(len(outputs)), label_positions, n_verdicts:]
        exact = np.array([pair.label == rules.labels[0] for pair in judged])
        probs = np.exp(of_labels - of_labels.max(-1, keepdims=True))
        figures["auc"] = float(roc_auc_score(exact, probs[:, 0] / probs.sum(-1)))
        return figures

    majority = {}
    for name in ("words", "asked"):
        truth, _ = verdicts(name)
        majority[name] = float(np.bincount(truth).max() / len(truth))
    by_rules = rules.probs(judged, rules.annotator.annotate(judged))[:, 0]
    majority["auc_rules"] = float(roc_auc_score([pair.label == rules.labels[0] for pair in judged], by_rules))
    return measure, majority


# ---- training


def make_tx(name: str, optimization: config.OptimizationConfig) -> optax.GradientTransformation:
    """AdamW, or Muon (Jordan et al., 2024) on the layers' matrices with AdamW on the rest."""
    if name == "adamw":
        return make_optimizer(optimization)
    rate = learning_rate(optimization)

    def matrices(params):
        of_layers = optax.contrib.MuonDimensionNumbers(1, 2)
        return jax.tree_util.tree_map_with_path(
            lambda path, x: of_layers if "layers" in jax.tree_util.keystr(path) and x.ndim == 3 else None, params
        )

    muon = optax.contrib.muon(
        lambda count: rate(count + 1),
        adam_b2=0.98,
        weight_decay=optimization.weight_decay,
        muon_weight_dimension_numbers=matrices,
        # Updates as large as AdamW's, so that both use one learning rate.
        consistent_rms=0.2,
    )
    return optax.chain(optax.clip_by_global_norm(optimization.clip_norm), muon)


def initial(model: Decoder, init: str, seed: int) -> dict[str, Any]:
    """Random variables; with `mimetic` one query head of each group attends to tokens equal to its own from the start.

    Its query projection is its key projection, so that equal tokens match (mimetic initialization, Trockman & Kolter,
    arXiv 2305.09828): to compare texts a model must match equal words, which takes thousands of steps to learn
    otherwise.
    """
    variables = nn.unbox(model.init(jax.random.key(seed), jnp.zeros((1, 8), jnp.int32)))
    if init == "random":
        return variables
    attention = variables["params"]["layers"]["attention"]
    query, key = attention["q_proj"]["kernel"], attention["k_proj"]["kernel"]
    layers, width, _ = query.shape
    heads = query.reshape(layers, width, model.config.kv_heads, -1, model.config.head_dim)
    heads = heads.at[:, :, :, 0].set(key.reshape(layers, width, model.config.kv_heads, -1))
    attention["q_proj"]["kernel"] = heads.reshape(query.shape)
    return variables


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raises UserError for arguments that would fail only after the data are read."""
    check_positive(arguments, zero=("seed",))
    for part, whole in (("kv_heads", "heads"), ("heads", "width")):
        if getattr(arguments, whole) % getattr(arguments, part):
            names = (f"--{name.replace('_', '-')} {getattr(arguments, name)}" for name in (part, whole))
            raise UserError("{}: does not divide {}".format(*names))
    if arguments.output.exists():
        raise UserError(f"{arguments.output}: exists already; remove it or give another folder")
    if arguments.work.exists() and not arguments.work.is_dir():
        raise UserError(f"{arguments.work}: not a folder; give another for --work")


def build(arguments: argparse.Namespace) -> None:
    check_arguments(arguments)
    demo = config.load(DEMO)
    corpus = load(arguments.folder)
    print(json.dumps(check(corpus)), flush=True)
    arguments.work.mkdir(parents=True, exist_ok=True)
    settings = {name: str(value) for name, value in vars(arguments).items() if name not in ("work", "output")}
    path = arguments.work / "settings.json"
    if path.exists() and read_json(path) != settings:
        raise UserError(f"{arguments.work}: was started with other settings ({path.name}); give another --work folder")
    write_json(path, settings)

    folder = arguments.work / "tokenizer"
    if not folder.exists():
        train_tokenizer(texts(corpus) + answer_texts(demo), arguments.vocab_size).save_pretrained(folder)
    tokenizer = load_tokenizer(folder, ("bos", "eos"))
    check_verbalizers(tokenizer, demo.labels.names)
    rules = fit_rules(corpus, demo.labels.names, demo.rationale.dimensions, demo.rationale.tag_map, arguments.seed)
    model = Decoder(
        DecoderConfig(
            vocab_size=len(tokenizer),
            layers=arguments.layers,
            width=arguments.width,
            heads=arguments.heads,
            kv_heads=arguments.kv_heads,
            head_dim=arguments.width // arguments.heads,
            mlp_width=arguments.mlp_width,
            rope=Rope(theta=1e6),
            max_length=1024,
            lora=None,
            dtype=jnp.dtype(arguments.dtype),
            param_dtype=jnp.dtype("float32"),
        )
    )
    begin = time.perf_counter()
    arrays = make_rows(corpus, rules, tokenizer, demo.teacher, arguments.examples, arguments.seed)
    print(f"{len(arrays['targets'])} rows of {ROW} tokens made in {time.perf_counter() - begin:.0f} s", flush=True)
    measure, majority = make_measure(model, corpus, rules, tokenizer, demo.teacher, seed=0)
    print(f"majority {json.dumps(majority)}", flush=True)
    write_json(arguments.work / "majority.json", majority)

    optimization = config.OptimizationConfig(
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        warmup_fraction=0.05,
        schedule="linear",
        checkpoint_every=arguments.checkpoint_every,
        log_every=math.gcd(arguments.checkpoint_every, LOG_EVERY),
    )
    mesh, tx = make_mesh(config.MeshConfig()), make_tx(arguments.optimizer, optimization)
    loss = losses.combine(tokens=losses.term(losses.next_token_cross_entropy, chunk_size=512))
    state = create_state(initial(model, arguments.init, arguments.seed), {}, tx, arguments.seed)
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    print(f"{sum(x.size for x in jax.tree.leaves(state.trainable)):,} parameters", flush=True)
    begin = time.perf_counter()

    def measured(state: TrainState) -> dict[str, float]:
        figures = measure(state)
        message = " ".join(f"{name} {value:.3f}" for name, value in figures.items())
        print(f"step {int(state.step)} {time.perf_counter() - begin:.0f} s: {message}", flush=True)
        return figures

    state = train(
        shard_step(make_train_step(model.apply, loss, tx), mesh, state),
        state,
        batches(rows(arrays), shuffled(len(arrays["targets"]), arguments.batch_size, arguments.seed)),
        config=optimization,
        mesh=mesh,
        directory=arguments.work,
        title="decoder",
        evaluate=measured,
        evaluate_every=arguments.evaluate_every,
    )
    # `to_hf` reads the token ids from this file.
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (folder / "config.json").write_text(json.dumps(ids) + "\n", "utf-8")
    ship(model, state.trainable, folder, arguments.output, "decoder")


def answer_texts(demo: config.Config) -> list[str]:
    """The words of the grammar, repeated so that each becomes one token."""
    lines = [f" {word}" for word in (*VERDICTS, *demo.labels.names)]
    lines += [f"{name}:" for name in (*demo.rationale.dimensions, "label", "judge", "words")] + [" | - | ", "\n"]
    return ["\n".join(lines)] * 2000


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--mlp-width", type=int, default=640)
    parser.add_argument("--examples", type=int, default=125_000)
    parser.add_argument("--steps", type=int, default=4400)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--optimizer", choices=["adamw", "muon"], default="muon")
    parser.add_argument("--init", choices=["mimetic", "random"], default="mimetic", help="of the query projections")
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of the activations")
    parser.add_argument("--checkpoint-every", type=int, default=200)
    parser.add_argument("--evaluate-every", type=int, default=200)
    return parser.parse_args(argv)


if __name__ == "__main__":
    try:
        build(parse())
    except UserError as error:
        sys.exit(f"error: {error}")
