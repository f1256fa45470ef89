"""Metrics with intervals, calibration, slices, trivial baselines and the report."""

from jax_rele.evaluation.assemble import build_metrics
from jax_rele.evaluation.baselines import (
    BASELINES,
    bm25,
    embedding_cosine,
    gradient_boosting,
    majority,
    token_overlap,
)
from jax_rele.evaluation.bootstrap import intervals, metric_names, metric_samples, paired_difference
from jax_rele.evaluation.calibration import apply_temperature, ece, fit_temperature, reliability
from jax_rele.evaluation.decision import decide, fit_bias
from jax_rele.evaluation.perspectives import correction_table, corrections
from jax_rele.evaluation.report import Example, write_report
from jax_rele.evaluation.rules import HUMAN, rule_figures
from jax_rele.evaluation.slices import slices
from jax_rele.evaluation.summary import table, verdict_lines

__all__ = [
    "BASELINES",
    "HUMAN",
    "Example",
    "apply_temperature",
    "bm25",
    "build_metrics",
    "correction_table",
    "corrections",
    "decide",
    "ece",
    "embedding_cosine",
    "fit_bias",
    "fit_temperature",
    "gradient_boosting",
    "intervals",
    "majority",
    "metric_names",
    "metric_samples",
    "paired_difference",
    "reliability",
    "rule_figures",
    "slices",
    "table",
    "token_overlap",
    "verdict_lines",
    "write_report",
]
