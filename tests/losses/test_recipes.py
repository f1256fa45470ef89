"""Recipes: which terms they hold, and with which weights and temperatures."""

import jax.numpy as jnp
import numpy as np
import pytest

from jax_rele import losses
from jax_rele.losses.recipes import LIST_TEMPERATURE, OUTPUTS, VERDICT_WEIGHTS
from jax_rele.names import RECIPES
from jax_rele.types import StudentOutputs

GAINS = np.array([1.0, 0.1, 0.0])
RNG = np.random.default_rng(0)
STUDENT = StudentOutputs(
    logits=jnp.asarray(RNG.normal(size=(6, 3))),
    verdict_logits=jnp.asarray(RNG.normal(size=(6, 2, 3))),
    token_logits=jnp.asarray(RNG.normal(size=(6, 5, 3))),
    attention=jnp.asarray(RNG.dirichlet(np.ones(5), 6)),
    representation=jnp.asarray(RNG.normal(size=(6, 4))),
    augmented_representation=jnp.asarray(RNG.normal(size=(6, 4))),
    augmented_logits=jnp.asarray(RNG.normal(size=(6, 3))),
    latent=jnp.asarray(RNG.normal(size=(6, 4))),
)
BATCH = {
    "labels": RNG.integers(0, 3, 6),
    "labels_mask": np.array([1, 0, 1, 1, 0, 1], bool),
    "label_probs": RNG.dirichlet(np.ones(3), 6),
    "verdict_probs": RNG.dirichlet(np.ones(3), (6, 2)),
    "evidence_tags": RNG.integers(0, 3, (6, 5)),
    "rationale_embedding": RNG.normal(size=(6, 4)),
    "segments": np.array([0, 0, 0, 1, 1, 1]),
    "rationale_mask": np.ones(6, bool),
}
TERMS = {
    "label_only": {"label"},
    "score_kd": {"label", "score", "margin", "list"},
    "cot_kd": {"label", "verdict", "evidence"},
    "mkd": {"label", "score", "margin", "list", "verdict", "evidence"},
    "margin_mse": {"label", "margin"},
    "lrkd": {"label", "score", "latent"},
    "crsd": {"label", "augmented_label", "contrast"},
    "rationale_guided": {"label", "score", "attention"},
}


def test_every_name_of_the_config_is_a_recipe():
    assert set(RECIPES) == set(TERMS)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_the_weighted_sum_of_its_terms(name):
    terms = losses.recipe(name, gains=GAINS, temperature=3.0, heads=OUTPUTS)
    value, totals = losses.combine(**terms)(STUDENT, BATCH)
    assert set(totals) == TERMS[name]
    keep, ranked = BATCH["labels_mask"], (STUDENT.logits, BATCH["label_probs"], GAINS, BATCH["segments"])
    tags = BATCH["evidence_tags"]
    alone = {
        "label": losses.cross_entropy(STUDENT.logits[keep], BATCH["labels"][keep]).mean(),
        "score": losses.score_kl(STUDENT.logits, BATCH["label_probs"], temperature=3.0).mean(),
        "margin": losses.margin_mse(*ranked).mean(),
        "list": losses.listwise_kl(*ranked, temperature=LIST_TEMPERATURE).mean() / LIST_TEMPERATURE**2,
        "verdict": losses.verdict_cross_entropy(STUDENT.verdict_logits, BATCH["verdict_probs"]).mean(),
        "evidence": 0.5 * losses.evidence_tagging(STUDENT.token_logits, tags).mean(),
        "latent": losses.rationale_mse(STUDENT.latent, BATCH["rationale_embedding"]).mean(),
        "augmented_label": 0.5 * losses.cross_entropy(STUDENT.augmented_logits[keep], BATCH["labels"][keep]).mean(),
        "contrast": 0.1 * losses.rationale_contrast(STUDENT.representation, STUDENT.augmented_representation).mean(),
        "attention": 0.3
        * losses.attention_to_evidence(STUDENT.attention, tags, evidence_tags_mask=np.ones(tags.shape, bool)).mean(),
    }
    assert float(value) == pytest.approx(sum(float(alone[term]) for term in TERMS[name]), rel=1e-5)


def test_a_student_without_tokens_learns_no_evidence():
    assert "evidence" not in losses.recipe("mkd", gains=GAINS, temperature=2.0, heads={"logits", "verdict_logits"})


def test_what_recipes_need():
    def needs(name):
        return losses.needs(losses.recipe(name, gains=GAINS, temperature=2.0, heads=OUTPUTS))

    assert needs("label_only") == ({"logits"}, {"labels"})
    assert needs("margin_mse") == ({"logits"}, {"labels", "label_probs", "segments"})
    assert needs("cot_kd") == (
        {"logits", "verdict_logits", "token_logits"},
        {"labels", "verdict_probs", "evidence_tags"},
    )
    assert needs("crsd")[0] == {"logits", "augmented_logits", "representation", "augmented_representation"}
    teacher = {
        name: losses.needs_teacher(losses.recipe(name, gains=GAINS, temperature=2.0, heads=OUTPUTS)) for name in RECIPES
    }
    assert [name for name, needed in teacher.items() if not needed] == ["label_only"]


def test_an_unknown_recipe_is_named():
    with pytest.raises(ValueError, match="unknown recipe 'mdk'; there are label_only"):
        losses.recipe("mdk", gains=GAINS, temperature=2.0, heads=OUTPUTS)


def test_a_ranking_of_labels_needs_no_teacher():
    gains = np.array([1.0, 0.0], np.float32)
    assert not losses.needs_teacher({"rank": losses.term(losses.pairwise_logistic, gains=gains)})
    assert losses.needs_teacher({"margin": losses.term(losses.margin_mse, gains=gains)})


def test_the_verdict_weight_falls_over_the_training():
    falling = losses.recipe("mkd", gains=GAINS, temperature=2.0, heads=OUTPUTS, steps=200)["verdict"].weight
    first, last = VERDICT_WEIGHTS
    assert [float(falling(step)) for step in (0, 100, 200, 500)] == [first, (first + last) / 2, last, last]
    assert losses.recipe("mkd", gains=GAINS, temperature=2.0, heads=OUTPUTS)["verdict"].weight == last
