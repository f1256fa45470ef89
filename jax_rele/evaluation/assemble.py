"""All figures of one evaluation, as the JSON document that the run keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from jax_rele.errors import UserError
from jax_rele.evaluation.bootstrap import intervals, metric_samples, paired_difference, positive_probs
from jax_rele.evaluation.calibration import fit_temperature
from jax_rele.evaluation.decision import fit_bias
from jax_rele.evaluation.slices import slices
from jax_rele.text import query_id
from jax_rele.types import LabelSchema, Pair

REFERENCE_RECIPE = "label_only"
"""The recipe of a student that learns from labels alone; a model STUDENT:RECIPE is compared with STUDENT:label_only."""

TEACHER = "teacher"
"""The name of the teacher among the models; every other model is compared with it."""

ZERO_SHOT = "teacher, zero-shot"
"""The name of the teacher's weights before any training."""


def perspective_name(name: str) -> str:
    """The name among the models of one of the teacher's kinds of answer."""
    return f"{TEACHER}, {name}"


def build_metrics(
    split: str,
    pairs: Sequence[Pair],
    validation_pairs: Sequence[Pair],
    *,
    baselines: Mapping[str, np.ndarray],
    validation_baselines: Mapping[str, np.ndarray],
    models: Mapping[str, np.ndarray],
    validation_models: Mapping[str, np.ndarray],
    schema: LabelSchema,
    gain_maps: Mapping[str, Sequence[float]],
    long_tail: np.ndarray | None = None,
    n_bootstrap: int = 500,
    seed: int = 0,
) -> dict:
    """Evaluates baselines and models on one split, on its slices, and against each other.

    The decision bias and temperature of each are fitted on its validation distributions and used for every slice. All
    share the bootstrap resamples. Pairs of one `text.query_id` have one query.

    Args:
      split: the name of the split that is reported, for the record.
      pairs: its N labelled pairs.
      validation_pairs: M labelled pairs of the validation split.
      baselines: {name: [N, C] label distributions}.
      validation_baselines: {name: [M, C]} for the same names.
      models: {name: [N, C]}; students are named STUDENT:RECIPE, the teacher `teacher`.
      validation_models: {name: [M, C]} for the same names.
      schema: the label schema.
      gain_maps: {name: C gains}, one nDCG for each.
      long_tail: [N] bool, which pairs have a rare query; None where that is unknown.
      n_bootstrap: number of resamples of the queries.
      seed: seed of the resamples.

    Returns:
      A document of plain dicts, lists, strings and numbers: `split`, `n_pairs`, `n_queries`,
      `n_queries_with_several_items`, `label_schema`, `gain_maps`, `bootstrap`, `baselines` and `models` ({name:
      {metric: {"value", "ci95"}}}), `score_std` ({name: standard deviation of P(relevant)}), `slices` ({name:
      {"n_pairs", "baselines", "models"}}), `decision` ({name: {"bias", "temperature"}}) and `differences` (a list of
      {"a", "b", "metric", "value", "ci95"}, a less b). What is undefined is None.

    Raises:
      UserError: a split is empty or holds a pair without a label.
      ValueError: names or shapes that do not fit together.
    """
    _check_names(baselines, validation_baselines, models, validation_models)
    labels = _labels(pairs, split, schema)
    validation_labels = _labels(validation_pairs, "validation", schema)
    probs = {**baselines, **models}
    validation_probs = {**validation_baselines, **validation_models}
    queries = [query_id(pair.query) for pair in pairs]
    decision = {}
    for name, held_out in validation_probs.items():
        if np.shape(held_out) != (len(validation_labels), len(schema)):
            raise ValueError(
                f"{name}: validation probs must be [{len(validation_labels)}, {len(schema)}], "
                f"got {list(np.shape(held_out))}"
            )
        decision[name] = {
            "bias": fit_bias(held_out, validation_labels).tolist(),
            "temperature": fit_temperature(held_out, validation_labels),
        }

    def samples(name, rows):
        return metric_samples(
            np.asarray(probs[name])[rows],
            labels[rows],
            [queries[row] for row in rows],
            schema,
            gain_maps=gain_maps,
            n_bootstrap=n_bootstrap,
            seed=seed,
            **decision[name],
        )

    def figures(names, rows):
        return {name: intervals(samples(name, rows)) for name in names}

    everywhere = np.arange(len(pairs))
    on_all = {name: samples(name, everywhere) for name in probs}
    return {
        "split": split,
        "n_pairs": len(pairs),
        "n_queries": len(set(queries)),
        "n_queries_with_several_items": sum(count > 1 for count in Counter(queries).values()),
        "label_schema": {
            "names": list(schema.names),
            "gains": list(map(float, schema.gains)),
            "positive": list(schema.positive),
        },
        "gain_maps": {name: list(map(float, gains)) for name, gains in gain_maps.items()},
        "bootstrap": {"samples": n_bootstrap, "unit": "query", "seed": seed},
        "baselines": {name: intervals(on_all[name]) for name in baselines},
        "models": {name: intervals(on_all[name]) for name in models},
        "score_std": {name: float(np.std(positive_probs(np.asarray(probs[name]), schema))) for name in probs},
        "slices": {
            name: {
                "n_pairs": int(mask.sum()),
                "baselines": figures(baselines, np.flatnonzero(mask)),
                "models": figures(models, np.flatnonzero(mask)),
            }
            for name, mask in slices(pairs, long_tail).items()
        },
        "decision": decision,
        "differences": [
            {"a": a, "b": b, "metric": metric, **difference}
            for a, b in compared(list(baselines), list(models))
            for metric, difference in paired_difference(on_all[a], on_all[b]).items()
        ],
    }


def compared(baselines: Sequence[str], models: Sequence[str]) -> list[tuple[str, str]]:
    """The (a, b) whose difference is reported: each model with every baseline, with its reference, with the teacher.

    The reference of STUDENT:RECIPE is STUDENT:label_only, where that is among the models.
    """
    couples = []
    for model in models:
        reference = f"{model.rpartition(':')[0]}:{REFERENCE_RECIPE}"
        others = [name for name in (reference, TEACHER) if name in models and name != model]
        couples += [(model, other) for other in [*baselines, *(others if model != TEACHER else [])]]
    return couples


def _labels(pairs, split, schema):
    if not pairs:
        raise UserError(f"the {split} split holds no pair: enlarge it in the config's data section")
    for pair in pairs:
        if pair.label not in schema.names:
            raise UserError(
                f"pair {pair.pair_id} of the {split} split has label {pair.label!r}, which is not one of "
                f"{list(schema.names)}: label it or leave it out"
            )
    return np.array([schema.index(pair.label) for pair in pairs], np.int64)


def _check_names(baselines, validation_baselines, models, validation_models):
    for kind, provided, held_out in (
        ("baselines", baselines, validation_baselines),
        ("models", models, validation_models),
    ):
        if set(provided) != set(held_out):
            raise ValueError(f"{kind} {sorted(provided)} have validation probs for {sorted(held_out)}")
    if twice := set(baselines) & set(models):
        raise ValueError(f"{sorted(twice)} are named both as baselines and as models")
