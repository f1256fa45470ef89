"""The decoder against an independent implementation in numpy, its cache, its adapters and its invariances."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jax_rele.models import Decoder, DecoderConfig, LoraSpec, Rope, merge, split
from jax_rele.models.lora import low_rank

CONFIG = DecoderConfig(
    vocab_size=50,
    layers=2,
    width=32,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=48,
    lora=LoraSpec(4, 8.0, 0.0, "(q|v|down)_proj"),
)
# Everything that a family may do otherwise, at once.
OTHER = dataclasses.replace(
    CONFIG,
    rope=Rope(theta=500.0),
    tied=False,
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
    qk_norm=False,
    windows=(4, 0),
    lora=LoraSpec(4, 8.0, 0.0, ".*", rank_stabilized=True),
)
BOTH = pytest.mark.parametrize("config", [CONFIG, OTHER], ids=["qwen3", "other"])
TOKENS = np.random.default_rng(0).integers(0, 50, (3, 9))


@partial(jax.jit, static_argnames="config")
def run(variables, tokens, positions=None, segments=None, config=CONFIG):
    return Decoder(config).apply(variables, tokens, positions, segments)


@cache
def fresh(config=CONFIG):
    return jax.jit(lambda rng: nn.unbox(Decoder(config).init(rng, TOKENS)))(jax.random.key(0))


@cache
def varied(config=CONFIG):
    """Random values everywhere, so that no zero or one hides a mistake."""
    leaves, tree = jax.tree.flatten(fresh(config))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten([leaf + 0.2 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys)])


def reference(params, tokens, config):
    """The forward pass in float64, written from the papers' equations, one row at a time."""

    def project(x, p):
        return x @ p["kernel"] + p.get("bias", 0)

    def norm(x, scale):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config.norm_eps) * scale

    def rotate(x, position):
        half = config.head_dim // 2
        result = np.empty_like(x)
        for i in range(half):
            angle = position / config.rope.theta ** (2 * i / config.head_dim)
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
            q, k, v = (project(y, a[f"{name}_proj"]).reshape(len(row), -1, config.head_dim) for name in ("q", "k", "v"))
            if config.qk_norm:
                q, k = norm(q, a["q_norm"]["scale"]), norm(k, a["k_norm"]["scale"])
            window = config.windows[layer] if config.windows else 0
            for head in range(config.heads):
                for i in range(len(row)):
                    first = max(0, i + 1 - window) if window else 0
                    scores = [
                        rotate(q[i, head], i) @ rotate(k[j, head // group], j) / np.sqrt(config.head_dim)
                        for j in range(first, i + 1)
                    ]
                    weights = np.exp(scores - np.max(scores))
                    out[i, head] = (weights / weights.sum()) @ v[first : i + 1, head // group]
            x = x + project(out.reshape(len(row), -1), a["o_proj"])
            y, m = norm(x, p["mlp_norm"]["scale"]), p["mlp"]
            gate = project(y, m["gate_proj"])
            x = x + project(gate / (1 + np.exp(-gate)) * project(y, m["up_proj"]), m["down_proj"])
        rows.append(norm(x, params["final_norm"]["scale"]))
    return np.stack(rows)


@BOTH
def test_equals_the_equations_in_float64(config):
    params = varied(config)["params"]
    ours = run({"params": params}, TOKENS, config=config)
    np.testing.assert_allclose(ours.hidden, reference(params, TOKENS, config), atol=2e-5)
    np.testing.assert_array_equal(ours.output_embedding, params["embedding" if config.tied else "output_embedding"])


@BOTH
def test_cached_decoding_equals_one_pass_with_rows_at_different_positions(config):
    lengths, variables = np.array([3, 5, 6]), varied(config)
    whole = run(variables, TOKENS, config=config).hidden

    @jax.jit
    def cached(variables, tokens, positions=None):
        return Decoder(config, cache_length=9).apply(variables, tokens, positions, mutable=["cache"])

    prompts = np.where(np.arange(6) < lengths[:, None], TOKENS[:, :6], 0)
    out, cache = cached(variables, prompts)
    rows = np.arange(3)
    np.testing.assert_allclose(out.hidden[rows, lengths - 1], whole[rows, lengths - 1], atol=2e-5)
    for step in range(3):
        at = lengths + step
        out, cache = cached({**variables, **cache}, TOKENS[rows, at][:, None], at[:, None])
        np.testing.assert_allclose(out.hidden[:, 0], whole[rows, at], atol=2e-5)


@BOTH
def test_segments_of_a_row_are_texts_of_their_own(config):
    variables = varied(config)
    positions, segments = np.array([[0, 1, 2, 0, 1, 2, 3, 4, 0]]), np.array([[1, 1, 1, 2, 2, 2, 2, 2, 0]])
    packed = run(variables, TOKENS[:1], positions, segments, config=config).hidden[0]
    first, second = (run(variables, TOKENS[:1, start:], config=config).hidden[0] for start in (0, 3))
    np.testing.assert_allclose(packed[:3], first[:3], atol=1e-5)
    np.testing.assert_allclose(packed[3:8], second[:5], atol=1e-5)


def test_bfloat16_activations_stay_near_float32_ones():
    variables = varied()
    half = dataclasses.replace(CONFIG, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    dtypes = jax.tree.map(lambda x: x.dtype, fresh(half))
    assert set(jax.tree.leaves(dtypes["params"])) == {jnp.dtype("bfloat16")}
    assert set(jax.tree.leaves(dtypes["lora"])) == {jnp.dtype("float32")}
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables["params"])
    out = run({**variables, "params": params}, TOKENS, config=half).hidden
    assert out.dtype == jnp.bfloat16
    error = np.abs(out.astype(np.float32) - run(variables, TOKENS).hidden)
    assert np.sqrt((error**2).mean()) < 0.05


def test_the_future_and_the_padding_do_not_matter():
    changed, variables = TOKENS.copy(), varied()
    changed[:, 5:] = 7
    np.testing.assert_allclose(run(variables, TOKENS).hidden[:, :5], run(variables, changed).hidden[:, :5], atol=1e-6)


@BOTH
def test_a_fresh_adapter_is_the_identity_and_a_merged_one_the_adapted_model(config):
    initial, variables = fresh(config), varied(config)
    base = run({"params": initial["params"]}, TOKENS, config=config).hidden
    np.testing.assert_allclose(run(initial, TOKENS, config=config).hidden, base, atol=1e-6)
    adapted = run(variables, TOKENS, config=config).hidden
    assert np.abs(adapted - run({"params": variables["params"]}, TOKENS, config=config).hidden).max() > 0.1
    adapters, rest = split(variables)
    assert (set(adapters), set(rest)) == ({"lora"}, {"params"})
    merged = merge(rest["params"], adapters["lora"], config.lora.scale)
    np.testing.assert_allclose(run({"params": merged}, TOKENS, config=config).hidden, adapted, atol=2e-5)


def test_the_scale_of_an_adapter():
    assert LoraSpec(16, 8.0).scale == 0.5
    assert LoraSpec(16, 8.0, rank_stabilized=True).scale == 2.0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_gradient_of_an_adapter_is_that_of_its_definition(dtype):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = (3, 5, 16), (16, 4), (4, 24), (3, 5, 24)
    x, a, b, weights = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes))
    x = x.astype(dtype)

    def gradients(product):
        return jax.grad(lambda *args: (product(*args) * weights).sum(dtype=jnp.float32), argnums=(0, 1, 2))(x, a, b)

    ours = gradients(low_rank)
    theirs = gradients(lambda x, a, b: x.astype(jnp.float32) @ a @ b)
    assert [grad.dtype for grad in ours] == [dtype, jnp.float32, jnp.float32]
    for our, their in zip(ours, theirs):
        apart = np.linalg.norm(np.asarray(our, np.float32) - np.asarray(their, np.float32))
        assert apart < np.linalg.norm(np.asarray(their, np.float32)) * (1e-6 if dtype == jnp.float32 else 1e-2)


def test_adapters_are_made_for_the_targets_alone_and_get_all_the_gradient():
    variables = varied()
    assert set(variables["lora"]["layers"]["attention"]) == {"q_proj", "v_proj"}
    assert set(variables["lora"]["layers"]["mlp"]) == {"down_proj"}
    grads = jax.grad(lambda lora: (run({**variables, "lora": lora}, TOKENS).hidden ** 2).sum())(variables["lora"])
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_memory_and_no_number(remat):
    variables = varied()

    def value_and_grad(config):
        def loss(lora):
            return (Decoder(config).apply({**variables, "lora": lora}, TOKENS).hidden ** 2).mean()

        compiled = jax.jit(jax.value_and_grad(loss)).lower(variables["lora"]).compile()
        return compiled(variables["lora"]), compiled.memory_analysis().temp_size_in_bytes

    plain, memory = value_and_grad(CONFIG)
    again, less = value_and_grad(dataclasses.replace(CONFIG, remat=remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), plain, again)
    assert less < memory


def test_parameters_carry_logical_axes():
    boxed = jax.eval_shape(lambda rng: Decoder(OTHER).init(rng, TOKENS), jax.random.key(0))
    for leaf in jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)):
        assert isinstance(leaf, nn.LogicallyPartitioned)
        assert len(leaf.names) == leaf.value.ndim
