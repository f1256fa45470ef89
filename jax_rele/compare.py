"""`jax-rele compare`: recipes side by side on the same data, from the same starts, over several seeds."""

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
from jax_rele.errors import UserError
from jax_rele.evaluation import BASELINES, slices
from jax_rele.evaluation.assemble import REFERENCE_RECIPE, ZERO_SHOT
from jax_rele.evaluation.comparison import Cell, HeldOutPairs, compare
from jax_rele.evaluation.comparison_page import figures, write_page
from jax_rele.evaluation.comparison_text import markdown
from jax_rele.io import hash_values, write_json, write_text
from jax_rele.runs import layout, pipeline
from jax_rele.stages import distill, evaluate
from jax_rele.stages.distill import Distillation
from jax_rele.students import label_probs, predict
from jax_rele.training import distributed
from jax_rele.types import Pair

PREDICTIONS = pa.schema([("split", pa.string()), ("pair_id", pa.string()), ("label_probs", pa.list_(pa.float32()))])


@dataclass(frozen=True)
class Point:
    """How many training pairs: with a human label, and with the teacher's signals alone."""

    labelled: int
    teacher_labelled: int


def run(
    config: Config,
    *,
    seeds: int,
    labelled: Sequence[int] = (),
    teacher_labelled: Sequence[int] = (),
    reference: str = REFERENCE_RECIPE,
    say: Callable[[str], None] = print,
) -> dict[str, object]:
    """Trains every student by every recipe of the config with every seed, and compares them.

    The stages up to `score` run first where they have not. Results go to `compare/` in the run's folder:
    comparison.json, comparison.md, comparison.html, figures/, and a folder for each training, which is not repeated.

    Args:
      config: the run; `distill.students` and `distill.recipes` say what is compared.
      seeds: how many: config.seed and those after it.
      labelled: numbers of labelled pairs, the first ones of the training split, for a learning curve; empty for all.
      teacher_labelled: numbers of unlabelled pairs likewise, each with all labelled pairs.
      reference: the recipe that the others are compared with.
      say: receives one line per training.

    Returns:
      The comparison, see `evaluation.comparison.compare`.

    Raises:
      UserError: more pairs are asked for than there are, the reference is not among the recipes, or several processes
        run it.
    """
    if reference not in config.distill.recipes:
        raise UserError(
            f"--reference: {reference} is not among the recipes {', '.join(config.distill.recipes)}; add it"
        )
    if distributed.process_count() > 1:
        raise UserError("compare is one process; start it without a launcher")
    stages = tuple(pipeline.STAGES)
    pipeline.run(config, stages[: stages.index("distill")], say=say, whole=False)
    run_dir, schema = config.run_dir, config.labels.schema_
    # A tokenizer of its own: the run's students may start from other weights.
    tokenizer_folder = run_dir / "compare" / "tokenizer"
    shutil.rmtree(tokenizer_folder, ignore_errors=True)
    distillation = distill.prepare(config, run_dir, tokenizer_folder)
    train = layout.load_pairs(run_dir, "train")
    has_label = distillation.datasets[config.distill.students[0]].labelled
    n_labelled = int(has_label.sum())
    held_out: dict[str, list[Pair]] = {
        split: layout.load_pairs(run_dir, split) for split in ("validation", config.evaluate.split)
    }
    points = _points(n_labelled, len(has_label) - n_labelled, labelled, teacher_labelled)
    numbers = [config.seed + number for number in range(seeds)]

    cells = []
    for point in points:
        selected = np.r_[: point.labelled, n_labelled : n_labelled + point.teacher_labelled]
        for student in config.distill.students:
            for recipe in config.distill.recipes:
                results = list(_trained(config, distillation, student, recipe, point, numbers, selected, held_out, say))
                validation, test = zip(*results)
                cells.append(Cell(student, recipe, point.labelled, point.teacher_labelled, test, validation))

    pairs, validation = held_out[config.evaluate.split], held_out["validation"]
    everyone = read_pairs_table(run_dir / layout.PAIRS)
    tail = dict(zip((pair.pair_id for pair in everyone), long_tail(everyone, config.data.tail_max_frequency)))
    document = compare(
        cells,
        HeldOutPairs(
            labels=_labels(pairs, schema),
            queries=[f"{pair.locale}\t{pair.query}" for pair in pairs],
            validation_labels=_labels(validation, schema),
            slices=slices(pairs, np.array([tail[pair.pair_id] for pair in pairs])),
        ),
        schema,
        others=_others(config, run_dir, train, validation, pairs),
        seeds=numbers,
        gain_maps=config.labels.gain_maps_,
        n_bootstrap=config.evaluate.bootstrap_samples,
        seed=config.seed,
        reference=reference,
    )
    document = {"name": config.name, "split": config.evaluate.split, **document}
    folder, text = run_dir / "compare", markdown(document, title=f"{config.name}: recipes compared")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "comparison.json", document, indent=1)
    write_text(folder / "comparison.md", text)
    write_page(folder / "comparison.html", document)
    shutil.rmtree(folder / "figures", ignore_errors=True)
    (folder / "figures").mkdir()
    for stem, svg in figures(document).items():
        write_text(folder / "figures" / f"{stem}.svg", svg)
    say(text)
    say(f"{folder / 'comparison.html'}: the same with plots")
    return document


def _points(
    n_labelled: int, n_unlabelled: int, labelled: Sequence[int], teacher_labelled: Sequence[int]
) -> list[Point]:
    for option, asked, there in (
        ("labelled", labelled, n_labelled),
        ("teacher-labelled", teacher_labelled, n_unlabelled),
    ):
        if asked and not (1 if option == "labelled" else 0) <= min(asked) <= max(asked) <= there:
            raise UserError(f"--{option}: {' '.join(map(str, asked))} is not within the {there} pairs that there are")
    points = [Point(number, n_unlabelled) for number in labelled or (n_labelled,)]
    points += [Point(n_labelled, number) for number in teacher_labelled]
    return list(dict.fromkeys(points))


def _trained(
    config: Config,
    distillation: Distillation,
    student: str,
    recipe: str,
    point: Point,
    seeds: Sequence[int],
    selected: np.ndarray,
    held_out: Mapping[str, list[Pair]],
    say: Callable[[str], None],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each seed the label distributions on validation and on the evaluated split; trains what is missing."""
    run_dir = config.run_dir
    folder = run_dir / "compare" / student / recipe / f"{point.labelled}+{point.teacher_labelled}"
    title = f"compare {student} {recipe} {point.labelled}+{point.teacher_labelled}"
    fingerprint = _fingerprint(config, run_dir, student, recipe)
    trainer = None
    for seed in seeds:
        cell = folder / f"seed_{seed}"
        if not _is_done(cell, fingerprint):
            trainer = trainer or distillation.trainer(recipe, [student], selected)
            params = trainer.fit(seed, cell, f"{title} seed {seed}")[student]
            trained = dataclasses.replace(
                distillation.students[student], variables={"params": params}, batch_size=config.score.batch_size
            )
            _write(cell, {split: label_probs(predict(trained, part)) for split, part in held_out.items()}, held_out)
            say(f"{title} seed {seed}: trained")
        validation, evaluated = (_read(cell, split, held_out[split]) for split in ("validation", config.evaluate.split))
        yield validation, evaluated


def _fingerprint(config: Config, run_dir: Path, student: str, recipe: str) -> str:
    """A hash of what a training depends on besides the name of its folder, which has the seed."""
    objectives = {name: each for name, each in config.distill.objectives.items() if name == recipe}
    only = {"students": (student,), "recipes": (recipe,), "objectives": objectives}
    config = config.model_copy(update={"seed": 0, "distill": config.distill.model_copy(update=only)})
    manifests = [json.loads((run_dir / name / pipeline.MANIFEST).read_text("utf-8")) for name in ("prepare", "score")]
    inputs = [[manifest["config_hash"], manifest["inputs"]] for manifest in manifests]
    return hash_values([pipeline.sections(config, pipeline.STAGES["distill"]), distill.external_inputs(config), inputs])


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


def _write(cell: Path, probs: dict[str, np.ndarray], held_out: Mapping[str, list[Pair]]) -> None:
    rows = [
        {"split": split, "pair_id": pair.pair_id, "label_probs": row.tolist()}
        for split, part in held_out.items()
        for pair, row in zip(part, probs[split])
    ]
    write_table(cell / "predictions.parquet", rows, PREDICTIONS)
    for folder in ("checkpoints", "tensorboard"):
        shutil.rmtree(cell / folder, ignore_errors=True)


def _read(cell: Path, split: str, pairs: list[Pair]) -> np.ndarray:
    rows = [row for row in read_table(cell / "predictions.parquet", PREDICTIONS).to_pylist() if row["split"] == split]
    if [row["pair_id"] for row in rows] != [pair.pair_id for pair in pairs]:
        raise UserError(f"{cell}: its predictions are of other pairs; delete the folder to train it again")
    return np.array([row["label_probs"] for row in rows], np.float64)


def _labels(pairs: list[Pair], schema) -> np.ndarray:
    return np.array([schema.index(pair.label) for pair in pairs], np.int64)


def _others(
    config: Config, run_dir: Path, train: list[Pair], validation: list[Pair], pairs: list[Pair]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Baselines and, where its figures can be had, the teacher: (evaluated, validation) label distributions."""

    def probs(baseline: Callable[..., np.ndarray], group: list[Pair]) -> np.ndarray:
        return baseline(train, validation, group, config.labels.schema_, config.data.item_fields)

    others = {name: (probs(baseline, pairs), probs(baseline, validation)) for name, baseline in BASELINES.items()}
    if config.evaluate.zero_shot:
        others[ZERO_SHOT] = evaluate.judge_zero_shot(config, run_dir, pairs, validation)
    _, teacher = evaluate.judge_splits(config, run_dir, pairs, validation, explain=False)
    return others if teacher is None else {**others, "teacher": teacher}
