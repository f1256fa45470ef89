"""The encoder of every family: what may and may not change its outputs, and what it returns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from jax_rele.models import Encoder, EncoderConfig
from jax_rele.models.partitioning import RULES

SIZES = {"vocab_size": 40, "max_length": 24, "layers": 3, "width": 24, "heads": 3, "mlp_width": 32}
CONFIGS = {
    "bert": EncoderConfig(**SIZES),
    "roberta": EncoderConfig(**SIZES, family="roberta", token_types=1, position_offset=2, activation="gelu_tanh"),
    "distilbert": EncoderConfig(**SIZES, family="distilbert", token_types=0),
    "modernbert": EncoderConfig(
        **SIZES,
        family="modernbert",
        token_types=0,
        prenorm=True,
        gated=True,
        attention_bias=False,
        mlp_bias=False,
        norm_bias=False,
        rope_thetas=(160_000.0, 10_000.0, 10_000.0),
        windows=(0, 3, 3),
        norm_eps=1e-5,
    ),
}
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 40, (4, 14)).astype(np.int32)
VALID = np.arange(14) < np.array([14, 9, 1, 11])[:, None]
TYPES = (np.arange(14) >= 5).astype(np.int32)[None].repeat(4, 0)


def random_variables(config: EncoderConfig, pooler: bool = False) -> dict:
    def outputs(model, *inputs):
        return model.pool(model(*inputs)) if pooler else model(*inputs)

    model = Encoder(config)
    shapes = nn.unbox(jax.eval_shape(lambda: model.init(jax.random.key(0), TOKENS, TYPES, VALID, method=outputs)))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype), shapes)


def ready(config: EncoderConfig):
    model, variables = Encoder(config), random_variables(config)
    return jax.jit(
        lambda *inputs, **options: model.apply(variables, *inputs, **options),
        static_argnames=("attention", "deterministic"),
    )


@pytest.fixture(scope="module", params=CONFIGS)
def family(request):
    return request.param, ready(CONFIGS[request.param])


def at_valid(x, valid=VALID):
    return np.where(valid[..., None], x, 0)


def test_padding_does_not_matter(family):
    _, encoder = family
    expected = encoder(TOKENS, TYPES, VALID)
    assert np.std(at_valid(expected)) > 0.01
    other = encoder(np.where(VALID, TOKENS, 7), np.where(VALID, TYPES, 1), VALID)
    np.testing.assert_allclose(at_valid(other), at_valid(expected), atol=1e-5)
    wider = [np.pad(x, ((0, 0), (0, 6))) for x in (TOKENS, TYPES, VALID)]
    np.testing.assert_allclose(at_valid(encoder(*wider)[:, :14]), at_valid(expected), atol=1e-5)
    # Token by token: the row of one valid token is that token alone.
    alone = encoder(TOKENS[2:3, :1], TYPES[2:3, :1], VALID[2:3, :1])
    np.testing.assert_allclose(alone[0, 0], expected[2, 0], atol=1e-5)


def test_every_token_and_place_matters(family):
    _, encoder = family
    valid = np.ones_like(VALID)
    expected = encoder(TOKENS, TYPES, valid)
    other = TOKENS.copy()
    other[:, -1] = (other[:, -1] + 1) % 40
    assert np.abs(encoder(other, TYPES, valid) - expected)[:, 0].max(axis=-1).min() > 1e-4
    turned = encoder(TOKENS[:, ::-1], TYPES[:, ::-1], valid)[:, ::-1]
    assert np.abs(turned - expected).max() > 1e-2, "positions count"


def test_attention_is_that_of_the_first_token(family):
    name, encoder = family
    hidden, weights = encoder(TOKENS, TYPES, VALID, attention=True)
    np.testing.assert_allclose(at_valid(hidden), at_valid(encoder(TOKENS, TYPES, VALID)), atol=1e-6)
    assert (weights.shape, weights.dtype) == ((3, 4, 14), jnp.float32)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    assert not np.asarray(weights)[:, ~VALID].any()
    seen = np.array([[14, 9, 1, 11]] * 3)
    if name == "modernbert":
        seen[1:] = np.minimum(seen[1:], 3)
    np.testing.assert_array_equal((np.asarray(weights) > 0).sum(-1), seen)


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_attention_equals_the_formula(name):
    """One layer, from its equations in float64."""
    config = dataclasses.replace(CONFIGS[name], layers=1, rope_thetas=(), windows=(), token_types=0, max_length=14)
    variables = random_variables(config)
    _, weights = Encoder(config).apply(variables, TOKENS, TYPES, VALID, attention=True)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    x = p["word_embedding"][TOKENS] + p["position_embedding"]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + config.norm_eps)
    x = x * p["embedding_norm"]["scale"] + p["embedding_norm"].get("bias", 0)
    query, key = (
        (x @ p["layers"][each]["kernel"][0] + p["layers"][each].get("bias", [0])[0]).reshape(4, 14, 3, 8)
        for each in ("query", "key")
    )
    scores = np.where(VALID[:, None], np.einsum("bhd,bkhd->bhk", query[:, 0], key) / 8**0.5, -np.inf)
    expected = np.exp(scores - scores.max(-1, keepdims=True))
    np.testing.assert_allclose(weights[0], (expected / expected.sum(-1, keepdims=True)).mean(1), atol=1e-5)


def test_windows_reach_so_far_and_no_further():
    config = dataclasses.replace(CONFIGS["modernbert"], layers=1, rope_thetas=(1e4,), windows=(3,))
    encoder = ready(config)
    valid = np.ones_like(VALID)
    expected = encoder(TOKENS, TYPES, valid)
    other = TOKENS.copy()
    other[:, 6] = (other[:, 6] + 1) % 40
    change = np.abs(encoder(other, TYPES, valid) - expected).max(axis=(0, 2))
    assert (change[4:9] > 1e-4).all()
    assert change[:4].max() < 1e-6
    assert change[9:].max() < 1e-6


@pytest.mark.slow
def test_each_layer_has_its_own_window_and_frequencies():
    config = CONFIGS["modernbert"]
    expected = ready(config)(TOKENS, TYPES, VALID)
    for change in ({"windows": (3, 0, 3)}, {"rope_thetas": (10_000.0, 160_000.0, 10_000.0)}, {"windows": ()}):
        other = ready(dataclasses.replace(config, **change))(TOKENS, TYPES, VALID)
        assert np.abs(at_valid(other - expected)).max() > 1e-4, change
    wide = ready(dataclasses.replace(config, windows=(14, 14, 14)))(TOKENS, TYPES, VALID)
    none = ready(dataclasses.replace(config, windows=()))(TOKENS, TYPES, VALID)
    np.testing.assert_allclose(at_valid(wide), at_valid(none), atol=1e-6)
    with pytest.raises(ValueError, match="windows has 2 entries for 3 layers"):
        dataclasses.replace(config, windows=(0, 3))


def test_roberta_counts_valid_tokens():
    encoder = ready(CONFIGS["roberta"])
    left = [np.pad(x, ((0, 0), (5, 0))) for x in (TOKENS, TYPES, VALID)]
    np.testing.assert_allclose(at_valid(encoder(*left)[:, 5:]), at_valid(encoder(TOKENS, TYPES, VALID)), atol=1e-5)


def test_types_that_the_table_lacks_have_its_last_row():
    one, two = CONFIGS["roberta"], CONFIGS["bert"]
    for config, a, b in ((one, TYPES, TYPES * 0), (two, TYPES, np.where(TYPES, 5, 0))):
        encoder = ready(config)
        np.testing.assert_array_equal(encoder(TOKENS, a, VALID), encoder(TOKENS, b, VALID))
    assert np.abs(ready(two)(TOKENS, TYPES, VALID) - ready(two)(TOKENS, TYPES * 0, VALID)).max() > 1e-3


def test_the_pooler_is_there_only_where_it_is_asked_for():
    config = CONFIGS["bert"]
    variables = random_variables(config, pooler=True)
    assert "pooler" not in random_variables(config)["params"]
    pooler = variables["params"]["pooler"]
    hidden = Encoder(config).apply(variables, TOKENS, TYPES, VALID)
    pooled = Encoder(config).apply(variables, hidden, method="pool")
    np.testing.assert_allclose(pooled, np.tanh(hidden[:, 0] @ pooler["kernel"] + pooler["bias"]), atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_names_its_axes(name):
    model = Encoder(CONFIGS[name])
    boxed = jax.eval_shape(lambda: model.init(jax.random.key(0), TOKENS, TYPES, VALID))["params"]
    leaves = flatten_dict(boxed, sep="/", is_leaf=lambda _, leaf: isinstance(leaf, nn.LogicallyPartitioned))
    for path, leaf in leaves.items():
        assert isinstance(leaf, nn.LogicallyPartitioned), path
        assert len(leaf.names) == leaf.value.ndim, path
        assert set(leaf.names) <= set(dict(RULES)), path
        assert (leaf.names[0] == "layers") == path.startswith("layers/"), path


def test_bfloat16_activations_keep_parameters_and_attention_in_float32(family):
    name, encoder = family
    config = dataclasses.replace(CONFIGS[name], dtype=jnp.bfloat16)
    hidden, weights = ready(config)(TOKENS, TYPES, VALID, attention=True)
    assert (hidden.dtype, weights.dtype) == (jnp.bfloat16, jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(random_variables(config))} == {jnp.dtype(jnp.float32)}
    expected = encoder(TOKENS, TYPES, VALID)
    assert np.abs(at_valid(np.asarray(hidden, np.float32) - expected)).max() < 0.1 * np.abs(expected).max()
    half = dataclasses.replace(config, param_dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(random_variables(half))} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_gradients_are_finite_and_dropout_is_noise(name):
    model, variables = Encoder(CONFIGS[name]), random_variables(CONFIGS[name])

    @jax.jit
    def grads(variables, key):
        def loss(variables):
            hidden = model.apply(variables, TOKENS, TYPES, VALID, deterministic=False, rngs={"dropout": key})
            return jnp.sum(jnp.where(VALID[..., None], hidden, 0) ** 2)

        return jax.value_and_grad(loss)(variables)

    (a, grad), (b, _) = (grads(variables, jax.random.key(seed)) for seed in (0, 1))
    assert a != b
    for path, leaf in flatten_dict(grad["params"], sep="/").items():
        assert np.isfinite(leaf).all(), path
        # A softmax does not see what is added to all scores.
        assert np.abs(leaf).max() > 0 or path == "layers/key/bias", path


def test_too_long_a_text_is_refused(family):
    _, encoder = family
    long = np.ones((1, 25), np.int32)
    with pytest.raises(ValueError, match="25 tokens, but the encoder has 24 positions"):
        encoder(long, long, long > 0)
