"""Every public loss: how to call it, what it must equal, and which student cannot do better."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.stats
from scipy.special import entr

from jax_rele import losses

from . import oracles

B, C, D, V, L, E, W, VOCABULARY = 16, 4, 3, 3, 6, 8, 16, 12
GAINS = np.array([1.0, 0.6, 0.1, 0.0])
SHARED = ("gains", "output_embedding")
"""Arguments without a batch axis."""
TEACHERS = ("label_probs", "verdict_probs", "rationale_embedding")
NOT_NEGATIVE = ("label_probs", "verdict_probs", "attention")


@dataclass(frozen=True, eq=False)  # JAX hashes what it compiles
class Case:
    """A public loss.

    Attributes:
      fn: the loss.
      inputs: (rng) -> its arguments.
      oracle: (arguments, options) -> elements.
      best: (arguments) -> (arguments of a student that cannot do better, its elements, where it could move freely:
        there the gradient is zero).
      options: what the loss is called with besides; the oracle test also calls it without.
      alone: whether an example's elements depend on that example alone.
      fixed: arguments that pass no gradient.
      linear: whether the loss grows no faster than the logits.
    """

    fn: Callable
    inputs: Callable
    oracle: Callable
    best: Callable
    options: dict[str, Any] = field(default_factory=dict)
    alone: bool = True
    fixed: Iterable[str] = ()
    linear: bool = True

    def __str__(self):
        return " ".join([self.fn.__name__, *self.options])

    def make(self, seed=0):
        """Float32, int32 and bool inputs."""
        inputs = self.inputs(np.random.default_rng(seed))
        types = {"f": np.float32, "i": np.int32, "b": np.bool_}
        return {name: value.astype(types[value.dtype.kind]) for name, value in inputs.items()}


# Inputs.


def distributions(rng, *shape):
    """Distributions, the first of them one-hot: parsed and saturated teachers give zeros."""
    probs = rng.dirichlet(np.ones(shape[-1]), shape[:-1])
    probs[0] = np.eye(shape[-1])[rng.integers(shape[-1], size=shape[1:-1])]
    return probs


def units(rng, *shape):
    vectors = rng.normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def segments(rng):
    return rng.integers(B // 3, size=B)


def score_inputs(rng):
    return {"logits": rng.normal(size=(B, C)) * 2, "label_probs": distributions(rng, B, C)}


def label_inputs(rng):
    return {"logits": rng.normal(size=(B, C)) * 2, "labels": rng.integers(C, size=B)}


def ranking_inputs(rng):
    return score_inputs(rng) | {"gains": GAINS, "segments": segments(rng)}


def label_ranking_inputs(rng):
    return label_inputs(rng) | {"gains": GAINS, "segments": segments(rng)}


def verdict_inputs(rng):
    return {"verdict_logits": rng.normal(size=(B, D, V)) * 2, "verdict_probs": distributions(rng, B, D, V)}


def evidence_inputs(rng):
    return {"token_logits": rng.normal(size=(B, L, 1 + D)) * 2, "evidence_tags": rng.integers(1 + D, size=(B, L))}


def attention_inputs(rng):
    tags, known = rng.integers(1 + D, size=(B, L)), rng.random((B, L)) < 0.8
    tags[3] = 0  # a pair without evidence
    return {"attention": rng.dirichlet(np.ones(L), B), "evidence_tags": tags, "evidence_tags_mask": known}


def latent_inputs(rng):
    return {"latent": rng.normal(size=(B, E)), "rationale_embedding": rng.normal(size=(B, E))}


def representation_inputs(rng):
    return {"representation": rng.normal(size=(B, W)), "augmented_representation": rng.normal(size=(B, W))}


def view_inputs(rng):
    views = {"query_views": units(rng, B, D, E), "item_views": units(rng, B, D, E)}
    return views | {"verdict_probs": distributions(rng, B, D, V), "segments": segments(rng)}


def language_inputs(rng):
    return {
        "hidden": rng.normal(size=(B, L, E)),
        # Unit rows: no other token's row suits a hidden state along a row as well.
        "output_embedding": units(rng, VOCABULARY, E),
        "targets": rng.integers(VOCABULARY, size=(B, L)),
    }


def policy_inputs(rng):
    reference = -rng.gamma(2.0, size=(B, L))
    advantages = rng.choice([-1.5, 0.7], size=(B, L))
    # The old model differs so far from the reference that at the reference all gains are clipped.
    old = reference - 0.5 * np.sign(advantages)
    return {
        "log_probs": old + rng.normal(0, 0.3, (B, L)),
        "old_log_probs": old,
        "reference_log_probs": reference,
        "advantages": advantages,
    }


def preference_inputs(rng):
    names = ("chosen_log_probs", "rejected_log_probs")
    return {f"{prefix}{name}": -rng.gamma(2.0, 6.0, size=B) for prefix in ("", "reference_") for name in names}


def length_inputs(rng):
    lengths = {"chosen_lengths": rng.integers(1, 20, size=B), "rejected_lengths": rng.integers(1, 20, size=B)}
    lengths["rejected_lengths"][5] = 0  # an empty text
    return lengths


def normalized_preference_inputs(rng):
    return preference_inputs(rng) | length_inputs(rng)


def unreferenced_inputs(rng):
    inputs = normalized_preference_inputs(rng)
    return {name: value for name, value in inputs.items() if not name.startswith("reference")}


def unpaired_inputs(rng):
    log_probs = {"log_probs": -rng.gamma(2.0, 6.0, size=B), "reference_log_probs": -rng.gamma(2.0, 6.0, size=B)}
    return log_probs | {"desirable": rng.random(B) < 0.5, "kl": rng.normal(size=B)}


# Students that cannot do better.


def log(probs, least=1e-30):
    return np.log(np.maximum(probs, least))


def sure_of(labels, size):
    return 1e4 * np.eye(size)[labels]


def best_label(inputs):
    return {"logits": sure_of(inputs["labels"], C)}, np.zeros(B)


def best_smoothed(inputs):
    targets = 0.8 * np.eye(C)[inputs["labels"]] + 0.2 / C
    return {"logits": log(targets) + 3.0}, entr(targets).sum(-1)


def best_score(inputs):
    return {"logits": log(inputs["label_probs"]) + 3.0}, np.zeros(B)


def best_raised(inputs):
    return {"logits": log(inputs["label_probs"], 1e-6) + 3.0}, np.zeros(B)


def best_soft(inputs):
    _, teacher = oracles.softened(inputs["logits"], inputs["label_probs"].astype(float), 2.5)
    return best_score(inputs)[0], 2.5**2 * entr(teacher).sum(-1)


def best_preferences(inputs):
    student = best_score(inputs)[0]
    return student, oracles.preferences(**inputs | student, temperature=0.2)


def best_order(inputs):
    """Every comparison is won by far."""
    return {"logits": sure_of(inputs["labels"], C), "gains": 100 * GAINS}, np.zeros(B)


def best_lists(inputs):
    """The softmax over the items is the distribution of their gains: s = 1 + T log g, of the first and last label."""
    gains = GAINS[inputs["labels"]]
    s = np.where(gains > 0, 1 + 0.05 * log(gains), 0.0)
    unused = np.full(B, -1e4)
    least = np.zeros(B)
    for segment in set(inputs["segments"].tolist()):
        (members,) = np.nonzero(inputs["segments"] == segment)
        if gains[members].any():
            least[members] = gains[members].sum() * scipy.stats.entropy(gains[members]) / len(members)
    return {"logits": np.stack([log(s), unused, unused, log(1 - s)], -1)}, least


def best_verdict(inputs):
    probs = inputs["verdict_probs"]
    return {"verdict_logits": log(probs) + 3.0}, entr(probs).sum(-1)


def best_hard(inputs):
    return {"verdict_logits": sure_of(inputs["verdict_probs"].argmax(-1), V)}, np.zeros((B, D))


def best_tags(inputs):
    return {"token_logits": sure_of(inputs["evidence_tags"], 1 + D)}, np.zeros((B, L))


def best_attention(inputs):
    """Uniform over the evidence; more on other tokens would cost, and less than nothing it cannot be."""
    evidence = inputs["evidence_tags_mask"] & (inputs["evidence_tags"] > 0)
    return {"attention": np.where(evidence, 0.1, 0.0)}, np.zeros(B), evidence


def best_latent(inputs):
    return {"latent": inputs["rationale_embedding"]}, np.zeros(B)


def best_representation(inputs):
    return {"representation": 3 * np.eye(B, W), "augmented_representation": np.eye(B, W)}, np.zeros(B)


def best_views(inputs):
    one = np.broadcast_to(np.eye(E)[0], (B, D, E))
    sign = np.where(inputs["verdict_probs"].argmax(-1) == 1, -1.0, 1.0)
    return {"query_views": one, "item_views": sign[..., None] * one}, np.zeros((B, D))


def best_language(inputs):
    return {"hidden": 1e2 * inputs["output_embedding"][inputs["targets"]]}, np.zeros((B, L))


def best_policy(inputs):
    """Past the clip, where nothing is to be gained, the divergence decides."""
    advantages = inputs["advantages"]
    return {"log_probs": inputs["reference_log_probs"]}, -advantages * np.where(advantages > 0, 1.2, 0.8)


def best_sides(inputs):
    return {"chosen_log_probs": np.full(B, 1e4), "rejected_log_probs": np.full(B, -1e4)}, np.zeros(B)


def best_difference(inputs, difference):
    rejected = inputs["rejected_log_probs"] - inputs["reference_rejected_log_probs"]
    return {"chosen_log_probs": inputs["reference_chosen_log_probs"] + rejected + difference}


def best_doubted(inputs):
    """The difference whose probability is that of a right preference."""
    return best_difference(inputs, np.log(0.8 / 0.2) / 0.3), np.full(B, entr([0.8, 0.2]).sum())


def best_margin(inputs):
    chosen, rejected = (np.maximum(inputs[name], 1) for name in ("chosen_lengths", "rejected_lengths"))
    rejected = (inputs["rejected_log_probs"] - inputs["reference_rejected_log_probs"]) / rejected
    return {"chosen_log_probs": inputs["reference_chosen_log_probs"] + chosen * (rejected + 1.0)}, np.zeros(B)


def best_unpaired(inputs):
    return {"log_probs": np.where(inputs["desirable"], 1e4, -1e4)}, np.zeros(B)


def best_odds(inputs):
    """The chosen text is certain, and no text can be more than that."""
    sides = {"chosen_log_probs": np.zeros(B), "rejected_log_probs": np.full(B, -1e4)}
    return sides, np.zeros(B), np.zeros(B)


T, T_LIST = {"temperature": 2.5}, {"temperature": 0.2}

CASES = [
    Case(losses.cross_entropy, label_inputs, oracles.smoothed, best_label),
    Case(losses.cross_entropy, label_inputs, oracles.smoothed, best_smoothed, {"label_smoothing": 0.2}),
    Case(losses.ordinal_cross_entropy, label_inputs, oracles.by_questions, best_label),
    Case(losses.score_kl, score_inputs, oracles.forward, best_score, T),
    Case(losses.reverse_kl, score_inputs, oracles.reverse, best_raised, T),
    Case(losses.jensen_shannon, score_inputs, oracles.symmetric, best_score, T),
    Case(losses.soft_cross_entropy, score_inputs, oracles.soft, best_soft, T),
    Case(losses.logit_mse, score_inputs, oracles.variance_of_difference, best_raised, linear=False),
    Case(losses.brier, score_inputs, oracles.squares, best_score),
    Case(losses.margin_mse, ranking_inputs, oracles.margins, best_score, alone=False),
    Case(losses.ranknet, ranking_inputs, oracles.preferences, best_preferences, T_LIST, alone=False),
    Case(losses.listwise_kl, ranking_inputs, oracles.lists, best_score, T_LIST, alone=False),
    Case(losses.pairwise_logistic, label_ranking_inputs, oracles.comparisons, best_order, T_LIST, alone=False),
    Case(
        losses.listwise_softmax,
        label_ranking_inputs,
        oracles.shared_lists,
        best_lists,
        {"temperature": 0.05},
        alone=False,
    ),
    Case(losses.verdict_cross_entropy, verdict_inputs, oracles.hard_verdict, best_verdict),
    Case(losses.verdict_cross_entropy, verdict_inputs, oracles.hard_verdict, best_hard, {"hard": True}),
    Case(losses.evidence_tagging, evidence_inputs, oracles.tags, best_tags),
    Case(losses.attention_to_evidence, attention_inputs, oracles.from_uniform, best_attention, linear=False),
    Case(losses.rationale_mse, latent_inputs, oracles.mean_squares, best_latent, linear=False),
    Case(
        losses.rationale_contrast,
        representation_inputs,
        oracles.aligned,
        best_representation,
        alone=False,
        fixed=("augmented_representation",),
        linear=False,
    ),
    Case(
        losses.rationale_contrast,
        representation_inputs,
        oracles.aligned,
        best_representation,
        {"temperature": 0.07, "stop_gradient": False},
        alone=False,
        linear=False,
    ),
    Case(losses.view_contrast, view_inputs, oracles.apart, best_views, alone=False, linear=False),
    Case(
        losses.next_token_cross_entropy,
        language_inputs,
        oracles.next_token,
        best_language,
        {"chunk_size": 2 * B},
        linear=False,
    ),
    Case(
        losses.grpo,
        policy_inputs,
        oracles.policy,
        best_policy,
        {"kl_weight": 0.5},
        fixed=("old_log_probs", "reference_log_probs", "advantages"),
        linear=False,
    ),
    Case(losses.dpo, preference_inputs, oracles.preferred, best_sides),
    Case(losses.dpo, preference_inputs, oracles.preferred, best_doubted, {"beta": 0.3, "label_smoothing": 0.2}),
    Case(losses.dpo_hinge, preference_inputs, oracles.preferred_hinge, best_sides, {"beta": 0.05}),
    Case(
        losses.ipo, normalized_preference_inputs, oracles.preferred_by_margin, best_margin, {"beta": 0.5}, linear=False
    ),
    Case(losses.kto, unpaired_inputs, oracles.good_or_bad, best_unpaired, fixed=("kl",)),
    Case(
        losses.kto,
        unpaired_inputs,
        oracles.good_or_bad,
        best_unpaired,
        {"beta": 0.3, "desirable_weight": 1.3, "undesirable_weight": 0.7},
        fixed=("kl",),
    ),
    Case(losses.orpo, unreferenced_inputs, oracles.odds, best_odds, {"beta": 0.5}),
    Case(losses.simpo, unreferenced_inputs, oracles.preferred_mean, best_sides, {"beta": 2.5, "margin": 0.5}),
]
