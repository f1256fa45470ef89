"""The side of jax_rele: each case sets up and yields the function to time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from shapes import FOLLOW, LABELS, Shape, packed, prompts, score_rows

from jax_rele import config, losses
from jax_rele.data import SAMPLE, read_pairs
from jax_rele.data.tokens.prompts import AnswerEncoder
from jax_rele.data.tokens.tokenizers import train_tokenizer
from jax_rele.models import Decoder, DecoderConfig, LoraSpec, to_hf
from jax_rele.models.attention import Mask, attention
from jax_rele.models.quantize import quantize_params
from jax_rele.rationale import grammar
from jax_rele.teacher.continuous_batching import generate
from jax_rele.teacher.decoding import Sampling
from jax_rele.teacher.label_scores import score
from jax_rele.teacher.template import DecodingTemplate, compile_template
from jax_rele.teacher.verbalizers import Verbalizers
from jax_rele.training import (
    init_sharded,
    init_state,
    make_mesh,
    make_optimizer,
    make_train_step,
    shard_batch,
    shard_step,
)

DIMENSIONS = ("category", "brand", "model", "color", "material", "size")


def decoder(shape: Shape, device: str, implementation: str = "", **computed: Any) -> Decoder:
    """The decoder of a shape; the implementation of attention is that of the device by default."""
    return Decoder(
        DecoderConfig(
            vocab_size=shape.vocab_size,
            layers=shape.layers,
            width=shape.width,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            mlp_width=shape.mlp_width,
            tied=shape.tied,
            max_length=4096,
            attention=implementation or ("cudnn" if device == "gpu" else "xla"),
            dtype=jnp.dtype(shape.dtype),
            param_dtype=jnp.dtype(shape.dtype),
            **computed,
        )
    )


def init(model: Decoder) -> Callable[[jax.Array], Any]:
    return lambda rng: model.init(rng, jnp.zeros((1, 8), jnp.int32))


def open_side(shape: Shape, device: str, folder: str) -> tuple[str, dict[str, Any]]:
    """The versions and the device of this side, and its cases by name; its random weights go to `folder`, if not ""."""
    mesh = make_mesh(config.MeshConfig())
    model = decoder(shape, device)
    base = init_sharded(init(model), mesh, jax.random.key(0))
    if folder:
        to_hf(model, base, folder)
    about = f"jax {jax.__version__}, flax {flax.__version__}, " + (
        jax.devices()[0].device_kind if device == "gpu" else f"{len(os.sched_getaffinity(0))} threads"
    )
    return about, {
        "matmul": partial(matmul, shape),
        "stream": partial(stream, shape),
        "sft": partial(sft, shape, device, base, mesh),
        "naive": partial(scored, shape, model, base, False),
        "shared": partial(scored, shape, model, base, True),
        "plain": partial(plain, shape, model, base),
        "guided": partial(guided, shape, model, base),
        "attention": partial(attended, shape),
        "product": partial(product, shape),
        "plain_quantized": partial(plain_quantized, shape, model, base),
    }


@contextmanager
def matmul(shape: Shape) -> Iterator[Callable[[], None]]:
    size, times = shape.matmul
    a, b = (jax.random.normal(jax.random.key(seed), (size, size), jnp.dtype(shape.dtype)) for seed in range(2))
    product = jax.jit(jnp.matmul)

    def run():
        # Each result is dropped when the next is dispatched; the device runs them in order.
        for _ in range(times):
            c = product(a, b)
        c.block_until_ready()

    yield run


@contextmanager
def product(shape: Shape, dtype: str) -> Iterator[Callable[[], None]]:
    """`matmul` of other numbers: of int8 to int32, of the others to the shape's dtype."""
    size, times = shape.matmul
    normal = (jax.random.normal(jax.random.key(seed), (size, size)) for seed in range(2))
    a, b = ((20 * x if dtype == "int8" else x).astype(dtype) for x in normal)
    result = jnp.int32 if dtype == "int8" else jnp.dtype(shape.dtype)

    @jax.jit
    def multiply(a, b):
        # Both are read along their last axis, as the units of 8 bits do.
        return jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=result)

    def run():
        for _ in range(times):
            c = multiply(a, b)
        c.block_until_ready()

    yield run


@contextmanager
def attended(shape: Shape, implementation: str) -> Iterator[Callable[[], None]]:
    """Forward and backward of one layer's attention over the packed rows of a training step."""
    batch = packed(shape)
    mask = Mask(causal=True, query_segments=batch["segments"], key_segments=batch["segments"])
    sizes = (shape.heads, shape.kv_heads, shape.kv_heads)
    query, key, value = (
        jax.random.normal(jax.random.key(seed), (*batch["tokens"].shape, heads, shape.head_dim), jnp.dtype(shape.dtype))
        for seed, heads in enumerate(sizes)
    )

    @jax.jit
    @partial(jax.grad, argnums=(0, 1, 2))
    def gradients(query, key, value):
        return (attention(query, key, value, mask, implementation).astype(jnp.float32) ** 2).sum()

    def run():
        for _ in range(shape.layers):
            results = gradients(query, key, value)
        jax.block_until_ready(results)

    yield run


@contextmanager
def stream(shape: Shape) -> Iterator[Callable[[], None]]:
    elements, times = shape.stream
    source = jax.random.normal(jax.random.key(0), (elements,), jnp.float32)
    scale = jax.jit(lambda x: x * jnp.float32(0.999), donate_argnums=0)

    def run():
        nonlocal source
        for _ in range(times):
            source = scale(source)
        source.block_until_ready()

    yield run


@contextmanager
def sft(
    shape: Shape, device: str, base: Any, mesh: Any, remat: str, implementation: str = ""
) -> Iterator[Callable[[], float]]:
    """A LoRA step as in the stage `finetune`."""
    model = decoder(shape, device, implementation, remat=remat, lora=LoraSpec(shape.rank, 2.0 * shape.rank))
    tx = make_optimizer(config.OptimizationConfig(steps=1000, learning_rate=1e-4))
    state = init_state(init(model), "lora", base, tx, mesh, 0)
    batch = packed(shape)
    inputs = {name: batch.pop(name) for name in ("tokens", "positions", "segments")}
    batch = shard_batch({"inputs": inputs, **batch}, mesh)
    loss = losses.combine(tokens=losses.term(losses.next_token_cross_entropy))
    step = shard_step(make_train_step(model.apply, loss, tx), mesh, state)

    def run():
        nonlocal state
        state, metrics = step(state, batch)
        return float(metrics["loss"])

    yield run


@contextmanager
def scored(
    shape: Shape, model: Decoder, base: Any, share_prefix: bool, items: int
) -> Iterator[Callable[[], np.ndarray]]:
    """Label distributions of all pairs; without `share_prefix` no row shares its prefix."""
    rows, queries = score_rows(shape, items)
    verbalizers = Verbalizers((), tuple((token,) for token in LABELS))
    groups = queries if share_prefix else range(len(rows))
    yield lambda: score(model, base, rows, verbalizers, FOLLOW, groups=groups, batch_size=shape.score_batch)


@contextmanager
def plain(
    shape: Shape, model: Decoder, base: Any, rows: int, length: int, tokens: int
) -> Iterator[Callable[[], list[list[int]]]]:
    """Free text, token by token, after prompts of `length` tokens."""
    last = shape.vocab_size - 1
    template = DecodingTemplate(
        prefix=(),
        value_length=tokens,
        choice=np.array([-1], np.int32),
        forced_suffixes=np.array([[last]], np.int32),
        suffix_lengths=np.array([1], np.int32),
        verbalizers=np.zeros((1, 1, 1), np.int32),
        verbalizer_lengths=np.ones((1, 1), np.int32),
        value_tokens=np.arange(shape.vocab_size) != last,
    )
    texts = prompts(shape, rows, length).tolist()

    def run():
        written, _ = generate(
            model, base, template, [text[:-1] for text in texts], [[text[-1:]] for text in texts],
            batch_size=shape.decode_batch, sampling=Sampling(),
        )  # fmt: skip
        return [list(samples[0].slots[0]) for samples in written]

    yield run


@contextmanager
def plain_quantized(
    shape: Shape, model: Decoder, base: Any, kind: str, *sizes: int
) -> Iterator[Callable[[], list[list[int]]]]:
    """`plain` with projections of fewer bits."""
    with plain(shape, model, {**base, "params": quantize_params(base["params"], kind)}, *sizes) as run:
        yield run


@contextmanager
def guided(
    shape: Shape, model: Decoder, base: Any, rows: int, length: int, value_length: int
) -> Iterator[Callable[[], tuple[int, int, int]]]:
    """Guided rationales: tokens emitted, decisions of the model, and its forward passes."""
    pairs, _ = read_pairs(SAMPLE, label_names=("Exact", "Substitute", "Complement", "Irrelevant"))
    corpus = [grammar.prompt(pair, ("brand", "color", "title")) for pair in pairs]
    segments = grammar.template(DIMENSIONS, "rationale_first")
    # The comparisons alone, without the label.
    segments = segments[: next(index for index, segment in enumerate(segments) if segment.kind == "label") - 1]
    example = "".join(segment.text or " match mismatch absent" for segment in segments)
    tokenizer = train_tokenizer(corpus + [example] * 20, min(shape.vocab_size, 8192))
    encoder = AnswerEncoder(tokenizer, "rationale_first", value_length)
    template = compile_template(tokenizer, encoder, segments, shape.vocab_size)
    texts = prompts(shape, rows, length).tolist()

    def run():
        written, passes = generate(
            model, base, template, texts, [[template.prefix]] * rows, batch_size=shape.decode_batch, sampling=Sampling()
        )
        generations = [samples[0] for samples in written]
        emitted = sum(len(template.tokens(row.slots)) for row in generations)
        return emitted, sum(row.decided for row in generations), passes

    yield run
