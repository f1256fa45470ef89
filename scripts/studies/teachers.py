"""Teachers of several cross-validations on the same pairs: python teachers.py NAME=FOLDER ... [--mean NAME ...]

FOLDER holds `fold_1` to `fold_K` of `jax-rele compare --folds K`. Prints a Markdown table: every metric of each teacher
with its 95% interval from resamples of the queries, and its difference to the first one, paired. `--mean` adds the mean
of the named teachers' distributions, e.g. of several orders of label and rationale; `--baselines` adds baselines that
are fitted to each fold's training pairs. A teacher with `teacher.perspectives` has a row for each, and a table of the
errors of its main answer that they correct.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jax_rele.compare.trainings import TEACHER_PREDICTIONS, teacher_folders
from jax_rele.data import read_table
from jax_rele.errors import UserError
from jax_rele.evaluation import (
    BASELINES,
    correction_table,
    corrections,
    decide,
    fit_bias,
    fit_temperature,
    intervals,
    metric_samples,
    paired_difference,
)
from jax_rele.evaluation.assemble import TEACHER, perspective_name
from jax_rele.evaluation.summary import cell, markdown_table
from jax_rele.names import SPLITS
from jax_rele.runs import layout, pipeline
from jax_rele.teacher.perspectives import MAIN
from jax_rele.text import query_id
from jax_rele.types import LabelSchema, Pair

METRICS = ("auc", "macro_f1", "micro_f1", "ece_calibrated")


@dataclass(frozen=True)
class HeldOut:
    """The pairs of all folds, in the order of the folds.

    Attributes:
      train, validation, test: the pairs of each fold.
      schema: their labels.
      fields: of the items, which models read.
      n_bootstrap, seed: of the intervals.
    """

    train: list[list[Pair]]
    validation: list[list[Pair]]
    test: list[list[Pair]]
    schema: LabelSchema
    fields: Sequence[str]
    n_bootstrap: int
    seed: int

    def labels(self, pairs: list[Pair]) -> np.ndarray:
        return np.array([self.schema.index(pair.label or "") for pair in pairs], np.int64)


Probs = list[tuple[np.ndarray, np.ndarray]]
"""Of each fold the label distributions on its test and validation pairs."""


def folds_of(folder: Path) -> list[Path]:
    numbers = sorted(int(path.name[5:]) for path in folder.glob("fold_*") if path.name[5:].isdecimal())
    folds = [folder / f"fold_{number}" for number in numbers]
    if not folds:
        raise UserError(f"{folder}: holds no fold_1; give the folder compare/K_folds of a run")
    return folds


def read_held_out(folder: Path) -> HeldOut:
    folds = folds_of(folder)
    config = pipeline.read_config(folds[0])
    splits = ([layout.load_pairs(fold, split) for fold in folds] for split in SPLITS)
    fields, n_bootstrap = config.data.item_fields, config.evaluate.bootstrap_samples
    return HeldOut(*splits, config.labels.schema_, fields, n_bootstrap, config.seed)


def read_teachers(name: str, folder: Path, held_out: HeldOut) -> dict[str, Probs]:
    """The predictions of the teacher NAME, and of its perspectives as `NAME, PERSPECTIVE`."""
    folders = teacher_folders(pipeline.read_config(folds_of(folder)[0]))
    return {model.replace(TEACHER, name, 1): read_probs(folder, each, held_out) for model, each in folders.items()}


def read_probs(folder: Path, model: str, held_out: HeldOut) -> Probs:
    """The predictions in the folder of a model. Raises UserError where they are not of these pairs."""
    probs, folds = [], folds_of(folder)
    if len(folds) != len(held_out.test):
        raise UserError(f"{folder}: has {len(folds)} folds, the first folder has {len(held_out.test)}")
    for number, fold in enumerate(folds):
        path = fold / "compare" / model / "predictions.parquet"
        if not path.exists():
            raise UserError(f"{path}: is missing; finish the comparison first")
        rows = {
            (row["split"], row["pair_id"]): row["label_probs"]
            for row in read_table(path, TEACHER_PREDICTIONS).to_pylist()
        }
        try:
            test, validation = (
                np.array([rows[split, pair.pair_id] for pair in pairs[number]])
                for split, pairs in (("test", held_out.test), ("validation", held_out.validation))
            )
        except (KeyError, IndexError):
            raise UserError(
                f"{path}: is of other pairs than the first folder's; give the same data and folds"
            ) from None
        probs.append((test, validation))
    return probs


def samples(probs: Probs, held_out: HeldOut) -> dict[str, np.ndarray]:
    """Every metric on the pairs of all folds and on resamples of their queries; bias and temperature are by fold."""
    pairs = [pair for fold in held_out.test for pair in fold]
    sizes = [len(fold) for fold in held_out.test]
    fitted = [(each, held_out.labels(fold)) for (_, each), fold in zip(probs, held_out.validation)]
    return metric_samples(
        np.concatenate([test for test, _ in probs]),
        held_out.labels(pairs),
        [query_id(pair.query) for pair in pairs],
        held_out.schema,
        gain_maps={},
        bias=np.repeat([fit_bias(*each) for each in fitted], sizes, axis=0),
        temperature=np.repeat([fit_temperature(*each) for each in fitted], sizes),
        n_bootstrap=held_out.n_bootstrap,
        seed=held_out.seed,
        folds=np.repeat(np.arange(len(sizes)), sizes),
    )


def baseline_probs(name: str, held_out: HeldOut) -> Probs:
    """The distributions of a baseline that each fold's training pairs are fitted to."""
    probs = []
    for train, validation, test in zip(held_out.train, held_out.validation, held_out.test):
        both = BASELINES[name](train, validation, [*test, *validation], held_out.schema, held_out.fields)
        probs.append((both[: len(test)], both[len(test) :]))
    return probs


def mean_of(teachers: list[Probs]) -> Probs:
    return [
        (np.mean([each[fold][0] for each in teachers], axis=0), np.mean([each[fold][1] for each in teachers], axis=0))
        for fold in range(len(teachers[0]))
    ]


def corrected(name: str, models: Mapping[str, Probs], held_out: HeldOut) -> dict[str, dict]:
    """Which errors of a teacher's main answer its perspectives correct, with the decisions of each fold."""
    pairs = [pair for fold in held_out.test for pair in fold]
    decided = {
        model: np.concatenate(
            [
                decide(test, fit_bias(validation, held_out.labels(fold)))
                for (test, validation), fold in zip(probs, held_out.validation)
            ]
        )
        for model, probs in models.items()
    }
    return corrections(
        decided,
        perspective_name(MAIN).replace(TEACHER, name, 1),
        held_out.labels(pairs),
        held_out.schema.gains,
        queries=[query_id(pair.query) for pair in pairs],
        n_bootstrap=held_out.n_bootstrap,
        seed=held_out.seed,
    )


def table(by_name: Mapping[str, Probs], held_out: HeldOut) -> str:
    everyone = {name: samples(probs, held_out) for name, probs in by_name.items()}
    first = next(iter(everyone))
    rows = [["teacher", *(text for metric in METRICS for text in (metric, f"less {first}"))]]
    for name, values in everyone.items():
        figures, differences = intervals(values), paired_difference(values, everyone[first])
        cells = [
            text
            for metric in METRICS
            for text in (cell(figures[metric]), "" if name == first else cell(differences[metric], sign=True))
        ]
        rows.append([name, *cells])
    pairs = sum(map(len, held_out.test))
    return f"{pairs:,} pairs, each judged by a teacher that saw no pair of its query.\n\n" + "\n".join(
        markdown_table(rows)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teachers", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--mean", nargs="+", default=[], metavar="NAME", help="teachers whose mean is a row too")
    parser.add_argument(
        "--baselines", nargs="+", default=[], choices=BASELINES, metavar="NAME", help="rows of baselines"
    )
    options = parser.parse_args()
    folders = dict(each.partition("=")[::2] for each in options.teachers)
    if "" in {*folders, *folders.values()}:
        parser.error("teachers are NAME=FOLDER")
    if len(folders) < len(options.teachers):
        parser.error("each NAME must be another one")
    if unknown := [name for name in options.mean if name not in folders]:
        parser.error(f"--mean: {unknown[0]} is not of {', '.join(folders)}")
    try:
        held_out = read_held_out(Path(next(iter(folders.values()))))
        by_teacher = {name: read_teachers(name, Path(folder), held_out) for name, folder in folders.items()}
    except (UserError, OSError) as error:
        sys.exit(f"teachers.py: {error}")
    by_name = {model: probs for models in by_teacher.values() for model, probs in models.items()}
    if options.mean:
        by_name[f"mean of {', '.join(options.mean)}"] = mean_of([by_name[name] for name in options.mean])
    by_name |= {name: baseline_probs(name, held_out) for name in options.baselines}
    print(table(by_name, held_out))
    for name, models in by_teacher.items():
        if len(models) > 1:
            print(correction_table(corrected(name, models, held_out)), end="")


if __name__ == "__main__":
    main()
