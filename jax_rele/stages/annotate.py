"""annotate: rationales for the labelled pairs of training and validation, and how far to trust the annotator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jax_rele.config import Config
from jax_rele.data import RATIONALES, write_table
from jax_rele.rationale import RuleAnnotator, query_quality, render
from jax_rele.stages import artefacts

NEEDS = ("prepare",)
READS = ("rationale",)


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Writes the rationales, and the annotator's precision and recall on queries whose human tags it did not use."""
    train, validation, test = (artefacts.load_pairs(run_dir, split) for split in ("train", "validation", "test"))
    annotator = RuleAnnotator.fit(train, config.rationale.dimensions, config.rationale.tag_map)
    pairs = train + validation
    write_table(
        run_dir / artefacts.RATIONALES,
        [
            {"pair_id": pair.pair_id, "text": render(rationale), "annotator": "rules"}
            for pair, rationale in zip(pairs, annotator.annotate(pairs))
        ],
        RATIONALES,
    )
    held_out = query_quality(annotator, validation + test, config.rationale.tag_map)
    (run_dir / artefacts.QUALITY).write_text(json.dumps(held_out, indent=2) + "\n", "utf-8")
    counts: dict[str, Any] = {"rationales": len(pairs)}
    if held_out["n_queries"]:
        for unit in ("values", "words"):
            figures = held_out[unit]["overall"]
            counts[f"query {unit} on {held_out['n_queries']} held-out queries"] = (
                f"precision {figures['precision']:.2f} recall {figures['recall']:.2f}"
            )
    return counts
