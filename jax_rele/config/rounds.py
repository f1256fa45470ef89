"""Rounds in which the teacher explains unlabelled pairs for the next one."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from jax_rele.config.base import Fraction, Positive, Section


class RoundsConfig(Section):
    """Which explanations of unlabelled pairs the teacher of the next round learns from (`jax-rele rounds`)."""

    samples: Positive = 5
    """Rationales that a round's teacher draws for each unlabelled pair."""
    temperature: Annotated[float, Field(gt=0)] = 0.7
    """Their sampling temperature; of one rationale there is none, it is decoded greedily."""
    min_vote_fraction: Fraction = 0.8
    """Minimum fraction of them that must have the same label."""
    max_flaws: Annotated[int | None, Field(ge=0)] = 0
    """Most hallucinated values, contradictions and broken rules of the one that is selected; null for any number."""
