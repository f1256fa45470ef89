"""Chunks: any size gives the same numbers, the logits of the batch never exist, devices keep to their rows."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jax_rele import losses
from jax_rele.losses import language
from jax_rele.models import Decoder, DecoderConfig, LoraSpec


def batch(b, l, e, vocabulary, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(b, l, e)).astype(np.float32),
        rng.normal(size=(vocabulary, e)).astype(np.float32) * 0.3,
        rng.integers(vocabulary, size=(b, l)).astype(np.int32),
    )


def naive(hidden, output_embedding, targets):
    return optax.softmax_cross_entropy_with_integer_labels(hidden @ output_embedding.T, targets)


def mean_and_gradient(loss, **options):
    return jax.value_and_grad(lambda *inputs: loss(*inputs, **options).mean(), argnums=(0, 1))


@pytest.mark.parametrize("chunk_size", [1, 4, 6, 9, 21, 512])
def test_any_chunk_size_equals_naive(chunk_size):
    """Fewer positions than rows, a column, chunks that do and do not divide the length, all in one."""
    inputs = batch(3, 7, 4, 5)
    elements = losses.next_token_cross_entropy(*inputs, chunk_size=chunk_size)
    np.testing.assert_allclose(elements, naive(*inputs), rtol=1e-5, atol=1e-6)


def test_value_and_gradient_equal_naive_without_its_memory():
    b, l, vocabulary = 4, 256, 8192
    inputs = batch(b, l, 16, vocabulary)
    chunked, whole = (
        jax.jit(step).lower(*inputs).compile()
        for step in (mean_and_gradient(losses.next_token_cross_entropy, chunk_size=64), mean_and_gradient(naive))
    )
    logits = b * l * vocabulary * 4
    assert chunked.memory_analysis().temp_size_in_bytes < logits / 3
    assert whole.memory_analysis().temp_size_in_bytes > logits
    for got, desired in zip(jax.tree.leaves(chunked(*inputs)), jax.tree.leaves(whole(*inputs))):
        np.testing.assert_allclose(got, desired, rtol=1e-4, atol=1e-7)


def test_a_frozen_embedding_costs_no_second_logits():
    """The same gradient, of two products with the vocabulary instead of four."""
    hidden, output_embedding, targets = batch(3, 7, 4, 5)
    where = np.arange(7) < 5
    weights = np.random.default_rng(1).random((3, 7)).astype(np.float32)

    def total(hidden, output_embedding):
        elements = losses.next_token_cross_entropy(
            hidden, output_embedding, targets, where, token_weights=weights, chunk_size=6
        )
        return (elements**2).sum()  # a cotangent of its own for each element

    def expected(hidden):
        return ((naive(hidden, output_embedding, targets) * weights * where) ** 2).sum()

    results = jax.value_and_grad(total)(hidden, output_embedding)
    for got, desired in zip(results, jax.value_and_grad(expected)(hidden)):
        np.testing.assert_allclose(got, desired, rtol=1e-5, atol=1e-7)
    products = [str(jax.make_jaxpr(jax.grad(total, argnums))(hidden, output_embedding)) for argnums in (0, (0, 1))]
    assert [text.count("dot_general") for text in products] == [2, 4]


def test_a_step_with_a_large_vocabulary_never_holds_the_logits():
    """A frozen decoder with adapters: far below the logits of the batch, which the naive loss holds at least once."""
    b, l, vocabulary = 8, 256, 50_000
    model = Decoder(DecoderConfig(vocabulary, 1, 64, 2, 1, 32, 64, lora=LoraSpec(2, 2.0)))
    tokens = jax.ShapeDtypeStruct((b, l), jnp.int32)
    variables = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), tokens))

    def temporaries(term):
        loss = losses.combine(tokens=term)

        def objective(lora, params, tokens):
            return loss(model.apply({"params": params, "lora": lora}, tokens), {"targets": tokens})[0]

        step = jax.jit(jax.value_and_grad(objective))
        compiled = step.lower(variables["lora"], variables["params"], tokens).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    logits = b * l * vocabulary * 4
    assert temporaries(losses.term(losses.next_token_cross_entropy, chunk_size=64)) < logits / 6
    assert temporaries(losses.term(naive)) > logits


def test_devices_that_share_the_vocabulary_move_no_logits():
    """What they add up is a number for each position and the gradient by the hidden state."""
    b, l, e, vocabulary = 8, 32, 16, 4096
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    specs = PartitionSpec("data"), PartitionSpec("tensor"), PartitionSpec("data")
    inputs = [
        jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=NamedSharding(mesh, spec))
        for array, spec in zip(batch(b, l, e, vocabulary), specs)
    ]
    step = jax.value_and_grad(lambda *inputs: losses.next_token_cross_entropy(*inputs, chunk_size=64).mean())
    text = jax.jit(step).lower(*inputs).compile().as_text()
    assert moved(text) == {"all-reduce"}
    sizes = [np.prod([int(size) for size in shape.split(",") if size]) for shape in re.findall(SHAPE, moving(text))]
    assert max(sizes) <= b // 2 * l * e


SHAPE = r"f32\[([0-9,]*)\]"


def moving(text):
    """The lines of a compiled program in which devices talk to each other."""
    pattern = r".* = .*?\b(?:all-[a-z]+|collective-[a-z]+|reduce-scatter)[a-z-]*\("
    return "\n".join(re.findall(pattern, text))


def moved(text):
    return set(re.findall(r"\b(all-[a-z]+|collective-[a-z]+|reduce-scatter)[a-z-]*\(", moving(text)))


def test_devices_keep_to_their_rows():
    """No hidden state travels: the mean and the embedding's gradient are all that the devices add up."""
    b, l, e, vocabulary = 16, 128, 16, 4096
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    inputs = [
        jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
        for array, sharding in zip(batch(b, l, e, vocabulary), (rows, everywhere, rows))
    ]
    step = mean_and_gradient(losses.next_token_cross_entropy, chunk_size=2 * b)
    compiled = jax.jit(step).lower(*inputs).compile()
    assert moved(compiled.as_text()) == {"all-reduce"}
    assert compiled.memory_analysis().temp_size_in_bytes < b * l * vocabulary * 4 / 8 / 2


def test_gradient_of_a_bfloat16_embedding_is_summed_in_float32():
    """Over many chunks a bfloat16 sum would stop growing."""
    hidden, output_embedding, targets = batch(1, 2048, 4, 8)
    hidden = np.abs(hidden)  # gradients of one sign, as those of a frequent token are
    narrow = [jnp.asarray(array, jnp.bfloat16) for array in (hidden, output_embedding)]
    wide = [array.astype(jnp.float32) for array in narrow]

    def gradient(hidden, output_embedding):
        step = jax.grad(lambda w: losses.next_token_cross_entropy(hidden, w, targets, chunk_size=4).sum())
        return np.asarray(jax.jit(step)(output_embedding), np.float32)

    got, desired = gradient(*narrow), gradient(*wide)
    assert np.linalg.norm(got - desired) < 0.005 * np.linalg.norm(desired)


def test_bfloat16_states_give_float32_logits():
    hidden, output_embedding, targets = batch(2, 8, 256, 16)
    narrow = [jnp.asarray(array, jnp.bfloat16) for array in (hidden, output_embedding)]
    logits = np.einsum("ble,ve->blv", *(np.asarray(array, np.float64) for array in narrow))
    desired = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(losses.next_token_cross_entropy(*narrow, targets), desired, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_keep_the_type_of_their_argument(dtype):
    hidden, output_embedding, targets = batch(2, 6, 4, 8)
    inputs = jnp.asarray(hidden, dtype), jnp.asarray(output_embedding, dtype), targets
    _, gradients = jax.eval_shape(mean_and_gradient(losses.next_token_cross_entropy), *inputs)
    assert [gradient.dtype for gradient in gradients] == [dtype, dtype]


def test_token_weights_multiply_the_elements():
    inputs = batch(2, 6, 4, 8)
    weights = np.random.default_rng(1).random((2, 6)).astype(np.float32)
    where = weights > 0.3
    plain = losses.next_token_cross_entropy(*inputs, where)
    weighted = losses.next_token_cross_entropy(*inputs, where, token_weights=np.where(where, weights, np.nan))
    np.testing.assert_allclose(weighted, np.where(where, plain * weights, 0.0), rtol=1e-6)


def test_masked_token_weights_pass_no_nan_to_the_gradient():
    hidden, output_embedding, targets = batch(2, 6, 4, 8)
    where = np.arange(6) < 4
    weights = np.where(where, 1.0, np.nan) * np.ones((2, 1))

    def total(hidden, output_embedding):
        return losses.next_token_cross_entropy(hidden, output_embedding, targets, where, token_weights=weights).sum()

    by_hidden, by_embedding = jax.grad(total, argnums=(0, 1))(hidden, output_embedding)
    assert np.isfinite(by_embedding).all()
    assert np.isfinite(by_hidden).all()
    assert not by_hidden[:, 4:].any()


@pytest.mark.parametrize(("start", "chunks"), [(0, 4), (16, 3), (60, 1), (64, 0)])
def test_logits_are_computed_only_for_chunks_that_count(monkeypatch, start, chunks):
    """Without compilation a conditional runs one of its branches."""
    hidden, output_embedding, targets = batch(2, 64, 8, 32)
    where = jnp.arange(64) >= start
    computed = []
    logits = language._logits
    monkeypatch.setattr(language, "_logits", lambda *inputs: computed.append(1) or logits(*inputs))
    with jax.disable_jit():
        losses.next_token_cross_entropy(hidden, output_embedding, targets, where, chunk_size=32)
    # Once more to learn the shapes.
    assert len(computed) == 1 + chunks


@pytest.mark.parametrize("chunk_size", [1, 6, 16, 1000])
def test_masked_positions_anywhere_change_no_other(chunk_size):
    hidden, output_embedding, targets = batch(3, 10, 4, 32)
    where = np.random.default_rng(0).random((3, 10)) < [[0.5], [0.0], [1.0]]

    def both(where):
        def total(hidden, output_embedding):
            return losses.next_token_cross_entropy(
                hidden, output_embedding, targets, where, chunk_size=chunk_size
            ).sum()

        return jax.value_and_grad(total, (0, 1))(hidden, output_embedding)

    def total(hidden, output_embedding):
        return jnp.where(where, naive(hidden, output_embedding, targets), 0.0).sum()

    expected = jax.value_and_grad(total, (0, 1))(hidden, output_embedding)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), both(where), expected)


def test_hidden_states_are_not_scattered():
    """Neither into the order in which they count, nor back."""
    hidden, output_embedding, targets = batch(2, 64, 8, 32)
    step = jax.grad(lambda h: losses.next_token_cross_entropy(h, output_embedding, targets, jnp.arange(64) > 9).sum())
    assert "scatter" not in str(jax.make_jaxpr(step)(hidden))
