"""distill: train each student by each recipe, from the same start, on the same pairs in the same order."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from jax_rele.config import Config
from jax_rele.distillation import trainer
from jax_rele.distillation.dataset import open_data
from jax_rele.runs import artefacts, objectives
from jax_rele.training import (
    distributed,
)
from jax_rele.training.checkpoint import clear, save_variables


def external_inputs(config: Config) -> dict[str, str]:
    """Hashes of the files that hold losses of the config's own: an edited loss changes the student."""
    terms = [term for objective in config.distill.objectives.values() for term in objective.terms.values()]
    hashes = {f"loss {term.loss}": objectives.source_hash(term.loss) for term in terms if ":" in term.loss}
    return {name: value for name, value in hashes.items() if value}


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Trains and writes the students; those that an interrupted run finished are skipped."""
    # Inconsistent recipes are refused before anything is trained.
    work = []
    for recipe in config.distill.recipes:
        groups = (
            [config.distill.students]
            if config.distill.joint_training
            else [(name,) for name in config.distill.students]
        )
        for names in groups:
            terms = {name: trainer.terms_of(config, run_dir, name, recipe) for name in names}
            work.append((recipe, terms))
    data = open_data(config, run_dir)
    for recipe, terms in work:
        folders = {name: artefacts.student_dir(run_dir, name, recipe) for name in terms}
        if distributed.on_main(partial(_are_trained, folders.values())):
            continue
        training = trainer.prepare(config, run_dir, recipe, terms, data)
        directory = run_dir / "distill" / "together" / recipe if len(terms) > 1 else folders[next(iter(terms))]
        title = f"distill {' + '.join(terms)} {recipe}"
        state = trainer.fit(training, config, config.seed, directory, title)
        for name, params in training.params_of(state).items():
            save_variables(folders[name] / "variables", {"params": params})
        clear(directory / "checkpoints")
    return {
        "students": len(config.distill.students) * len(config.distill.recipes),
        "steps each": config.distill.optimization.steps,
        "pairs": len(data),
    }


def _are_trained(folders: Iterable[Path]) -> bool:
    return all((folder / "variables").exists() for folder in folders)
