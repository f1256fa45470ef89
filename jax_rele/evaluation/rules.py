"""How often the labels of people and models break the business rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from jax_rele.evaluation.ratios import ratio
from jax_rele.rationale.rules import allowed_labels, applying_rules
from jax_rele.types import LabelSchema, Rule

HUMAN = "human labels"
"""The name of the human labels beside those of models."""


def rule_figures(
    rules: Sequence[Rule],
    schema: LabelSchema,
    dimensions: Sequence[str],
    *,
    verdicts: np.ndarray,
    decided: Mapping[str, np.ndarray],
    own_verdicts: Mapping[str, np.ndarray],
    queries: Sequence[str],
    n_bootstrap: int,
    seed: int,
) -> list[dict[str, object]]:
    """For each rule the fraction of labels that break it, of the pairs to which it applies.

    Args:
      rules: rules with conditions.
      schema: C labels.
      dimensions: D dimensions.
      verdicts: [N, D] indices into `VERDICTS`, the same for all models: those of the rule annotator.
      decided: {model: [N] indices of labels}, and people's as `HUMAN`.
      own_verdicts: {model: [N, D] indices into `VERDICTS`} of the models that give verdicts themselves, -1 for none.
      queries: N queries, which are resampled as a whole.
      n_bootstrap, seed: of the intervals.

    Returns:
      One {"rule": in words, "pairs": to which it applies, "broken": {model: {"value", "ci95"}},
      "own": {model: {"pairs", "value", "ci95"}}} per rule; "own" is of the pairs to which it applies by the model's own
      verdicts. A value is None where there are no such pairs.
    """
    allowed = allowed_labels(rules, schema.names)
    applying = applying_rules(rules, verdicts, dimensions)
    own_applying = {name: applying_rules(rules, own, dimensions) for name, own in own_verdicts.items()}

    def broken(name: str, rule: int, rows: np.ndarray):
        numbers = np.flatnonzero(rows)
        against = ~allowed[rule, decided[name][numbers]]
        return ratio(against, np.ones(len(numbers)), [queries[row] for row in numbers.tolist()], n_bootstrap, seed)

    return [
        {
            "rule": str(rule),
            "pairs": int(applying[:, number].sum()),
            "broken": {name: broken(name, number, applying[:, number]) for name in decided},
            "own": {
                name: {"pairs": int(rows[:, number].sum()), **broken(name, number, rows[:, number])}
                for name, rows in own_applying.items()
            },
        }
        for number, rule in enumerate(rules)
    ]
