"""Business rules, checked on rationales and on arrays of verdicts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jax_rele.types import VERDICTS, Rationale, Rule


def broken_rules(rules: Sequence[Rule], rationale: Rationale) -> list[Rule]:
    """The rules that apply to a rationale and do not allow its label; none where it has no label."""
    if rationale.label is None:
        return []
    return [rule for rule in rules if rule.applies(rationale) and rationale.label not in rule.labels]


def applying_rules(rules: Sequence[Rule], verdicts: np.ndarray, dimensions: Sequence[str]) -> np.ndarray:
    """Which rules apply to which pairs.

    Args:
      rules: R rules.
      verdicts: [N, D] indices into `VERDICTS`.
      dimensions: the D dimensions.

    Returns:
      [N, R] bool.
    """
    applying = np.zeros((len(verdicts), len(rules)), bool)
    for column, rule in enumerate(rules):
        met = [
            np.isin(verdicts[:, list(dimensions).index(name)], [VERDICTS.index(verdict) for verdict in allowed])
            for name, allowed in rule.conditions.items()
        ]
        applying[:, column] = np.logical_and.reduce(met) if met else False
    return applying


def allowed_labels(rules: Sequence[Rule], labels: Sequence[str]) -> np.ndarray:
    """[R, C] bool: the labels that each rule allows where it applies."""
    return np.array([[name in rule.labels for name in labels] for rule in rules], bool).reshape(len(rules), len(labels))
