"""One self-contained HTML page: the figures with their intervals, and the models' predictions on single pairs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jax_rele.evaluation import plots
from jax_rele.evaluation.bootstrap import higher_is_better, metric_names, positive_probs
from jax_rele.evaluation.calibration import apply_temperature
from jax_rele.evaluation.highlight import segments
from jax_rele.evaluation.page import write_html
from jax_rele.evaluation.summary import cell, findings
from jax_rele.types import ITEM_FIELDS, QUERY, LabelSchema, Pair, Rationale, Span

_LONG = 420
"""Texts of more characters than this are folded, or scroll in a box where they hold evidence."""

_INTERVAL = re.compile(r"\[[-+.0-9]+, [-+.0-9]+\]")


@dataclass(frozen=True)
class Example:
    """The models' predictions on one pair, shown as a card.

    Attributes:
      pair: the pair; its label is the gold label.
      rationale: the teacher's, or None where it did not parse or there is no teacher.
      raw_text: the teacher's text as it was generated, shown where `rationale` is None.
      failure_reason: why `raw_text` did not parse.
      spans: evidence in the query and in fields of the item.
      verdicts: {model: {dimension: verdict}} of models other than the teacher.
      probs: {model: [C] label distribution}.
    """

    pair: Pair
    rationale: Rationale | None = None
    raw_text: str = ""
    failure_reason: str = ""
    spans: tuple[Span, ...] = ()
    verdicts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    probs: Mapping[str, np.ndarray] = field(default_factory=dict)


def write_report(
    path: str | Path,
    metrics: Mapping,
    examples: Sequence[Example],
    *,
    run_name: str,
    labels: np.ndarray,
    probs: Mapping[str, np.ndarray],
    training_seeds: Sequence[int] = (),
) -> None:
    """Writes the report as one HTML file.

    Args:
      path: the file to write.
      metrics: what `build_metrics` returned.
      examples: the pairs to show as cards, in order.
      run_name: the heading.
      labels: [N] int labels of the evaluated pairs, for the plots.
      probs: {name: [N, C]} label distributions of at least the models in `metrics`, for the plots.
      training_seeds: of the models, shown beside the figures.
    """
    schema = LabelSchema(*(tuple(metrics["label_schema"][key]) for key in ("names", "gains", "positive")))
    everyone = {**metrics["baselines"], **metrics["models"]}
    dimensions = _dimensions(examples)
    columns = metric_names(metrics["gain_maps"])
    write_html(
        path,
        "report.html.j2",
        run_name=run_name,
        metrics=metrics,
        training_seeds=list(training_seeds),
        findings=[(kind, _unbroken(text)) for kind, text in findings(metrics)],
        columns=columns,
        rows=_rows(metrics["baselines"], metrics["models"], columns),
        slices=[
            {"name": name, "n_pairs": part["n_pairs"], "rows": _rows(part["baselines"], part["models"], columns)}
            for name, part in metrics["slices"].items()
        ],
        interval_plots=[
            (name, plots.intervals(name, metrics["baselines"], metrics["models"]))
            for name in columns
            if any(figures[name]["value"] is not None for figures in everyone.values())
        ],
        model_plots=_model_plots(metrics, schema, np.asarray(labels), probs),
        dimensions=dimensions,
        schema=schema,
        cards=[_card(example, schema, dimensions) for example in examples],
        cell=cell,
    )


def _unbroken(text):
    """The sentence with no line break within an interval."""
    return _INTERVAL.sub(lambda match: match[0].replace(" ", "\N{NO-BREAK SPACE}"), text)


def _rows(baselines: Mapping, models: Mapping, columns: Sequence[str]) -> list[tuple[str, bool, list]]:
    """Table rows of (name, is a model, cells of (text, is clearly the best))."""
    everyone = {**baselines, **models}
    return [
        (name, name in models, [(cell(figures[column]), _clearly_best(name, everyone, column)) for column in columns])
        for name, figures in everyone.items()
    ]


def _clearly_best(name, everyone, column):
    """Whether this one's interval lies wholly on the better side of everyone else's."""
    sign = 1.0 if higher_is_better(column) else -1.0
    spans = {
        other: sorted(sign * end for end in figures[column]["ci95"])
        for other, figures in everyone.items()
        if figures[column]["ci95"] is not None
    }
    others = [span for other, span in spans.items() if other != name]
    return name in spans and len(others) > 0 and all(spans[name][0] > high for _, high in others)


def _model_plots(metrics, schema, labels, probs):
    """For each model its reliability diagram and its score distributions."""
    outcome, drawn = schema.is_positive[labels], []
    for name in metrics["models"]:
        label_probs = np.asarray(probs[name], np.float64)
        scaled = apply_temperature(label_probs, metrics["decision"][name]["temperature"])
        before, after = (positive_probs(each, schema) for each in (label_probs, scaled))
        diagram = plots.reliability_diagram(name, before, after, outcome)
        scores = plots.score_distributions(name, schema.expected_gain(label_probs), labels, schema.names)
        drawn.append({"name": name, "reliability": diagram, "scores": scores})
    return drawn


def _dimensions(examples):
    """{dimension: index} over all examples, by first mention: of the teacher and students, then in evidence."""
    names: list[str] = []
    for example in examples:
        names += [] if example.rationale is None else [each.dimension for each in example.rationale.comparisons]
        names += [dimension for verdicts in example.verdicts.values() for dimension in verdicts]
    names += [span.dimension for example in examples for span in example.spans]
    return {dimension: index for index, dimension in enumerate(dict.fromkeys(names))}


def _card(example, schema, dimensions):
    pair = example.pair

    def marked(source, text):
        spans = [span for span in example.spans if span.source == source]
        pieces = [(piece, covering, _background(covering, dimensions)) for piece, covering in segments(text, spans)]
        evidence = any(covering for _, covering, _ in pieces)
        return {"name": source, "pieces": pieces, "size": len(text), "long": len(text) > _LONG, "evidence": evidence}

    return {
        "pair": pair,
        "query": marked(QUERY, pair.query),
        "fields": [marked(name, text) for name, text in pair.item.texts(ITEM_FIELDS)],
        "gold": schema.names.index(pair.label) if pair.label in schema.names else None,
        "rationale": example.rationale,
        "raw_text": example.raw_text,
        "failure_reason": example.failure_reason,
        "students": list(example.verdicts),
        "comparisons": _comparisons(example, dimensions),
        "distributions": [_distribution(name, probs, schema, pair.label) for name, probs in example.probs.items()],
    }


def _background(covering, dimensions):
    """CSS that paints one band of colour for each dimension of a piece of text."""
    percentage = 100.0 / max(1, len(covering))
    bands = (
        f"var(--dimension-{dimensions[dimension]}) {percentage * index:.4g}% {percentage * (index + 1):.4g}%"
        for index, dimension in enumerate(covering)
    )
    return f"background: linear-gradient({', '.join(bands)})"


def _comparisons(example, dimensions):
    """One row per dimension that the teacher or a student gives a verdict on."""
    written = {} if example.rationale is None else {one.dimension: one for one in example.rationale.comparisons}
    named = dict.fromkeys([*written, *(dimension for verdicts in example.verdicts.values() for dimension in verdicts)])
    return [
        {
            "dimension": dimension,
            "index": dimensions[dimension],
            "comparison": written.get(dimension),
            "verdicts": [verdicts.get(dimension) for verdicts in example.verdicts.values()],
        }
        for dimension in named
    ]


def _distribution(name, probs, schema, gold):
    probs = np.asarray(probs, np.float64)
    if probs.shape != (len(schema),):
        raise ValueError(f"{name}: an example's probs must be [{len(schema)}], got {list(probs.shape)}")
    top = int(np.argmax(probs))
    return {
        "name": name,
        "parts": [(label, schema.names[label], float(p)) for label, p in enumerate(probs)],
        "description": ", ".join(f"{label} {p:.0%}" for label, p in zip(schema.names, probs)),
        "top": schema.names[top],
        "top_p": float(probs[top]),
        "right": schema.names[top] == gold,
    }
