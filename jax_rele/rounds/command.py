"""`jax-rele rounds`: one run a round, until the validation pairs show no gain; and one page about all of them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jax_rele.annotation.review import DECISIONS, decisions_from_arrow
from jax_rele.config import Config
from jax_rele.data import PairTable, read_table
from jax_rele.errors import UserError
from jax_rele.evaluation.bootstrap import interval, metric_samples
from jax_rele.evaluation.page import write_html
from jax_rele.io import check_output_folder, hash_values, write_json, write_text
from jax_rele.rounds.report import build_document, conclusion, markdown, tables
from jax_rele.runs import layout, pipeline
from jax_rele.runs.load import load_teacher
from jax_rele.runs.other_runs import hash_teacher
from jax_rele.text import query_id
from jax_rele.training import distributed

METRIC = "auc"
"""By which a round's teacher must be better than the best before, on the validation pairs."""

SHARED = ("prepare", "adapt")
"""Stages that are the same in every round."""


def run(config: Config, *, rounds: int, say: Callable[[str], None] = print) -> dict[str, object]:
    """Trains a teacher and students, has the teacher explain the unlabelled pairs for the next round's, and so on.

    Results go to `rounds/` in the run's folder: a run for each round, `round_1` on; and rounds.json, rounds.md and
    rounds.html. The same command resumes an interrupted one, and continues with a larger number. A round whose teacher
    is not better on the validation pairs than the best before is the last, and trains no students. The evaluated split
    decides nothing.

    Args:
      config: the run; `rounds` says which explanations are selected.
      rounds: the most rounds.
      say: receives a line per stage, and the page.

    Returns:
      What rounds.json holds, see `report.build_document`.

    Raises:
      UserError: the teacher is not the run's own or writes no rationales, there are no unlabelled pairs, a round
        selects none of them, the metric is undefined on the validation pairs, or several processes run it.
    """
    _check(config)
    folder = rounds_dir(config)
    check_output_folder(folder)
    before_students = tuple(pipeline.STAGES)[: tuple(pipeline.STAGES).index("score")]
    figures: list[dict[str, Any]] = []
    best: np.ndarray | None = None
    for number in range(1, rounds + 1):
        of_round = round_config(config, number)

        def say_round(line: str, number: int = number) -> None:
            say(f"round {number}: {line}")

        if number > 1:
            _copy_shared(round_config(config, 1).run_dir, of_round.run_dir)
        else:
            pipeline.run(of_round, ("prepare",), say=say_round, whole=False)
            _check_unlabelled(config, of_round.run_dir)
        try:
            pipeline.run(of_round, before_students, say=say_round)
        except UserError as error:
            raise UserError(f"round {number}: {error}") from None
        samples = validation_samples(of_round)
        gained = best is None or bool(samples[0] > best[0])
        if gained:
            pipeline.run(of_round, say=say_round)
        figures.append(round_figures(of_round, number, samples, best, gained))
        best = samples if best is None else max(best, samples, key=lambda each: each[0])
        document = build_document(config.name, METRIC, figures, of_round.evaluate.split)
        _write(folder, document)
        if not gained:
            say(f"round {number}: its teacher is not better on the validation pairs than an earlier one; this ends it")
            break
    say(markdown(document))
    say(f"{folder / 'rounds.html'}: the same as a page")
    return document


def rounds_dir(config: Config) -> Path:
    return config.run_dir / "rounds"


def round_config(config: Config, number: int) -> Config:
    """The config of a round's run, in `rounds_dir`: the first as it is, the others with the teacher before as annotator
    of the unlabelled pairs."""
    annotate: dict[str, object] = {"store": str(config.answers)}
    if number > 1:
        selection = config.rounds
        annotate |= {
            "annotator": "teacher",
            "teacher_run": str(rounds_dir(config) / f"round_{number - 1}"),
            "teacher_samples": selection.samples,
            "teacher_temperature": selection.temperature,
            "min_vote_fraction": selection.min_vote_fraction,
            "max_flaws": selection.max_flaws,
            "unlabelled": True,
            "reuse_labelled": True,
            "reviews": "",
        }
    return config.model_copy(
        update={
            "name": f"round_{number}",
            "run_root": str(rounds_dir(config)),
            "cache_dir": str(config.cache),
            "annotate": config.annotate.model_copy(update=annotate),
        }
    )


def validation_samples(config: Config) -> np.ndarray:
    """[1 + n] `METRIC` of a run's teacher on the validation pairs and on resamples of their queries; kept in the run.

    Raises:
      UserError: it is undefined on these pairs.
    """
    pairs, schema = layout.load_pairs(config.run_dir, "validation"), config.labels.schema_
    path, n_bootstrap = config.run_dir / "validation.json", config.evaluate.bootstrap_samples
    key = hash_values(
        [hash_teacher(config, config.run_dir), [pair.pair_id for pair in pairs], n_bootstrap, config.seed]
    )
    if path.exists() and (stored := json.loads(path.read_text("utf-8")))["key"] == key:
        return np.array(stored["samples"])
    probs = load_teacher(config.run_dir, config=config).predict(pairs).label_probs
    samples = metric_samples(
        probs,
        np.array([schema.index(pair.label) for pair in pairs], np.int64),
        [query_id(pair.query) for pair in pairs],
        schema,
        gain_maps=config.labels.gain_maps_,
        bias=np.zeros(len(schema)),
        temperature=1.0,
        n_bootstrap=n_bootstrap,
        seed=config.seed,
    )[METRIC]
    if np.isnan(samples[0]):
        raise UserError(
            f"rounds: {METRIC} is undefined on the {len(pairs)} validation pairs, as they are of one class; raise "
            "data.splits.validation or add pairs"
        )
    write_json(path, {"metric": METRIC, "key": key, "samples": samples.tolist()})
    return samples


def round_figures(
    config: Config, number: int, samples: np.ndarray, best: np.ndarray | None, gained: bool
) -> dict[str, Any]:
    """What the page says of a round.

    Args:
      config: of its run.
      number: from 1 on.
      samples: as `validation_samples` gives them.
      best: those of the best round before, None in the first.
      gained: whether it is better than that, so that it has trained students.
    """
    run_dir = config.run_dir
    rationales = layout.load_rationales(run_dir)
    unlabelled = PairTable(run_dir / layout.UNLABELLED).column("pair_id").to_pylist()
    selected = [rationales[pair_id] for pair_id in unlabelled if pair_id in rationales] if number > 1 else []
    stages = [name for name in pipeline.STAGES if (run_dir / name).is_dir() and (number == 1 or name not in SHARED)]
    seconds = {name: _manifest(run_dir, name)["wall_seconds"] for name in stages}
    figures: dict[str, Any] = {
        "round": number,
        "folder": str(run_dir),
        "gained": gained,
        "validation": interval(samples),
        "validation_gain": None if best is None else interval(samples - best),
        "unlabelled": len(unlabelled),
        "selected": len(selected),
        "selected_labels": {name: Counter(each.label for each in selected)[name] for name in config.labels.names},
        "rejected": _rejections(run_dir) if number > 1 else {},
        "rationales": len(rationales),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "evaluated": {},
    }
    if gained:
        metrics = json.loads((run_dir / layout.METRICS).read_text("utf-8"))
        figures["evaluated"] = {
            name: {metric: each[metric] for metric in ("auc", "macro_f1")} for name, each in metrics["models"].items()
        }
    return figures


def _rejections(run_dir: Path) -> dict[str, int]:
    """Why explanations were not selected: {kind of reason: pairs}."""
    decisions = decisions_from_arrow(read_table(run_dir / layout.DECISIONS, DECISIONS))
    return dict(Counter(one.reason.partition(":")[0] for one in decisions if one.status != "accepted"))


def _manifest(run_dir: Path, stage: str) -> Mapping[str, Any]:
    return json.loads((run_dir / stage / pipeline.MANIFEST).read_text("utf-8"))


def _check(config: Config) -> None:
    if distributed.process_count() > 1:
        raise UserError("rounds is one process; start it without a launcher")
    if config.score.signals:
        raise UserError(
            "rounds: score.signals replaces the run's own teacher, so there is none to train again; leave it out"
        )
    if config.prefer.enabled and config.prefer.source != "samples":
        raise UserError(
            f"rounds: prefer.source {config.prefer.source} is of the first round's teacher or annotators; set it to "
            "samples, or prefer.enabled: false"
        )
    if config.teacher.order == "label_only":
        raise UserError(
            "rounds: with teacher.order label_only the teacher explains nothing; set rationale_first or label_first"
        )


def _check_unlabelled(config: Config, run_dir: Path) -> None:
    if not len(PairTable(run_dir / layout.UNLABELLED)):
        raise UserError(
            f"rounds: {config.data.path} has no unlabelled pairs to explain; add rows without a label, or raise "
            "data.candidates.per_query"
        )


def _copy_shared(source: Path, target: Path) -> None:
    """Copies the stages that are the same in every round, each as a whole or not at all."""
    for name in SHARED:
        if (target / name).exists():
            continue
        target.mkdir(parents=True, exist_ok=True)
        unfinished = target / f".{name}"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(source / name, unfinished)
        unfinished.rename(target / name)


def _write(folder: Path, document: Mapping[str, Any]) -> None:
    write_json(folder / "rounds.json", document, indent=1)
    write_text(folder / "rounds.md", markdown(document))
    write_html(
        folder / "rounds.html",
        "rounds.html.j2",
        package="jax_rele.rounds",
        run_name=f"{document['name']}: rounds",
        document=document,
        conclusion=conclusion(document),
        tables=tables(document),
    )
