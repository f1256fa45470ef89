"""evaluate: figures of teacher, students and baselines with intervals, and the report that explains single pairs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np
import pyarrow as pa

from jax_rele.config import Config
from jax_rele.data import RATIONALES, long_tail, read_pairs_table, read_rationale, write_table
from jax_rele.data.tokens.text_loss import TextLoss
from jax_rele.evaluation import (
    BASELINES,
    HUMAN,
    Example,
    build_metrics,
    correction_table,
    corrections,
    decide,
    embedding_cosine,
    rule_figures,
    table,
    verdict_lines,
    write_report,
)
from jax_rele.evaluation.assemble import TEACHER, ZERO_SHOT, perspective_name
from jax_rele.rationale import ParseFailure, RuleAnnotator, find_evidence, grammar
from jax_rele.runs import layout
from jax_rele.runs.load import (
    load_student,
    load_teacher,
    load_zero_shot_teacher,
    student_inputs,
    teacher_inputs,
    untrained_embedder,
)
from jax_rele.runs.texts import check_student_texts, check_teacher_texts, teacher_text_loss
from jax_rele.teacher import TeacherPredictions
from jax_rele.teacher.perspectives import MAIN
from jax_rele.text import query_id
from jax_rele.types import VERDICTS, Item, Pair, Rationale

SHOWN = 3
"""Rationales that are printed."""


@dataclass(frozen=True)
class Measured:
    """The predictions of a run's models for some pairs, and their metrics.

    Attributes:
      metrics: as `build_metrics` returns them, with `training_seeds`, `rationales`, and `rules` and `perspectives`
        where there are any.
      baselines, models: [N, C] label distributions by name.
      judged: the teacher's predictions.
      verdicts: [N, D] indices into `VERDICTS`, of each student that has learnt them.
    """

    metrics: dict[str, Any]
    baselines: dict[str, np.ndarray]
    models: dict[str, np.ndarray]
    judged: TeacherPredictions
    verdicts: dict[str, np.ndarray]


def external_inputs(config: Config) -> dict[str, str]:
    """Hashes of the weights that teacher and students start from, and of the files of custom losses."""
    return {**({} if config.score.signals else teacher_inputs(config)), **student_inputs(config)}


def run(config: Config, run_dir: Path) -> Mapping[str, object]:
    """Writes metrics, predictions, the teacher's rationales and the report; prints the table."""
    schema, directory = config.labels.schema_, run_dir / "evaluate"
    pairs = layout.load_pairs(run_dir, config.evaluate.split)
    measured = measure(config, run_dir, pairs, config.evaluate.split)
    metrics, probs = measured.metrics, {**measured.baselines, **measured.models}
    write_report(
        run_dir / layout.REPORT,
        metrics,
        _examples(config, pairs, measured.judged, measured.models, measured.verdicts),
        run_name=config.name,
        labels=np.array([schema.index(pair.label) for pair in pairs]),
        probs=probs,
        training_seeds=[config.seed],
    )
    _write_tables(directory, pairs, schema, probs, measured.judged)
    text = table(metrics) + "\n\n" + "\n".join(f"- {line}" for line in verdict_lines(metrics)) + "\n"
    text += correction_table(metrics.get("perspectives", {}))
    text += first_rationales(pairs, measured.judged)
    (directory / "table.md").write_text(text, "utf-8")
    (run_dir / layout.METRICS).write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", "utf-8")
    print(text)
    return {
        "pairs": len(pairs),
        "rationales that parse": f"{metrics['rationales']['parsed']}/{metrics['rationales']['written']}",
        "texts": metrics["texts"],
        "report": str(run_dir / layout.REPORT),
    }


def measure(config: Config, run_dir: Path, pairs: list[Pair], name: str) -> Measured:
    """Predicts for labelled pairs with every baseline and model of a run.

    Args:
      config, run_dir: of the run; its students are trained.
      pairs: what to judge, of a split of the run or from elsewhere.
      name: what the metrics call them.
    """
    schema = config.labels.schema_
    everyone = read_pairs_table(run_dir / layout.PAIRS)
    train, validation = (layout.load_pairs(run_dir, split) for split in ("train", "validation"))
    judged, by_teacher = judge_splits(config, run_dir, pairs, validation)
    probs, validation_probs = ({name: both[split] for name, both in by_teacher.items()} for split in (0, 1))
    if config.evaluate.zero_shot:
        probs[ZERO_SHOT], validation_probs[ZERO_SHOT] = judge_zero_shot(config, run_dir, pairs, validation)
    verdicts: dict[str, np.ndarray] = {}
    text_losses: dict[str, TextLoss] = {}
    if not config.score.signals:
        text_losses["teacher"] = teacher_text_loss(config, run_dir, pairs)
        check_teacher_texts(config, "evaluate", text_losses["teacher"])
    for student_name in config.distill.students:
        for recipe in config.distill.recipes:
            student = load_student(run_dir, student_name, recipe=recipe, config=config)
            predictions, key = student.predict(pairs), f"{student_name}:{recipe}"
            if student_name not in text_losses:
                text_losses[student_name] = student.text_loss(pairs)
                check_student_texts(config, f"evaluate: {student_name}", text_losses[student_name])
            probs[key] = predictions.label_probs
            validation_probs[key] = student.predict(validation).label_probs
            if predictions.verdict_probs is not None:
                verdicts[key] = predictions.verdict_probs.argmax(axis=-1)

    fitted = baseline_probs(config, train, validation, pairs)
    baselines, validation_baselines = ({name: both[split] for name, both in fitted.items()} for split in (0, 1))
    known = {pair.pair_id for pair in everyone}
    everyone += [pair for pair in pairs if pair.pair_id not in known]
    tail = dict(zip((pair.pair_id for pair in everyone), long_tail(everyone, config.data.tail_max_frequency)))
    metrics = build_metrics(
        name,
        pairs,
        validation,
        baselines=baselines,
        validation_baselines=validation_baselines,
        models=probs,
        validation_models=validation_probs,
        schema=schema,
        gain_maps=config.labels.gain_maps_,
        long_tail=np.array([tail[pair.pair_id] for pair in pairs]),
        n_bootstrap=config.evaluate.bootstrap_samples,
        seed=config.seed,
    )
    metrics["training_seeds"] = [config.seed]
    annotated = cache(
        lambda: RuleAnnotator.fit(train, config.rationale.dimensions, config.rationale.tag_map).annotate(pairs)
    )
    metrics["rationales"] = rationale_figures(config, pairs, judged, annotated)
    if any(rule.conditions for rule in config.rules_):
        own = {
            **({} if np.isnan(judged.verdict_probs).all() else {"teacher": _verdicts(judged.verdict_probs)}),
            **verdicts,
        }
        metrics["rules"] = broken_rule_figures(config, pairs, metrics, probs, annotated(), own)
    if judged.label_probs_of:
        metrics["perspectives"] = correction_figures(config, pairs, metrics, probs, list(judged.label_probs_of))
    metrics["texts"] = {model: loss.counts() for model, loss in text_losses.items()}
    return Measured(metrics, baselines, probs, judged, verdicts)


def baseline_probs(
    config: Config, train: list[Pair], validation: list[Pair], pairs: list[Pair]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{name: label distributions of the N `pairs` [N, C] and of validation [M, C]} of every baseline, each fitted once.

    They read the texts that the models read, so that a difference is not one of input. Where the students start from
    weights, the cosine of these weights' embeddings is among them.
    """
    schema, fields, asked = config.labels.schema_, config.data.item_fields, [*pairs, *validation]
    probs = {name: baseline(train, validation, asked, schema, fields) for name, baseline in BASELINES.items()}
    if config.student.init != "random":
        student = untrained_embedder(config)

        def embed(queries: Sequence[str], items: Sequence[Item]) -> tuple[np.ndarray, np.ndarray]:
            return student.embed(queries, "query"), student.embed(items, "item")

        probs["embedding_cosine"] = embedding_cosine(train, validation, asked, schema, embed=embed)
    return {name: (both[: len(pairs)], both[len(pairs) :]) for name, both in probs.items()}


def judge_splits(
    config: Config, run_dir: Path, pairs: list[Pair], validation: list[Pair], *, explain: bool = True
) -> tuple[TeacherPredictions, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The teacher's predictions for the evaluated pairs, from its model or from external signals.

    Returns:
      The judgements, with rationales if `explain`; and {model: label distributions on the pairs and on validation} of
      the teacher and each of its perspectives, none where imported signals do not cover the pairs.
    """
    if not config.score.signals:
        teacher = load_teacher(run_dir, config=config)
        judged = teacher.explain(pairs) if explain else teacher.predict(pairs)
        on_validation = teacher.predict(validation)
        probs = {TEACHER: (judged.label_probs, on_validation.label_probs)}
        for name, each in judged.label_probs_of.items():
            probs[perspective_name(name)] = each, on_validation.label_probs_of[name]
        return judged, probs
    judged, judged_validation = (look_up(config, run_dir, asked) for asked in (pairs, validation))
    lacking = sum(int(np.isnan(each.label_probs[:, 0]).sum()) for each in (judged, judged_validation))
    if lacking:
        print(
            f"no figures of the teacher: score.signals says nothing of {lacking} of {len(pairs) + len(validation)} "
            f"pairs of validation and {config.evaluate.split}"
        )
        return judged, {}
    return judged, {TEACHER: (judged.label_probs, judged_validation.label_probs)}


def judge_zero_shot(
    config: Config, run_dir: Path, pairs: list[Pair], validation: list[Pair]
) -> tuple[np.ndarray, np.ndarray]:
    """Label distributions of the teacher's weights before any training, on the pairs and on validation."""
    teacher = load_zero_shot_teacher(run_dir, config=config)
    return teacher.predict(pairs).label_probs, teacher.predict(validation).label_probs


def look_up(config: Config, run_dir: Path, pairs: list[Pair]) -> TeacherPredictions:
    """External signals of held-out pairs; NaN distributions and no text where there are none."""
    labels, dimensions = config.labels.names, config.rationale.dimensions
    probs = np.full((len(pairs), len(labels)), np.nan)
    verdicts = np.full((len(pairs), len(dimensions), len(VERDICTS)), np.nan)
    texts = [""] * len(pairs)
    rationales: list[Rationale | ParseFailure] = [ParseFailure("none was given")] * len(pairs)
    signals = layout.load_held_out(config, run_dir)
    rows = {pair_id: row for row, pair_id in enumerate(() if signals is None else signals.pair_ids)}
    for row, pair in enumerate(pairs):
        if signals is None or (at := rows.get(pair.pair_id)) is None:
            continue
        probs[row], verdicts[row] = signals.label_probs[at], signals.verdict_probs[at]
        rationale = read_rationale(signals.rationales[at], dimensions, labels)
        if isinstance(rationale, ParseFailure) or rationale.comparisons:
            texts[row], rationales[row] = signals.rationales[at], rationale
    return TeacherPredictions(
        label_probs=probs,
        verdict_probs=verdicts,
        texts=tuple(texts),
        rationales=tuple(rationales),
        label_scoring="external",
        tokens_decoded=0,
        tokens_emitted=0,
    )


def rationale_figures(
    config: Config,
    pairs: list[Pair],
    judged: TeacherPredictions,
    annotated: Callable[[], Sequence[Rationale]],
) -> Mapping[str, object]:
    """How many of the teacher's rationales parse, and how often their verdicts agree with the rule annotator's.

    Agreement stands beside that of always giving the annotator's most frequent verdict on the dimension. It is given
    again of the dimensions alone that the query asks for by human tags: the annotator has the query's values from them.

    Args:
      config, pairs, judged: of the run, and the teacher's predictions for the pairs.
      annotated: writes the rule annotator's rationales of the pairs.
    """
    explains = bool(config.score.signals) or config.teacher.order != "label_only"
    written = [text for text in judged.texts if text and explains]
    parsed = [rationale for rationale in judged.rationales if not isinstance(rationale, ParseFailure)]
    figures: dict[str, object] = {"written": len(written), "parsed": len(parsed) if written else 0}
    if explains and not config.score.signals and config.score.rationale == "annotated":
        figures["values_by"] = "rule annotator"
    failures = Counter(
        rationale.reason
        for text, rationale in zip(judged.texts, judged.rationales)
        if text and isinstance(rationale, ParseFailure)
    )
    figures["failures"] = dict(failures.most_common())
    if not written or not parsed:
        return figures
    dimensions = config.rationale.dimensions
    agreement, frequent = [], []
    for dimension in dimensions:
        expected = [
            rule.verdict(dimension)
            for rule, rationale in zip(annotated(), judged.rationales)
            if not isinstance(rationale, ParseFailure)
        ]
        predicted = [rationale.verdict(dimension) for rationale in parsed]
        agreement.append(float(np.mean([a == b for a, b in zip(predicted, expected)])))
        frequent.append(Counter(expected).most_common(1)[0][1] / len(expected))
    figures["agreement_with_rules"] = {
        "overall": float(np.mean(agreement)),
        "most_frequent_verdict": float(np.mean(frequent)),
        **{
            dimension: {"agreement": a, "most_frequent_verdict": b}
            for dimension, a, b in zip(dimensions, agreement, frequent)
        },
    }
    asked = [
        (rule.verdict(dimension), rationale.verdict(dimension))
        for pair, rule, rationale in zip(pairs, annotated(), judged.rationales)
        if not isinstance(rationale, ParseFailure)
        for dimension in dict.fromkeys(config.rationale.tag_map.get(tag.type) for tag in pair.tags or ())
        if dimension is not None
    ]
    if asked:
        figures["agreement_where_tags_ask"] = {
            "dimensions": len(asked),
            "agreement": float(np.mean([a == b for a, b in asked])),
            "most_frequent_verdict": Counter(a for a, _ in asked).most_common(1)[0][1] / len(asked),
        }
    return figures


def broken_rule_figures(
    config: Config,
    pairs: list[Pair],
    metrics: Mapping[str, Any],
    probs: Mapping[str, np.ndarray],
    annotated: Sequence[Rationale],
    own_verdicts: Mapping[str, np.ndarray],
) -> list[dict[str, object]]:
    """How often people's labels and those that the models decide for break the business rules.

    Args:
      config, pairs: of the run.
      metrics: as `build_metrics` returns them, for the decisions.
      probs: {model: [N, C] label distributions}.
      annotated: the rule annotator's rationales of the pairs.
      own_verdicts: {model: [N, D] indices into `VERDICTS`, -1 for none}.
    """
    schema, dimensions = config.labels.schema_, config.rationale.dimensions
    return rule_figures(
        [rule for rule in config.rules_ if rule.conditions],
        schema,
        dimensions,
        verdicts=np.array([[VERDICTS.index(each.verdict(name)) for name in dimensions] for each in annotated]),
        decided={
            HUMAN: np.array([schema.index(pair.label) for pair in pairs]),
            **{name: decide(each, np.asarray(metrics["decision"][name]["bias"])) for name, each in probs.items()},
        },
        own_verdicts={name: each for name, each in own_verdicts.items() if name in probs},
        queries=[query_id(pair.query) for pair in pairs],
        n_bootstrap=config.evaluate.bootstrap_samples,
        seed=config.seed,
    )


def correction_figures(
    config: Config, pairs: list[Pair], metrics: Mapping[str, Any], probs: Mapping[str, np.ndarray], names: Sequence[str]
) -> dict[str, dict[str, dict[str, object]]]:
    """Which errors of the main answer the teacher's other kinds of answer correct, and the mean over all of them.

    Args:
      config, pairs: of the run.
      metrics: as `build_metrics` returns them, for the decisions.
      probs: {model: [N, C] label distributions}.
      names: of the kinds of answer.
    """
    models = [TEACHER, *map(perspective_name, names)]
    return corrections(
        {name: decide(probs[name], np.asarray(metrics["decision"][name]["bias"])) for name in models},
        perspective_name(MAIN),
        np.array([config.labels.schema_.index(pair.label or "") for pair in pairs]),
        config.labels.gains,
        queries=[query_id(pair.query) for pair in pairs],
        n_bootstrap=config.evaluate.bootstrap_samples,
        seed=config.seed,
    )


def _verdicts(verdict_probs: np.ndarray) -> np.ndarray:
    """[N, D, V] distributions -> [N, D] indices of the likeliest, -1 where there is none."""
    return np.where(np.isnan(verdict_probs).any(axis=-1), -1, verdict_probs.argmax(axis=-1))


def _examples(config, pairs, judged, probs, verdicts) -> list[Example]:
    examples = []
    for row, pair in enumerate(pairs[: config.evaluate.report_pairs]):
        rationale = judged.rationales[row]
        failed = isinstance(rationale, ParseFailure)
        examples.append(
            Example(
                pair=pair,
                rationale=None if failed else rationale,
                raw_text=judged.texts[row],
                failure_reason=rationale.reason if failed and judged.texts[row] else "",
                spans=() if failed else find_evidence(pair, rationale, config.data.item_fields),
                verdicts={
                    name: {
                        dimension: VERDICTS[chosen[row, index]]
                        for index, dimension in enumerate(config.rationale.dimensions)
                    }
                    for name, chosen in verdicts.items()
                },
                probs={name: distribution[row] for name, distribution in probs.items()},
            )
        )
    return examples


def first_rationales(pairs: list[Pair], judged: TeacherPredictions) -> str:
    """The first pairs as the teacher explains them, as Markdown: nobody chose them."""
    shown = [(pair, text) for pair, text in zip(pairs, judged.texts) if text][:SHOWN]
    if not shown:
        return ""
    # Indented, not fenced: no line of the texts can end the block.
    blocks = [
        indent(
            f"query: {grammar.escape(pair.query)}\ntitle: {grammar.escape(pair.item.title)}\n"
            f"human label: {pair.label}\n{text}",
            " " * 4,
        )
        for pair, text in shown
    ]
    text = "\n\n".join("".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in block) for block in blocks)
    return f"\nThe teacher's rationales for the first {len(shown)} of the pairs:\n\n{text}\n"


def _write_tables(directory: Path, pairs, schema, probs, judged: TeacherPredictions) -> None:
    columns: dict[str, list] = {"pair_id": [pair.pair_id for pair in pairs], "label": [pair.label for pair in pairs]}
    for name, distribution in probs.items():
        columns[name] = [[float(p) for p in row] for row in distribution]
    fields = [pa.field("pair_id", pa.string()), pa.field("label", pa.string())]
    fields += [pa.field(name, pa.list_(pa.float64())) for name in probs]
    metadata = {"labels": json.dumps(list(schema.names))}
    write_table(directory / "predictions.parquet", columns, pa.schema(fields, metadata))
    write_table(
        directory / "rationales.parquet",
        [
            {"pair_id": pair.pair_id, "text": text, "annotator": "teacher"}
            for pair, text in zip(pairs, judged.texts)
            if text
        ],
        RATIONALES,
    )
