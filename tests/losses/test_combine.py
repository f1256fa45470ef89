"""`combine`: arguments by name, masks by name, exact means."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jax_rele import losses
from jax_rele.types import DecoderOutputs, StudentOutputs

B, C, D, V, L = 16, 3, 2, 3, 5
GAINS = np.array([1.0, 0.4, 0.0], np.float32)


def make(seed=0):
    """A student's outputs and a batch with a mask of every kind; what the masks cover is NaN or stray."""
    rng = np.random.default_rng(seed)
    outputs = StudentOutputs(
        logits=rng.normal(size=(B, C)).astype(np.float32),
        verdict_logits=rng.normal(size=(B, D, V)).astype(np.float32),
        token_logits=rng.normal(size=(B, L, 1 + D)).astype(np.float32),
        attention=rng.dirichlet(np.ones(L), B).astype(np.float32),
    )
    batch = {
        "mask": np.arange(B) < B - 3,
        "labels": rng.integers(C, size=B),
        "labels_mask": rng.random(B) < 0.7,
        "label_probs": rng.dirichlet(np.ones(C), B).astype(np.float32),
        "verdict_probs": rng.dirichlet(np.ones(V), (B, D)).astype(np.float32),
        "verdict_probs_mask": rng.random((B, D)) < 0.7,
        "evidence_tags": rng.integers(1 + D, size=(B, L)),
        "evidence_tags_mask": rng.random((B, L)) < 0.7,
        "segments": np.arange(B) // 2,
        # Less than one example in all.
        "confidence": rng.uniform(0.0, 0.1, B).astype(np.float32),
    }
    batch["labels"][~batch["labels_mask"]] = -1
    batch["verdict_probs"][~batch["verdict_probs_mask"]] = np.nan
    batch["confidence"][~batch["mask"]] = np.nan
    return outputs, batch


LOSS = losses.combine(
    label=losses.term(losses.cross_entropy),
    score=losses.term(losses.score_kl, weight=0.5, temperature=2.0),
    verdict=losses.term(losses.verdict_cross_entropy, weight=0.3),
    evidence=losses.term(losses.evidence_tagging, weight=0.2),
    margin=losses.term(losses.margin_mse, gains=GAINS),
    list=losses.term(losses.listwise_kl, temperature=0.2, gains=GAINS),
    attention=losses.term(losses.attention_to_evidence),
    sure=losses.term(losses.brier, confidence="confidence"),
    sure_verdict=losses.term(losses.verdict_cross_entropy, confidence="confidence", hard=True),
)
STEP = jax.jit(jax.value_and_grad(LOSS, has_aux=True))


def apart(outputs, batch, masks):
    """The elements of `LOSS`, without `combine`."""
    ranking = outputs.logits, batch["label_probs"], GAINS, batch["segments"]
    return {
        "label": losses.cross_entropy(outputs.logits, batch["labels"], masks["label"]),
        "score": losses.score_kl(outputs.logits, batch["label_probs"], masks["score"], temperature=2.0),
        "verdict": losses.verdict_cross_entropy(outputs.verdict_logits, batch["verdict_probs"], masks["verdict"]),
        "evidence": losses.evidence_tagging(outputs.token_logits, batch["evidence_tags"], masks["evidence"]),
        "margin": losses.margin_mse(*ranking, masks["margin"]),
        "list": losses.listwise_kl(*ranking, masks["list"], temperature=0.2),
        "attention": losses.attention_to_evidence(
            outputs.attention, batch["evidence_tags"], batch["evidence_tags_mask"], masks["attention"]
        ),
        "sure": losses.brier(outputs.logits, batch["label_probs"], masks["sure"]),
        "sure_verdict": losses.verdict_cross_entropy(
            outputs.verdict_logits, batch["verdict_probs"], masks["sure_verdict"], hard=True
        ),
    }


def rows(tree, start, stop):
    return jax.tree.map(lambda array: array[start:stop], tree)


def test_scalar_and_totals_are_those_of_the_losses():
    outputs, batch = make()
    (scalar, totals), _ = STEP(outputs, batch)
    masks = {
        "label": batch["mask"] & batch["labels_mask"],
        "score": batch["mask"],
        "verdict": batch["mask"][:, None] & batch["verdict_probs_mask"],
        "evidence": batch["mask"][:, None] & batch["evidence_tags_mask"],
        "margin": batch["mask"],
        "list": batch["mask"],
        "attention": batch["mask"],
        "sure": batch["mask"],
        "sure_verdict": batch["mask"][:, None] & batch["verdict_probs_mask"],
    }
    elements = jax.jit(apart)(outputs, batch, masks)
    counts = {name: mask.astype(np.float64) for name, mask in masks.items()}
    confidence = np.where(batch["mask"], batch["confidence"], 0.0)
    counts["sure"] *= confidence
    counts["sure_verdict"] *= confidence[:, None]
    weights = dict.fromkeys(elements, 1.0) | {"score": 0.5, "verdict": 0.3, "evidence": 0.2}
    for name, (total, count) in totals.items():
        np.testing.assert_allclose(count, counts[name].sum(), rtol=1e-6 if name.startswith("sure") else 0)
        assert total.dtype == count.dtype == jnp.float32
        np.testing.assert_allclose(total, (counts[name] * elements[name]).sum(), rtol=1e-5)
    assert counts["sure"].sum() < 1.0
    expected = sum(weights[n] * (counts[n] * elements[n]).sum() / counts[n].sum() for n in elements)
    np.testing.assert_allclose(scalar, expected, rtol=1e-5)
    assert losses.means(totals)["score"] == pytest.approx(float(elements["score"].sum() / masks["score"].sum()))


@settings(max_examples=30)
@given(st.sets(st.sampled_from(["mask", "verdict_probs_mask", "chosen"])), st.integers(0, 1), st.integers(0, 9))
def test_masks_are_joined_as_far_as_they_exist(present, axes, seed):
    rng = np.random.default_rng(seed)
    outputs, batch = make()
    masks = {name: rng.random(B) < 0.7 for name in ("mask", "chosen")}
    masks["verdict_probs_mask"] = rng.random((B, D)[: 1 + axes]) < 0.7
    batch = {"verdict_probs": np.nan_to_num(batch["verdict_probs"])} | {name: masks[name] for name in present}
    loss = losses.combine(
        verdict=losses.term(losses.verdict_cross_entropy, where="chosen" if "chosen" in present else None)
    )
    total, count = loss(outputs, batch)[1]["verdict"]
    joined = np.ones((B, D), bool)
    for name in present:
        joined &= masks[name].reshape(B, -1)
    assert count == joined.sum()
    elements = losses.verdict_cross_entropy(outputs.verdict_logits, batch["verdict_probs"])
    np.testing.assert_allclose(total, (elements * joined).sum(), rtol=1e-5)


def test_confidence_of_one_changes_nothing():
    outputs, batch = make()
    plain = jax.jit(losses.combine(k=losses.term(losses.verdict_cross_entropy)))(outputs, batch)
    for ones in (np.ones(B), np.ones((B, D)), np.ones(B, int)):
        sure = jax.jit(losses.combine(k=losses.term(losses.verdict_cross_entropy, confidence="sure")))
        assert sure(outputs, batch | {"sure": ones}) == plain


def test_a_masked_confidence_is_not_read():
    """Masks of the batch and of the field: what they cover is NaN."""
    outputs, batch = make()
    known = np.arange(B) % 2 == 0
    batch |= {"sure": np.where(known & batch["mask"], 0.25, np.nan), "sure_mask": known}
    loss = losses.combine(k=losses.term(losses.brier, confidence="sure"))
    (scalar, totals), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(outputs, batch)
    counted = known & batch["mask"]
    expected = losses.brier(outputs.logits, batch["label_probs"])[counted]
    np.testing.assert_allclose(scalar, expected.mean(), rtol=1e-6)
    np.testing.assert_allclose(totals["k"], (0.25 * expected.sum(), 0.25 * counted.sum()), rtol=1e-6)
    assert np.isfinite(gradients.logits).all()
    assert not gradients.logits[~counted].any()


def test_an_unmasked_confidence_that_is_nan_is_seen():
    outputs, batch = make()
    loss = losses.combine(k=losses.term(losses.brier, confidence="sure"))
    assert np.isnan(loss(outputs, batch | {"sure": np.full(B, np.nan)})[1]["k"][0])


def test_confidence_of_zero_everywhere_is_zero():
    outputs, batch = make()
    loss = losses.combine(k=losses.term(losses.brier, confidence="sure"))
    (scalar, totals), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        outputs, batch | {"sure": np.zeros(B)}
    )
    assert scalar == totals["k"][0] == totals["k"][1] == 0.0
    assert not gradients.logits.any()


def test_gradient_is_finite_where_signals_are_missing():
    outputs, batch = make()
    _, gradients = STEP(outputs, batch)
    assert all(np.isfinite(gradient).all() for gradient in jax.tree.leaves(gradients))
    assert not gradients.logits[~batch["mask"]].any()


def test_nothing_valid_is_zero():
    outputs, batch = make()
    (scalar, totals), gradients = STEP(outputs, batch | {"mask": np.zeros(B, bool)})
    assert not any(gradient.any() for gradient in jax.tree.leaves(gradients))
    assert scalar == 0.0
    assert all(total == count == 0.0 for total, count in totals.values())
    assert all(np.isnan(mean) for mean in losses.means(totals).values())


def test_outputs_come_before_the_batch_and_none_does_not_count():
    outputs, batch = make()
    loss = losses.combine(score=losses.term(losses.score_kl))
    both = loss(outputs, batch | {"logits": np.zeros((B, C))})[0]
    assert both == loss(outputs, batch)[0]
    from_batch = loss(replace(outputs, logits=None), batch | {"logits": outputs.logits})[0]
    assert from_batch == both


def test_bind_renames_fields_and_gives_constants():
    outputs, batch = make()
    labels = np.zeros(B, int)
    batch |= {"coarse": labels, "coarse_mask": np.arange(B) < 4, "own": np.zeros(C)}
    loss = losses.combine(label=losses.term(losses.cross_entropy, labels="coarse", label_smoothing=0.1))
    total, count = loss(outputs, batch)[1]["label"]
    assert count == 4
    expected = losses.cross_entropy(outputs.logits, labels, label_smoothing=0.1)[:4].sum()
    np.testing.assert_allclose(total, expected, rtol=1e-6)


def test_optional_arguments_are_bound_if_the_batch_has_them():
    rng = np.random.default_rng(0)
    outputs = DecoderOutputs(hidden=rng.normal(size=(B, L, 4)), output_embedding=rng.normal(size=(9, 4)))
    batch = {"targets": rng.integers(9, size=(B, L)), "targets_mask": rng.random((B, L)) < 0.5}
    weights = rng.random((B, L))
    loss = losses.combine(token=losses.term(losses.next_token_cross_entropy, chunk_size=32))
    elements = losses.next_token_cross_entropy(**vars(outputs), targets=batch["targets"], where=batch["targets_mask"])
    total, count = loss(outputs, batch)[1]["token"]
    weighted, weighted_count = loss(outputs, batch | {"token_weights": weights})[1]["token"]
    assert count == weighted_count == batch["targets_mask"].sum()
    np.testing.assert_allclose(total, elements.sum(), rtol=1e-5)
    np.testing.assert_allclose(weighted, (elements * weights).sum(), rtol=1e-5)


def test_weights_and_temperatures_follow_the_step():
    outputs, batch = make()
    schedule = optax.linear_schedule(0.0, 1.0, 10)
    loss = jax.jit(
        losses.combine(
            score=losses.term(losses.score_kl, weight=schedule, temperature=optax.linear_schedule(1.0, 3.0, 10))
        )
    )
    for step in (0, 5, 10):
        scalar, totals = loss(outputs, batch, step)
        total = losses.score_kl(
            outputs.logits, batch["label_probs"], batch["mask"], temperature=1.0 + 2.0 * step / 10
        ).sum()
        np.testing.assert_allclose(totals["score"][0], total, rtol=1e-5)
        np.testing.assert_allclose(scalar, step / 10 * total / batch["mask"].sum(), rtol=1e-5)


def test_weight_zero_reports_and_adds_nothing():
    outputs, batch = make()
    outputs = replace(outputs, verdict_logits=np.full((B, D, V), np.nan, np.float32))
    label = losses.combine(label=losses.term(losses.cross_entropy))
    watched = losses.combine(
        label=losses.term(losses.cross_entropy), verdict=losses.term(losses.verdict_cross_entropy, weight=0)
    )
    scalar, totals = watched(outputs, batch)
    assert scalar == label(outputs, batch)[0]
    assert np.isnan(totals["verdict"][0])
    assert totals["verdict"][1] > 0


@pytest.mark.parametrize("parts", [2, 8])
def test_micro_batches_sum_to_the_batch(parts):
    """Uneven masks: a mean of means would differ."""
    outputs, batch = make()
    (scalar, totals), gradients = STEP(outputs, batch)
    counts = {name: count for name, (_, count) in totals.items()}
    size = B // parts
    micro = [STEP(rows(outputs, i, i + size), rows(batch, i, i + size), 0, counts) for i in range(0, B, size)]
    np.testing.assert_allclose(sum(value for (value, _), _ in micro), scalar, rtol=1e-5)
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *(gradient for _, gradient in micro))
    jax.tree.map(
        lambda got, expected: np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-8), joined, gradients
    )
    added = micro[0][0][1]
    for (_, more), _ in micro[1:]:
        added = losses.add_totals(added, more)
    assert losses.means(added) == pytest.approx(losses.means(totals), rel=1e-5)
    means = [STEP(rows(outputs, i, i + size), rows(batch, i, i + size))[0][0] for i in range(0, B, size)]
    assert abs(np.mean(means) - scalar) > 1e-3


def test_counts_need_no_model():
    outputs, batch = make()
    (_, totals), _ = STEP(outputs, batch)
    (_, blind), _ = STEP(jax.tree.map(jnp.zeros_like, outputs), batch)
    assert {name: count for name, (_, count) in blind.items()} == {name: count for name, (_, count) in totals.items()}


def test_sharded_over_eight_devices_equals_one():
    outputs, batch = make()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put((outputs, batch), NamedSharding(mesh, PartitionSpec("data")))
    jax.tree.map(
        lambda got, expected: np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7),
        STEP(*sharded),
        STEP(outputs, batch),
    )


def test_a_function_of_ones_own_needs_no_mask():
    def confidence(logits):
        return jax.nn.softmax(logits).max(-1)

    outputs, batch = make()
    _, totals = losses.combine(confidence=losses.term(confidence))(outputs, batch)
    total, count = totals["confidence"]
    assert count == batch["mask"].sum()
    np.testing.assert_allclose(total, confidence(outputs.logits)[batch["mask"]].sum(), rtol=1e-6)


def message(outputs, batch, **terms):
    with pytest.raises(ValueError, match="term 'k'") as error:
        losses.combine(**terms)(outputs, batch)
    return str(error.value)


def test_missing_fields_are_named():
    outputs, batch = make()
    no_head = message(replace(outputs, verdict_logits=None), batch, k=losses.term(losses.verdict_cross_entropy))
    assert "the argument verdict_logits of verdict_cross_entropy" in no_head
    assert "the model has no head for it (StudentOutputs.verdict_logits is None)" in no_head
    assert "StudentOutputs has: attention, logits, token_logits." in no_head
    no_signal = message(outputs, {"mask": batch["mask"]}, k=losses.term(losses.score_kl))
    assert "needs the field 'label_probs'" in no_signal
    assert "The batch has: mask." in no_signal
    assert "'coarse'" in message(outputs, batch, k=losses.term(losses.cross_entropy, labels="coarse"))
    optional = losses.term(losses.cross_entropy, label_smoothing="smoothing")
    assert "'smoothing'" in message(outputs, batch, k=optional)
    assert "where='hard' is not in the batch" in message(outputs, batch, k=losses.term(losses.score_kl, where="hard"))
    assert "confidence='sure' is not in the batch" in message(
        outputs, batch, k=losses.term(losses.score_kl, confidence="sure")
    )
    with pytest.raises(ValueError, match="term 'k'"):  # at trace time
        jax.eval_shape(losses.combine(k=losses.term(losses.score_kl)), outputs, {"mask": batch["mask"]})


@pytest.mark.parametrize("name", ["mask", "label_probs_mask", "hard"])
def test_masks_that_do_not_fit_are_named(name):
    outputs, batch = make()
    k = losses.term(losses.score_kl, where="hard")
    batch["hard"] = np.ones(B, bool)
    for mask in (np.ones(B - 1, bool), np.ones((B, C), bool)):
        assert f"the mask '{name}' has shape {mask.shape}" in message(outputs, batch | {name: mask}, k=k)
    assert f"the mask '{name}' must hold booleans" in message(outputs, batch | {name: np.ones(B)}, k=k)


def test_confidence_that_does_not_fit_is_named():
    outputs, batch = make()
    k = losses.term(losses.score_kl, confidence="sure")
    for confidence in (np.ones(B - 1), np.ones((B, C))):
        text = message(outputs, batch | {"sure": confidence}, k=k)
        assert f"the confidence 'sure' has shape {confidence.shape}, the elements have ({B},)" in text


def test_wrong_terms_are_refused():
    outputs, batch = make()
    assert "reduces to a scalar" in message(outputs, batch, k=losses.term(lambda logits: logits.mean()))
    with pytest.raises(ValueError, match="at least one term"):
        losses.combine()
    with pytest.raises(ValueError, match=r"label=losses\.term"):
        losses.combine(label=losses.cross_entropy)
    with pytest.raises(ValueError, match="cross_entropy has no parameter label; its parameters are logits, labels"):
        losses.term(losses.cross_entropy, label="labels")
    with pytest.raises(ValueError, match="no parameter temperature"):
        losses.term(losses.cross_entropy, temperature=2.0)
    with pytest.raises(ValueError, match="counts has no term 'k'"):
        losses.combine(k=losses.term(losses.score_kl))(outputs, batch, counts={"label": 3.0})
