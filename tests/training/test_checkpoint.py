"""Checkpoints: what is damaged is found before it is used, and what cannot be written ends in one line."""

import errno
import json
import os
import random
import signal
import threading

import jax
import numpy as np
import pytest
from flax import linen as nn
from tensorboardX.proto.event_pb2 import Event, SessionLog

from jax_rele import config, errors, losses
from jax_rele.data.batches.loader import Groups, batches, shuffled
from jax_rele.errors import Preempted, UserError
from jax_rele.training import (
    abstract,
    checkpoint,
    init_state,
    make_mesh,
    make_optimizer,
    make_train_step,
    preemption,
    shard_step,
    train,
)
from jax_rele.training.metric_log import MetricLog
from jax_rele.types import StudentOutputs

OPTIMIZATION = config.OptimizationConfig(steps=8, batch_size=4, learning_rate=0.1, checkpoint_every=2, log_every=1)


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic=True):
        return StudentOutputs(logits=nn.Dense(3)(x))


def init(rng):
    return Classifier().init(rng, np.zeros((1, 5), np.float32))


def train_here(folder, after_step=lambda number: None):
    rng, mesh, tx = (
        np.random.default_rng(0),
        make_mesh(config.MeshConfig(), jax.devices()[:1]),
        make_optimizer(OPTIMIZATION),
    )
    rows = {"inputs": {"x": rng.normal(size=(16, 5)).astype(np.float32)}, "labels": rng.integers(0, 3, 16, np.int32)}
    state = init_state(init, "params", {}, tx, mesh, 0)
    objective = losses.combine(label=losses.term(losses.cross_entropy))
    step = shard_step(make_train_step(Classifier().apply, objective, tx), mesh, state)
    number = int(state.step)

    def step_and_call(state, batch):
        nonlocal number
        number += 1
        after_step(number)
        return step(state, batch)

    data = batches(Groups(rows, np.arange(16).reshape(-1, 1)), shuffled(16, 4, 0))
    return train(step_and_call, state, data, config=OPTIMIZATION, mesh=mesh, directory=folder, title="test")


def saved_steps(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


def flip(folder, seed):
    rng = random.Random(seed)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != checkpoint.CHECKSUM)
    file = rng.choice([path for path in files if path.stat().st_size])
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return train_here(folder), folder


def events_of(folder):
    """The events of TensorBoard's files: records of a length, 4 bytes, the content, and 4 bytes."""
    for file in sorted((folder / "tensorboard").iterdir()):
        content = file.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            yield Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]


def test_tensorboard_has_the_figures_of_the_log_and_no_thread(whole, tmp_path, monkeypatch):
    lines = [json.loads(line) for line in (whole[1] / "metrics.jsonl").read_text().splitlines()]
    events = list(events_of(whole[1]))
    figures = {(event.step, value.tag): value.simple_value for event in events for value in event.summary.value}
    expected = {(line["step"], name): value for line in lines for name, value in line.items() if name != "step"}
    assert figures == pytest.approx(expected, rel=1e-6)
    jumps = iter(range(0, 10**9, 60 * 86400))
    monkeypatch.setattr("jax_rele.training.metric_log.time.time", lambda: 1e9 + next(jumps))
    before = set(threading.enumerate())
    log = MetricLog(tmp_path, 3, OPTIMIZATION, "test", lambda row: "")
    with log:
        started = {type(thread).__module__ for thread in set(threading.enumerate()) - before}
        assert started <= {"rich.live"}
    assert [event.session_log.status for event in events_of(tmp_path)][-1] == SessionLog.START


def test_sigterm_saves_the_step_and_the_same_call_resumes(whole, tmp_path):
    with pytest.raises(Preempted, match="step 5 is saved"), preemption.end_on_sigterm():
        train_here(tmp_path, lambda number: number == 5 and os.kill(os.getpid(), signal.SIGTERM))
    assert saved_steps(tmp_path)[-1] == 5
    jax.tree.map(np.testing.assert_array_equal, train_here(tmp_path).trainable, whole[0].trainable)


def test_sigterm_outside_of_a_training_ends_the_work_at_once():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="the same command resumes"), preemption.end_on_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("value", "status"), [(None, 0), ("75", 75), ("high", 0), ("999", 0)])
def test_the_status_after_sigterm(monkeypatch, value, status):
    if value is not None:
        monkeypatch.setenv("JAX_RELE_PREEMPTED_STATUS", value)
    assert errors.Preempted("stopped").status == status


@pytest.mark.parametrize("seed", range(8))
def test_a_flipped_bit_is_found_and_the_checkpoint_before_is_used(whole, tmp_path, seed):
    def stop(number):
        if number == 6:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train_here(tmp_path, stop)
    newest = tmp_path / "checkpoints" / str(saved_steps(tmp_path)[-1])
    flip(newest, seed)
    with pytest.raises(
        UserError, match="damaged checkpoint; delete this folder to resume from the one before"
    ) as error:
        train_here(tmp_path)
    assert str(newest) in str(error.value)
    assert "\n" not in str(error.value)
    for path in sorted(newest.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    newest.rmdir()
    jax.tree.map(np.testing.assert_array_equal, train_here(tmp_path).trainable, whole[0].trainable)


@pytest.mark.parametrize("seed", range(8))
def test_a_flipped_bit_in_finished_variables_is_found(tmp_path, seed):
    mesh = make_mesh(config.MeshConfig(), jax.devices()[:1])
    target = abstract(init, mesh, jax.random.key(0), collection="params")
    checkpoint.save_variables(tmp_path / "variables", nn.unbox(init(jax.random.key(1))))
    checkpoint.load_variables(tmp_path / "variables", target)
    flip(tmp_path / "variables", seed)
    with pytest.raises(UserError, match="damaged checkpoint"):
        checkpoint.load_variables(tmp_path / "variables", target)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "the disk is full"),
        (ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device"), "the disk is full"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "too many files are open; raise the limit"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), "cannot be written: Read-only file system"),
    ],
)
def test_a_save_that_fails_is_one_line(tmp_path, monkeypatch, error, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(checkpoint.ocp, "save", fail)
    with pytest.raises(UserError, match=message) as raised:
        checkpoint.save_variables(tmp_path / "variables", {"x": np.zeros(2)})
    assert str(raised.value).startswith(f"{tmp_path / 'variables'}: ")
