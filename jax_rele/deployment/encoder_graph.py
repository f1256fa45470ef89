"""The students' encoder as ONNX nodes: what `jax_rele.models.Encoder` computes, for its four families."""

from __future__ import annotations

import math

import jax
import numpy as np

from jax_rele.deployment.graph import MASKED, Graph
from jax_rele.models.encoder import EncoderConfig
from jax_rele.models.rope import Rope
from jax_rele.types import Params

QUANTISED = "encoder_product"
"""Begins the names of the products that 8-bit presets replace: those of the layers but the feed-forward's second, whose
inputs have outliers."""


def add_encoder(
    graph: Graph, config: EncoderConfig, params: Params, tokens: str, mask: str, types: str | int
) -> tuple[str, str]:
    """Adds an encoder.

    Args:
      graph: the graph that gets the nodes.
      config: shape of the encoder.
      params: its parameters as numpy arrays.
      tokens, mask: names of int64 [B, L] inputs; mask is 1 for tokens and 0 for padding.
      types: a like input, or one token type for all tokens.

    Returns:
      The names of the token vectors [B, L, W] and of the mask as bool [B, L].
    """
    valid = graph.op("Cast", mask, to=9)  # bool
    length = graph.op("Shape", tokens, start=1, end=2)
    x = graph.op(
        "Add",
        graph.op("Gather", _table(params, "word_embedding"), tokens),
        _positions(graph, config, params, mask, length),
    )
    x = _add_types(graph, config, params, x, types)
    x = graph.layer_norm(x, params["embedding_norm"], config.norm_eps)
    attended = graph.op("Unsqueeze", valid, [1, 2])
    distance = _distance(graph, length) if any(config.windows) else ""
    rotations = {theta: _rotation(graph, config, theta, length) for theta in set(config.rope_thetas)}
    y = x
    for number in range(config.layers):
        layer = jax.tree.map(lambda stacked, number=number: np.asarray(stacked[number], np.float32), params["layers"])
        seen = attended
        if config.windows and config.windows[number]:
            near = graph.op("Less", distance, graph.constant(config.windows[number], np.int64))
            seen = graph.op("And", attended, near)
        rotation = rotations[config.rope_thetas[number]] if config.rope_thetas else None
        x, y = _add_block(graph, config, layer, x, y, seen, rotation)
    return y, valid


def _add_block(
    graph: Graph, config: EncoderConfig, layer: Params, x: str, y: str, seen: str, rotation: tuple[str, str] | None
) -> tuple[str, str]:
    """One layer: the residual stream, and what the next layer's attention reads."""
    query, key, value = (
        _heads(graph, config, graph.dense(y, layer[name], QUANTISED)) for name in ("query", "key", "value")
    )
    if rotation is not None:
        query, key = _rotate(graph, config, query, rotation), _rotate(graph, config, key, rotation)
    scores = graph.op("MatMul", query, graph.op("Transpose", key, perm=[0, 1, 3, 2]))
    scores = graph.op("Mul", scores, (config.width // config.heads) ** -0.5)
    weights = graph.op("Softmax", graph.op("Where", seen, scores, MASKED), axis=-1)
    mixed = graph.op("Transpose", graph.op("MatMul", weights, value), perm=[0, 2, 1, 3])
    mixed = graph.op("Reshape", mixed, [0, 0, config.width])
    x = graph.op("Add", graph.dense(mixed, layer["output"], QUANTISED), x)
    if config.prenorm:
        y = graph.layer_norm(x, layer["mlp_norm"], config.norm_eps)
    else:
        y = x = graph.layer_norm(x, layer["attention_norm"], config.norm_eps)
    up = graph.dense(y, layer["up"], QUANTISED)
    if config.gated:
        up = graph.op("Mul", activate(graph, graph.dense(y, layer["gate"], QUANTISED), config.activation), up)
    else:
        up = activate(graph, up, config.activation)
    x = graph.op("Add", graph.dense(up, layer["down"]), x)
    if config.prenorm:
        return x, graph.layer_norm(x, layer["next_norm"], config.norm_eps)
    x = graph.layer_norm(x, layer["mlp_norm"], config.norm_eps)
    return x, x


def _table(params: Params, name: str) -> np.ndarray:
    return np.asarray(params[name], np.float32)


def _positions(graph: Graph, config: EncoderConfig, params: Params, mask: str, length: str) -> str | float:
    """What is added to the word vectors for the positions."""
    if config.rope_thetas:
        return 0.0
    table = _table(params, "position_embedding")
    if not config.position_offset:
        return graph.op("Slice", table, [0], length, [0])
    counted = graph.op("Mul", graph.op("CumSum", mask, graph.constant(1, np.int64)), mask)
    offset = graph.constant(config.position_offset - 1, np.int64)
    return graph.op("Gather", table, graph.op("Add", counted, offset))


def _add_types(graph: Graph, config: EncoderConfig, params: Params, x: str, types: str | int) -> str:
    if not config.token_types:
        return x
    table = _table(params, "token_type_embedding")
    last = config.token_types - 1
    if isinstance(types, int):
        return graph.op("Add", x, table[min(types, last)])
    if not last:
        return graph.op("Add", x, table[0])
    return graph.op("Add", x, graph.op("Gather", table, graph.op("Min", types, graph.constant(last, np.int64))))


def _indices(graph: Graph, length: str) -> str:
    """0 .. L - 1, int64."""
    size = graph.op("Squeeze", length, [0])
    return graph.op("Range", graph.constant(0, np.int64), size, graph.constant(1, np.int64))


def _distance(graph: Graph, length: str) -> str:
    """[L, L] int64, how far apart two tokens are."""
    indices = _indices(graph, length)
    return graph.op("Abs", graph.op("Sub", graph.op("Unsqueeze", indices, [1]), graph.op("Unsqueeze", indices, [0])))


def _rotation(graph: Graph, config: EncoderConfig, theta: float, length: str) -> tuple[str, str]:
    """Cosines and sines [L, head_dim / 2] of the rotary positions."""
    frequencies = np.asarray(Rope(theta).frequencies(config.width // config.heads), np.float32)
    positions = graph.op("Unsqueeze", graph.op("Cast", _indices(graph, length), to=1), [1])
    angles = graph.op("Mul", positions, frequencies)
    return graph.op("Cos", angles), graph.op("Sin", angles)


def _heads(graph: Graph, config: EncoderConfig, x: str) -> str:
    """[B, L, W] -> [B, H, L, head_dim]."""
    split = graph.op("Reshape", x, [0, 0, config.heads, config.width // config.heads])
    return graph.op("Transpose", split, perm=[0, 2, 1, 3])


def _rotate(graph: Graph, config: EncoderConfig, x: str, rotation: tuple[str, str]) -> str:
    half, (cos, sin) = config.width // config.heads // 2, rotation
    first, second = (graph.op("Slice", x, [begin], [begin + half], [3]) for begin in (0, half))
    left = graph.op("Sub", graph.op("Mul", first, cos), graph.op("Mul", second, sin))
    right = graph.op("Add", graph.op("Mul", second, cos), graph.op("Mul", first, sin))
    return graph.op("Concat", left, right, axis=-1)


def activate(graph: Graph, x: str, name: str) -> str:
    """An activation of `jax_rele.models.encoder.ACTIVATIONS`."""
    if name == "relu":
        return graph.op("Relu", x)
    if name == "silu":
        return graph.op("Mul", x, graph.op("Sigmoid", x))
    if name == "gelu":
        curve = graph.op("Erf", graph.op("Div", x, math.sqrt(2.0)))
    else:
        cubed = graph.op("Mul", graph.op("Mul", graph.op("Mul", x, x), x), 0.044715)
        curve = graph.op("Tanh", graph.op("Mul", graph.op("Add", x, cubed), math.sqrt(2.0 / math.pi)))
    # x * (1 + curve) * 0.5, in the order that engines fuse.
    return graph.op("Mul", graph.op("Mul", x, graph.op("Add", curve, 1.0)), 0.5)
