"""Preferences over packed rows, micro-batches and devices equal those read one by one."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jax_rele import config, losses
from jax_rele.data.tokens.preference_rows import preference_rows
from jax_rele.data.tokens.prompts import Answer
from jax_rele.models import Decoder, DecoderConfig, LoraSpec
from jax_rele.teacher.preferences import preference_term
from jax_rele.training import create_state, make_mesh, make_train_step, shard_batch, use

PAD, VOCABULARY, N = 0, 40, 12
MODEL = Decoder(DecoderConfig(VOCABULARY, 2, 32, 4, 2, 8, 48, lora=LoraSpec(2, 2.0)))
TX = optax.sgd(1.0)
LOSSES = [losses.dpo, losses.dpo_hinge, losses.ipo, losses.orpo, losses.simpo]
ROWS = 8


def answer(rng):
    ids = rng.integers(1, VOCABULARY, rng.integers(1, 7)).tolist()
    return Answer(ids, ["fixed"] * len(ids))


@cache
def examples():
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, VOCABULARY, rng.integers(2, 9)).tolist() for _ in range(N)]
    return prompts, [answer(rng) for _ in range(N)], [answer(rng) for _ in range(N)], -rng.gamma(3.0, 4.0, (N, 2))


def rows(pack_to):
    *texts, references = examples()
    batch = preference_rows(*texts, PAD, pack_to, reference_log_probs=references)
    padding = -len(batch["targets"]) % ROWS

    def padded(x):
        return np.concatenate([x, np.zeros((padding, *x.shape[1:]), x.dtype)])

    batch = jax.tree.map(padded, batch)
    batch["preferences"][len(batch["preferences"]) - padding :] = -1
    return batch


@cache
def variables():
    init = jax.jit(lambda rng: MODEL.init(rng, jnp.zeros((1, 4), jnp.int32)))
    tree = nn.unbox(init(jax.random.key(0)))
    # An adapter's B starts at zero, where its A has no gradient.
    return tree | {"lora": jax.tree.map(lambda x: x + 0.1, tree["lora"])}


def start():
    tree = jax.tree.map(jnp.array, variables())
    return create_state({"lora": tree["lora"]}, {"params": tree["params"]}, TX)


def stepped(loss, batch, **options):
    step = make_train_step(MODEL.apply, losses.combine(preference=preference_term(loss, chunk_size=64)), TX, **options)
    state, metrics = jax.jit(step)(start(), batch)
    return jax.device_get((state.trainable, metrics["loss"], metrics["terms"]))


def alone(prompt, text):
    """The log-probability of a completion by the whole softmax."""
    ids = np.array([[*prompt, *text.ids]], np.int32)
    outputs = MODEL.apply(variables(), ids[:, :-1])
    log_probs = np.float64(jax.nn.log_softmax(outputs.hidden @ outputs.output_embedding.T))[0]
    return sum(log_probs[position, ids[0, position + 1]] for position in range(len(prompt) - 1, ids.shape[1] - 1))


@pytest.mark.parametrize("pack_to", [0, 64])
def test_log_probs_are_those_of_texts_read_alone(pack_to):
    batch = rows(pack_to)
    outputs = MODEL.apply(variables(), **batch["inputs"])
    arguments = (batch["targets"], batch["sequence_ids"], batch["targets_mask"])
    size = batch["preferences"].shape[1]
    log_probs, lengths = losses.sequence_log_probs(
        outputs.hidden, outputs.output_embedding, *arguments, sequences=2 * size, chunk_size=64
    )
    prompts, chosen, rejected, _ = examples()
    seen = []
    for row, column in np.argwhere(batch["preferences_mask"]):
        number = batch["preferences"][row, column]
        for side, texts in enumerate((chosen, rejected)):
            index = row, 2 * column + side
            np.testing.assert_allclose(log_probs[index], alone(prompts[number], texts[number]), rtol=1e-4)
            assert lengths[index] == len(texts[number].ids)
        seen.append(number)
    assert sorted(seen) == list(range(N))
    assert int(lengths.sum()) == sum(len(text.ids) for text in chosen + rejected)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_packing_and_micro_batches_change_nothing(loss):
    plain = stepped(loss, rows(0))
    assert float(plain[2]["preference"][1]) == N
    assert any(np.abs(a - b).max() > 1e-4 for a, b in zip(*map(jax.tree.leaves, (plain[0], start().trainable))))
    packed = rows(64)
    assert len(packed["targets"]) < len(rows(0)["targets"])
    for other in (stepped(loss, packed), stepped(loss, packed, micro_batches=4)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), plain, other)


def test_devices_that_share_the_rows_change_nothing():
    mesh = make_mesh(config.MeshConfig(data=2, fsdp=2), jax.devices()[:4])
    with use(mesh):
        shared = stepped(losses.dpo, shard_batch(rows(64), mesh))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), stepped(losses.dpo, rows(64)), shared
    )


def test_references_are_needed_for_every_preference():
    *texts, references = examples()
    references = references.copy()
    references[3, 1] = np.nan
    with pytest.raises(ValueError, match="preference 3 has no log-probabilities by the reference"):
        preference_rows(*texts, PAD, reference_log_probs=references)
    with pytest.raises(ValueError, match=r"must be \[12, 2\]"):
        preference_rows(*texts, PAD, reference_log_probs=references[1:])
    with pytest.raises(ValueError, match="reference_chosen_log_probs"):
        stepped(losses.dpo, preference_rows(*texts, PAD))
