"""Trials of a student's recipe: trained over several seeds, judged on the validation split."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa

from jax_rele.config import Config
from jax_rele.data import read_table, write_table
from jax_rele.distillation.objectives import student_terms
from jax_rele.distillation.trainer import Trainer
from jax_rele.errors import UserError
from jax_rele.evaluation.bootstrap import higher_is_better, log_loss_samples, metric_names, metric_samples
from jax_rele.io import check_output_folder, hash_values, lock, write_json, write_text
from jax_rele.names import RECIPES, STUDENTS, StudentName
from jax_rele.runs import layout, pipeline
from jax_rele.stages import distill
from jax_rele.students import Student, build_student, label_probs, predict
from jax_rele.text import query_id
from jax_rele.training import distributed
from jax_rele.training.metric_log import DivergedError
from jax_rele.tune.report import (
    COMPLETE,
    DIVERGED,
    PRUNED,
    UNDEFINED,
    TrialFigures,
    build_document,
    format_values,
    markdown,
)
from jax_rele.tune.space import SearchSpace, config_fragment, hyperparameters, search_space
from jax_rele.types import Pair

if TYPE_CHECKING:
    import optuna

PREDICTIONS = pa.schema([("pair_id", pa.string()), ("label_probs", pa.list_(pa.float32()))])

FITTED = ("macro_f1", "micro_f1", "ece_calibrated")
"""Metrics that need a bias or a temperature, which are fitted on the same validation pairs."""


@dataclass(frozen=True)
class Validation:
    """The pairs that trials are judged on.

    Attributes:
      config: of the run.
      pairs: the labelled pairs of the validation split.
    """

    config: Config
    pairs: Sequence[Pair]

    @property
    def labels(self) -> np.ndarray:
        schema = self.config.labels.schema_
        return np.array([schema.index(cast(str, pair.label)) for pair in self.pairs], np.int64)

    @property
    def queries(self) -> list[str]:
        return [query_id(pair.query) for pair in self.pairs]

    def samples(self, probs_by_seed: Sequence[np.ndarray], n_bootstrap: int = 0) -> dict[str, np.ndarray]:
        """Every metric as the mean over the seeds: {metric: [1 + n_bootstrap]}, see `metric_samples`."""
        labels, queries, config = self.labels, self.queries, self.config
        gain_maps, seed = config.labels.gain_maps_, config.seed
        by_seed = [
            metric_samples(
                probs,
                labels,
                queries,
                config.labels.schema_,
                gain_maps=gain_maps,
                bias=np.zeros(probs.shape[1]),
                temperature=1.0,
                n_bootstrap=n_bootstrap,
                seed=seed,
            )
            | {"log_loss": log_loss_samples(probs, labels, queries, n_bootstrap=n_bootstrap, seed=seed)}
            for probs in probs_by_seed
        ]
        return {metric: np.mean([each[metric] for each in by_seed], axis=0) for metric in metrics_of(config)}


def metrics_of(config: Config) -> tuple[str, ...]:
    """The metrics that can be tuned."""
    return (*(name for name in metric_names(config.labels.gain_maps_) if name not in FITTED), "log_loss")


def run(
    config: Config,
    student: str,
    recipe: str,
    *,
    trials: int,
    seeds: int,
    metric: str = "auc",
    say: Callable[[str], None] = print,
) -> dict[str, object]:
    """Searches the term weights, temperatures and the learning rate of a student's recipe on the validation split.

    The stages up to `score` run first where they have not. Results go to `tune/STUDENT/RECIPE/` in the run's folder:
    tune.json, tune.md, best.yaml, the study and a folder for each trial. The same command goes on after an
    interruption, with more trials it continues the study. One compiled step trains all trials. The evaluated split is
    never read.

    Args:
      config: the run; `tune` has the ranges.
      student: which student.
      recipe: a recipe or objective of the config.
      trials: how many, with those of earlier commands; the first has the numbers of the config.
      seeds: training seeds of each trial: config.seed and those after it.
      metric: one of `metrics_of`, as the mean over the seeds.
      say: receives one line per trial.

    Returns:
      What tune.json holds, see `report.build_document`.

    Raises:
      UserError: the request or the config is wrong, the validation pairs cannot tell students apart, the folder is of
        another search, or Optuna is not installed.
    """
    config = _checked_request(config, student, recipe, trials, seeds, metric)
    space = _space(config, cast(StudentName, student), recipe)
    run_dir, stages = config.run_dir, tuple(pipeline.STAGES)
    check_output_folder(run_dir / "tune")
    # The pairs are looked at before the teacher's long work.
    pipeline.run(config, stages[:1], say=say, whole=False)
    validation = Validation(config, layout.load_pairs(run_dir, "validation"))
    _check_validation(validation, metric)
    pipeline.run(config, stages[1 : stages.index("distill")], say=say, whole=False)
    folder = run_dir / "tune" / student / recipe
    folder.parent.mkdir(parents=True, exist_ok=True)
    busy = f"{folder}: another process tunes it; wait for it or choose another `name`"
    with lock(folder.parent / f".{recipe}.lock", on_busy=lambda: UserError(busy)):
        _bind(folder, _fingerprint(config, space, seeds, metric))
        search = _Search(config, student, recipe, space, validation, folder, seeds, metric, say)
        return search.write(search.run(trials))


@dataclass(frozen=True)
class _Search:
    config: Config
    student: str
    recipe: str
    space: SearchSpace
    validation: Validation
    folder: Path
    seeds: int
    metric: str
    say: Callable[[str], None]

    def run(self, trials: int) -> list[TrialFigures]:
        """Runs what is missing of so many trials; returns all that have run."""
        # The package is optional.
        from jax_rele.tune import study as studies

        study = studies.open_study(self.folder, maximize=higher_is_better(self.metric))
        done = len(studies.trial_figures(study))
        title = f"tune {self.student} {self.recipe}"
        if done:
            self.say(f"{title}: {done} trials finished before" + (", nothing to do" if done >= trials else ""))
        if done < trials:
            student, trainer = self._trainer()
        for number in range(done, trials):
            trial = studies.ask(study, self.space, self.config.seed)
            outcome, by_seed = self._try(trial, number, student, trainer)
            studies.finish(study, trial, outcome, by_seed)
            figure = f"{self.metric} {np.mean(by_seed):.4f}" if outcome == COMPLETE else outcome
            self.say(f"{title} {number + 1}/{trials}: {figure} with {format_values(trial.params)}")
        return studies.trial_figures(study)

    def _trainer(self) -> tuple[Student, Trainer]:
        # A tokenizer of its own: the run's students may start from other weights.
        tokenizer = self.folder / "tokenizer"
        shutil.rmtree(tokenizer, ignore_errors=True)
        distillation = distill.prepare(self.config, self.config.run_dir, tokenizer)
        numbers = hyperparameters(self.space.defaults)
        trainer = distillation.trainer(self.recipe, [self.student], hyperparameters=numbers)
        student = dataclasses.replace(distillation.students[self.student], batch_size=self.config.score.batch_size)
        return student, trainer

    def _try(self, trial: optuna.Trial, number: int, student: Student, trainer: Trainer) -> tuple[str, list[float]]:
        """Trains a trial with one seed after the other: (how it ended, the metric of each seed)."""
        trainer = trainer.with_hyperparameters(hyperparameters(trial.params))
        folder = self._trial_folder(number, trial.params)
        by_seed: list[float] = []
        for seed in range(self.config.seed, self.config.seed + self.seeds):
            title = f"tune {self.student} {self.recipe} {number + 1} seed {seed}"
            try:
                probs = self._probs(student, trainer, seed, folder / f"seed_{seed}", title)
            except DivergedError:
                if number == 0:
                    raise
                return DIVERGED, by_seed
            figure = float(self.validation.samples([probs])[self.metric][0])
            if np.isnan(figure) and number == 0:
                raise UserError(
                    f"--metric {self.metric}: is undefined for the numbers of the config, with which the student gives "
                    "every pair the same score; lower distill.optimization.learning_rate or choose another metric"
                )
            if np.isnan(figure):
                return UNDEFINED, by_seed
            by_seed.append(figure)
            trial.report(float(np.mean(by_seed)), len(by_seed))
            if len(by_seed) < self.seeds and trial.should_prune():
                return PRUNED, by_seed
        return COMPLETE, by_seed

    def _trial_folder(self, number: int, values: dict[str, float]) -> Path:
        """Named by its numbers too, so that what is there was trained with them."""
        return self.folder / "trials" / f"{number:04d}_{hash_values(values)[:8]}"

    def _probs(self, student: Student, trainer: Trainer, seed: int, folder: Path, title: str) -> np.ndarray:
        """[N, C] label distributions of the validation pairs; trains what is missing."""
        if not (folder / "validation.parquet").exists():
            params = trainer.fit(seed, folder, title)[self.student]
            trained = dataclasses.replace(student, variables={"params": params})
            probs = label_probs(predict(trained, self.validation.pairs))
            rows = [
                {"pair_id": pair.pair_id, "label_probs": row.tolist()}
                for pair, row in zip(self.validation.pairs, probs)
            ]
            write_table(folder / "validation.parquet", rows, PREDICTIONS)
            for name in ("checkpoints", "tensorboard"):
                shutil.rmtree(folder / name, ignore_errors=True)
        return self._read(folder)

    def _read(self, folder: Path) -> np.ndarray:
        rows = read_table(folder / "validation.parquet", PREDICTIONS).to_pylist()
        if [row["pair_id"] for row in rows] != [pair.pair_id for pair in self.validation.pairs]:
            raise UserError(f"{folder}: its predictions are of other pairs; delete the folder {self.folder}")
        return np.array([row["label_probs"] for row in rows], np.float64)

    def write(self, trials: Sequence[TrialFigures]) -> dict[str, object]:
        """Writes tune.json, tune.md and best.yaml."""
        sign = 1 if higher_is_better(self.metric) else -1
        best = max((each for each in trials if each.value is not None), key=lambda each: sign * cast(float, each.value))
        first, chosen = (
            self.validation.samples(self._all_probs(each), self.config.evaluate.bootstrap_samples)
            for each in (trials[0], best)
        )
        document = build_document(
            trials,
            best.number,
            first,
            chosen,
            {
                "name": self.config.name,
                "student": self.student,
                "recipe": self.recipe,
                "metric": self.metric,
                "split": "validation",
                "n_pairs": len(self.validation.pairs),
                "n_queries": len(set(self.validation.queries)),
                "seeds": list(range(self.config.seed, self.config.seed + self.seeds)),
                "bootstrap_samples": self.config.evaluate.bootstrap_samples,
                "ranges": {name: list(ends) for name, ends in self.space.ranges.items()},
                "schedules": list(self.space.schedules),
            },
        )
        text = markdown(document)
        write_json(self.folder / "tune.json", document, indent=1)
        write_text(self.folder / "tune.md", text)
        write_text(
            self.folder / "best.yaml",
            f"# Trial {best.number + 1} of {len(trials)}. Copy the keys into the config, then:\n"
            f"# jax-rele compare CONFIG.yaml --recipes {self.recipe} {self.recipe}_tuned\n"
            + config_fragment(self.config.distill, self.recipe, best.values),
        )
        self.say(text)
        self.say(f"{self.folder / 'best.yaml'}: the best trial as keys of a config")
        return document

    def _all_probs(self, trial: TrialFigures) -> list[np.ndarray]:
        folder = self._trial_folder(trial.number, trial.values)
        return [self._read(folder / f"seed_{self.config.seed + number}") for number in range(self.seeds)]


def _checked_request(config: Config, student: str, recipe: str, trials: int, seeds: int, metric: str) -> Config:
    """The config with this student and recipe alone."""
    if find_spec("optuna") is None:
        raise UserError("tune needs the package optuna: pip install 'jax_rele[tune]'")
    if distributed.process_count() > 1:
        raise UserError("tune is one process; start it without a launcher")
    for option, number in (("trials", trials), ("seeds", seeds)):
        if number < 1:
            raise UserError(f"--{option}: must be at least 1, got {number}")
    known = (*RECIPES, *config.distill.objectives)
    for option, name, names in (
        ("student", student, STUDENTS),
        ("recipe", recipe, known),
        ("metric", metric, metrics_of(config)),
    ):
        if name not in names:
            raise UserError(f"--{option}: there is no {option} {name!r}; there are {', '.join(names)}")
    section = config.distill.model_copy(update={"students": (student,), "recipes": (recipe,)})
    return config.model_copy(update={"distill": section})


def _space(config: Config, student: StudentName, recipe: str) -> SearchSpace:
    section, labels = config.student, config.labels
    vocab_size = section.random.vocab_size if section.init == "random" else 0
    model = build_student(student, section, vocab_size, len(labels.names), len(config.rationale.dimensions))
    terms = student_terms(config.distill, labels.gains, recipe, student, model.heads, section.verdict_pooling)
    return search_space(config.tune, terms, config.distill.optimization.learning_rate, recipe)


def _check_validation(validation: Validation, metric: str) -> None:
    """Raises UserError where no students can be told apart by the metric on these pairs."""
    pairs, schema = validation.pairs, validation.config.labels.schema_
    if len(set(validation.labels.tolist())) == 1:
        raise UserError(
            f"data.splits.validation: all {len(pairs)} validation pairs are labelled {pairs[0].label}, so they cannot "
            "tell trials apart; give it pairs of other labels"
        )
    # Any scores without ties show whether a metric is defined.
    probs = np.random.default_rng(0).dirichlet(np.ones(len(schema)), len(pairs))
    if np.isnan(validation.samples([probs])[metric][0]):
        others = ", ".join(name for name in metrics_of(validation.config) if name != metric)
        raise UserError(
            f"--metric {metric}: is undefined on the {len(pairs)} validation pairs (only positive or only other "
            f"labels, or no query with two items of which one has a gain); choose another of {others}"
        )


def _fingerprint(config: Config, space: SearchSpace, seeds: int, metric: str) -> str:
    """A hash of what the study and its trainings depend on."""
    read = config.model_dump(mode="json")
    own = {key: value for key, value in read["distill"].items() if key != "objectives"}
    objective = read["distill"]["objectives"].get(config.distill.recipes[0])
    manifests = [
        json.loads((config.run_dir / name / pipeline.MANIFEST).read_text("utf-8")) for name in ("prepare", "score")
    ]
    inputs = [[manifest["config_hash"], manifest["inputs"]] for manifest in manifests]
    sections = [read[name] for name in ("seed", "student", "labels", "rationale", "data")]
    search = [dict(space.ranges), dict(space.defaults), seeds, metric]
    return hash_values([own, objective, distill.external_inputs(config), *sections, inputs, search])


def _bind(folder: Path, fingerprint: str) -> None:
    """Binds a folder to a search. Raises UserError where it holds trials of another one."""
    begun = folder / "fingerprint"
    if begun.exists() and begun.read_text("utf-8") != fingerprint:
        if any(folder.glob("trials/*/seed_*/validation.parquet")):
            raise UserError(
                f"{folder}: was tuned with another config, number of seeds or metric; choose another `name`, or delete "
                "that folder to tune again"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(begun, fingerprint)
