"""Two real processes of jax.distributed (Gloo): the numbers of one process, and one end when either fails."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from flax import linen as nn

from jax_rele import cli, config, losses
from jax_rele.data import read_signals
from jax_rele.data.batches.loader import Groups, batches, shuffled
from jax_rele.errors import UserError
from jax_rele.runs import pipeline
from jax_rele.stages import score
from jax_rele.training import (
    abstract,
    distributed,
    init_state,
    local_row_indices,
    make_mesh,
    make_optimizer,
    make_train_step,
    preemption,
    shard_step,
    train,
)
from jax_rele.training.checkpoint import load_variables, save_variables
from jax_rele.types import StudentOutputs

pytestmark = pytest.mark.slow

LABELS, WIDTH, PAIRS, SIZE = 3, 6, 40, 2
OPTIMIZATION = config.OptimizationConfig(steps=8, batch_size=8, learning_rate=1e-2, checkpoint_every=2, log_every=1)
KILLED_AT = 6
GAINS = np.array([1.0, 0.5, 0.0], np.float32)
LAUNCHER = Path(__file__).resolve().parents[2] / "scripts" / "launch" / "local.sh"


class Classifier(nn.Module):
    """Two layers with the axis names and the dropout of a real model."""

    @nn.compact
    def __call__(self, x, deterministic=True):
        def dense(width, *axes):
            return nn.Dense(width, kernel_init=nn.with_logical_partitioning(nn.initializers.lecun_normal(), axes))

        x = nn.Dropout(0.2, deterministic=deterministic)(nn.gelu(dense(16, "embed", "mlp")(x)))
        return StudentOutputs(logits=dense(LABELS, "mlp", "embed_out")(x))


def rows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(PAIRS, WIDTH)).astype(np.float32)
    pairs = {
        "inputs": {"x": x},
        "labels": x[:, :LABELS].argmax(axis=1).astype(np.int32),
        "labels_mask": rng.random(PAIRS) < 0.7,
        "label_probs": rng.dirichlet(np.ones(LABELS), PAIRS).astype(np.float32),
    }
    return Groups(pairs, np.arange(PAIRS).reshape(-1, SIZE))


def init(rng):
    return Classifier().init(rng, np.zeros((1, WIDTH), np.float32))


def objective():
    """Pairs of one group count together, so that it matters which of them a step holds in which places."""
    label, margin = losses.term(losses.cross_entropy), losses.term(losses.margin_mse, gains=GAINS)
    return losses.combine(label=label, margin=margin)


def train_here(directory: Path, devices=None, dies: bool = False, preempted: bool = False):
    """Trains as a stage does, in all processes of this run."""
    mesh, tx = make_mesh(config.MeshConfig(data=2, fsdp=2), devices), make_optimizer(OPTIMIZATION)
    groups = OPTIMIZATION.batch_size // SIZE
    data = batches(rows(), shuffled(PAIRS // SIZE, groups, 0), local_row_indices(mesh, groups))
    state = init_state(init, "params", {}, tx, mesh, 0)
    step = shard_step(make_train_step(Classifier().apply, objective(), tx), mesh, state)

    def step_or_die(state, batch, calls=[]):  # noqa: B006
        calls.append(0)
        if dies and len(calls) == KILLED_AT and not distributed.is_main():
            os.kill(os.getpid(), signal.SIGKILL)
        if preempted and len(calls) == 3 and not distributed.is_main():
            os.kill(os.getpid(), signal.SIGTERM)
        return step(state, batch)

    state = train(step_or_die, state, data, config=OPTIMIZATION, mesh=mesh, directory=directory, title="test")
    save_variables(directory / "variables", state.trainable)


def environment() -> dict[str, str]:
    """That of the tests, less what would make a process part of another run; compilers are told to be quick."""
    variables = {
        name: value
        for name, value in os.environ.items()
        if name not in (*distributed.ADDRESS_VARIABLES, distributed.DETECT)
    }
    return variables | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PLATFORMS": "cpu"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_processes(*commands: list[str], timeout: float = 250) -> list[tuple[int, str, str]]:
    """Runs one process per command, joined by jax.distributed. Returns (exit status, stdout, stderr) of each."""
    port = free_port()
    running = [
        subprocess.Popen(
            command,
            env=environment()
            | {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(len(commands)),
                "JAX_PROCESS_ID": str(process),
            },
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for process, command in enumerate(commands)
    ]
    try:
        return [(process.returncode, *texts) for process in running for texts in [process.communicate(timeout=timeout)]]
    finally:
        for process in running:
            process.kill()


def launch(*command, devices: int = 2, grace: int = 20) -> subprocess.CompletedProcess:
    """Runs a command in two processes by the launcher, each with so many devices."""
    variables = {"JAX_NUM_CPU_DEVICES": str(devices), "GRACE": str(grace)}
    arguments = [str(LAUNCHER), "2", "--", *map(str, command)]
    pipes = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(arguments, env=environment() | variables, **pipes) as launcher:
        try:
            out, err = launcher.communicate(timeout=500)
        finally:
            launcher.terminate()  # which it passes on
    return subprocess.CompletedProcess(arguments, launcher.returncode, out, err)


def this_file(*arguments) -> list[str]:
    return [sys.executable, __file__, *map(str, arguments)]


def figures(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def assert_same_training(one: Path, other: Path):
    expected, got = figures(one), figures(other)
    assert [line["step"] for line in got] == list(range(1, OPTIMIZATION.steps + 1))
    for a, b in zip(expected, got, strict=True):
        for key in ("loss", "grad_norm", "term/label", "term/margin"):
            assert b[key] == pytest.approx(a[key], abs=1e-5), (a["step"], key)
    mesh = make_mesh(config.MeshConfig(), jax.devices()[:1])
    variables = [
        load_variables(path / "variables", abstract(init, mesh, jax.random.key(0), collection="params"))
        for path in (one, other)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *variables)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of one process, without a break."""
    folder = tmp_path_factory.mktemp("alone")
    train_here(folder, jax.devices()[:4])
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run of two processes of which one was killed."""
    folder = tmp_path_factory.mktemp("killed")
    done = launch(*this_file("train", folder, "dies"), grace=1)
    assert done.returncode == 128 + signal.SIGKILL, done.stdout + done.stderr
    assert sorted(path.name for path in (folder / "checkpoints").iterdir() if path.name.isdigit()) == ["2", "4"]
    assert not (folder / "variables").exists()
    return folder


def test_two_processes_stopped_and_resumed_train_like_one(alone, killed, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(killed, folder)
    done = launch(*this_file("train", folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_training(alone, folder)


def test_one_process_goes_on_where_two_were(alone, killed, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(killed, folder)
    train_here(folder, jax.devices()[:4])
    assert_same_training(alone, folder)


def test_sigterm_in_one_process_ends_both_after_the_same_step(alone, tmp_path):
    folder = tmp_path / "run"
    done = launch(*this_file("train", folder, "preempted"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "jax-rele: test: stopped by SIGTERM, step 6 is saved; the same command resumes" in done.stdout + done.stderr
    assert not (folder / "variables").exists()
    done = launch(*this_file("train", folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_training(alone, folder)


def test_a_process_that_is_killed_ends_the_other_with_one_line():
    script = """
import os, signal, time
from jax_rele.training import distributed
distributed.ALIVE_SECONDS = 6.0
with distributed.join_processes():
    if os.environ["JAX_PROCESS_ID"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.barrier("the other")
"""
    (status, _, error), _ = run_processes(*[[sys.executable, "-c", script]] * 2)
    assert status == 1
    assert error.startswith("jax-rele: process 1: no sign of life for 6 s")
    assert error.count("\n") == 1


@pytest.mark.parametrize(("data", "fsdp", "tensor"), [(4, 2, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8), (8, 1, 1)])
@pytest.mark.parametrize("spread", [1, 3])
def test_what_the_processes_read_makes_up_the_batch_of_one(data, fsdp, tensor, spread):
    """Whichever process holds which device, as on a slice whose hosts are squares of chips."""
    owners = np.arange(8).reshape(data * fsdp, tensor) * spread % 8 // 2
    devices = [[SimpleNamespace(process_index=owner) for owner in row] for row in owners]
    mesh = SimpleNamespace(
        shape={"data": data, "fsdp": fsdp, "tensor": tensor}, devices=np.array(devices).reshape(data, fsdp, tensor)
    )
    alone = batches(rows(), shuffled(PAIRS // SIZE, 8, 3))
    whole = [next(alone) for _ in range(3)]
    for process in range(4):
        indices = local_row_indices(mesh, 8, process)
        # The groups of a device, for each place along data x fsdp.
        by_row = np.arange(8).reshape(len(owners), -1)
        np.testing.assert_array_equal(indices, by_row[(owners == process).any(axis=1)].ravel())
        own = batches(rows(), shuffled(PAIRS // SIZE, 8, 3), indices)
        pairs = (indices[:, None] * SIZE + np.arange(SIZE)).ravel()
        for expected in whole:
            chex.assert_trees_all_equal(jax.tree.map(lambda x: x[pairs], expected), next(own))  # noqa: B023


def test_a_batch_that_does_not_divide_over_the_processes_is_refused():
    devices = np.array([SimpleNamespace(process_index=owner) for owner in range(4)]).reshape(4, 1, 1)
    mesh = SimpleNamespace(shape={"data": 4, "fsdp": 1, "tensor": 1}, devices=devices)
    with pytest.raises(UserError, match="mesh: 6 rows or groups of a step over several processes do not divide"):
        local_row_indices(mesh, 6)


# ---- start-up


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"JAX_NUM_PROCESSES": "2"},
            "JAX_NUM_PROCESSES is set without JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID; set all",
        ),
        ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_PROCESS_ID": "0"}, "is set without JAX_NUM_PROCESSES"),
        ({"JAX_RELE_DISTRIBUTED": "yes"}, "JAX_RELE_DISTRIBUTED is 'yes'; set it to 1"),
        ({"JAX_RELE_DISTRIBUTED": "1"}, "JAX_RELE_DISTRIBUTED=1: the processes cannot join"),
        (
            {"JAX_COORDINATOR_ADDRESS": "host", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
            "JAX_COORDINATOR_ADDRESS is 'host'; it must be HOST:PORT",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"},
            "JAX_NUM_PROCESSES is 'two'; it must be a whole number",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
            "JAX_PROCESS_ID is 2; with JAX_NUM_PROCESSES=2 it must be less",
        ),
    ],
)
def test_a_half_set_environment_is_refused(monkeypatch, variables, message):
    for name in (*distributed.ADDRESS_VARIABLES, distributed.DETECT):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as error:
        distributed.initialize()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_without_an_environment_a_process_is_alone(monkeypatch):
    for name in (*distributed.ADDRESS_VARIABLES, distributed.DETECT):
        monkeypatch.delenv(name, raising=False)
    with distributed.join_processes():
        assert not distributed.initialize()
    assert distributed.is_main()
    assert distributed.on_main(lambda: (1, 2)) == (1, 2)
    assert distributed.gather("x") == ["x"]
    distributed.barrier("nothing to wait for")


# ---- a whole run


@pytest.mark.timeout(600)
def test_a_run_of_two_processes_gives_the_figures_of_one(tiny, tmp_path):
    file, alone = tiny
    options = ["--run_root", tmp_path, "--distill.students", "cross_encoder", "--distill.recipes", "mkd"]
    done = launch(*this_file("run", file, *options), devices=1)
    assert done.returncode == 0, done.stdout + done.stderr
    lines, parallel = done.stdout.splitlines(), tmp_path / "tiny"
    # Process 0 alone speaks; both judge.
    assert (
        sum(line.startswith("[0]") and " finished in " in line for line in lines) == len(pipeline.STAGES) - 1
    )  # without reinforce
    assert not any(line.startswith("[1]") and " finished in " in line for line in lines)
    assert {"[0] wrote shard 00000", "[1] wrote shard 00001"} <= set(lines)

    settings = pipeline.read_config(alone)
    read = partial(read_signals, label_names=settings.labels.names, dimensions=settings.rationale.dimensions)
    one, two = (read(path / "score" / "signals.parquet") for path in (alone, parallel))
    assert one.pair_ids == two.pair_ids
    assert one.rationales == two.rationales
    np.testing.assert_allclose(one.label_probs, two.label_probs, atol=1e-5)
    one, two = (pq.read_table(path / "evaluate" / "predictions.parquet") for path in (alone, parallel))
    for name in ("teacher", "cross_encoder:mkd"):
        np.testing.assert_allclose(one[name].to_pylist(), two[name].to_pylist(), atol=1e-5)
    one, two = (json.loads((path / "evaluate" / "metrics.json").read_text()) for path in (alone, parallel))
    for name in ("teacher", "cross_encoder:mkd"):
        for metric, figure in one["models"][name].items():
            assert two["models"][name][metric]["value"] == pytest.approx(figure["value"], abs=1e-4), metric


# ---- one end for all


@pytest.mark.parametrize(("failing", "doing"), [(0, "distributed.barrier('x')"), (1, "time.sleep(600)")])
def test_an_error_in_one_process_ends_both_with_one_line(failing, doing):
    """The other one waits for it, and clears up; or is busy elsewhere and does not come to ask."""
    script = f"""
import os, time
from jax_rele.errors import UserError
from jax_rele.training import distributed
with distributed.join_processes():
    if os.environ["JAX_PROCESS_ID"] != "{failing}":
        try:
            {doing}
        finally:
            print("clears up")
    raise UserError("pairs.jsonl row 7: no title; give it one")
"""
    ended = run_processes(*[[sys.executable, "-c", script]] * 2)
    assert [status for status, *_ in ended] == [2, 2]
    assert ("clears up" in ended[1 - failing][1]) == ("barrier" in doing)
    who = "" if failing == 0 else "process 1: "
    assert ended[0][2] == f"jax-rele: {who}pairs.jsonl row 7: no title; give it one\n"
    assert ended[1][2] == ""


def run(*arguments: str) -> None:
    """`jax-rele run` with small shards, which tells who writes them."""
    write = score.write_signals

    def write_and_print(path, *rest):
        print(f"wrote shard {path.stem}", flush=True)
        write(path, *rest)

    score.SHARD, score.write_signals = 40, write_and_print
    sys.exit(cli.main(["run", *arguments]))


def main(job: str, *arguments: str) -> None:
    if job == "run":
        run(*arguments)
    with preemption.end_on_sigterm(), distributed.join_processes():
        train_here(Path(arguments[0]), dies="dies" in arguments, preempted="preempted" in arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
