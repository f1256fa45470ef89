"""The study, by Optuna: which numbers are tried next, and what those that were tried gave."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from jax_rele.errors import UserError
from jax_rele.io import write_error
from jax_rele.tune.report import COMPLETE, TrialFigures
from jax_rele.tune.space import SearchSpace

JOURNAL = "study.log"
"""The file of the study, which other tools of Optuna read too: a `JournalFileBackend`, the study `tune`."""

UNPRUNED = 5
"""So many trials run with all seeds before one may end early."""


class _Journal(JournalFileBackend):
    """With one line for a file that cannot be written, e.g. on a full disk."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        try:
            super().append_logs(logs)
        except OSError as error:
            raise write_error(self._file_path, error) from error


def open_study(folder: Path, *, maximize: bool) -> optuna.Study:
    """The study of a folder. Raises UserError where its file is damaged or cannot be written."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = folder / JOURNAL
    _cut_torn_line(path)
    try:
        return optuna.create_study(
            storage=JournalStorage(_Journal(str(path))),
            study_name="tune",
            direction="maximize" if maximize else "minimize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED),
            load_if_exists=True,
        )
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, IndexError):
        raise UserError(f"{path}: damaged; delete the folder {folder} to tune again") from None


def _cut_torn_line(path: Path) -> None:
    """Removes a last line that was not written whole; Optuna would write the next one after it."""
    if path.exists() and not (content := path.read_bytes()).endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))


def trial_figures(study: optuna.Study) -> list[TrialFigures]:
    """The finished trials in their order, numbered without those that were interrupted."""
    return [
        TrialFigures(
            number,
            dict(trial.params),
            trial.user_attrs["outcome"],
            trial.value if trial.user_attrs["outcome"] == COMPLETE else None,
            trial.user_attrs["by_seed"],
        )
        for number, trial in enumerate(_finished(study))
    ]


def ask(study: optuna.Study, space: SearchSpace, seed: int) -> optuna.Trial:
    """The next trial; its numbers depend on the finished ones and the seed alone, whatever was interrupted.

    The first trial has the numbers of the config.
    """
    for stale in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(stale.number, state=TrialState.FAIL)
    number = len(_finished(study))
    if number == 0 and not study.get_trials(states=(TrialState.WAITING,)):
        study.enqueue_trial(dict(space.defaults))
    own_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    study.sampler = optuna.samplers.TPESampler(seed=own_seed)
    return study.ask(_distributions(space))


def finish(study: optuna.Study, trial: optuna.Trial, outcome: str, by_seed: Sequence[float]) -> None:
    """Ends a trial: with the mean over the seeds, or for another outcome than `complete` as one that was pruned."""
    trial.set_user_attr("outcome", outcome)
    trial.set_user_attr("by_seed", list(by_seed))
    if outcome == COMPLETE:
        study.tell(trial, float(np.mean(by_seed)))
    else:
        study.tell(trial, state=TrialState.PRUNED)


def _distributions(space: SearchSpace) -> dict[str, optuna.distributions.BaseDistribution]:
    return {
        name: optuna.distributions.FloatDistribution(low, high, log=True) for name, (low, high) in space.ranges.items()
    }
