"""Measures a finished run on the judged pairs outside the sample that neither the bases nor the run were trained on.

    python scripts/build_bundled/outside.py FOLDER RUN

Prints the table of the run's report for these pairs, the significant paired differences, and how often the teacher's
verdicts agree with the rule annotator's. FOLDER is what corpus.py describes, RUN e.g. `runs/demo`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from corpus import load

from jax_rele.config import MeshConfig
from jax_rele.errors import UserError
from jax_rele.evaluation import table, verdict_lines
from jax_rele.rationale.words import key
from jax_rele.runs import layout, pipeline
from jax_rele.stages.evaluate import measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--output", type=Path, help="a JSON file for all figures")
    arguments = parser.parse_args()
    config = pipeline.read_config(arguments.run).model_copy(update={"mesh": MeshConfig()})
    train = layout.load_pairs(arguments.run, "train")
    queries, products = {key(pair.query) for pair in train}, {pair.item.id for pair in train}
    held_out = load(arguments.folder).held_out
    pairs = [pair for pair in held_out if key(pair.query) not in queries and pair.item.id not in products]
    print(f"{len(pairs)} of {len(held_out)} pairs; the run was trained on the query or the product of the others")
    if not pairs:
        raise UserError(f"{arguments.run}: was trained on every held-out pair; give another run")
    metrics = measure(config, arguments.run, pairs, "held out, outside the sample").metrics
    if arguments.output:
        arguments.output.write_text(json.dumps(metrics, indent=2) + "\n", "utf-8")
    print(table(metrics) + "\n\n" + "\n".join(f"- {line}" for line in verdict_lines(metrics)))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
