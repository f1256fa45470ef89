"""Micro-batches: the loss, the gradients and the update of the whole batch, computed in parts."""

import re
from functools import cache

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from jax_rele import config, losses
from jax_rele.data.batches.loader import flatten_groups
from jax_rele.errors import UserError
from jax_rele.models import Decoder, DecoderConfig, EncoderConfig, LoraSpec
from jax_rele.students import CrossEncoder
from jax_rele.training import create_state, make_mesh, make_train_step, shard_batch, use

ROWS, LENGTH, VOCABULARY, LABELS = 16, 12, 40, 3
DECODER = Decoder(DecoderConfig(VOCABULARY, 1, 32, 4, 2, 8, 48, lora=LoraSpec(2, 2.0)))
STUDENT = CrossEncoder(EncoderConfig(VOCABULARY, LENGTH, 1, 32, 4, 48, dropout=0.0), LABELS, 2)
# The whole update is the gradient, so equal parameters after a step are equal gradients.
TX = optax.sgd(1.0)
RANKING = losses.combine(**losses.recipe("score_kd", gains=(1.0, 0.5, 0.0), temperature=2.0, heads={"logits"}))
LANGUAGE = losses.combine(tokens=losses.term(losses.next_token_cross_entropy))


def mesh_of(devices, **axes):
    return make_mesh(config.MeshConfig(**axes), jax.devices()[:devices])


def language_batch(seed=0):
    """Rows whose masks and weights differ, so that no two parts count the same."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCABULARY, (ROWS, LENGTH)).astype(np.int32)
    lengths = rng.integers(0, LENGTH, ROWS)
    lengths[:2] = 0
    return {
        "inputs": {"tokens": tokens},
        "targets": np.roll(tokens, -1, 1),
        "targets_mask": np.arange(LENGTH) < lengths[:, None],
        "token_weights": rng.random((ROWS, LENGTH)).astype(np.float32),
    }


def grouped_batch(size, seed=0):
    rng = np.random.default_rng(seed)
    groups = ROWS // size
    tokens = rng.integers(0, VOCABULARY, (groups, size, LENGTH)).astype(np.int32)
    probs = rng.dirichlet(np.ones(LABELS), (groups, size)).astype(np.float32)
    return flatten_groups(
        {
            "inputs": {"tokens": tokens, "token_types": tokens % 2, "valid": tokens > 2},
            "labels": probs.argmax(-1).astype(np.int32),
            "labels_mask": rng.random((groups, size)) < 0.5,
            "label_probs": probs,
            "mask": rng.random((groups, size)) < 0.8,
        }
    )


@cache
def start(model, trainable):
    inputs = {"tokens": np.zeros((1, LENGTH), np.int32)}
    if model is STUDENT:
        inputs |= {"token_types": inputs["tokens"], "valid": inputs["tokens"] == 0}
    variables = nn.unbox(jax.jit(lambda rng: model.init(rng, **inputs))(jax.random.key(0)))
    # An adapter's B starts at zero, where its A has no gradient.
    if "lora" in variables:
        variables["lora"] = jax.tree.map(lambda x: x + 0.1, variables["lora"])
    learns = {trainable: variables[trainable]}
    return create_state(learns, {name: tree for name, tree in variables.items() if name not in learns}, TX)


def stepped(model, loss, batch, trainable, **options):
    """What is learnt, and the metrics."""
    state, metrics = jax.jit(make_train_step(model.apply, loss, TX, **options))(start(model, trainable), batch)
    assert int(state.step) == 1
    return jax.device_get((state.trainable, metrics))


def assert_close(one, other):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(("trainable", "micro_batches"), [("params", 2), ("lora", 8)])
def test_parts_of_unequal_counts_make_the_whole_batch(trainable, micro_batches):
    batch = language_batch()
    whole = stepped(DECODER, LANGUAGE, batch, trainable)
    parts = stepped(DECODER, LANGUAGE, batch, trainable, micro_batches=micro_batches)
    assert_close(whole, parts)
    assert parts[1]["terms"]["tokens"][1] == batch["targets_mask"].sum()


@pytest.mark.slow
def test_groups_stay_whole():
    batch = grouped_batch(4)
    whole = stepped(STUDENT, RANKING, batch, "params")
    parts = stepped(STUDENT, RANKING, batch, "params", micro_batches=2, group_size=4)
    assert whole[1]["terms"]["margin"][1] > 0
    assert_close(whole, parts)


def compiled(mesh, **options):
    step = make_train_step(DECODER.apply, LANGUAGE, TX, **options)
    state = jax.device_put(start(DECODER, "lora"), NamedSharding(mesh, PartitionSpec()))
    batch = shard_batch(language_batch(), mesh)
    with use(mesh):
        return jax.jit(step).lower(state, batch).compile(), state, batch


def test_devices_make_the_whole_batch_and_keep_to_their_rows():
    """Counts take no forward pass, a part's activations are all there is, and each device splits the rows it has."""
    mesh = mesh_of(8, data=4, fsdp=2)
    (whole, state, batch), (parts, *_) = compiled(mesh), compiled(mesh, micro_batches=2)
    one, other = (
        jax.device_get((new.trainable, metrics)) for new, metrics in (whole(state, batch), parts(state, batch))
    )
    assert_close(one, other)
    rows, width = ROWS // 8, DECODER.config.width
    assert f"[{rows},{LENGTH},{width}]" in whole.as_text()
    assert f"[{rows},{LENGTH},{width}]" not in parts.as_text()
    assert f"[{rows // 2},{LENGTH},{width}]" in parts.as_text()
    assert collectives(parts) == collectives(whole) == {"all-reduce"}


def collectives(compiled):
    pattern = r"= \S+ (all-[a-z]+|collective-[a-z]+|reduce-scatter)[a-z-]*\("
    return set(re.findall(pattern, compiled.as_text()))


def test_parts_that_cannot_be_made_are_refused():
    batch = language_batch()
    with pytest.raises(UserError, match="micro_batches: the 16 rows of a step do not divide into 3 parts"):
        stepped(DECODER, LANGUAGE, batch, "lora", micro_batches=3)
    with pytest.raises(UserError, match="the 16 rows of a step in groups of 4 do not divide into 8 parts"):
        stepped(DECODER, LANGUAGE, batch, "lora", micro_batches=8, group_size=4)
    with pytest.raises(UserError, match="micro_batches: 4 rows of a part do not divide over data x fsdp = 8 devices"):
        compiled(mesh_of(8, data=4, fsdp=2), micro_batches=4)
    with pytest.raises(ValueError, match="give make_train_step their group_size"):
        stepped(STUDENT, RANKING, grouped_batch(4), "params", micro_batches=2)
