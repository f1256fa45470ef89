"""`jax-rele compare`: trains what is missing, pools it, and writes the comparison."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from jax_rele.compare.folds import fold_configs, fold_lines, folds_dir, naming_fold, prepare_folds
from jax_rele.compare.trainings import Couple, Point, RunPredictions, predictions
from jax_rele.config import Config
from jax_rele.data import write_signals
from jax_rele.distillation.trainer import Compiled
from jax_rele.errors import UserError
from jax_rele.evaluation import slices
from jax_rele.evaluation.assemble import REFERENCE_RECIPE
from jax_rele.evaluation.comparison import Cell, HeldOutPairs, compare
from jax_rele.evaluation.comparison_page import figures, write_page
from jax_rele.evaluation.comparison_text import markdown
from jax_rele.io import check_output_folder, write_json, write_text
from jax_rele.runs import pipeline
from jax_rele.text import query_id
from jax_rele.training import distributed
from jax_rele.types import VERDICTS, LabelSchema, Pair, Signals


def run(
    config: Config,
    *,
    seeds: int,
    labelled: Sequence[int] = (),
    teacher_labelled: Sequence[int] = (),
    reference: str = REFERENCE_RECIPE,
    folds: int | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, object]:
    """Trains every student by every recipe of the config with every seed, and compares them.

    The stages up to `score` run first where they have not. Results go to `compare/` in the run's folder:
    comparison.json, comparison.md, comparison.html, figures/, predictions/ with each model's label distributions for
    the evaluated pairs, and a folder for each training, which is not repeated.

    With folds this is a cross-validation: `compare/K_folds/` holds a run for each fold, with a teacher, baselines and
    students of its own, and the comparison of the models of all folds, which together judge every labelled pair once.

    Args:
      config: the run; `distill.students` and `distill.recipes` say what is compared.
      seeds: how many: config.seed and those after it.
      labelled: numbers of labelled pairs, the first ones of the training split, for a learning curve; empty for all.
      teacher_labelled: numbers of unlabelled pairs likewise, each with all labelled pairs.
      reference: the recipe that the others are compared with.
      folds: number of folds of a cross-validation; None for the run's own splits.
      say: receives one line per training.

    Returns:
      The comparison, see `evaluation.comparison.compare`.

    Raises:
      UserError: more pairs are asked for than there are, the reference is not among the recipes, the pairs cannot be
        divided into the folds, or several processes run it.
    """
    if reference not in config.distill.recipes:
        raise UserError(
            f"--reference: {reference} is not among the recipes {', '.join(config.distill.recipes)}; add it"
        )
    if distributed.process_count() > 1:
        raise UserError("compare is one process; start it without a launcher")
    check_output_folder(config.run_dir / "compare")
    for option, numbers, least in (("--labelled", labelled, 1), ("--teacher-labelled", teacher_labelled, 0)):
        if wrong := [number for number in numbers if number < least]:
            raise UserError(f"{option}: {wrong[0]} is not within the numbers of pairs; give {least} or more")
    points = [Point(number, None) for number in labelled or (None,)]
    points += [Point(None, number) for number in teacher_labelled]
    numbers = [config.seed + number for number in range(seeds)]
    compiled: Compiled = {}
    if folds is None:
        parts = [_predictions(config, points, numbers, compiled, say)]
        folder = config.run_dir / "compare"
    else:
        configs = fold_configs(config, folds)
        prepare_folds(configs, points, say)
        parts = []
        for number, of_fold in enumerate(configs, start=1):
            with naming_fold(number, folds):
                parts.append(_predictions(of_fold, points, numbers, compiled, fold_lines(number, folds, say)))
        folder = folds_dir(config, folds)
    document = compare(
        _cells(config, parts),
        _held_out(parts, config.labels.schema_, folds),
        config.labels.schema_,
        others=_others(parts),
        seeds=numbers,
        gain_maps=config.labels.gain_maps_,
        n_bootstrap=config.evaluate.bootstrap_samples,
        seed=config.seed,
        reference=reference,
    )
    document = {"name": config.name, "split": config.evaluate.split, **document}
    _write_predictions(config, folder, parts)
    _write(folder, document, say)
    return document


def _predictions(
    config: Config, points: Sequence[Point], seeds: Sequence[int], compiled: Compiled, say: Callable[[str], None]
) -> RunPredictions:
    stages = tuple(pipeline.STAGES)
    pipeline.run(config, stages[: stages.index("distill")], say=say, whole=False)
    return predictions(config, points, seeds, compiled, say)


def _cells(config: Config, parts: Sequence[RunPredictions]) -> list[Cell]:
    """The cells of all runs, with the mean numbers of training pairs; of equal numbers the first."""
    cells: dict[tuple[str, str, int, int], Cell] = {}
    for index in range(len(parts[0].points)):
        labelled, teacher_labelled = (
            round(np.mean([getattr(part.points[index], name) for part in parts]))
            for name in ("labelled", "teacher_labelled")
        )
        for student in config.distill.students:
            for recipe in config.distill.recipes:
                by_seed = [_join(each) for each in zip(*(part.cells[student, recipe, index] for part in parts))]
                evaluated, validation = zip(*by_seed)
                cell = Cell(student, recipe, labelled, teacher_labelled, evaluated, validation)
                cells.setdefault((student, recipe, labelled, teacher_labelled), cell)
    return list(cells.values())


def _others(parts: Sequence[RunPredictions]) -> dict[str, Couple]:
    """What has no seeds, where every run has it."""
    names = [name for name in parts[0].others if all(name in part.others for part in parts)]
    return {name: _join([part.others[name] for part in parts]) for name in names}


def _join(couples: Sequence[Couple]) -> Couple:
    evaluated, validation = zip(*couples)
    return np.concatenate(evaluated), np.concatenate(validation)


def _held_out(parts: Sequence[RunPredictions], schema: LabelSchema, folds: int | None) -> HeldOutPairs:
    pairs = list(chain.from_iterable(part.pairs for part in parts))
    validation = list(chain.from_iterable(part.validation for part in parts))
    numbers = np.arange(len(parts))
    return HeldOutPairs(
        labels=_labels(pairs, schema),
        queries=[query_id(pair.query) for pair in pairs],
        validation_labels=_labels(validation, schema),
        slices=slices(pairs, np.concatenate([part.long_tail for part in parts])),
        folds=None if folds is None else np.repeat(numbers, [len(part.pairs) for part in parts]),
        validation_folds=None if folds is None else np.repeat(numbers, [len(part.validation) for part in parts]),
    )


def _write_predictions(config: Config, folder: Path, parts: Sequence[RunPredictions]) -> None:
    """Writes `predictions/MODEL.parquet`: each model's label distributions for the evaluated pairs, as signals.

    Of a student it holds the mean over the seeds, of those that learnt from most pairs. Files of models that are not
    part of this comparison stay.
    """
    models = {name.replace(", ", "_"): evaluated for name, (evaluated, _) in _others(parts).items()}
    for cell in sorted(_cells(config, parts), key=lambda cell: cell.labelled + cell.teacher_labelled):
        models[f"{cell.student}_{cell.recipe}"] = np.mean(cell.probs, axis=0)
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    pair_ids = tuple(pair.pair_id for part in parts for pair in part.pairs)
    labels, dimensions, count = config.labels.names, config.rationale.dimensions, len(pair_ids)
    no_verdicts = np.full((count, len(dimensions), len(VERDICTS)), np.nan)
    for name, probs in models.items():
        signals = Signals(pair_ids, probs, no_verdicts, ((),) * count, ("",) * count)
        write_signals(folder / "predictions" / f"{name}.parquet", signals, labels, dimensions)


def _labels(pairs: list[Pair], schema: LabelSchema) -> np.ndarray:
    return np.array([schema.index(pair.label) for pair in pairs], np.int64)


def _write(folder: Path, document: dict[str, object], say: Callable[[str], None]) -> None:
    text = markdown(document, title=f"{document['name']}: recipes compared")
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
