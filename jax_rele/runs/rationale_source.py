"""The rationales that a teacher reads instead of writing its own, see `score.rationale`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jax_rele.config import Config
from jax_rele.data import PairTable
from jax_rele.rationale import Annotator, RuleAnnotator
from jax_rele.runs import layout
from jax_rele.types import Item, Pair, Rationale


@dataclass(frozen=True)
class AnnotatedRationales:
    """An `Annotator` that looks rationales up by query and item, and has the others written by rules."""

    rules: Annotator
    by_text: Mapping[tuple[str, Item], Rationale] = field(default_factory=dict)

    def annotate(self, pairs: Sequence[Pair]) -> list[Rationale]:
        """One rationale per pair, in order."""
        rationales = [self.by_text.get((pair.query, pair.item)) for pair in pairs]
        missing = [pair for pair, rationale in zip(pairs, rationales) if rationale is None]
        by_rules = iter(self.rules.annotate(missing))
        return [next(by_rules) if rationale is None else rationale for rationale in rationales]

    def count(self, pairs: Sequence[Pair]) -> dict[str, int]:
        """How many pairs have a rationale of each origin; an origin of none is left out."""
        models = sum((pair.query, pair.item) in self.by_text for pair in pairs)
        counts = {"rules": len(pairs) - models, "annotate": models}
        return {origin: count for origin, count in counts.items() if count}


def rationale_source(config: Config, run_dir: Path) -> AnnotatedRationales | None:
    """Who writes the rationales that a run's teacher reads; None where it writes them itself.

    Rules know the training pairs. What models wrote is used for training pairs alone, so that all held-out pairs are
    judged alike, whether or not somebody had them explained.
    """
    if config.score.rationale == "written":
        return None
    train = layout.load_pairs(run_dir, "train")
    rules = RuleAnnotator.fit(train, config.rationale.dimensions, config.rationale.tag_map)
    if config.annotate.annotator == "rules":
        return AnnotatedRationales(rules)
    rationales = layout.load_rationales(run_dir)
    return AnnotatedRationales(
        rules,
        {
            (pair.query, pair.item): rationales[pair.pair_id]
            for pair in (*train, *PairTable(run_dir / layout.UNLABELLED))
            if pair.pair_id in rationales
        },
    )
