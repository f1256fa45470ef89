"""The ONNX graphs compute what the students compute: every encoder family, every head, padding and sizes that vary."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime as ort
import pytest
from flax import linen as nn
from scipy.special import expit, logit, softmax

from jax_rele.deployment.student_graph import compare_model, cross_encoder_model, log_odds, tower_model
from jax_rele.models.encoder import EncoderConfig
from jax_rele.students.cross_encoder import CrossEncoder
from jax_rele.students.two_tower import TwoTower
from jax_rele.types import LabelSchema

SCHEMA = LabelSchema(("Exact", "Substitute", "Irrelevant"), (1.0, 0.1, 0.0), ("Exact",))
DIMENSIONS, TEMPERATURE = 4, 1.7
ALL = frozenset({"logits", "label_logits", "verdict_logits", "evidence_logits"})
SHAPE = {"vocab_size": 60, "max_length": 40, "layers": 2, "width": 32, "heads": 4, "mlp_width": 48, "dropout": 0.0}
FAMILIES = {
    "bert": EncoderConfig(**SHAPE),
    "roberta": EncoderConfig(**SHAPE, family="roberta", token_types=1, position_offset=2, norm_eps=1e-5),
    "distilbert": EncoderConfig(**SHAPE, family="distilbert", token_types=0, activation="gelu_tanh"),
    "modernbert": EncoderConfig(
        **SHAPE,
        family="modernbert",
        token_types=0,
        prenorm=True,
        gated=True,
        attention_bias=False,
        mlp_bias=False,
        norm_bias=False,
        rope_thetas=(160000.0, 10000.0),
        windows=(0, 4),
        norm_eps=1e-5,
    ),
    "relu": EncoderConfig(**SHAPE, activation="relu"),
    "silu": EncoderConfig(**SHAPE, activation="silu"),
}
SIZES = ((1, 1), (3, 7), (2, 40))


def variables(model, seed=0):
    """Random parameters that are large enough for every path to count."""
    params = nn.unbox(model.init(jax.random.key(seed), **model.dummy_inputs()))["params"]
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    return jax.tree.unflatten(
        structure, [leaf + 0.2 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys)]
    )


def rows(batch, length, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, 60, (batch, length))
    lengths = np.maximum(1, length - np.arange(batch) * 2)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
    types = (np.arange(length) >= length // 2).astype(np.int64) * mask
    return tokens * mask, mask, types


def run(model, **inputs):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    known = {each.name for each in session.get_inputs()}
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(None, {name: value for name, value in inputs.items() if name in known})))


def check_score(outputs, logits):
    """`label_logits` and `logits` against a formula in float64."""
    np.testing.assert_allclose(outputs["label_logits"], logits / TEMPERATURE, atol=1e-5)
    gains = softmax(np.asarray(logits, np.float64) / TEMPERATURE, axis=-1) @ np.array(SCHEMA.gains)
    np.testing.assert_allclose(outputs["logits"][:, 0], log_odds(gains), atol=1e-4)
    np.testing.assert_allclose(expit(outputs["logits"][:, 0].astype(np.float64)), gains, atol=2e-6)


@pytest.mark.parametrize(
    ("family", "pooling", "latent"),
    [(family, "tokens", 0) for family in FAMILIES] + [("bert", "pooled", 0), ("bert", "tokens", 8)],
)
def test_cross_encoder(family, pooling, latent):
    model = CrossEncoder(FAMILIES[family], 3, DIMENSIONS, latent, pooling)
    params = variables(model)
    graph = cross_encoder_model(model, jax.tree.map(np.asarray, params), SCHEMA, TEMPERATURE, ALL)
    for batch, length in SIZES:
        tokens, mask, types = rows(batch, length)
        expected = model.apply({"params": params}, jnp.asarray(tokens), jnp.asarray(types), jnp.asarray(mask == 1))
        outputs = run(graph, input_ids=tokens, attention_mask=mask, token_type_ids=types)
        check_score(outputs, expected.logits)
        np.testing.assert_allclose(outputs["verdict_logits"], expected.verdict_logits, atol=1e-5)
        seen = mask == 1
        np.testing.assert_allclose(outputs["evidence_logits"][seen], expected.token_logits[seen], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("head", "pooling", "changes"),
    [
        *[
            (head, pooling, {})
            for head, pooling in itertools.product(("cosine", "mlp", "maxsim"), ("tokens", "pooled"))
        ],
        ("cosine", "tokens", {"towers": "separate", "pooling": "first", "embedding_width": 16}),
        ("cosine", "pooled", {"normalize": False, "distinguish_sides": False}),
    ],
)
def test_two_tower(head, pooling, changes):
    options = {"embedding_width": 0, "view_width": 8, "head": head, "verdict_pooling": pooling, **changes}
    model = TwoTower(FAMILIES["bert"], 3, DIMENSIONS, **options)
    params = variables(model)
    arrays = jax.tree.map(np.asarray, params)
    towers = [tower_model(model, arrays, side) for side in (0, 1)]
    compare = compare_model(model, arrays, SCHEMA, TEMPERATURE, ALL)
    for batch, length in SIZES:
        sides = [rows(batch, length, seed)[:2] for seed in (0, 1)]
        embeddings = []
        for side, (tokens, mask) in enumerate(sides):
            expected = model.apply(
                {"params": params}, jnp.asarray(tokens), jnp.asarray(mask == 1), side, method="encode"
            )
            (vectors,) = run(towers[side], input_ids=tokens, attention_mask=mask).values()
            np.testing.assert_allclose(vectors, expected, atol=1e-5)
            embeddings.append(vectors)
        outputs = run(compare, query_embedding=embeddings[0], item_embedding=embeddings[1])
        expected = model.apply({"params": params}, *map(jnp.asarray, embeddings), method="compare")
        check_score(outputs, expected.logits)
        np.testing.assert_allclose(outputs["verdict_logits"], expected.verdict_logits, atol=2e-5)


def test_outputs_that_are_not_wanted_are_left_out_and_log_odds_are_finite():
    model = CrossEncoder(FAMILIES["bert"], 3, DIMENSIONS)
    params = jax.tree.map(np.asarray, variables(model))
    params["label_head"]["bias"] = np.array([80.0, 0.0, 0.0], np.float32)
    graph = cross_encoder_model(model, params, SCHEMA, 1.0, frozenset({"logits"}))
    tokens, mask, types = rows(3, 7)
    outputs = run(graph, input_ids=tokens, attention_mask=mask, token_type_ids=types)
    assert set(outputs) == {"logits"}
    np.testing.assert_allclose(outputs["logits"], logit(1 - 1e-6), rtol=1e-4)
