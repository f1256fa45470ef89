"""The order of trials is that of the seed, however often the work was interrupted."""

import errno

import pytest
from optuna.storages.journal import JournalFileBackend

from jax_rele.errors import UserError
from jax_rele.tune.report import COMPLETE, DIVERGED
from jax_rele.tune.space import SearchSpace
from jax_rele.tune.study import JOURNAL, ask, finish, open_study, trial_figures

DEFAULTS = {"weight.score": 1.0, "learning_rate": 1e-3}
SPACE = SearchSpace(DEFAULTS, {"weight.score": (0.1, 10.0), "learning_rate": (1e-4, 1e-2)}, ())


def run(folder, trials, *, seed=0, interrupt=()):
    """Runs up to so many trials with made-up figures; before those in `interrupt` a process dies."""
    folder.mkdir(exist_ok=True)
    study = open_study(folder, maximize=True)
    for number in range(len(trial_figures(study)), trials):
        if number in interrupt:
            ask(study, SPACE, seed)
            study = open_study(folder, maximize=True)
        trial = ask(study, SPACE, seed)
        by_seed = [-((trial.params["weight.score"] - 3.0) ** 2) - offset for offset in (0.0, 0.1)]
        for count, figure in enumerate(by_seed, 1):
            trial.report(figure, count)
        finish(study, trial, DIVERGED if number == 2 else COMPLETE, by_seed)
    return trial_figures(study)


def test_the_first_trial_has_the_numbers_of_the_config(tmp_path):
    assert run(tmp_path / "a", 1)[0].values == DEFAULTS
    assert run(tmp_path / "b", 1, interrupt=[0])[0].values == DEFAULTS


def test_an_interrupted_study_has_the_same_trials(tmp_path):
    whole = run(tmp_path / "whole", 14)
    run(tmp_path / "parts", 3, interrupt=[0, 1])
    run(tmp_path / "parts", 11, interrupt=[5])
    assert run(tmp_path / "parts", 14, interrupt=[11, 12]) == whole
    assert [trial.number for trial in whole] == list(range(14))
    assert len({trial.values["weight.score"] for trial in whole}) == 14
    assert run(tmp_path / "other", 3, seed=1)[1:] != whole[1:3]


def test_fewer_trials_than_there_are_change_nothing(tmp_path):
    run(tmp_path / "a", 4)
    before = (tmp_path / "a" / JOURNAL).read_bytes()
    assert len(run(tmp_path / "a", 2)) == 4
    assert (tmp_path / "a" / JOURNAL).read_bytes().startswith(before)


def test_a_trial_that_did_not_finish_has_no_figure(tmp_path):
    trials = run(tmp_path / "a", 4)
    assert trials[2].outcome == DIVERGED
    assert trials[2].value is None
    assert trials[3].value == pytest.approx(sum(trials[3].by_seed) / 2)


def test_a_line_that_was_torn_is_written_again(tmp_path):
    whole = run(tmp_path / "whole", 5)
    run(tmp_path / "torn", 4)
    with (tmp_path / "torn" / JOURNAL).open("ab") as file:
        file.write(b'{"op_code":4,"worker')
    assert run(tmp_path / "torn", 5) == whole


def test_a_damaged_study_is_one_line(tmp_path):
    for number, content in enumerate(("no journal\n" * 3, "[]\n", '{"op_code": 99}\n', "\0\0\n\xff\n")):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / JOURNAL).write_text(content)
        with pytest.raises(UserError, match="damaged; delete the folder"):
            open_study(folder, maximize=True)


def test_a_full_disk_is_one_line_and_the_study_goes_on_later(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "full", 2)
    append = JournalFileBackend.append_logs
    for appended in (0, 1, 3):

        def full(self, logs, remaining=[appended]):  # noqa: B006  (a counter)
            if not remaining[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            remaining[0] -= 1
            append(self, logs)

        monkeypatch.setattr(JournalFileBackend, "append_logs", full)
        with pytest.raises(UserError, match="the disk is full") as error:
            run(tmp_path / "full", 4)
        assert "\n" not in str(error.value)
        monkeypatch.undo()
    assert run(tmp_path / "full", 4) == whole
