"""The trainings of a comparison in one run's folder, and what their models predict; what is there is not repeated."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from jax_rele.config import Config
from jax_rele.data import long_tail, read_pairs_table, read_table, write_table
from jax_rele.distillation.trainer import Compiled
from jax_rele.errors import UserError
from jax_rele.evaluation.assemble import TEACHER, ZERO_SHOT, perspective_name
from jax_rele.io import hash_values, write_text
from jax_rele.runs import layout, pipeline
from jax_rele.runs.stages import teacher_stage
from jax_rele.stages import distill, evaluate
from jax_rele.stages.distill import Distillation
from jax_rele.students import label_probs, predict
from jax_rele.teacher.perspectives import MAIN
from jax_rele.types import Pair

PREDICTIONS = pa.schema([("split", pa.string()), ("pair_id", pa.string()), ("label_probs", pa.list_(pa.float32()))])
TEACHER_PREDICTIONS = PREDICTIONS.set(2, pa.field("label_probs", pa.list_(pa.float64())))

Couple = tuple[np.ndarray, np.ndarray]
"""Label distributions on the evaluated pairs and on validation, [N, C] and [M, C]."""


@dataclass(frozen=True)
class Point:
    """Numbers of training pairs: with a human label, and with the teacher's signals alone; None for all there are."""

    labelled: int | None
    teacher_labelled: int | None


@dataclass(frozen=True)
class RunPredictions:
    """What one run's models predict for its held-out pairs.

    Attributes:
      pairs, validation: the N evaluated pairs and the M of validation.
      long_tail: [N] bool, which have a rare query.
      points: the numbers of training pairs, none of them None.
      cells: {(student, recipe, index of the point): for each seed the distributions}.
      others: {name: distributions} of baselines and, where its figures can be had, the teacher.
    """

    pairs: list[Pair]
    validation: list[Pair]
    long_tail: np.ndarray
    points: list[Point]
    cells: Mapping[tuple[str, str, int], list[Couple]]
    others: Mapping[str, Couple]


def predictions(
    config: Config,
    points: Sequence[Point],
    seeds: Sequence[int],
    compiled: Compiled,
    say: Callable[[str], None],
) -> RunPredictions:
    """Trains what is missing in the folder of a run that has finished `score`, and reads all predictions.

    Args:
      config: the run; `distill.students` and `distill.recipes` say what is trained.
      points: numbers of training pairs: the first labelled ones of the training split, and the first unlabelled ones.
      seeds: the training seeds.
      compiled: shared by all runs of a comparison.
      say: receives one line per training.

    Raises:
      UserError: more pairs are asked for than there are, or a folder holds a training with another config.
    """
    run_dir = config.run_dir
    # A tokenizer of its own: the run's students may start from other weights.
    tokenizer_folder = run_dir / "compare" / "tokenizer"
    shutil.rmtree(tokenizer_folder, ignore_errors=True)
    distillation = distill.prepare(config, run_dir, tokenizer_folder, compiled)
    has_label = distillation.datasets[config.distill.students[0]].labelled
    n_labelled = int(has_label.sum())
    held_out: dict[str, list[Pair]] = {
        split: layout.load_pairs(run_dir, split) for split in ("validation", config.evaluate.split)
    }
    resolved = resolve(points, n_labelled, len(has_label) - n_labelled)
    cells: dict[tuple[str, str, int], list[Couple]] = {}
    for index, point in enumerate(resolved):
        for student in config.distill.students:
            for recipe in config.distill.recipes:
                trained = _trained(config, distillation, student, recipe, point, n_labelled, seeds, held_out, say)
                cells[student, recipe, index] = list(trained)
    pairs, validation = held_out[config.evaluate.split], held_out["validation"]
    everyone = read_pairs_table(run_dir / layout.PAIRS)
    tail = dict(zip((pair.pair_id for pair in everyone), long_tail(everyone, config.data.tail_max_frequency)))
    return RunPredictions(
        pairs=pairs,
        validation=validation,
        long_tail=np.array([tail[pair.pair_id] for pair in pairs], bool),
        points=resolved,
        cells=cells,
        others={**_baselines(config, held_out), **_teacher(config, held_out)},
    )


def resolve(points: Sequence[Point], n_labelled: int, n_unlabelled: int) -> list[Point]:
    """The points with numbers in place of None. Raises UserError where one asks for more pairs than there are."""
    for option, asked, least, there in (
        ("labelled", [point.labelled for point in points], 1, n_labelled),
        ("teacher-labelled", [point.teacher_labelled for point in points], 0, n_unlabelled),
    ):
        numbers = [number for number in asked if number is not None]
        if numbers and not least <= min(numbers) <= max(numbers) <= there:
            raise UserError(f"--{option}: {' '.join(map(str, numbers))} is not within the {there} pairs that there are")
    return [
        Point(
            n_labelled if point.labelled is None else point.labelled,
            n_unlabelled if point.teacher_labelled is None else point.teacher_labelled,
        )
        for point in points
    ]


def _trained(
    config: Config,
    distillation: Distillation,
    student: str,
    recipe: str,
    point: Point,
    n_labelled: int,
    seeds: Sequence[int],
    held_out: Mapping[str, list[Pair]],
    say: Callable[[str], None],
) -> Iterator[Couple]:
    """For each seed the label distributions on the evaluated split and on validation; trains what is missing."""
    run_dir, size = config.run_dir, f"{point.labelled}+{point.teacher_labelled}"
    title = f"compare {student} {recipe} {size}"
    fingerprint = _fingerprint(config, student, recipe)
    selected = np.r_[: point.labelled, n_labelled : n_labelled + (point.teacher_labelled or 0)]
    trainer = None
    for seed in seeds:
        cell = run_dir / "compare" / student / recipe / size / f"seed_{seed}"
        if not _is_done(cell, fingerprint):
            trainer = trainer or distillation.trainer(recipe, [student], selected)
            params = trainer.fit(seed, cell, f"{title} seed {seed}")[student]
            trained = dataclasses.replace(
                distillation.students[student], variables={"params": params}, batch_size=config.score.batch_size
            )
            probs = {split: label_probs(predict(trained, part)) for split, part in held_out.items()}
            _write(cell, probs, held_out, PREDICTIONS)
            for folder in ("checkpoints", "tensorboard"):
                shutil.rmtree(cell / folder, ignore_errors=True)
            say(f"{title} seed {seed}: trained")
        validation, evaluated = (
            _read(cell, split, held_out[split], PREDICTIONS) for split in ("validation", config.evaluate.split)
        )
        yield evaluated, validation


def _fingerprint(config: Config, student: str, recipe: str) -> str:
    """A hash of what a training depends on besides the name of its folder, which has the seed."""
    objectives = {name: each for name, each in config.distill.objectives.items() if name == recipe}
    only = {"students": (student,), "recipes": (recipe,), "objectives": objectives}
    of_one = config.model_copy(update={"seed": 0, "distill": config.distill.model_copy(update=only)})
    sections = pipeline.sections(of_one, pipeline.STAGES["distill"])
    lineage = _lineage(config.run_dir, "prepare", "score")
    return hash_values([sections, distill.external_inputs(of_one), lineage])


def _lineage(run_dir: Path, *stages: str) -> list[list[object]]:
    manifests = [json.loads((run_dir / name / pipeline.MANIFEST).read_text("utf-8")) for name in stages]
    return [[manifest["config_hash"], manifest["inputs"]] for manifest in manifests]


def _is_done(cell: Path, fingerprint: str) -> bool:
    begun = cell / "fingerprint"
    if not begun.exists():
        cell.mkdir(parents=True, exist_ok=True)
        write_text(begun, fingerprint)
        return False
    if begun.read_text("utf-8") != fingerprint:
        raise UserError(
            f"{cell}: was trained with another config; choose another `name`, or delete the folder "
            f"{cell.parents[3]} to compare again"
        )
    return (cell / "predictions.parquet").exists()


def _write(cell: Path, probs: Mapping[str, np.ndarray], held_out: Mapping[str, list[Pair]], schema: pa.Schema) -> None:
    rows = [
        {"split": split, "pair_id": pair.pair_id, "label_probs": row.tolist()}
        for split, part in held_out.items()
        for pair, row in zip(part, probs[split])
    ]
    write_table(cell / "predictions.parquet", rows, schema)


def _read(cell: Path, split: str, pairs: list[Pair], schema: pa.Schema) -> np.ndarray:
    rows = [row for row in read_table(cell / "predictions.parquet", schema).to_pylist() if row["split"] == split]
    if [row["pair_id"] for row in rows] != [pair.pair_id for pair in pairs]:
        raise UserError(f"{cell}: its predictions are of other pairs; delete the folder to train it again")
    return np.array([row["label_probs"] for row in rows], np.float64)


def _baselines(config: Config, held_out: Mapping[str, list[Pair]]) -> dict[str, Couple]:
    train = layout.load_pairs(config.run_dir, "train")
    return evaluate.baseline_probs(config, train, held_out["validation"], held_out[config.evaluate.split])


def _teacher(config: Config, held_out: Mapping[str, list[Pair]]) -> dict[str, Couple]:
    """The distributions of the teacher and, where it is evaluated too, of its base before any training."""
    run_dir, pairs, validation = config.run_dir, held_out[config.evaluate.split], held_out["validation"]
    stages = () if config.score.signals else ("adapt", teacher_stage(config))
    lineage = _lineage(run_dir, "prepare", *stages, "score")
    identity = [lineage, config.teacher.model_dump(mode="json"), config.evaluate.split]
    judged = {}
    if config.evaluate.zero_shot:

        def judge_zero_shot() -> dict[str, Couple]:
            return {ZERO_SHOT: evaluate.judge_zero_shot(config, run_dir, pairs, validation)}

        judged = _judge_once(config, {ZERO_SHOT: "zero_shot"}, identity, judge_zero_shot, held_out)

    def judge() -> dict[str, Couple]:
        return evaluate.judge_splits(config, run_dir, pairs, validation, explain=False)[1]

    if config.score.signals:
        return {**judged, **judge()}
    return {**judged, **_judge_once(config, teacher_folders(config), identity, judge, held_out)}


def teacher_folders(config: Config) -> dict[str, str]:
    """{model: its folder in `compare/`} of a run's teacher and of each of its perspectives."""
    names = [MAIN, *config.teacher.perspectives] if config.teacher.perspectives else []
    return {TEACHER: "teacher", **{perspective_name(name): f"perspectives/{name}" for name in names}}


def _judge_once(
    config: Config,
    folders: Mapping[str, str],
    identity: object,
    judge: Callable[[], Mapping[str, Couple]],
    held_out: Mapping[str, list[Pair]],
) -> dict[str, Couple]:
    """What `judge` returns for each model, stored in its folder: a large model takes long."""
    split, fingerprint = config.evaluate.split, hash_values([identity])
    cells = {name: config.run_dir / "compare" / folder for name, folder in folders.items()}
    begun = [cell / "fingerprint" for cell in cells.values()]
    if not all(path.exists() and path.read_text("utf-8") == fingerprint for path in begun):
        for name, (evaluated, on_validation) in judge().items():
            cells[name].mkdir(parents=True, exist_ok=True)
            _write(cells[name], {split: evaluated, "validation": on_validation}, held_out, TEACHER_PREDICTIONS)
            write_text(cells[name] / "fingerprint", fingerprint)
    return {
        name: (
            _read(cell, split, held_out[split], TEACHER_PREDICTIONS),
            _read(cell, "validation", held_out["validation"], TEACHER_PREDICTIONS),
        )
        for name, cell in cells.items()
    }
