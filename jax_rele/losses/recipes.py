"""Objectives by name. A recipe is a dict of terms, to be joined by `combine`, and nothing else.

What a recipe needs follows from its terms: the outputs of the model and the fields of the batch that their functions
read (`needs`). docs/distillation.md says of each what is published and what is our reconstruction.

| recipe | terms | after |
|---|---|---|
| `label_only` | label | supervised training |
| `score_kd` | label, score, margin, list | the teacher's score distribution, alone and among the items of a query |
| `cot_kd` | label, verdict, evidence | tasks parsed from its chain of thought |
| `mkd` | all of these | ELLM-rele + MKD, arXiv 2411.13045 |
| `margin_mse` | label, margin | margin MSE between pairs of a query, arXiv 2010.02666 |
| `lrkd` | label, score, latent | latent reasoning distillation, arXiv 2601.21611 |
| `crsd` | label, augmented label, contrast | contrastive reasoning self-distillation, arXiv 2510.11056 |
| `rationale_guided` | label, score, attention | rationale-guided distillation, COLING 2025 industry track |
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jax_rele.losses.combine import Schedule, Term, term
from jax_rele.losses.contrast import rationale_contrast, rationale_mse
from jax_rele.losses.ranking import listwise_kl, margin_mse
from jax_rele.losses.rationale import attention_to_evidence, evidence_tagging, verdict_cross_entropy
from jax_rele.losses.score import cross_entropy, score_kl
from jax_rele.types import StudentOutputs

LIST_TEMPERATURE = 0.25
"""Temperature of the distribution over the items of a query, in units of gain."""

VERDICT_WEIGHTS = (10.0, 1.0)
"""Weight of the verdict term at the first step and from the last one on. Early on, what a student has to compare is
learnt from verdicts far sooner than from labels and scores; later, a verdict that is wrong costs more than it teaches.
Chosen on validation pairs, docs/studies/attribute_world.md."""

OUTPUTS = frozenset(field.name for field in dataclasses.fields(StudentOutputs))


def recipe(
    name: str, *, gains: Sequence[float], temperature: float, heads: Collection[str], steps: int = 0
) -> dict[str, Term]:
    """The terms of the objective called `name`.

    Args:
      name: see the table above.
      gains: [C] gain of each label.
      temperature: of the score distributions in the KL terms.
      heads: the fields of `StudentOutputs` that the student fills. A student without `token_logits` learns no evidence;
        every other term is kept, and `needs` tells what the student lacks.
      steps: over which the verdict term's weight falls linearly (`VERDICT_WEIGHTS`), as suits a student that reads
        verdicts from its tokens; 0: it has its last value throughout.

    Raises:
      ValueError: there is no recipe of that name.
    """
    gain_array = np.asarray(gains, np.float32)
    label = {"label": term(cross_entropy)}
    score = {"score": term(score_kl, temperature=temperature)}
    margin = {"margin": term(margin_mse, gains=gain_array)}
    # Gains lie in [0, 1]: at temperature 1 the distribution over a query's items would be nearly flat. The weight
    # takes the factor T^2 back.
    order = {"list": term(listwise_kl, weight=LIST_TEMPERATURE**-2, temperature=LIST_TEMPERATURE, gains=gain_array)}
    first, last = VERDICT_WEIGHTS
    weight: float | Schedule = _linear_schedule(first, last, steps) if steps else last
    verdict = {"verdict": term(verdict_cross_entropy, weight=weight)}
    evidence = {"evidence": term(evidence_tagging, weight=0.5)} if "token_logits" in heads else {}
    recipes = {
        "label_only": label,
        "score_kd": label | score | margin | order,
        "cot_kd": label | verdict | evidence,
        "mkd": label | score | margin | order | verdict | evidence,
        "margin_mse": label | margin,
        "lrkd": label | score | {"latent": term(rationale_mse)},
        "crsd": label
        | {
            "augmented_label": term(cross_entropy, weight=0.5, logits="augmented_logits", where="rationale_mask"),
            "contrast": term(rationale_contrast, weight=0.1, where="rationale_mask"),
        },
        "rationale_guided": label | score | {"attention": term(attention_to_evidence, weight=0.3)},
    }
    if name not in recipes:
        raise ValueError(f"unknown recipe {name!r}; there are {', '.join(recipes)}")
    return recipes[name]


def _linear_schedule(first: float, last: float, steps: int) -> Schedule:
    def weight(step: jax.typing.ArrayLike) -> jax.Array:
        return first + (last - first) * jnp.clip(jnp.asarray(step, jnp.float32) / steps, 0.0, 1.0)

    return weight


def needs(terms: Mapping[str, Term]) -> tuple[set[str], set[str]]:
    """What terms read: (fields of `StudentOutputs`, fields of the batch). What has a default is not needed.

    Examples:
      >>> from jax_rele import losses
      >>> sorted(map(sorted, losses.needs({"label": losses.term(losses.cross_entropy)})))
      [['labels'], ['logits']]
    """
    outputs: set[str] = set()
    fields: set[str] = set()
    for value in terms.values():
        for parameter in inspect.signature(value.fn).parameters.values():
            if parameter.name in ("where", "temperature") or parameter.kind in (
                parameter.VAR_POSITIONAL,
                parameter.VAR_KEYWORD,
            ):
                continue
            source = value.bind.get(parameter.name, parameter.name)
            if not isinstance(source, str):
                continue
            if parameter.name not in value.bind and parameter.default is not parameter.empty:
                continue
            (outputs if source in OUTPUTS else fields).add(source)
        fields.update(field for field in (value.where, value.confidence) if field)
    return outputs, fields


def needs_teacher(terms: Mapping[str, Term]) -> bool:
    """Whether terms read a teacher's signals, and so can learn from unlabelled pairs."""
    return bool(needs(terms)[1] - {"labels", "labels_mask", "segments", "segments_mask", "mask"})


def learns_verdicts(terms: Mapping[str, Term]) -> bool:
    """Whether terms train the verdict heads; otherwise they keep their initial values."""
    return "verdict_logits" in needs(terms)[0]
