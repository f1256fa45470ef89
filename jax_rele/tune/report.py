"""What a search gave: all trials, and what the best has gained over the first."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jax_rele.evaluation.bootstrap import higher_is_better, interval
from jax_rele.evaluation.summary import cell, markdown_table

COMPLETE, PRUNED, DIVERGED, UNDEFINED = "complete", "pruned", "diverged", "undefined"
"""How a trial ends: with a figure; worse than the median after some of its seeds; with a loss that is no finite number;
with scores of which the metric is undefined."""


@dataclass(frozen=True)
class TrialFigures:
    """A trial.

    Attributes:
      number: from 0 on; 0 has the numbers of the config.
      values: name -> number.
      outcome: one of those above.
      value: the metric, the mean over the seeds; None where the trial is not complete.
      by_seed: the metric of each seed that was trained.
    """

    number: int
    values: dict[str, float]
    outcome: str
    value: float | None
    by_seed: list[float]


def build_document(
    trials: Sequence[TrialFigures],
    best: int,
    first_samples: Mapping[str, np.ndarray],
    best_samples: Mapping[str, np.ndarray],
    about: Mapping[str, object],
) -> dict[str, object]:
    """What tune.json holds.

    Args:
      trials: all.
      best: number of the best one.
      first_samples, best_samples: every metric of the first and of the best trial, see `metric_samples`.
      about: what was searched, and on which pairs.

    Returns:
      `about`, `trials`, `best`, and `metrics`: {metric: {"first", "best", "difference"}}, each with its interval.
    """
    metrics = {
        metric: {
            "first": interval(first_samples[metric]),
            "best": interval(best_samples[metric]),
            "difference": interval(best_samples[metric] - first_samples[metric]),
        }
        for metric in first_samples
    }
    return {**about, "trials": [dataclasses.asdict(each) for each in trials], "best": best, "metrics": metrics}


def markdown(document: Mapping) -> str:
    """The document as Markdown: the trials, and the first and the best side by side."""
    metric, seeds, trials = document["metric"], document["seeds"], document["trials"]
    best = trials[document["best"]]
    lines = [
        f"# {document['name']}: {document['student']} {document['recipe']} tuned for {metric}",
        "",
        f"{len(trials)} trials, each the mean over the training seeds {', '.join(map(str, seeds))}, on the "
        f"{document['n_pairs']:,} pairs of {document['n_queries']:,} queries of the validation split. Trial 1 has the "
        f"numbers of the config. In brackets 95% intervals from {document['bootstrap_samples']:,} resamples of "
        "queries; they do not cover the chance of training.",
        "",
        *_trial_table(metric, trials, best),
        "",
    ]
    if document["schedules"]:
        lines += [f"Not searched, as they are schedules: {', '.join(document['schedules'])}.", ""]
    if best["number"] == 0:
        return "\n".join([*lines, "No trial is better than the numbers of the config."]) + "\n"
    head = ["metric", "trial 1", f"trial {best['number'] + 1}", "difference"]
    rows = [
        [f"{name} {_arrow(name)}", cell(each["first"]), cell(each["best"]), cell(each["difference"], sign=True)]
        for name, each in document["metrics"].items()
    ]
    difference = document["metrics"][metric]["difference"]
    lines += [
        *markdown_table([head, *rows]),
        "",
        f"{metric}: {trials[0]['value']:.4f} with the numbers of the config, {best['value']:.4f} with those of trial "
        f"{best['number'] + 1}: {cell(difference, sign=True)}. The trial was chosen by these pairs, so this gain is "
        f"optimistic; `jax-rele compare` shows what is left of it on the evaluated split.",
    ]
    return "\n".join(lines) + "\n"


def format_values(values: Mapping[str, float]) -> str:
    """The numbers in one line."""
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def _trial_table(metric: str, trials: Sequence[Mapping], best: Mapping) -> list[str]:
    names = list(trials[0]["values"])
    rows = [["trial", *names, f"{metric} {_arrow(metric)}", "by seed"]]
    for each in trials:
        figure = each["outcome"] if each["value"] is None else f"{each['value']:.4f}"
        figure += " (best)" if each is best else ""
        numbers = [f"{each['values'][name]:.4g}" for name in names]
        rows.append([str(each["number"] + 1), *numbers, figure, " ".join(f"{value:.4f}" for value in each["by_seed"])])
    return markdown_table(rows)


def _arrow(metric: str) -> str:
    return "↑" if higher_is_better(metric) else "↓"
