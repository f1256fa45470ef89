"""Another teacher's signals in place of ours: a file's or another run's, read for a run's pairs, checked, counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jax_rele.config import Config
from jax_rele.data import (
    ExternalSignals,
    PairTable,
    concat_signals,
    read_external_signals,
    read_pairs_table,
    take_signals,
    write_signals,
)
from jax_rele.errors import UserError
from jax_rele.io import hash_file, hash_values
from jax_rele.names import SPLITS
from jax_rele.runs import layout
from jax_rele.runs.other_runs import read_other
from jax_rele.types import ITEM_FIELDS, Pair, Signals

WHERE = "score.signals"


@dataclass(frozen=True)
class MatchedSignals:
    """What a file, or another run, says of a run's pairs.

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


def write(config: Config, run_dir: Path) -> Mapping[str, object]:
    """Writes the signals of `score.signals` as the score stage writes our own teacher's; what they hold in numbers."""
    matched = read(config, run_dir, config.score.signals)
    labels, dimensions = config.labels.names, config.rationale.dimensions
    if matched.held_out.pair_ids:
        write_signals(run_dir / layout.HELD_OUT, matched.held_out, labels, dimensions)
    write_signals(run_dir / layout.SIGNALS, matched.train, labels, dimensions)
    return counts(matched)


def read(config: Config, run_dir: Path, path: str) -> MatchedSignals:
    """Reads a file of signals, or those of another run's folder, for the pairs of a run.

    Raises:
      UserError: as `read_external_signals` or, of a folder, `read_other`; a pair of the other run is another one here;
        or pairs to learn from have no signals, unless `score.allow_missing`.
    """
    everyone = read_pairs_table(run_dir / layout.PAIRS)
    pairs = {split: [pair for pair in everyone if pair.split == split and pair.label is not None] for split in SPLITS}
    pairs["unlabelled"] = read_pairs_table(run_dir / layout.UNLABELLED)
    learned, held_out = pairs["train"] + pairs["unlabelled"], pairs["validation"] + pairs["test"]
    asked = learned + held_out
    file = _of_run(config, Path(path), asked) if Path(path).is_dir() else _of_file(config, path, asked)
    row_of = {pair_id: row for row, pair_id in enumerate(file.signals.pair_ids)}
    missing = [pair for pair in learned if pair.pair_id not in row_of]
    if missing and (len(missing) == len(learned) or not config.score.allow_missing):
        remedy = "give it the pair_ids of this run"
        if len(missing) < len(learned):
            remedy = "add them, or set score.allow_missing to leave those pairs out of distillation"
        raise UserError(
            f"{path}: no signals for {len(missing)} of {len(learned)} pairs to learn from, the first is "
            f"{missing[0].pair_id!r}; {remedy} (they are in {run_dir / layout.PAIRS} and "
            f"{run_dir / layout.UNLABELLED})"
        )

    def of(pairs_of_split: list[Pair]) -> Signals:
        return take_signals(file.signals, [row_of[pair.pair_id] for pair in pairs_of_split if pair.pair_id in row_of])

    return MatchedSignals(of(learned), of(held_out), missing, pairs, file)


def content_hash(config: Config, path: str) -> str:
    """A hash of the signals at `score.signals`: of a file, or of the tables of another run.

    Raises:
      UserError: there is no such file, or as `read_other`.
    """
    tables = [path]
    if Path(path).is_dir():
        read_other(config, Path(path), "score", WHERE)
        tables = _tables(Path(path))
    try:
        return hash_values([hash_file(table) for table in tables])
    except OSError as error:
        raise UserError(f"{WHERE}: {path} cannot be read: {error.strerror}") from None


def _tables(run_dir: Path) -> list[str]:
    """The tables of signals of a run that are there."""
    return [str(run_dir / table) for table in (layout.SIGNALS, layout.HELD_OUT) if (run_dir / table).exists()]


def _of_file(config: Config, path: str, pairs: Sequence[Pair]) -> ExternalSignals:
    return read_external_signals(
        path,
        pairs,
        schema=config.labels.schema_,
        dimensions=config.rationale.dimensions,
        fields=config.data.item_fields,
    )


def _of_run(config: Config, run_dir: Path, pairs: Sequence[Pair]) -> ExternalSignals:
    """The signals that another run has for our pairs. Its pairs may be others, but not under the names of ours."""
    read_other(config, run_dir, "score", WHERE)
    parts = [_of_file(config, table, pairs) for table in _tables(run_dir)]
    signals = concat_signals([part.signals for part in parts])
    ours = {pair.pair_id: _texts(pair) for pair in pairs}
    theirs = {
        pair.pair_id: _texts(pair) for table in (layout.PAIRS, layout.UNLABELLED) for pair in PairTable(run_dir / table)
    }
    if others := [pair_id for pair_id in signals.pair_ids if ours[pair_id] != theirs.get(pair_id)]:
        raise UserError(
            f"{WHERE}: {len(others)} of {len(signals.pair_ids)} pairs of the run {run_dir} have another query or item "
            f"here, the first is {others[0]!r}; a pair_id must name the same pair in both"
        )
    return ExternalSignals(signals, sum(part.others for part in parts), sum(part.rationales for part in parts))


def _texts(pair: Pair) -> tuple[object, ...]:
    return pair.query, *pair.item.texts(ITEM_FIELDS)


def counts(matched: MatchedSignals) -> Mapping[str, object]:
    """What was read in numbers, for the manifest."""
    counts: dict[str, object] = {
        "pairs": len(matched.train.pair_ids),
        "held-out pairs": len(matched.held_out.pair_ids),
        "pairs left out": len(matched.missing),
        "rows of other pairs": matched.file.others,
    }
    if matched.file.rationales:
        parsed = matched.file.rationales - matched.file.unparsed
        counts["rationales that parse"] = f"{parsed / matched.file.rationales:.1%}"
    return counts


def summary(config: Config, matched: MatchedSignals) -> list[str]:
    """What a user should look at before students learn from the signals, a line each."""
    covered, signals, schema = set(matched.file.signals.pair_ids), matched.train, config.labels.schema_
    lines = [
        f"{split:10} {sum(pair.pair_id in covered for pair in pairs)} of {len(pairs)} pairs"
        for split, pairs in matched.pairs.items()
    ]
    file = matched.file
    lines += [f"other      {file.others} rows of pairs that the run does not have"] if file.others else []
    lines += [f"not read   columns {', '.join(file.unread)}"] if file.unread else []
    if file.unparsed:
        lines.append(f"rationales {file.unparsed} of {file.rationales} do not parse, {file.first_unparsed}")
    probs = np.asarray(signals.label_probs, np.float64)
    mean = ", ".join(f"{name} {probability:.3f}" for name, probability in zip(schema.names, probs.mean(axis=0)))
    entropy = -(probs * np.log(np.maximum(probs, 1e-30))).sum(axis=-1).mean()
    lines += [
        f"labels     {mean} (mean over the pairs to learn from)",
        f"entropy    {entropy:.3f} nats in the mean, of at most {np.log(len(schema)):.3f}",
        f"confidence {np.mean(np.asarray(signals.confidence)):.3f} in the mean",
    ]
    embedding = signals.rationale_embedding
    for name, there in (
        ("verdicts", ~np.isnan(signals.verdict_probs).any(axis=-1).all(axis=-1)),
        ("evidence", [bool(spans) for spans in signals.evidence]),
        ("rationale", [bool(text) for text in signals.rationales]),
        ("embedding", [False] if embedding is None else ~np.isnan(embedding).any(axis=-1)),
    ):
        lines.append(f"{name:10} {np.mean(there):.1%} of the pairs to learn from")
    predicted = {pair_id: row.argmax() for pair_id, row in zip(signals.pair_ids, probs)}
    judged = [(predicted[pair.pair_id], pair.label) for pair in matched.pairs["train"] if pair.pair_id in predicted]
    if judged:
        agree = np.mean([schema.names[top] == label for top, label in judged])
        lines.append(f"agreement  {agree:.1%} of {len(judged)} training pairs have the label that people gave them")
    return lines
