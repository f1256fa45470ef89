"""Metrics and report."""

from __future__ import annotations

from typing import Literal

from jax_rele.config.base import Positive, Section


class EvaluateConfig(Section):
    """Metrics and report."""

    split: Literal["validation", "test"] = "test"
    """The split that is evaluated; biases and temperatures are always fitted on validation."""
    zero_shot: bool = False
    """Whether the weights at `teacher.init` are evaluated before any training too, asked for the label alone."""
    bootstrap_samples: Positive = 1000
    """Bootstrap resamples of the queries for each interval."""
    report_pairs: Positive = 24
    """Pairs in the report's details: the first of the split."""
