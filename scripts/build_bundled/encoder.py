"""Trains the small encoder that the package ships: product language, distilled from all-MiniLM-L6-v2 and from rules.

    python scripts/build_bundled/encoder.py FOLDER --output DIR

FOLDER is that of `corpus.py`. DIR is written in the Hugging Face form in float16. The same command again resumes the
build; `--work` (default: DIR.work) keeps the checkpoints, `metrics.jsonl` and `progress.log` (held-out metrics over
time) and `log.json` (the last ones, with 95% intervals over resampled queries).

The encoder learns to embed single texts as MiniLM does, reduced to its width, and to predict of pairs of query and
item: MiniLM's cosine, the rule annotator's verdicts and their evidence, and which words occur on both sides. The heads
are dropped.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import encoder_teacher as teacher
import encoder_texts as material
import jax
import jax.numpy as jnp
import numpy as np
import optax
from corpus import Corpus, check, check_positive, load
from encoder_figures import PAIR_LENGTHS, TEXT_LENGTHS, figures, make_measure
from encoder_learner import Learner, objective, optimizer
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec
from shipping import ship

from jax_rele import config
from jax_rele.data.batches.loader import batches
from jax_rele.data.batches.sampler import Stream, shuffle_streams
from jax_rele.data.tokens.tokenizers import load_tokenizer
from jax_rele.errors import UserError
from jax_rele.evaluation.bootstrap import interval
from jax_rele.io import atomic_path, write_json
from jax_rele.models import Encoder, EncoderConfig
from jax_rele.training import TrainState, create_state, make_mesh, make_train_step, shard_step, train
from jax_rele.types import VERDICTS

MAX_LENGTH = 128
LENGTHS = tuple(zip(TEXT_LENGTHS, PAIR_LENGTHS))
"""Tokens of texts and of pairs that batches are padded to: few combinations, because each is compiled."""

WINDOW = 32
"""Steps whose rows are batched by length together."""

UNASKED, OF_ITEM = 0.1, 0.3
"""Weights of verdicts on dimensions that the query does not ask for, and of the item's words in the word task."""

TABLE_SIZE, BRANCH = 0.05, 0.3
"""Initial root mean square of the word table, and the factor of the kernels that write to the residual stream."""

RESAMPLES = 1000


# ---- rows


def prepare(corpus: Corpus, folder: Path, arguments: argparse.Namespace) -> dict[str, np.ndarray]:
    """All arrays of the training and the evaluation; computed once and stored in `folder` with the tokenizer."""
    done = folder / "arrays.npz"
    if done.is_file():
        with np.load(done) as stored:
            return dict(stored)
    gathered = material.gather(
        corpus,
        crossed=arguments.crossed,
        recombined=arguments.recombined,
        held_out=arguments.held_out,
        seed=arguments.data_seed,
    )
    texts = list(gathered.texts)
    material.train_word_piece(texts, arguments.vocab_size, folder / "tokenizer")
    tokenizer = load_tokenizer(folder / "tokenizer", ("pad", "cls", "sep"))
    embed = partial(teacher.embeddings, folder=arguments.minilm, cache=folder / "minilm.npz")

    def cosines(pairs):
        sides = [embed(side) for side in ([p.query for p in pairs], [material.item_text(p.item) for p in pairs])]
        return np.einsum("nw,nw->n", *(side.astype(np.float32) for side in sides))

    arrays = material.prefixed("text", material.text_arrays(tokenizer, texts, list(gathered.texts.values())))
    arrays["text_targets"] = embed(texts)
    vocabulary = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    arrays["word_targets"] = embed([token.removeprefix("##") for token in vocabulary])
    for name, pairs in (("pair", gathered.pairs), ("crossed", gathered.held_out_pairs), ("judged", corpus.held_out)):
        table = material.pair_arrays(tokenizer, pairs, gathered.annotator)
        arrays |= material.prefixed(name, {**table, "cosines": cosines(pairs)})
        if name != "pair":
            queries, items = [pair.query for pair in pairs], [material.item_text(pair.item) for pair in pairs]
            for side, (whole, number) in {"query": (queries, 0), "item": (items, 1)}.items():
                arrays |= material.prefixed(
                    f"{name}_{side}", material.text_arrays(tokenizer, whole, [number] * len(whole))
                )
    arrays["judged_overlap"] = np.array([material.overlap(pair) for pair in corpus.held_out])
    arrays["judged_exact"] = np.array([pair.label == "Exact" for pair in corpus.held_out])
    arrays["judged_queries"] = np.unique([pair.query for pair in corpus.held_out], return_inverse=True)[1]
    with atomic_path(done) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    return arrays


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def reader(arrays: Mapping[str, np.ndarray], targets: np.ndarray) -> Callable[[np.ndarray, np.ndarray], dict]:
    """A function from indices, of as many texts as pairs, texts first, to a batch; it ignores the row numbers."""
    count, cosines = len(targets), arrays["pair_cosines"]
    standard = (cosines - cosines.mean()) / max(cosines.std(), 1e-6)
    eye = np.eye(len(VERDICTS), dtype=np.float32)
    weight_of = np.array([0.0, 1.0, OF_ITEM], np.float32)

    def read(numbers, row_numbers):
        half = len(numbers) // 2
        texts, pairs = numbers[:half], numbers[half:] - count
        text_lengths, pair_lengths = arrays["text_lengths"][texts], arrays["pair_lengths"][pairs]
        needed = text_lengths.max(), pair_lengths.max()
        of_text, of_pair = next(both for both in LENGTHS if both[0] >= needed[0] and both[1] >= needed[1])
        text_valid = np.arange(of_text) < text_lengths[:, None]
        pair_valid = np.arange(of_pair) < pair_lengths[:, None]
        owners = arrays["pair_owners"][pairs, :of_pair]
        return {
            "inputs": {
                "text": {
                    "tokens": arrays["text_tokens"][texts, :of_text],
                    "types": np.where(text_valid, arrays["text_sides"][texts, None], 0).astype(np.int32),
                    "valid": text_valid,
                },
                "pair": {
                    "tokens": arrays["pair_tokens"][pairs, :of_pair],
                    "types": arrays["pair_types"][pairs, :of_pair].astype(np.int32),
                    "valid": pair_valid,
                },
            },
            "target": targets[texts],
            "expected_cosine": standard[pairs].astype(np.float32),
            "verdict_probs": eye[arrays["pair_verdicts"][pairs]],
            "asked": np.where(arrays["pair_asked"][pairs], 1.0, UNASKED).astype(np.float32),
            "evidence_tags": arrays["pair_evidence"][pairs, :of_pair].astype(np.int32),
            "evidence_tags_mask": owners > 0,
            "occurs": arrays["pair_occurs"][pairs, :of_pair].astype(np.int32),
            "occurs_weight": weight_of[owners],
        }

    return read


# ---- training


def initial(
    learner: Learner,
    inputs: Mapping[str, Any],
    word_vectors: np.ndarray,
    tx: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    seed: int,
) -> TrainState:
    """The state at step 0: the word table holds MiniLM's embedding of each token [V, W], and layers add little to it.

    In every layer the key projection starts equal to the query projection, so that a token attends to equal tokens: the
    word task is then learnt within a hundred steps, and otherwise not within several hundred.
    """
    words = jnp.asarray(word_vectors * (TABLE_SIZE * word_vectors.shape[1] ** 0.5))

    def make():
        params = nn.unbox(learner.init(jax.random.key(seed), **inputs))["params"]
        layers = params["encoder"]["layers"]
        for name in ("output", "down"):
            layers[name]["kernel"] *= BRANCH
        layers["key"] = jax.tree.map(jnp.copy, layers["query"])
        params["encoder"]["word_embedding"] = words
        return create_state({"params": params}, {}, tx, seed)

    return jax.jit(make, out_shardings=NamedSharding(mesh, PartitionSpec()))()


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains and writes the encoder; returns the last metrics."""
    output, work = arguments.output, arguments.work or arguments.output.with_name(arguments.output.name + ".work")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: exists and is not empty; choose another --output or remove it")
    check_positive(arguments, zero=("seed", "data_seed", "dropout", "crossed", "recombined"))
    if arguments.width % arguments.heads:
        raise UserError(f"--width: {arguments.width} is no multiple of --heads ({arguments.heads})")
    if not arguments.minilm.is_dir():
        raise UserError(f"--minilm: {arguments.minilm}: no such folder")
    corpus = load(arguments.folder)
    data_folder = arguments.prepared or work / "prepared"
    _record_settings(data_folder, arguments, OF_DATA)
    _record_settings(work, arguments, OF_TRAINING)
    begin = time.perf_counter()
    arrays = prepare(corpus, data_folder, arguments)
    tokenizer = load_tokenizer(data_folder / "tokenizer", ("pad", "cls", "sep"))
    axes = teacher.principal(arrays["text_targets"], arguments.width)
    targets, words = (unit(arrays[name].astype(np.float32) @ axes) for name in ("text_targets", "word_targets"))

    encoder = EncoderConfig(
        vocab_size=len(tokenizer),
        max_length=MAX_LENGTH,
        layers=arguments.layers,
        width=arguments.width,
        heads=arguments.heads,
        mlp_width=arguments.mlp_width,
        dropout=arguments.dropout,
    )
    optimization = config.OptimizationConfig(
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        warmup_fraction=0.05,
        checkpoint_every=arguments.checkpoint_every,
        log_every=math.gcd(20, arguments.checkpoint_every),
    )
    learner, mesh, tx = Learner(encoder), make_mesh(config.MeshConfig()), optimizer(optimization)
    read = reader(arrays, targets)
    rows, pairs = len(targets), len(arrays["pair_tokens"])
    streams = [
        Stream(np.arange(rows), (arguments.batch_size,)),
        Stream(np.arange(rows, rows + pairs), (arguments.batch_size,)),
    ]
    sizes = np.concatenate([arrays["text_lengths"], arrays["pair_lengths"]])
    ordered = shuffle_streams(streams, arguments.seed, sizes=sizes, window=WINDOW)
    first = read(ordered.batch(0), np.arange(arguments.batch_size))
    state = initial(learner, first["inputs"], words, tx, mesh, arguments.seed)
    measure = make_measure(learner, arrays)
    log = work / "progress.log"

    def evaluate(state):
        measured = {
            name: float(value[0]) for name, value in figures(measure(state.trainable["params"]), arrays).items()
        }
        line = {"step": int(state.step), "seconds": round(time.perf_counter() - begin)}
        line |= {name: round(value, 4) for name, value in measured.items()}
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return measured

    state = train(
        shard_step(make_train_step(learner.apply, objective(), tx), mesh, state),
        state,
        batches(read, ordered, np.arange(arguments.batch_size)),
        config=optimization,
        mesh=mesh,
        directory=work,
        title="encoder",
        evaluate=evaluate,
        evaluate_every=arguments.evaluate_every,
    )
    # The rounded parameters are measured, because they are the ones that are written.
    params = jax.tree.map(lambda x: x.astype(jnp.float16), nn.unbox(state.trainable["params"]["encoder"]))
    rounded = {**state.trainable["params"], "encoder": jax.tree.map(lambda x: x.astype(jnp.float32), params)}
    samples = figures(measure(rounded), arrays, RESAMPLES)
    log_of = {
        "settings": _settings(arguments, (*OF_DATA, *OF_TRAINING)),
        "corpus": check(corpus),
        "texts": rows,
        "pairs": pairs,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "figures": {name: interval(values) for name, values in samples.items()},
        "auc_less_minilm": interval(samples["auc"] - samples["auc_minilm"]),
        "auc_less_overlap": interval(samples["auc"] - samples["auc_overlap"]),
    }
    (work / "log.json").write_text(json.dumps(log_of, indent=2) + "\n", "utf-8")
    ship(Encoder(encoder), {"params": params}, data_folder / "tokenizer", output, "encoder")
    return log_of


OF_DATA = ("folder", "data_seed", "vocab_size", "crossed", "recombined", "held_out", "minilm")
OF_TRAINING = (
    *("seed", "layers", "width", "heads", "mlp_width", "dropout", "steps", "batch_size", "learning_rate"),
    *("checkpoint_every", "evaluate_every"),
)


def _settings(arguments: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    values = {name: getattr(arguments, name) for name in names}
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def _record_settings(folder: Path, arguments: argparse.Namespace, names: tuple[str, ...]) -> None:
    """Writes a folder's settings. Raises UserError where it has other ones."""
    path, settings = folder / "settings.json", _settings(arguments, names)
    folder.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        known = json.loads(path.read_text("utf-8"))
        changed = [name for name in names if known.get(name) != settings[name]]
        if changed:
            name = changed[0]
            raise UserError(
                f"{folder}: made with --{name.replace('_', '-')} {known.get(name)}, not {settings[name]}; remove the "
                "folder or give another"
            )
    else:
        write_json(path, settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folder", type=Path)
    add("--output", type=Path, required=True, help="the encoder's folder; must not exist or be empty")
    add("--work", type=Path, help="checkpoints and logs")
    add("--prepared", type=Path, help="folder of texts, tokenizer and embeddings, which several trainings can share")
    add("--minilm", type=Path, default=None, help=f"all-MiniLM-L6-v2; default: that of the package {teacher.PACKAGE}")
    add("--seed", type=int, default=0, help="of the training")
    add("--data-seed", type=int, default=0, help="of the pairs")
    add("--vocab-size", type=int, default=8192)
    add("--crossed", type=int, default=4, help="pairs of each query with items that are not judged for it")
    add("--recombined", type=int, default=20000, help="synthetic pairs")
    add("--held-out", type=int, default=1000, help="crossed pairs to measure on")
    add("--layers", type=int, default=2)
    add("--width", type=int, default=256)
    add("--heads", type=int, default=4)
    add("--mlp-width", type=int, default=1024)
    add("--dropout", type=float, default=0.0)
    add("--steps", type=int, default=2800)
    add("--batch-size", type=int, default=64, help="texts, and pairs, of a step")
    add("--learning-rate", type=float, default=4e-3, help="of the kernels, at its peak")
    add("--checkpoint-every", type=int, default=200)
    add("--evaluate-every", type=int, default=400)
    arguments = parser.parse_args()
    arguments.minilm = arguments.minilm or teacher.default_folder()
    print(json.dumps(run(arguments)["figures"], indent=2))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
