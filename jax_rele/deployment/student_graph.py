"""The students as ONNX models: a cross-encoder in one, a two-tower in one for each side and one that compares."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto

from jax_rele.deployment.encoder_graph import activate, add_encoder
from jax_rele.deployment.graph import MASKED, Graph
from jax_rele.students.cross_encoder import CrossEncoder
from jax_rele.students.two_tower import GATE_BIAS, TwoTower
from jax_rele.types import VERDICTS, LabelSchema, Params

TOKENS = ("input_ids", "attention_mask")
TYPES = "token_type_ids"
SMALLEST = 1e-6
"""Expected gains are kept this far from 0 and 1, so that their log-odds are finite."""

ROWS: tuple[str | int, ...] = ("batch", "length")


def cross_encoder_model(
    model: CrossEncoder, params: Params, schema: LabelSchema, temperature: float, outputs: frozenset[str]
) -> onnx.ModelProto:
    """The cross-encoder.

    Args:
      model: the student.
      params: its parameters as numpy arrays.
      schema: its labels.
      temperature: by which label logits are divided.
      outputs: of `logits`, `label_logits`, `verdict_logits` and `evidence_logits`, those that are wanted.

    Returns:
      A model of int64 [B, L] `input_ids`, `attention_mask` and, where the encoder has types, `token_type_ids`. Its
      outputs: `logits` [B, 1], the log-odds of the expected gain; `label_logits` [B, C], divided by the temperature;
      `verdict_logits` [B, D, 3]; `evidence_logits` [B, L, 1 + D].
    """
    graph = Graph()
    has_types = model.encoder.token_types > 1
    types: str | int = TYPES if has_types else 0
    x, valid = add_encoder(graph, model.encoder, params["encoder"], *TOKENS, types)
    first = graph.op("Gather", x, graph.constant(0, np.int64), axis=1)
    representation = graph.op("Tanh", graph.dense(first, params["encoder"]["pooler"]))
    if model.latent_width:
        representation = _add_latent(graph, params, x, valid, representation)
    verdicts = graph.op(
        "Reshape", graph.dense(representation, params["verdict_head"]), [-1, model.dimensions, len(VERDICTS)]
    )
    if model.verdict_pooling == "tokens":
        verdicts = graph.op("Add", verdicts, _pool_by_dimension(graph, params["verdict_tokens"], x, valid))
    verdicts = graph.op("Identity", verdicts, name="verdict_logits")
    verdict_probs = graph.op("Reshape", graph.op("Softmax", verdicts, axis=-1), [-1, model.dimensions * len(VERDICTS)])
    labels = graph.op(
        "Add",
        graph.dense(representation, params["label_head"]),
        graph.dense(verdict_probs, params["label_of_verdicts"]),
    )
    _add_score(graph, labels, schema, temperature)
    if "evidence_logits" in outputs:
        graph.op("Identity", graph.dense(x, params["evidence_head"]), name="evidence_logits")
    shapes: Mapping[str, tuple[str | int, ...]] = {
        "logits": ("batch", 1),
        "label_logits": ("batch", len(schema)),
        "verdict_logits": ("batch", model.dimensions, len(VERDICTS)),
        "evidence_logits": (*ROWS, 1 + model.dimensions),
    }
    inputs = [(name, TensorProto.INT64, ROWS) for name in (*TOKENS, *((TYPES,) if has_types else ()))]
    return graph.model(inputs, [(name, shape) for name, shape in shapes.items() if name in outputs])


def tower_model(model: TwoTower, params: Params, side: int) -> onnx.ModelProto:
    """One side of a two-tower, 0 for queries and 1 for items.

    Returns:
      A model of int64 [B, L] `input_ids` and `attention_mask` with the output `sentence_embedding` [B, E]; with late
      interaction `token_embeddings` [B, L, E], zeros for padding.
    """
    graph = Graph()
    tower = "encoder" if model.towers == "shared" else ("query_encoder", "item_encoder")[side]
    kind = side if model.distinguish_sides else 0
    x, valid = add_encoder(graph, model.encoder, params[tower], *TOKENS, kind)
    weights = graph.op("Unsqueeze", graph.op("Cast", valid, to=1), [2])
    views = ""
    if model.verdict_pooling == "tokens" and model.head != "maxsim":
        unit, gates = _views_of_tokens(graph, params["token_views"], model.view_width, x, valid)
        views = graph.op("Mul", unit, gates) if side == 0 else unit
        views = graph.op("Reshape", views, [-1, model.dimensions * model.view_width])
    if model.head == "maxsim":
        x = graph.op("Mul", x, weights)
    elif model.pooling == "mean":
        total = graph.op("ReduceSum", graph.op("Mul", x, weights), [1], keepdims=0)
        count = graph.op("Max", graph.op("ReduceSum", weights, [1], keepdims=0), 1.0)
        x = graph.op("Div", total, count)
    else:
        x = graph.op("Gather", x, graph.constant(0, np.int64), axis=1)
    if model.embedding_width:
        x = graph.dense(x, params["projection"])
    width = model.embedding_width or model.encoder.width
    inputs = [(name, TensorProto.INT64, ROWS) for name in TOKENS]
    if model.head == "maxsim":
        graph.op("Mul", graph.unit(x), weights, name="token_embeddings")
        return graph.model(inputs, [("token_embeddings", (*ROWS, width))])
    text = graph.unit(x) if model.normalize else x
    if views:
        text, width = graph.op("Concat", text, views, axis=-1), width + model.dimensions * model.view_width
    graph.op("Identity", text, name="sentence_embedding")
    return graph.model(inputs, [("sentence_embedding", ("batch", width))])


def compare_model(
    model: TwoTower, params: Params, schema: LabelSchema, temperature: float, outputs: frozenset[str]
) -> onnx.ModelProto:
    """What a two-tower makes of the embeddings of a query and an item, row by row.

    Returns:
      A model of float32 `query_embedding` and `item_embedding` [B, E], with late interaction [B, Lq, E] and [B, Li, E];
      its outputs as of `cross_encoder_model`, without evidence.
    """
    graph = Graph()
    query, item = "query_embedding", "item_embedding"
    u, v = (_views(graph, model, params, side) for side in (query, item))
    if model.head == "maxsim":
        score = _late_interaction(graph, query, item)
    elif model.head == "mlp":
        difference, product = graph.op("Abs", graph.op("Sub", query, item)), graph.op("Mul", query, item)
        both = graph.op("Concat", query, item, difference, product, axis=-1)
        # Flax's gelu is the approximate one unless told otherwise.
        labels = graph.dense(activate(graph, graph.dense(both, params["mlp_up"]), "gelu_tanh"), params["mlp_down"])
    else:
        # Where embeddings have views, the gates are positive factors of unit vectors: all is one inner product.
        score = graph.op("ReduceSum", graph.op("Mul", query, item), [1], keepdims=1)
    if model.head != "mlp":
        slope, bias = (np.asarray(params[name], np.float32) for name in ("label_slope", "label_bias"))
        labels = graph.op("Add", graph.op("Mul", score, slope), bias)
    _add_score(graph, labels, schema, temperature)
    if "verdict_logits" in outputs:
        _add_verdicts(graph, model, params, u, v)
    width = model.embedding_width or model.encoder.width
    if model.verdict_pooling == "tokens" and model.head != "maxsim":
        width += model.dimensions * model.view_width
    shape = {
        name: (("batch", f"{name[:-10]}_length", width) if model.head == "maxsim" else ("batch", width))
        for name in (query, item)
    }
    shapes: Mapping[str, tuple[str | int, ...]] = {
        "logits": ("batch", 1),
        "label_logits": ("batch", len(schema)),
        "verdict_logits": ("batch", model.dimensions, len(VERDICTS)),
    }
    return graph.model(
        [(name, TensorProto.FLOAT, shape[name]) for name in (query, item)],
        [(name, each) for name, each in shapes.items() if name in outputs],
    )


def log_odds(gains: np.ndarray) -> np.ndarray:
    """[...] expected gains -> their log-odds, as the graphs compute them."""
    clipped = np.clip(gains, SMALLEST, 1 - SMALLEST)
    return np.log(clipped) - np.log1p(-clipped)


def _add_score(graph: Graph, labels: str, schema: LabelSchema, temperature: float) -> None:
    """`label_logits`, and `logits`: the log-odds of the expected gain."""
    labels = graph.op("Div", labels, temperature, name="label_logits")
    gains = np.asarray(schema.gains, np.float32)[:, None]
    gain = graph.op("MatMul", graph.op("Softmax", labels, axis=-1), gains)
    loss = graph.op(
        "MatMul", graph.op("Softmax", labels, axis=-1), 1 - gains
    )  # not 1 - gain, which loses digits near 1
    clipped = [graph.op("Max", graph.op("Min", value, 1 - SMALLEST), SMALLEST) for value in (gain, loss)]
    graph.op("Sub", *(graph.op("Log", value) for value in clipped), name="logits")


def _add_latent(graph: Graph, params: Params, x: str, valid: str, pooled: str) -> str:
    """The latent-reasoning extractor, whose vector joins the representation."""
    scores = graph.dense(x, params["latent_scores"])
    weights = _softmax_over_tokens(graph, scores, valid)
    summary = graph.op("Squeeze", graph.op("MatMul", weights, x), [1])
    latent = graph.dense(activate(graph, graph.dense(summary, params["latent_up"]), "gelu_tanh"), params["latent_down"])
    return graph.op("Add", pooled, graph.dense(latent, params["latent_fusion"]))


def _softmax_over_tokens(graph: Graph, scores: str, valid: str) -> str:
    """[B, L, N] scores -> [B, N, L] weights of the tokens."""
    scores = graph.op("Transpose", scores, perm=[0, 2, 1])
    return graph.op("Softmax", graph.op("Where", graph.op("Unsqueeze", valid, [1]), scores, MASKED), axis=-1)


def _pool_by_dimension(graph: Graph, params: Params, x: str, valid: str) -> str:
    """`DimensionPooling`: [B, L, W] -> [B, D, F]."""
    weights = _softmax_over_tokens(graph, graph.dense(x, params["scores"]), valid)
    pooled = graph.op("Transpose", graph.op("MatMul", weights, x), perm=[1, 0, 2])
    return graph.op("Transpose", graph.op("MatMul", pooled, np.asarray(params["kernel"], np.float32)), perm=[1, 0, 2])


def _views_of_tokens(graph: Graph, params: Params, width: int, x: str, valid: str) -> tuple[str, str]:
    """Views [B, D, K] and gates [B, D, 1]."""
    features = _pool_by_dimension(graph, params, x, valid)
    gates = graph.op("Sigmoid", graph.op("Add", graph.op("Slice", features, [width], [width + 1], [2]), GATE_BIAS))
    return graph.unit(graph.op("Slice", features, [0], [width], [2])), gates


def _views(graph: Graph, model: TwoTower, params: Params, embedding: str) -> str:
    """[B, D, K] unit vectors."""
    shape = [-1, model.dimensions, model.view_width]
    if model.head == "maxsim":
        if model.verdict_pooling == "tokens":
            return _views_of_tokens(
                graph, params["token_views"], model.view_width, embedding, _present(graph, embedding)
            )[0]
        pooled = graph.unit(graph.op("ReduceSum", embedding, [1], keepdims=0))
        return graph.unit(graph.op("Reshape", graph.dense(pooled, params["views"]), shape))
    if model.verdict_pooling == "pooled":
        return graph.unit(graph.op("Reshape", graph.dense(embedding, params["views"]), shape))
    width = model.dimensions * model.view_width
    views = graph.op("Slice", embedding, [-width], [np.iinfo(np.int64).max], [1])
    return graph.unit(graph.op("Reshape", views, shape))


def _add_verdicts(graph: Graph, model: TwoTower, params: Params, u: str, v: str) -> None:
    product = graph.op("Mul", u, v)
    scale = math.sqrt(model.view_width)
    features = graph.op(
        "Concat",
        graph.op("Mul", product, scale**2),
        graph.op("Mul", graph.op("Abs", graph.op("Sub", u, v)), scale),
        graph.op("Mul", graph.op("ReduceSum", product, [-1], keepdims=1), scale),
        axis=-1,
    )
    kernel, bias = (np.asarray(params[name], np.float32) for name in ("verdict_kernel", "verdict_bias"))
    y = graph.op("MatMul", graph.op("Transpose", features, perm=[1, 0, 2]), kernel)
    graph.op("Add", graph.op("Transpose", y, perm=[1, 0, 2]), bias, name="verdict_logits")


def _present(graph: Graph, embedding: str) -> str:
    """[B, L, E] token vectors -> [B, L] bool, False where one is zero."""
    largest = graph.op("ReduceMax", graph.op("Abs", embedding), axes=[2], keepdims=0)
    return graph.op("Greater", largest, 0.0)


def _late_interaction(graph: Graph, query: str, item: str) -> str:
    """[B, 1], see `students.two_tower.late_interaction`."""
    similarity = graph.op("MatMul", query, graph.op("Transpose", item, perm=[0, 2, 1]))
    items, queries = (_present(graph, side) for side in (item, query))
    best = graph.op(
        "ReduceMax", graph.op("Where", graph.op("Unsqueeze", items, [1]), similarity, -1.0), axes=[2], keepdims=0
    )
    total = graph.op("ReduceSum", graph.op("Where", queries, best, 0.0), [1], keepdims=1)
    count = graph.op("ReduceSum", graph.op("Cast", queries, to=1), [1], keepdims=1)
    return graph.op("Div", total, graph.op("Max", count, 1.0))
