"""The side of jax_rele in the students' benchmark: each case sets up and yields the function to time."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from students_work import CLIP_NORM, LABELS, LEARNING_RATE, WEIGHT_DECAY, Batch, Work, heads, read_batches, read_pairs
from worker import peak_memory

from jax_rele import config, losses
from jax_rele.data.batches.packed_rows import Parts, choose_rows, pack_rows, row_length
from jax_rele.data.tokens.tokenizers import load_tokenizer
from jax_rele.models import from_hf
from jax_rele.students import CrossEncoder, InputSpec, Student, TwoTower, embed, padded_inputs, predict
from jax_rele.students.weights import with_encoder
from jax_rele.training import init_state, make_mesh, make_optimizer, make_train_step, shard_batch, shard_step
from jax_rele.training.sharding import batch_shards
from jax_rele.types import Item, Pair

DIMENSIONS = 6


def open_side(work: Work, device: str, folder: str, weights: str) -> tuple[str, dict[str, Any]]:
    """The versions and the device of this side, and its cases by name."""
    about = f"jax {jax.__version__}, " + (
        jax.devices()[0].device_kind if device == "gpu" else f"{len(os.sched_getaffinity(0))} threads"
    )
    return about, {
        "predict": partial(predicted, work, folder, weights),
        "forward": partial(forward, work, folder, weights),
        "train": partial(train, work, folder, weights),
        "memory": partial(memory, device),
    }


def student(
    work: Work, weights: str, name: str, *, mesh: jax.sharding.Mesh | None = None, dropout: float = 0.0
) -> tuple[nn.Module, Any, Any]:
    """The model, its init function and the encoder's parameters, which are trained where there is a mesh."""
    dtype = jnp.dtype(work.dtype)
    param_dtype = dtype if mesh is None else jnp.float32
    encoder, variables = from_hf(weights, dtype=dtype, param_dtype=param_dtype, mesh=mesh, dropout=dropout)
    # The other side has no part for each dimension, hence `pooled`.
    if name == "cross_encoder":
        model = CrossEncoder(encoder.config, LABELS, DIMENSIONS, verdict_pooling="pooled")
    else:
        sizes = LABELS, DIMENSIONS, 0, 16
        model = TwoTower(encoder.config, *sizes, distinguish_sides=False, verdict_pooling="pooled")
    tokenizer = load_tokenizer(weights, ("pad", "cls", "sep"))
    lengths = work.query_length, work.item_length
    inputs = padded_inputs(model, tokenizer, [Pair("", "a", Item("", "b"))], InputSpec(("title",), *lengths))
    return model, lambda rng: model.init(rng, **inputs), variables["params"]


def with_heads(params: dict[str, Any], name: str, width: int) -> dict[str, Any]:
    """The parameters with the heads that both sides have."""
    weights = heads(width)
    if name == "cross_encoder":
        # The label's weights on the verdicts start at zero, as the other side has no verdicts.
        nothing = jax.tree.map(np.zeros_like, params["label_of_verdicts"])
        new = {"label_head": {key: weights[key] for key in ("kernel", "bias")}, "label_of_verdicts": nothing}
    else:
        new = {"label_slope": weights["slope"], "label_bias": weights["slope_bias"]}
    put = {key: jax.tree.map(lambda x, old: jax.device_put(x, old.sharding), new[key], params[key]) for key in new}
    return {**params, **put}


def ready(work: Work, weights: str, name: str) -> Student:
    model, init, encoder = student(work, weights, name)
    params = jax.jit(lambda rng: nn.unbox(init(rng)))(jax.random.key(0))["params"]
    used = {key: encoder[key] for key in params["encoder"]}
    params = with_heads({**params, "encoder": used}, name, model.encoder.width)
    tokenizer = load_tokenizer(weights, ("pad", "cls", "sep"))
    return Student(
        model, {"params": params}, tokenizer, ("title",), work.query_length, work.item_length, batch_size=work.batch
    )


@contextmanager
def predicted(work: Work, folder: str, weights: str, name: str) -> Iterator[Callable[[], np.ndarray]]:
    """From texts to logits [N, C] of the pairs, or to the embeddings [2 N, E] of the queries and then of the titles."""
    pairs, model = read_pairs(folder), ready(work, weights, name)

    def run():
        if name == "cross_encoder":
            return np.asarray(predict(model, pairs).logits, np.float32)
        sides = zip(("query", "item"), zip(*pairs))
        return np.concatenate([embed(model, texts, side) for side, texts in sides])

    yield run


@contextmanager
def forward(work: Work, folder: str, weights: str, name: str, kind: str) -> Iterator[Callable[[], np.ndarray]]:
    """The model alone over prepared batches; rows in the order of `predicted`."""
    batches, loaded = read_batches(folder, f"{name}.{kind}"), ready(work, weights, name)

    @jax.jit
    def outputs(variables, tokens, valid, token_types=None):
        if name == "cross_encoder":
            return loaded.model.apply(variables, tokens, token_types, valid).logits
        return loaded.model.apply(variables, tokens, valid, 0, method="encode")

    inputs = [{key: batch[key] for key in batch if key not in ("indices", "side")} for batch in batches]
    indices = np.concatenate([batch["indices"] + work.pairs * int(batch["side"]) for batch in batches])

    def run():
        results = jax.device_get([outputs(loaded.variables, **batch) for batch in inputs])
        return np.concatenate(results).astype(np.float32)[np.argsort(indices)]

    yield run


def arguments(name: str, batch: Batch) -> dict[str, Any]:
    """A batch in the form of `make_train_step`."""
    if name == "cross_encoder":
        inputs = {key: batch[f"{key}0"] for key in ("tokens", "token_types", "valid")}
    else:
        sides = enumerate(("query", "item"))
        inputs = {f"{side}_{key}": batch[f"{key}{n}"] for n, side in sides for key in ("tokens", "valid")}
    return {"inputs": inputs, "labels": batch["labels"]}


def pack(batches: Sequence[dict[str, Any]], mesh: jax.sharding.Mesh) -> None:
    """Adds to padded batches how the stage `distill` packs their rows by default."""
    parts = Parts(batch_shards(mesh), 1, 1)
    for key in [key for key in batches[0]["inputs"] if key.endswith("valid")]:
        lengths = [batch["inputs"][key].sum(axis=1) for batch in batches]
        padded = batches[0]["inputs"][key].shape[1]
        length = row_length(padded, config.DistillConfig().pack_to)
        rows = choose_rows(lengths, padded, length, parts)
        for batch, each in zip(batches, lengths):
            packing = pack_rows(each, padded, rows, length, parts) if rows else None
            if packing is not None:
                batch["inputs"][key.replace("valid", "packing")] = packing


@contextmanager
def train(
    work: Work, folder: str, weights: str, name: str, kind: str, dropout: float, times: int
) -> Iterator[Callable[[], list[float]]]:
    """Steps as in the stage `distill`, over all batches, `times` times; the loss of each."""
    mesh = make_mesh(config.MeshConfig())
    model, init, encoder = student(work, weights, name, mesh=mesh, dropout=dropout)
    tx = make_optimizer(
        config.OptimizationConfig(
            learning_rate=LEARNING_RATE,
            schedule="constant",
            warmup_fraction=0,
            weight_decay=WEIGHT_DECAY,
            clip_norm=CLIP_NORM,
        )
    )
    state = init_state(init, "params", {}, tx, mesh, 0)
    params = with_heads(with_encoder(state.trainable["params"], encoder), name, model.encoder.width)
    state = dataclasses.replace(state, trainable={"params": params})
    file = f"{name}.{kind.replace('packed', 'padded')}"
    batches = [arguments(name, batch) for batch in read_batches(folder, file)]
    if kind == "steps_packed":
        pack(batches, mesh)
    batches = [shard_batch(batch, mesh) for batch in batches]
    loss = losses.combine(label=losses.term(losses.cross_entropy))
    step = shard_step(make_train_step(model.apply, loss, tx), mesh, state)

    def run():
        nonlocal state
        step_losses = []
        for batch in batches * times:
            state, metrics = step(state, batch)
            step_losses.append(metrics["loss"])
        return [float(loss) for loss in step_losses]

    yield run


@contextmanager
def memory(device: str) -> Iterator[Callable[[], int]]:
    """Peak bytes of the device, or of the process on the CPU."""
    if device == "gpu":
        yield lambda: jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    else:
        yield peak_memory
