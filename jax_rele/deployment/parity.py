"""How far an exported form is from the student in JAX, on a sample of pairs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.stats import spearmanr

from jax_rele.errors import UserError

TOLERANCE = 1e-4
"""Largest difference of a calibrated label logit, or of a log-odds, in float32."""


def compare_outputs(
    exported: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], scores: str
) -> dict[str, object]:
    """Differences by output, and how alike the orders are.

    Args:
      exported: arrays by name, a row per pair.
      expected: the same of the student in JAX; what is not exported is not compared.
      scores: the name of the output that orders pairs, [N] or [N, 1].

    Returns:
      {"pairs", "largest_difference" by name, "spearman", "same_order"}. `same_order` forgives swaps of pairs whose
      scores differ by less than the largest difference.
    """
    common = [name for name in exported if name in expected]
    differences = {
        name: float(np.abs(np.asarray(exported[name], np.float64) - np.asarray(expected[name], np.float64)).max())
        for name in common
    }
    ours, theirs = (np.asarray(each[scores], np.float64).reshape(-1) for each in (expected, exported))
    order = np.argsort(-theirs, kind="stable")
    falls = np.diff(ours[order]) > 2 * differences[scores]
    constant = min(len(set(ours)), len(set(theirs))) < 2
    spearman = 1.0 if constant else float(spearmanr(ours, theirs).statistic)
    return {
        "pairs": len(ours),
        "largest_difference": differences,
        "spearman": spearman,
        "same_order": not bool(falls.any()),
    }


def check_parity(parity: Mapping[str, object], what: str, tolerance: float = TOLERANCE) -> None:
    """Raises UserError where an exported form differs by more than the tolerance."""
    differences = parity["largest_difference"]
    assert isinstance(differences, Mapping)
    for name, difference in differences.items():
        if not difference <= tolerance:  # NaN, too
            raise UserError(
                f"{what}: {name} differs from the student in JAX by {difference:.2g}, more than {tolerance:g}; "
                "nothing was "
                "written. Please report it with the run's config"
            )
