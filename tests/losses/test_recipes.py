"""Recipes: which terms they hold, and with which weights and temperatures."""

import jax.numpy as jnp
import numpy as np
import pytest

from jax_rele import losses
from jax_rele.losses.recipes import LIST_TEMPERATURE, NAMES
from jax_rele.types import StudentOutputs

GAINS = np.array([1.0, 0.1, 0.0])
RNG = np.random.default_rng(0)
OUTPUTS = StudentOutputs(
    jnp.asarray(RNG.normal(size=(6, 3))),
    jnp.asarray(RNG.normal(size=(6, 2, 3))),
    jnp.asarray(RNG.normal(size=(6, 5, 3))),
)
BATCH = {
    "labels": RNG.integers(0, 3, 6),
    "labels_mask": np.array([1, 0, 1, 1, 0, 1], bool),
    "label_probs": RNG.dirichlet(np.ones(3), 6),
    "verdict_probs": RNG.dirichlet(np.ones(3), (6, 2)),
    "evidence_tags": RNG.integers(0, 3, (6, 5)),
    "segments": np.array([0, 0, 0, 1, 1, 1]),
}
TERMS = {
    "label_only": {"label"},
    "score_kd": {"label", "score", "margin", "list"},
    "cot_kd": {"label", "verdict", "evidence"},
    "mkd": {"label", "score", "margin", "list", "verdict", "evidence"},
}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_the_weighted_sum_of_its_terms(name):
    value, terms = losses.recipe(name, gains=GAINS, temperature=3.0, evidence=True)(OUTPUTS, BATCH)
    assert set(terms) == TERMS[name]
    keep = BATCH["labels_mask"]
    alone = {
        "label": losses.cross_entropy(OUTPUTS.logits[keep], BATCH["labels"][keep]).mean(),
        "score": losses.score_kl(OUTPUTS.logits, BATCH["label_probs"], temperature=3.0).mean(),
        "margin": losses.margin_mse(OUTPUTS.logits, BATCH["label_probs"], GAINS, BATCH["segments"]).mean(),
        "list": losses.listwise_kl(
            OUTPUTS.logits, BATCH["label_probs"], GAINS, BATCH["segments"], temperature=LIST_TEMPERATURE
        ).mean()
        / LIST_TEMPERATURE**2,
        "verdict": losses.verdict_cross_entropy(OUTPUTS.verdict_logits, BATCH["verdict_probs"]).mean(),
        "evidence": 0.5 * losses.evidence_tagging(OUTPUTS.token_logits, BATCH["evidence_tags"]).mean(),
    }
    assert float(value) == pytest.approx(sum(float(alone[term]) for term in TERMS[name]), rel=1e-5)


def test_a_student_without_tokens_learns_no_evidence():
    _, terms = losses.recipe("mkd", gains=GAINS, temperature=2.0, evidence=False)(OUTPUTS, BATCH)
    assert "evidence" not in terms


def test_an_unknown_recipe_is_named():
    with pytest.raises(ValueError, match="unknown recipe 'mdk'; there are label_only"):
        losses.recipe("mdk", gains=GAINS, temperature=2.0, evidence=True)
