"""Another teacher's signals in place of ours: read for the pairs of a run, checked against them, and counted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jax_rele.config import Config
from jax_rele.data import SPLITS, ExternalSignals, read_external_signals, read_pairs_table, take_signals, write_signals
from jax_rele.errors import UserError
from jax_rele.runs import artefacts
from jax_rele.types import Pair, Signals


@dataclass(frozen=True)
class MatchedSignals:
    """What a file says of a run's pairs.

    Attributes:
      train: signals of the pairs to learn from, in the run's order.
      held_out: signals of validation and test pairs.
      missing: pairs to learn from without signals.
      pairs: the run's pairs by split; `unlabelled` are those of the training split without a label.
      file: what was read.
    """

    train: Signals
    held_out: Signals
    missing: list[Pair]
    pairs: dict[str, list[Pair]]
    file: ExternalSignals


def write(config: Config, run_dir: Path) -> dict[str, Any]:
    """Writes the signals of `score.signals` as the score stage writes our own teacher's; what they hold in numbers."""
    found = read(config, run_dir, config.score.signals)
    labels, dimensions = config.labels.names, config.rationale.dimensions
    if found.held_out.pair_ids:
        write_signals(run_dir / artefacts.HELD_OUT, found.held_out, labels, dimensions)
    write_signals(run_dir / artefacts.SIGNALS, found.train, labels, dimensions)
    return counts(found)


def read(config: Config, run_dir: Path, path: str) -> MatchedSignals:
    """Reads a file of signals for the pairs of a run.

    Raises:
      UserError: as `read_external_signals`; or pairs to learn from have no signals, unless `score.allow_missing`.
    """
    everyone = read_pairs_table(run_dir / artefacts.PAIRS)
    pairs = {split: [pair for pair in everyone if pair.split == split and pair.label is not None] for split in SPLITS}
    pairs["unlabelled"] = read_pairs_table(run_dir / artefacts.UNLABELLED)
    learned, held_out = pairs["train"] + pairs["unlabelled"], pairs["validation"] + pairs["test"]
    file = read_external_signals(
        path,
        learned + held_out,
        schema=config.labels.schema_,
        dimensions=config.rationale.dimensions,
        fields=config.data.item_fields,
    )
    place = {pair_id: row for row, pair_id in enumerate(file.signals.pair_ids)}
    missing = [pair for pair in learned if pair.pair_id not in place]
    if missing and (len(missing) == len(learned) or not config.score.allow_missing):
        mend = "give it the pair_ids of this run"
        if len(missing) < len(learned):
            mend = "add them, or set score.allow_missing to leave those pairs out of distillation"
        raise UserError(
            f"{path}: no signals for {len(missing)} of {len(learned)} pairs to learn from, the first is "
            f"{missing[0].pair_id!r}; {mend} (they are in {run_dir / artefacts.PAIRS} and "
            f"{run_dir / artefacts.UNLABELLED})"
        )

    def of(wanted: list[Pair]) -> Signals:
        return take_signals(file.signals, [place[pair.pair_id] for pair in wanted if pair.pair_id in place])

    return MatchedSignals(of(learned), of(held_out), missing, pairs, file)


def counts(found: MatchedSignals) -> dict[str, Any]:
    """What was read in numbers, for the manifest."""
    told: dict[str, Any] = {
        "pairs": len(found.train.pair_ids),
        "held-out pairs": len(found.held_out.pair_ids),
        "pairs left out": len(found.missing),
        "rows of other pairs": found.file.others,
    }
    if found.file.rationales:
        parsed = found.file.rationales - found.file.unparsed
        told["rationales that parse"] = f"{parsed / found.file.rationales:.1%}"
    return told


def summary(config: Config, found: MatchedSignals) -> list[str]:
    """What a user should look at before students learn from the signals, a line each."""
    covered, signals, schema = set(found.file.signals.pair_ids), found.train, config.labels.schema_
    lines = [
        f"{split:10} {sum(pair.pair_id in covered for pair in pairs)} of {len(pairs)} pairs"
        for split, pairs in found.pairs.items()
    ]
    lines += [f"other      {found.file.others} rows of pairs that the run does not have"] if found.file.others else []
    lines += [f"not read   columns {', '.join(found.file.unread)}"] if found.file.unread else []
    if found.file.unparsed:
        lines.append(
            f"rationales {found.file.unparsed} of {found.file.rationales} do not parse, {found.file.first_unparsed}"
        )
    probs = np.asarray(signals.label_probs, np.float64)
    mean = ", ".join(f"{name} {share:.3f}" for name, share in zip(schema.names, probs.mean(axis=0)))
    entropy = -(probs * np.log(np.maximum(probs, 1e-30))).sum(axis=-1).mean()
    lines += [
        f"labels     {mean} (mean over the pairs to learn from)",
        f"entropy    {entropy:.3f} nats in the mean, of at most {np.log(len(schema)):.3f}",
        f"confidence {np.mean(signals.confidence):.3f} in the mean",
    ]
    embedding = signals.rationale_embedding
    for name, there in (
        ("verdicts", ~np.isnan(signals.verdict_probs).any(axis=-1).all(axis=-1)),
        ("evidence", [bool(spans) for spans in signals.evidence]),
        ("rationale", [bool(text) for text in signals.rationales]),
        ("embedding", [False] if embedding is None else ~np.isnan(embedding).any(axis=-1)),
    ):
        lines.append(f"{name:10} {np.mean(there):.1%} of the pairs to learn from")
    said = {pair_id: row.argmax() for pair_id, row in zip(signals.pair_ids, probs)}
    judged = [(said[pair.pair_id], pair.label) for pair in found.pairs["train"] if pair.pair_id in said]
    if judged:
        agree = np.mean([schema.names[top] == label for top, label in judged])
        lines.append(f"agreement  {agree:.1%} of {len(judged)} training pairs have the label that people gave them")
    return lines
