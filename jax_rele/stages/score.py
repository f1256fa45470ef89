"""score: the teacher's signals for the labelled training pairs and the unlabelled pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jax_rele.config import Config
from jax_rele.data import read_pairs_table, read_signals, write_signals
from jax_rele.inference import Teacher, judge
from jax_rele.progress import pairs_bar
from jax_rele.rationale import ParseFailure, find_evidence, render
from jax_rele.stages import artefacts
from jax_rele.types import Pair, Signals

NEEDS = ("prepare", "adapt", "finetune")
READS = ("labels", "data", "rationale", "teacher", "score")

SHARD = 1024
"""Pairs per shard; an interrupted run goes on behind the last whole shard."""


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Writes label distributions, verdict distributions, evidence and rationales."""
    pairs = artefacts.load_pairs(run_dir, "train") + read_pairs_table(run_dir / artefacts.UNLABELLED)
    names, dimensions = config.labels.names, config.rationale.dimensions
    teacher = artefacts.load_teacher(config, run_dir)
    parts = []
    with pairs_bar("score", len(pairs)) as advance:
        for start in range(0, len(pairs), SHARD):
            path, shard = run_dir / "score" / "shards" / f"{start // SHARD:05d}.parquet", pairs[start : start + SHARD]
            if path.exists():
                advance(len(shard))
            else:
                write_signals(path, teacher_signals(teacher, shard, advance), names, dimensions)
            parts.append(read_signals(path, names, dimensions))
    signals = _join(parts)
    write_signals(run_dir / artefacts.SIGNALS, signals, names, dimensions)
    parsed = sum(bool(text) for text in signals.rationales)
    return {"pairs": len(pairs), "rationales that parse": f"{parsed / len(pairs):.1%}"}


def teacher_signals(teacher: Teacher, pairs: list[Pair], progress: Callable[[int], None]) -> Signals:
    """Judges pairs; a rationale that does not parse leaves no text and no evidence."""
    judged = judge(teacher, pairs, write=teacher.order != "label_only", progress=progress)
    parsed = [None if isinstance(found, ParseFailure) else found for found in judged.rationales]
    return Signals(
        pair_ids=tuple(pair.pair_id for pair in pairs),
        label_probs=judged.label_probs,
        verdict_probs=judged.verdict_probs,
        evidence=tuple(
            () if found is None else find_evidence(pair, found, teacher.fields) for pair, found in zip(pairs, parsed)
        ),
        rationales=tuple("" if found is None else render(found, teacher.order) for found in parsed),
    )


def _join(parts: list[Signals]) -> Signals:
    return Signals(
        pair_ids=sum((part.pair_ids for part in parts), ()),
        label_probs=np.concatenate([part.label_probs for part in parts]),
        verdict_probs=np.concatenate([part.verdict_probs for part in parts]),
        evidence=sum((part.evidence for part in parts), ()),
        rationales=sum((part.rationales for part in parts), ()),
    )
