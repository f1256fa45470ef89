"""score: the teacher's signals for the labelled training pairs and the unlabelled pairs, or another teacher's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from sklearn.metrics import roc_auc_score

from jax_rele.config import Config, local_name
from jax_rele.data import by_query, join_tables, read_pairs_table, read_signals, write_signals
from jax_rele.evaluation.baselines import overlaps
from jax_rele.evaluation.bootstrap import positive_probs
from jax_rele.io import write_text
from jax_rele.progress import pairs_bar
from jax_rele.rationale import ParseFailure, find_evidence, render
from jax_rele.runs import external_signals, layout
from jax_rele.runs.load import load_teacher, teacher_inputs
from jax_rele.runs.rationale_source import AnnotatedRationales
from jax_rele.runs.texts import check_teacher_texts
from jax_rele.teacher import Teacher, TeacherPredictions, check_verbalizers, judge
from jax_rele.training import distributed
from jax_rele.types import Pair, Signals

SHARD = 1024
"""Pairs per shard; an interrupted run resumes after the last whole shard."""
HELD_OUT = 200
"""Validation pairs that the teacher is compared with word overlap on."""


def external_inputs(config: Config) -> dict[str, str]:
    """A hash of the weights that the teacher starts from; or of the content of what `score.signals` names."""
    if not config.score.signals:
        return teacher_inputs(config)
    return {
        f"score.signals {local_name(config.score.signals)}": external_signals.content_hash(config, config.score.signals)
    }


def run(config: Config, run_dir: Path) -> Mapping[str, object]:
    """Writes label distributions, verdict distributions, evidence and rationales.

    With several processes each judges its own shards on its own devices, and process 0 joins them. Where
    `score.signals` names a file, its signals are written instead, those of validation and test pairs apart.
    """
    if config.score.signals:
        return distributed.on_main(partial(external_signals.write, config, run_dir))
    everyone = layout.load_pairs(run_dir, "train") + read_pairs_table(run_dir / layout.UNLABELLED)
    order = by_query(everyone)
    pairs = [everyone[index] for index in order]
    teacher = load_teacher(run_dir, config=config)
    text_counts = distributed.on_main(partial(_check_texts, config, teacher, pairs))
    directory, shards = run_dir / "score" / "shards", range(-(-len(pairs) // SHARD))
    own = shards[jax.process_index() :: jax.process_count()]
    with pairs_bar("score", sum(len(pairs[shard * SHARD : (shard + 1) * SHARD]) for shard in own)) as advance:
        score_shards(teacher, pairs, directory, own, advance)
    distributed.barrier("score: every shard is written")
    if not distributed.is_main():
        return {}
    held_out = compare_with_overlap(teacher, layout.load_pairs(run_dir, "validation"))
    if warning := weak_teacher(held_out):
        print(warning)
    return {
        "rationales": describe_rationales(teacher, pairs),
        "label scoring": check_verbalizers(teacher.tokenizer, config.labels.names),
        **join(config, run_dir, shards, order),
        "validation": held_out,
        **text_counts,
    }


def describe_rationales(teacher: Teacher, pairs: Sequence[Pair]) -> str:
    """Whose rationales the teacher judged over."""
    if teacher.order == "label_only":
        return "none"
    if not isinstance(teacher.annotator, AnnotatedRationales):
        return "written by the teacher"
    origins = {"rules": "by rules", "annotate": "of annotate"}
    counts = (f"{count} {origins[origin]}" for origin, count in teacher.annotator.count(pairs).items())
    return f"read, not written: {', '.join(counts)}"


def compare_with_overlap(teacher: Teacher, pairs: Sequence[Pair]) -> dict[str, float]:
    """ROC-AUC of the positive labels on held-out pairs: of the teacher, and of the query's words that an item has.

    A teacher that is not better than word overlap has nothing to teach. At most `HELD_OUT` pairs are judged.

    Returns:
      `pairs`, `teacher_auc` and `word_overlap_auc`; empty where the pairs are all positive or all negative.
    """
    count = min(len(pairs), HELD_OUT)
    judged = [pairs[index * len(pairs) // count] for index in range(count)]
    is_positive = [pair.label in teacher.schema.positive for pair in judged]
    if len({*is_positive}) < 2:
        return {}
    probs = positive_probs(teacher.predict(judged).label_probs, teacher.schema)
    return {
        "pairs": count,
        "teacher_auc": round(float(roc_auc_score(is_positive, probs)), 4),
        "word_overlap_auc": round(float(roc_auc_score(is_positive, overlaps(judged, teacher.fields))), 4),
    }


def weak_teacher(held_out: Mapping[str, float]) -> str:
    """A warning where the figures of `compare_with_overlap` say that the teacher has nothing to teach; else empty."""
    if not held_out or held_out["teacher_auc"] >= held_out["word_overlap_auc"]:
        return ""
    return (
        f"warning: score: on {held_out['pairs']} validation pairs the teacher's ROC-AUC is "
        f"{held_out['teacher_auc']:.3f}, word overlap's {held_out['word_overlap_auc']:.3f}: students will hardly gain "
        "from its signals; train it longer or on more rationales (adapt, annotate.unlabelled)"
    )


def _check_texts(config: Config, teacher: Teacher, pairs: Sequence[Pair]) -> dict[str, int]:
    """Counts of what of the pairs is not in the prompts; raises UserError where that is too much."""
    loss = teacher.text_loss(pairs)
    check_teacher_texts(config, "score", loss)
    return loss.counts()


def score_shards(
    teacher: Teacher, pairs: list[Pair], directory: Path, shards: Iterable[int], progress: Callable[[int], None]
) -> None:
    """Judges shards of the pairs that are not there yet. Shards are independent: any process may do any of them."""
    for shard in shards:
        path, part = _path(directory, shard), pairs[shard * SHARD : (shard + 1) * SHARD]
        if path.exists() and path.with_suffix(".json").exists():
            progress(len(part))
            continue
        judged = judge(teacher, part, write=teacher.order != "label_only", progress=progress)
        counts = {"tokens decoded": judged.tokens_decoded, "tokens emitted": judged.tokens_emitted}
        directory.mkdir(parents=True, exist_ok=True)
        write_text(path.with_suffix(".json"), json.dumps(counts))
        write_signals(path, signals(teacher, part, judged), teacher.schema.names, teacher.dimensions)


def signals(teacher: Teacher, pairs: list[Pair], judged: TeacherPredictions) -> Signals:
    """The teacher's predictions as signals; a rationale that does not parse leaves no text and no evidence."""
    parsed = [None if isinstance(rationale, ParseFailure) else rationale for rationale in judged.rationales]
    return Signals(
        pair_ids=tuple(pair.pair_id for pair in pairs),
        label_probs=judged.label_probs,
        verdict_probs=judged.verdict_probs,
        evidence=tuple(
            () if rationale is None else find_evidence(pair, rationale, teacher.fields)
            for pair, rationale in zip(pairs, parsed)
        ),
        rationales=tuple("" if rationale is None else render(rationale, teacher.order) for rationale in parsed),
    )


def join(config: Config, run_dir: Path, shards: Iterable[int], order: Sequence[int]) -> Mapping[str, object]:
    """Writes the shards as one table, in the order of `prepare`'s tables; returns counts.

    Args:
      config, run_dir: of the run.
      shards: all of them.
      order: the index in `prepare`'s tables of each row of the shards.
    """
    paths = [_path(run_dir / "score" / "shards", shard) for shard in shards]
    counts = Counter({"pairs": 0, "tokens decoded": 0, "tokens emitted": 0})
    parsed = 0
    for path in paths:
        part = read_signals(path, config.labels.names, config.rationale.dimensions)
        parsed += sum(map(bool, part.rationales))
        counts.update(json.loads(path.with_suffix(".json").read_text("utf-8")), pairs=len(part.pair_ids))
    join_tables(run_dir / layout.SIGNALS, paths, np.argsort(order))
    return {**counts, "rationales that parse": f"{parsed / counts['pairs']:.1%}"}


def _path(directory: Path, shard: int) -> Path:
    return directory / f"{shard:05d}.parquet"
