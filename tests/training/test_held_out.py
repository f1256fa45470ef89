"""Evaluation while training: exact means, lines that a resumed run repeats, and one compile of each function."""

import json
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_rele import config, losses
from jax_rele.data.batches import loader
from jax_rele.data.batches.loader import batches
from jax_rele.training import (
    create_state,
    init_sharded,
    make_evaluate,
    make_mesh,
    make_optimizer,
    make_train_step,
    shard_step,
    train,
)
from jax_rele.types import StudentOutputs

OPTIMIZATION = config.OptimizationConfig(
    steps=11, batch_size=16, micro_batches=2, learning_rate=0.1, checkpoint_every=4, log_every=2
)


def rows(count, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 6)).astype(np.float32)
    return {
        "inputs": {"x": x},
        "labels": (x[:, :3].argmax(-1)).astype(np.int32),
        "labels_mask": rng.random(count) < 0.7,
    }


def apply(variables, x, deterministic, rngs=None):
    return StudentOutputs(logits=x @ variables["params"]["kernel"])


def hits(logits, labels):
    return (logits.argmax(-1) == labels).astype(jnp.float32)


LOSS = losses.combine(loss=losses.term(losses.cross_entropy), accuracy=losses.term(hits))


def mesh_of(devices):
    return make_mesh(config.MeshConfig(), jax.devices()[:devices])


def start(mesh):
    tx = make_optimizer(OPTIMIZATION)
    make = lambda: create_state({"params": {"kernel": jnp.ones((6, 3))}}, {}, tx)  # noqa: E731
    state = init_sharded(make, mesh)
    step = make_train_step(apply, LOSS, tx, micro_batches=OPTIMIZATION.micro_batches)
    return state, shard_step(step, mesh, state), make_evaluate(apply, LOSS, rows(37, 1), 8, mesh)


@pytest.mark.parametrize("devices", [1, 8])
def test_the_means_are_those_of_all_rows_at_once(devices):
    """The last batch holds 5 of 8 rows; what fills it up counts for nothing."""
    state, _, evaluate = start(mesh_of(devices))
    whole = rows(37, 1)
    _, terms = LOSS(apply(state.variables, whole["inputs"]["x"], True), whole)
    assert evaluate(state) == pytest.approx(losses.means(terms), rel=1e-6)
    assert terms["accuracy"][1] == whole["labels_mask"].sum()


def run(directory, mesh, step=None, evaluate=None):
    state, default_step, measured = start(mesh)
    state = train(
        step or default_step,
        state,
        batches(loader.rows(rows(50, 0)), loader.shuffled(50, OPTIMIZATION.batch_size, 0)),
        config=OPTIMIZATION,
        mesh=mesh,
        directory=directory,
        title="test",
        evaluate=evaluate or measured,
        evaluate_every=3,
    )
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return state, [{**line, "pairs_per_second": 0, "input_wait": 0} for line in lines]


def test_figures_are_logged_and_a_resumed_run_repeats_them(tmp_path):
    mesh = mesh_of(1)
    state, lines = run(tmp_path / "whole", mesh)
    assert [line["step"] for line in lines] == [2, 3, 4, 6, 8, 9, 10, 11]
    assert [line["step"] for line in lines if "eval/loss" in line] == [3, 6, 9, 11]
    _, _, evaluate = start(mesh)
    assert {name: lines[-1][f"eval/{name}"] for name in ("loss", "accuracy")} == evaluate(state)
    assert lines[-1]["eval/loss"] < lines[1]["eval/loss"]

    class Killed(Exception):
        pass

    def dies(state, evaluations=[]):  # noqa: B006
        evaluations.append(0)
        if len(evaluations) == 2:
            raise Killed
        return evaluate(state)

    with pytest.raises(Killed):
        run(tmp_path / "broken", mesh, evaluate=dies)
    _, again = run(tmp_path / "broken", mesh)
    assert again == lines


def test_each_function_is_compiled_once_and_nothing_else_while_training(tmp_path, caplog):
    mesh = mesh_of(8)
    _, step, evaluate = start(mesh)
    compiled = []

    def watched(state, batch):
        compiled.append(re.findall(r"Compiling jit\((\w+)\)", caplog.text))
        return step(state, batch)

    with jax.log_compiles(), caplog.at_level(logging.WARNING, "jax"):
        run(tmp_path, mesh, watched, evaluate)
    assert step.compiled._cache_size() == evaluate.compiled._cache_size() == 1
    # Up to the second step after the first evaluation everything has been compiled.
    assert "compiled" in compiled[5]
    assert "totals" in compiled[5]
    assert compiled[5] == compiled[-1]
