"""`joint`: the objectives of several models over one batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_rele import losses
from jax_rele.types import StudentOutputs

B, C, L, D = 8, 3, 4, 2
RNG = np.random.default_rng(0)
OUTPUTS = {
    "reader": StudentOutputs(
        logits=RNG.normal(size=(B, C)).astype(np.float32),
        token_logits=RNG.normal(size=(B, L, 1 + D)).astype(np.float32),
    ),
    "towers": StudentOutputs(logits=RNG.normal(size=(B, C)).astype(np.float32)),
}
SHARED = {"labels": RNG.integers(C, size=B), "mask": np.arange(B) < 6}
TAGS = {"evidence_tags": RNG.integers(1 + D, size=(B, L)), "evidence_tags_mask": RNG.random((B, L)) < 0.5}
BATCH = SHARED | {"inputs": {}, "reader": TAGS}
READER = jax.jit(
    losses.combine(
        label=losses.term(losses.cross_entropy),
        evidence=losses.term(losses.evidence_tagging, weight=lambda step: step / 2),
    )
)
TOWERS = jax.jit(losses.combine(label=losses.term(losses.cross_entropy, label_smoothing=0.1)))
JOINT = jax.jit(losses.joint(reader=READER, towers=TOWERS))


def test_it_is_the_sum_and_every_model_has_its_terms():
    scalar, totals = JOINT(OUTPUTS, BATCH, 3)
    reader, towers = READER(OUTPUTS["reader"], SHARED | TAGS, 3), TOWERS(OUTPUTS["towers"], SHARED, 3)
    assert scalar == reader[0] + towers[0]
    assert scalar.dtype == jnp.float32
    expected = {f"reader/{k}": v for k, v in reader[1].items()} | {f"towers/{k}": v for k, v in towers[1].items()}
    assert totals == expected


def test_each_model_has_the_gradient_that_it_has_alone():
    gradients = jax.grad(lambda outputs: JOINT(outputs, BATCH, 1)[0])(OUTPUTS)
    alone = jax.grad(lambda outputs: TOWERS(outputs, SHARED, 1)[0])(OUTPUTS["towers"])
    np.testing.assert_array_equal(gradients["towers"].logits, alone.logits)


def test_own_fields_come_before_the_shared_ones_and_are_no_others():
    labels = (SHARED["labels"] + 1) % C
    _, totals = JOINT(OUTPUTS, BATCH | {"towers": {"labels": labels}})
    assert totals["towers/label"] == TOWERS(OUTPUTS["towers"], SHARED | {"labels": labels})[1]["label"]
    assert totals["reader/label"] == JOINT(OUTPUTS, BATCH)[1]["reader/label"]
    swapped = losses.joint(reader=TOWERS, towers=READER)
    outputs = {"reader": OUTPUTS["towers"], "towers": OUTPUTS["reader"]}
    with pytest.raises(ValueError, match=r"the field 'evidence_tags'.* The batch has: inputs, labels, mask"):
        swapped(outputs, BATCH)


def test_a_field_may_have_the_name_of_a_model():
    weighed = losses.joint(towers=losses.combine(label=losses.term(losses.cross_entropy, confidence="towers")))
    _, count = weighed(OUTPUTS, SHARED | {"towers": np.full(B, 0.5)})[1]["towers/label"]
    assert count == 3.0


def test_micro_batches_sum_to_the_batch():
    whole, totals = JOINT(OUTPUTS, BATCH, 3)
    counts = {name: count for name, (_, count) in totals.items()}
    parts = [jax.tree.map(lambda x, rows=rows: x[rows], (OUTPUTS, BATCH)) for rows in (slice(0, 4), slice(4, 8))]
    results = [JOINT(*part, 3, counts) for part in parts]
    np.testing.assert_allclose(sum(scalar for scalar, _ in results), whole, rtol=1e-6)
    added = losses.add_totals(results[0][1], results[1][1])
    assert losses.means(added) == pytest.approx(losses.means(totals), rel=1e-6)
    with pytest.raises(ValueError, match="counts has no term 'evidence'"):
        JOINT(*parts[0], 3, {name: count for name, count in counts.items() if name != "reader/evidence"})


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match="the outputs have no model 'towers'; they have: reader"):
        JOINT({"reader": OUTPUTS["reader"]}, BATCH)
    with pytest.raises(ValueError, match="at least one"):
        losses.joint()
    with pytest.raises(ValueError, match=r"reader=losses\.combine"):
        losses.joint(reader={"label": losses.term(losses.cross_entropy)})
