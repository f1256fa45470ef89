"""The decoder against an independent implementation in numpy, its cache, its adapters and its invariances."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jax_rele.models import Decoder, DecoderConfig, LoraSpec, merge

CONFIG = DecoderConfig(
    vocab_size=50,
    layers=2,
    width=32,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=48,
    lora=LoraSpec(4, 8.0, 0.0, ("q_proj", "v_proj", "down_proj")),
)
TOKENS = np.random.default_rng(0).integers(0, 50, (3, 9))


@jax.jit
def run(variables, tokens):
    return Decoder(CONFIG).apply(variables, tokens)


def fresh():
    return jax.jit(lambda rng: nn.unbox(Decoder(CONFIG).init(rng, TOKENS)))(jax.random.key(0))


@pytest.fixture(scope="module")
def variables():
    """Random values everywhere, so that no zero or one hides a mistake."""
    made = fresh()
    leaves, tree = jax.tree.flatten(made)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten([leaf + 0.2 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys)])


def reference(params, tokens, config):
    """Qwen3's forward pass in float64, written from the paper's equations, one row at a time."""

    def norm(x, scale):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config.norm_eps) * scale

    def rotate(x, position):
        half = config.head_dim // 2
        result = np.empty_like(x)
        for i in range(half):
            angle = position / config.rope_theta ** (2 * i / config.head_dim)
            c, s = np.cos(angle), np.sin(angle)
            result[i], result[i + half] = c * x[i] - s * x[i + half], s * x[i] + c * x[i + half]
        return result

    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    group = config.heads // config.kv_heads
    rows = []
    for row in tokens:
        x = params["embedding"][row]
        for layer in range(config.layers):
            p = jax.tree.map(lambda value, layer=layer: value[layer], params["layers"])
            y, a = norm(x, p["input_norm"]["scale"]), p["attention"]
            out = np.zeros((len(row), config.heads, config.head_dim))
            q, k, v = (
                (y @ a[f"{name}_proj"]["kernel"]).reshape(len(row), -1, config.head_dim) for name in ("q", "k", "v")
            )
            q, k = norm(q, a["q_norm"]["scale"]), norm(k, a["k_norm"]["scale"])
            for head in range(config.heads):
                for i in range(len(row)):
                    scores = [
                        rotate(q[i, head], i) @ rotate(k[j, head // group], j) / np.sqrt(config.head_dim)
                        for j in range(i + 1)
                    ]
                    weights = np.exp(scores - np.max(scores))
                    out[i, head] = (weights / weights.sum()) @ v[: i + 1, head // group]
            x = x + out.reshape(len(row), -1) @ a["o_proj"]["kernel"]
            y, m = norm(x, p["mlp_norm"]["scale"]), p["mlp"]
            gate = y @ m["gate_proj"]["kernel"]
            x = x + (gate / (1 + np.exp(-gate)) * (y @ m["up_proj"]["kernel"])) @ m["down_proj"]["kernel"]
        rows.append(norm(x, params["final_norm"]["scale"]))
    return np.stack(rows)


def test_equals_the_equations_in_float64(variables):
    ours = run({"params": variables["params"]}, TOKENS)
    np.testing.assert_allclose(ours.hidden, reference(variables["params"], TOKENS, CONFIG), atol=2e-5)
    np.testing.assert_array_equal(ours.output_embedding, variables["params"]["embedding"])


def test_cached_decoding_equals_one_pass_with_rows_at_different_positions(variables):
    lengths = np.array([3, 5, 6])
    whole = run(variables, TOKENS).hidden

    @jax.jit
    def cached(variables, tokens, positions=None):
        return Decoder(CONFIG, cache_length=9).apply(variables, tokens, positions, mutable=["cache"])

    prompts = np.where(np.arange(6) < lengths[:, None], TOKENS[:, :6], 0)
    out, cache = cached(variables, prompts)
    rows = np.arange(3)
    np.testing.assert_allclose(out.hidden[rows, lengths - 1], whole[rows, lengths - 1], atol=1e-5)
    for step in range(3):
        at = lengths + step
        out, cache = cached({**variables, **cache}, TOKENS[rows, at][:, None], at[:, None])
        np.testing.assert_allclose(out.hidden[:, 0], whole[rows, at], atol=1e-5)


def test_the_future_and_the_padding_do_not_matter(variables):
    changed = TOKENS.copy()
    changed[:, 5:] = 7
    np.testing.assert_allclose(run(variables, TOKENS).hidden[:, :5], run(variables, changed).hidden[:, :5], atol=1e-6)


def test_a_fresh_adapter_is_the_identity_and_a_merged_one_the_adapted_model(variables):
    made = fresh()
    np.testing.assert_allclose(run(made, TOKENS).hidden, run({"params": made["params"]}, TOKENS).hidden, atol=1e-6)
    adapted = run(variables, TOKENS).hidden
    assert np.abs(adapted - run({"params": variables["params"]}, TOKENS).hidden).max() > 0.1
    merged = merge(variables["params"], variables["lora"], CONFIG.lora.scale)
    np.testing.assert_allclose(run({"params": merged}, TOKENS).hidden, adapted, atol=2e-5)


def test_adapters_are_made_for_the_targets_alone_and_get_all_the_gradient(variables):
    assert set(variables["lora"]["layers"]["attention"]) == {"q_proj", "v_proj"}
    assert set(variables["lora"]["layers"]["mlp"]) == {"down_proj"}
    grads = jax.grad(lambda lora: (run({**variables, "lora": lora}, TOKENS).hidden ** 2).sum())(variables["lora"])
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(grads))


def test_remat_changes_memory_and_no_number(variables):
    def value_and_grad(config):
        @jax.jit
        def loss(lora):
            return (Decoder(config).apply({**variables, "lora": lora}, TOKENS).hidden ** 2).mean()

        return jax.value_and_grad(loss)(variables["lora"])

    plain, remat = value_and_grad(CONFIG), value_and_grad(dataclasses.replace(CONFIG, remat=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), plain, remat)


def test_parameters_carry_logical_axes():
    boxed = jax.eval_shape(lambda rng: Decoder(CONFIG).init(rng, TOKENS), jax.random.key(0))
    for leaf in jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)):
        assert isinstance(leaf, nn.LogicallyPartitioned)
        assert len(leaf.names) == leaf.value.ndim
