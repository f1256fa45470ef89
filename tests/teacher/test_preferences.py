"""Preferences over packed rows, micro-batches and devices equal those read one by one."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jax_rele import config, losses
from jax_rele.data.tokens.preference_rows import preference_rows, with_references
from jax_rele.data.tokens.prompts import Answer
from jax_rele.models import Decoder, DecoderConfig, LoraSpec
from jax_rele.teacher.preferences import compute_log_probs, preference_apply, preference_metrics, preference_terms
from jax_rele.training import create_state, make_mesh, make_train_step, shard_batch, use

PAD, VOCABULARY, N = 0, 40, 12
MODEL = Decoder(DecoderConfig(VOCABULARY, 2, 32, 4, 2, 8, 48, lora=LoraSpec(2, 2.0)))
TX = optax.sgd(1.0)
LOSSES = [losses.dpo, losses.dpo_hinge, losses.ipo, losses.orpo, losses.simpo]
EVERY = {loss.__name__: preference_terms(loss)["preference"] for loss in LOSSES}
"""A term of each loss."""
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
    batch = with_references(preference_rows(*texts, PAD, pack_to), references)
    # Whole batches: rows that count for nothing fill the last one up.
    padding = -len(batch["preferences"]) % ROWS
    return jax.tree.map(lambda x: np.concatenate([x, np.zeros((padding, *x.shape[1:]), x.dtype)]), batch)


@cache
def variables():
    init = jax.jit(lambda rng: MODEL.init(rng, jnp.zeros((1, 4), jnp.int32)))
    tree = nn.unbox(init(jax.random.key(0)))
    # An adapter's B starts at zero, where its A has no gradient.
    return tree | {"lora": jax.tree.map(lambda x: x + 0.1, tree["lora"])}


def start():
    tree = jax.tree.map(jnp.array, variables())
    return create_state({"lora": tree["lora"]}, {"params": tree["params"]}, TX)


def stepped(terms, batch, **options):
    options["extra_metrics"] = preference_metrics
    step = make_train_step(preference_apply(MODEL, chunk_size=64), losses.combine(**terms), TX, **options)
    state, metrics = jax.jit(step)(start(), batch)
    return jax.device_get((state.trainable, metrics["loss"], metrics["terms"], metrics["extra"]))


def alone(prompt, text):
    """The log-probability of a completion by the whole softmax."""
    ids = np.array([*prompt, *text.ids], np.int32)
    # What comes later is not read, so that texts of all lengths are one shape.
    log_probs = _log_probs(np.pad(ids, (0, 16 - len(ids)))[None])[0]
    return sum(log_probs[position, ids[position + 1]] for position in range(len(prompt) - 1, len(ids) - 1))


@jax.jit
def _log_probs(ids):
    outputs = MODEL.apply(variables(), ids)
    return jax.nn.log_softmax(outputs.hidden @ outputs.output_embedding.T)


@pytest.mark.parametrize("pack_to", [0, 64])
def test_log_probs_are_those_of_texts_read_alone(pack_to):
    batch = rows(pack_to)
    outputs = preference_apply(MODEL, chunk_size=64)(variables(), **batch["inputs"])
    prompts, chosen, rejected, _ = examples()
    seen = []
    for row, column in np.argwhere(batch["preferences_mask"]):
        number = batch["preferences"][row, column]
        for side, texts in (("chosen", chosen), ("rejected", rejected)):
            log_probs, lengths = getattr(outputs, f"{side}_log_probs"), getattr(outputs, f"{side}_lengths")
            np.testing.assert_allclose(log_probs[row, column], alone(prompts[number], texts[number]), rtol=1e-4)
            assert lengths[row, column] == len(texts[number].ids)
        seen.append(number)
    assert sorted(seen) == list(range(N))
    lengths = int(outputs.chosen_lengths.sum() + outputs.rejected_lengths.sum())
    assert lengths == sum(len(text.ids) for text in chosen + rejected)


@pytest.mark.parametrize(("pack_to", "data"), [(0, 2), (64, 1)])
def test_references_are_those_of_texts_read_alone(pack_to, data):
    *texts, _ = examples()
    batch, mesh = preference_rows(*texts, PAD, pack_to), make_mesh(config.MeshConfig(data=data), jax.devices()[:data])
    # A batch size that the rows do not fill.
    log_probs = compute_log_probs(MODEL, variables(), batch, N, 8, mesh)
    prompts, chosen, rejected = texts
    expected = [[alone(prompt, a), alone(prompt, b)] for prompt, a, b in zip(prompts, chosen, rejected)]
    np.testing.assert_allclose(log_probs, expected, rtol=1e-4)


def test_dropout_is_off_as_the_reference_has_none():
    model = Decoder(dataclasses.replace(MODEL.config, lora=LoraSpec(2, 2.0, dropout=0.5)))
    inputs = rows(64)["inputs"]
    training = preference_apply(model)(variables(), **inputs, deterministic=False, rngs={"dropout": jax.random.key(0)})
    jax.tree.map(np.testing.assert_array_equal, training, preference_apply(model)(variables(), **inputs))


def test_a_model_that_is_its_reference_has_no_margin():
    *texts, _ = examples()
    batch = preference_rows(*texts, PAD)
    mesh = make_mesh(config.MeshConfig(data=1), jax.devices()[:1])
    batch = with_references(batch, compute_log_probs(MODEL, variables(), batch, N, 4, mesh))
    _, loss, terms, extra = stepped(preference_terms(losses.dpo), batch)
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-5)
    assert [float(count) for _, count in (*terms.values(), *extra.values())] == [N] * 4
    np.testing.assert_allclose(extra["margin"][0], 0, atol=1e-4)
    np.testing.assert_allclose(extra["chosen_log_ratio"][0], 0, atol=1e-4)


@cache
def of_every_loss(pack_to, micro_batches=1):
    return stepped(EVERY, rows(pack_to), micro_batches=micro_batches)


def test_figures_are_those_of_the_texts():
    prompts, chosen, rejected, references = examples()
    ratios = np.array([[alone(prompt, a), alone(prompt, b)] for prompt, a, b in zip(prompts, chosen, rejected)])
    ratios -= references
    margin = ratios[:, 0] - ratios[:, 1]
    expected = {"accuracy": (margin > 0).mean(), "margin": margin.mean(), "chosen_log_ratio": ratios[:, 0].mean()}
    assert losses.means(of_every_loss(64, 4)[3]) == pytest.approx(expected, rel=1e-4)


def test_the_chosen_text_is_learnt_beside_the_preference():
    prompts, chosen, *_ = examples()
    _, loss, terms, _ = stepped(preference_terms(losses.dpo, sft_weight=0.5), rows(64))
    expected = -np.mean([alone(prompt, text) / len(text.ids) for prompt, text in zip(prompts, chosen)])
    means = losses.means(terms)
    assert means["chosen_cross_entropy"] == pytest.approx(expected, rel=1e-4)
    assert float(loss) == pytest.approx(means["preference"] + 0.5 * expected, rel=1e-4)


def test_packing_and_micro_batches_change_nothing():
    plain = of_every_loss(0)
    assert {name: float(count) for name, (_, count) in plain[2].items()} == dict.fromkeys(EVERY, N)
    assert any(np.abs(a - b).max() > 1e-4 for a, b in zip(*map(jax.tree.leaves, (plain[0], start().trainable))))
    assert len(rows(64)["preferences"]) < len(rows(0)["preferences"])
    for other in (of_every_loss(64), of_every_loss(64, 4)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), plain, other)


def test_devices_that_share_the_rows_change_nothing():
    mesh = make_mesh(config.MeshConfig(data=2, fsdp=2), jax.devices()[:4])
    with use(mesh):
        shared = stepped(EVERY, shard_batch(rows(64), mesh))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), of_every_loss(64), shared)


def test_references_are_needed_for_every_preference():
    *texts, references = examples()
    references = references.copy()
    references[3, 1] = np.nan
    batch = preference_rows(*texts, PAD)
    with pytest.raises(ValueError, match="preference 3 has no log-probabilities by the reference"):
        with_references(batch, references)
    with pytest.raises(ValueError, match=r"must be \[12, 2\]"):
        with_references(batch, references[1:])
    with pytest.raises(ValueError, match="reference_chosen_log_probs"):
        stepped(preference_terms(losses.dpo), batch)
