"""evaluate: figures of teacher, students and baselines with intervals, and the report that explains single pairs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jax_rele.config import Config
from jax_rele.data import RATIONALES, long_tail, read_pairs_table, write_table
from jax_rele.evaluation import BASELINES, Example, build_metrics, table, verdict_lines, write_report
from jax_rele.inference import Judgements, judge, label_probs, predict
from jax_rele.losses import learns_verdicts
from jax_rele.rationale import ParseFailure, RuleAnnotator, find_evidence
from jax_rele.stages import artefacts
from jax_rele.types import VERDICTS, Pair

NEEDS = ("prepare", "annotate", "adapt", "finetune", "distill")
READS = (
    "seed",
    "labels",
    "data",
    "rationale",
    "teacher",
    "adapt.enabled",
    "score",
    "student",
    "distill",
    "evaluate",
)


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Writes metrics, predictions, the teacher's rationales and the report; prints the table."""
    schema, directory = config.labels.schema_, run_dir / "evaluate"
    everyone = read_pairs_table(run_dir / artefacts.PAIRS)
    train, validation = (artefacts.load_pairs(run_dir, split) for split in ("train", "validation"))
    pairs = artefacts.load_pairs(run_dir, config.evaluate.split)

    teacher = artefacts.load_teacher(config, run_dir)
    judged = judge(teacher, pairs, write=teacher.order != "label_only")
    probs = {"teacher": judged.label_probs}
    validation_probs = {"teacher": judge(teacher, validation, write=False).label_probs}
    verdicts: dict[str, np.ndarray] = {}
    for name in config.distill.students:
        for recipe in config.distill.recipes:
            student = artefacts.load_student(config, run_dir, name, recipe)
            outputs = predict(student, pairs)
            probs[f"{name}:{recipe}"] = label_probs(outputs)
            validation_probs[f"{name}:{recipe}"] = label_probs(predict(student, validation))
            if learns_verdicts(recipe):
                verdicts[f"{name}:{recipe}"] = np.asarray(outputs.verdict_logits).argmax(axis=-1)

    def simple(asked: list[Pair]) -> dict[str, np.ndarray]:
        # They read the texts that the models read, so that a difference is not one of input.
        fields = config.data.item_fields
        return {name: baseline(train, validation, asked, schema, fields) for name, baseline in BASELINES.items()}

    baselines = simple(pairs)
    tail = dict(zip((pair.pair_id for pair in everyone), long_tail(everyone, config.data.tail_max_frequency)))
    metrics = build_metrics(
        config.evaluate.split,
        pairs,
        validation,
        baselines=baselines,
        validation_baselines=simple(validation),
        models=probs,
        validation_models=validation_probs,
        schema=schema,
        gain_maps=config.labels.gain_maps_,
        long_tail=np.array([tail[pair.pair_id] for pair in pairs]),
        n_bootstrap=config.evaluate.bootstrap_samples,
        seed=config.seed,
    )
    metrics["training_seeds"] = [config.seed]
    metrics["rationales"] = rationale_figures(config, train, pairs, judged)

    examples = _examples(config, pairs, judged, probs, verdicts)
    labels = np.array([schema.index(pair.label) for pair in pairs])
    write_report(
        run_dir / artefacts.REPORT,
        metrics,
        examples,
        run_name=config.name,
        labels=labels,
        probs={**baselines, **probs},
        training_seeds=[config.seed],
    )
    _write_tables(directory, pairs, schema, {**baselines, **probs}, judged)
    text = table(metrics) + "\n\n" + "\n".join(f"- {line}" for line in verdict_lines(metrics)) + "\n"
    (directory / "table.md").write_text(text, "utf-8")
    (run_dir / artefacts.METRICS).write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", "utf-8")
    print(text)
    return {
        "pairs": len(pairs),
        "rationales that parse": f"{metrics['rationales']['parsed']}/{metrics['rationales']['written']}",
        "report": str(run_dir / artefacts.REPORT),
    }


def rationale_figures(config: Config, train: list[Pair], pairs: list[Pair], judged: Judgements) -> dict[str, Any]:
    """How many of the teacher's rationales parse, and how often their verdicts agree with the rule annotator's.

    Agreement stands beside that of always giving the annotator's most frequent verdict on the dimension.
    """
    written = [text for text in judged.texts if text and config.teacher.order != "label_only"]
    parsed = [found for found in judged.rationales if not isinstance(found, ParseFailure)]
    figures: dict[str, Any] = {"written": len(written), "parsed": len(parsed) if written else 0}
    failures = Counter(found.reason for found in judged.rationales if isinstance(found, ParseFailure))
    figures["failures"] = dict(failures.most_common())
    if not written or not parsed:
        return figures
    dimensions = config.rationale.dimensions
    rules = RuleAnnotator.fit(train, dimensions, config.rationale.tag_map).annotate(pairs)
    agreement, frequent = [], []
    for dimension in dimensions:
        expected = [
            rule.verdict(dimension)
            for rule, found in zip(rules, judged.rationales)
            if not isinstance(found, ParseFailure)
        ]
        given = [found.verdict(dimension) for found in parsed]
        agreement.append(float(np.mean([a == b for a, b in zip(given, expected)])))
        frequent.append(Counter(expected).most_common(1)[0][1] / len(expected))
    figures["agreement_with_rules"] = {
        "overall": float(np.mean(agreement)),
        "most_frequent_verdict": float(np.mean(frequent)),
        **{
            dimension: {"agreement": a, "most_frequent_verdict": b}
            for dimension, a, b in zip(dimensions, agreement, frequent)
        },
    }
    return figures


def _examples(config, pairs, judged, probs, verdicts) -> list[Example]:
    examples = []
    for row, pair in enumerate(pairs[: config.evaluate.report_pairs]):
        found = judged.rationales[row]
        failed = isinstance(found, ParseFailure)
        examples.append(
            Example(
                pair=pair,
                rationale=None if failed else found,
                raw_text=judged.texts[row],
                failure_reason=found.reason if failed else "",
                spans=() if failed else find_evidence(pair, found, config.data.item_fields),
                verdicts={
                    name: {
                        dimension: VERDICTS[chosen[row, place]]
                        for place, dimension in enumerate(config.rationale.dimensions)
                    }
                    for name, chosen in verdicts.items()
                },
                probs={name: distribution[row] for name, distribution in probs.items()},
            )
        )
    return examples


def _write_tables(directory: Path, pairs, schema, probs, judged: Judgements) -> None:
    columns: dict[str, Any] = {"pair_id": [pair.pair_id for pair in pairs], "label": [pair.label for pair in pairs]}
    for name, distribution in probs.items():
        columns[name] = [[float(p) for p in row] for row in distribution]
    fields = [pa.field("pair_id", pa.string()), pa.field("label", pa.string())]
    fields += [pa.field(name, pa.list_(pa.float64())) for name in probs]
    metadata = {"labels": json.dumps(list(schema.names))}
    write_table(directory / "predictions.parquet", columns, pa.schema(fields, metadata))
    write_table(
        directory / "rationales.parquet",
        [{"pair_id": pair.pair_id, "text": text, "annotator": "teacher"} for pair, text in zip(pairs, judged.texts)],
        RATIONALES,
    )
