"""The one way to the models of a run: `load_student` and `load_teacher`."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from jax_rele.config import Config, MeshConfig
from jax_rele.errors import UserError
from jax_rele.runs import artefacts, objectives, pipeline, students
from jax_rele.students import Student
from jax_rele.teacher import Teacher


def read_run(run_dir: str | Path) -> Config:
    """The config of a run's folder, with the devices that are here: a run may have been trained on others.

    Raises:
      UserError: the folder is not a run's, is of another version, or its config was edited.
    """
    return pipeline.read_config(Path(run_dir)).model_copy(update={"mesh": MeshConfig()})


def load_student(
    run_dir: str | Path,
    name: str,
    *,
    recipe: str | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
    config: Config | None = None,
) -> Student:
    """A trained student of a run, ready to judge on this process's devices.

    Args:
      run_dir: the run's folder, e.g. `runs/demo`.
      name: `cross_encoder` or `two_tower`.
      recipe: which of the run's recipes; by default `mkd`, or the last one that the run trained.
      dtype: of activations; by default as in training.
      config: the run's config, for a caller that has it; by default it is read from the folder.

    Raises:
      UserError: the folder is not a run's, or the run has no such student or recipe; it names those that it has.
    """
    config, run_dir = config or read_run(run_dir), Path(run_dir)
    recipe = recipe or main_recipe(config)
    _check_known(run_dir, "student", name, config.distill.students)
    _check_known(run_dir, "recipe", recipe, config.distill.recipes)
    if dtype is not None:
        config = config.model_copy(update={"student": config.student.model_copy(update={"dtype": dtype})})
    return students.load_student(
        config,
        run_dir,
        name,
        recipe,
        has_verdicts=objectives.learns_verdicts(config, recipe),
        has_evidence=objectives.learns_evidence(config, recipe),
    )


def load_teacher(run_dir: str | Path, *, config: Config | None = None) -> Teacher:
    """The fine-tuned teacher of a run, ready to judge on this process's devices.

    Args:
      run_dir: the run's folder, e.g. `runs/demo`.
      config: the run's config, for a caller that has it; by default it is read from the folder.

    Raises:
      UserError: the folder is not a run's, or the run has no teacher of its own.
    """
    return artefacts.load_teacher(config or read_run(run_dir), Path(run_dir))


def main_recipe(config: Config) -> str:
    """The recipe of the students that are used by default: `mkd`, or the last one that the run trained."""
    recipes = config.distill.recipes
    return "mkd" if "mkd" in recipes else recipes[-1]


def _check_known(run_dir: Path, kind: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        nearest = get_close_matches(name, known, 1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise UserError(f"{run_dir}: the run has no {kind} {name!r}; it has {', '.join(known)}{hint}")
