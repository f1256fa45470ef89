"""distill: train each student by each recipe, from the same start, on the same pairs in the same order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from jax_rele.config import Config, DistillConfig
from jax_rele.data import PairTable
from jax_rele.data.tokens.tokenizers import ENCODER_TOKENS, load_tokenizer, sample_pairs, train_tokenizer
from jax_rele.distillation.dataset import Dataset, Tables, build_dataset
from jax_rele.distillation.hyperparameters import Hyperparameters
from jax_rele.distillation.objectives import student_terms
from jax_rele.distillation.trainer import Compiled, Trainer, make_trainer
from jax_rele.io import atomic_folder, write_error
from jax_rele.losses.combine import Term
from jax_rele.models.weights import weights_folder
from jax_rele.runs import layout
from jax_rele.runs.load import new_student, student_inputs
from jax_rele.runs.texts import check_student_texts
from jax_rele.students import Student
from jax_rele.students.weights import load_encoder
from jax_rele.training import distributed, make_local_mesh, make_mesh
from jax_rele.training.checkpoint import clear, save_variables
from jax_rele.types import Params


def external_inputs(config: Config) -> dict[str, str]:
    """Hashes of the weights that the students start from, and of the files of custom losses."""
    return student_inputs(config)


@dataclass(frozen=True)
class Distillation:
    """What a run's students are trained with, whatever the recipe and the seed.

    Attributes:
      students: by name, without parameters.
      terms: {recipe: {student: its terms}}.
      datasets: {student: its training data}, the same pairs in each.
      encoder: the weights that their encoders start from; None for random ones.
      distill, mesh: as in the config.
      compiled: what its trainers compile, for those that follow; None: each compiles its own.
    """

    students: Mapping[str, Student]
    terms: Mapping[str, Mapping[str, Mapping[str, Term]]]
    datasets: Mapping[str, Dataset]
    encoder: Params | None
    distill: DistillConfig
    mesh: jax.sharding.Mesh
    compiled: Compiled | None = None

    def trainer(
        self,
        recipe: str,
        names: Sequence[str],
        selected: np.ndarray | None = None,
        hyperparameters: Hyperparameters | None = None,
    ) -> Trainer:
        """A trainer of these students by a recipe, on all pairs or on those selected by row number.

        With `hyperparameters` these numbers are inputs of its step, see `make_trainer`.
        """
        return make_trainer(
            {name: self.students[name] for name in names},
            self.datasets,
            self.terms[recipe],
            self.distill,
            self.mesh,
            recipe=recipe,
            encoder=self.encoder,
            selected=selected,
            hyperparameters=hyperparameters,
            compiled=self.compiled,
        )


def make_tokenizer(config: Config, run_dir: Path, folder: Path) -> None:
    """Writes the students' tokenizer: trained on the run's pairs, or that of the weights that they start from."""
    if folder.is_dir():
        return
    if config.student.init == "random":
        pairs = PairTable(run_dir / layout.PAIRS)
        train = pairs.select(np.array([split == "train" for split in pairs.column("split").to_pylist()]))
        texts = _texts(sample_pairs(train), config.data.item_fields)
        tokenizer: PreTrainedTokenizerBase = train_tokenizer(texts, config.student.random.vocab_size, encoder=True)
    else:
        tokenizer = load_tokenizer(weights_folder(config.student.init, "student.init"), ENCODER_TOKENS)
    try:
        with atomic_folder(folder) as new_folder:
            tokenizer.save_pretrained(new_folder)
    except OSError as error:
        raise write_error(folder, error) from None


def _texts(pairs: PairTable, fields: Sequence[str]) -> Iterator[str]:
    for pair in pairs:
        yield pair.query
        yield from (text for _, text in pair.item.texts(fields))


def prepare(
    config: Config, run_dir: Path, tokenizer_folder: Path | None = None, compiled: Compiled | None = None
) -> Distillation:
    """Reads what the students are trained with, and builds tokenizer and datasets where they are not there yet.

    Args:
      config, run_dir: of the run.
      tokenizer_folder: of the students' tokenizer; by default the run's.
      compiled: what trainers of the same config on other pairs have compiled.

    Raises:
      UserError: a recipe does not fit a student, or as `build_dataset`.
    """
    distill, gains, mesh = config.distill, config.labels.gains, make_mesh(config.mesh)
    folder = tokenizer_folder or run_dir / layout.STUDENT_TOKENIZER
    distributed.on_main(partial(make_tokenizer, config, run_dir, folder))
    students: dict[str, Student] = {name: new_student(config, folder, name) for name in distill.students}
    terms = {
        recipe: {
            name: student_terms(distill, gains, recipe, name, student.model.heads, config.student.verdict_pooling)
            for name, student in students.items()
        }
        for recipe in distill.recipes
    }
    tables = Tables(
        pairs=run_dir / layout.PAIRS,
        unlabelled=run_dir / layout.UNLABELLED,
        signals=run_dir / layout.SIGNALS,
        tokenizer=folder,
        schema=config.labels.schema_,
        dimensions=config.rationale.dimensions,
        cache=config.cache / "tokens",
    )
    local = make_local_mesh(config.mesh)
    datasets = {
        name: build_dataset(tables, student, [terms[recipe][name] for recipe in terms], config.student, local)
        for name, student in students.items()
    }
    encoder = load_encoder(config.student, next(iter(students.values())).model, mesh)
    return Distillation(students, terms, datasets, encoder, distill, mesh, compiled)


def run(config: Config, run_dir: Path) -> Mapping[str, object]:
    """Trains and writes the students; those that an interrupted run finished are skipped."""
    distillation, distill = prepare(config, run_dir), config.distill
    losses = {name: dataset.text_loss for name, dataset in distillation.datasets.items()}
    for name, loss in losses.items():
        distributed.on_main(partial(check_student_texts, config, f"distill: {name}", loss))
    groups = [distill.students] if distill.joint_training else [(name,) for name in distill.students]
    for recipe in distill.recipes:
        for names in groups:
            folders: dict[str, Path] = {name: layout.student_dir(run_dir, name, recipe) for name in names}
            if distributed.on_main(partial(_are_trained, folders.values())):
                continue
            trainer = distillation.trainer(recipe, names)
            directory = run_dir / "distill" / "joint" / recipe if len(names) > 1 else folders[names[0]]
            for name, params in trainer.fit(config.seed, directory, f"distill {' + '.join(names)} {recipe}").items():
                save_variables(folders[name] / "variables", {"params": params})
            clear(directory / "checkpoints")
    return {
        "students": len(distill.students) * len(distill.recipes),
        "steps each": distill.optimization.steps,
        "pairs": len(distillation.datasets[distill.students[0]]),
        "texts": {name: loss.counts() for name, loss in losses.items()},
    }


def _are_trained(folders: Iterable[Path]) -> bool:
    return all((folder / "variables").exists() for folder in folders)
