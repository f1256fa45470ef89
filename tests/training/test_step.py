"""Steps, sharding, checkpoints and the loop on a small student: the same numbers however it is run."""

import json
import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jax_rele import config, losses
from jax_rele.data.batches import loader
from jax_rele.data.batches.loader import batches
from jax_rele.errors import UserError
from jax_rele.models import Decoder, DecoderConfig, EncoderConfig, LoraSpec
from jax_rele.students import CrossEncoder
from jax_rele.training import (
    RULES,
    abstract,
    init_state,
    make_mesh,
    make_optimizer,
    make_train_step,
    shard_batch,
    shard_step,
    train,
)
from jax_rele.training.checkpoint import load_variables, save_variables

LABELS, DIMENSIONS, LENGTH, ROWS = 3, 2, 8, 40
MODEL = CrossEncoder(EncoderConfig(30, LENGTH, 2, 32, 4, 48), LABELS, DIMENSIONS)
OPTIMIZATION = config.OptimizationConfig(steps=9, batch_size=8, learning_rate=3e-3, checkpoint_every=3, log_every=3)
LOSS = losses.combine(label=losses.term(losses.cross_entropy), tags=losses.term(losses.evidence_tagging))


def rows(seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 30, (ROWS, LENGTH)).astype(np.int32)
    return {
        "inputs": {"tokens": tokens, "token_types": tokens % 2, "valid": tokens > 2},
        "labels": (tokens[:, 0] % LABELS).astype(np.int32),
        "labels_mask": rng.random(ROWS) < 0.7,
        "evidence_tags": (tokens % (1 + DIMENSIONS)).astype(np.int32),
        "evidence_tags_mask": tokens > 2,
    }


def batches_of(batch_size):
    arrays = rows()
    return batches(loader.rows(arrays), loader.shuffled(len(arrays["labels"]), batch_size, seed=0))


def init(rng):
    return MODEL.init(rng, **jax.tree.map(lambda x: x[:1], rows()["inputs"]))


@cache
def initial_state_and_step(mesh):
    """One compile a mesh for the whole file."""
    tx = make_optimizer(OPTIMIZATION)
    state = init_state(init, "params", {}, tx, mesh, 0)
    return (
        jax.device_get(state),
        jax.tree.map(lambda x: x.sharding, state),
        shard_step(make_train_step(MODEL.apply, LOSS, tx), mesh, state),
    )


def start(mesh):
    """A fresh state, for steps give up its buffers, and the compiled step."""
    values, shardings, step = initial_state_and_step(mesh)
    return jax.device_put(values, shardings), step


def mesh_of(devices, data=-1, fsdp=1, tensor=1):
    return make_mesh(config.MeshConfig(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[:devices])


def losses_of(mesh, directory):
    state, step = start(mesh)
    data = batches_of(OPTIMIZATION.batch_size)
    state = train(step, state, data, config=OPTIMIZATION, mesh=mesh, directory=directory, title="test")
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return state, lines


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 2, "fsdp": 4}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_one_device_and_eight_give_the_same_losses(axes, tmp_path):
    _, one = losses_of(mesh_of(1), tmp_path / "one")
    _, eight = losses_of(mesh_of(8, **axes), tmp_path / "eight")
    assert len(one) == 3
    for a, b in zip(one, eight, strict=True):
        for key in ("loss", "grad_norm", "term/label", "term/tags"):
            assert a[key] == pytest.approx(b[key], abs=1e-5), key


def test_parameters_and_optimizer_state_are_born_sharded():
    state, _ = start(mesh_of(8, data=2, fsdp=2, tensor=2))
    specs = {
        jax.tree_util.keystr(path): leaf.sharding.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path((state.trainable, state.opt_state))
    }
    up = [spec for path, spec in specs.items() if "'up'" in path and "kernel" in path]
    # The parameter and AdamW's two moments.
    assert up == [PartitionSpec(None, "fsdp", "tensor")] * 3
    words = [spec for path, spec in specs.items() if "word_embedding" in path]
    assert words == [PartitionSpec("tensor", "fsdp")] * 3


def test_every_logical_axis_of_the_models_has_a_rule():
    decoder = Decoder(DecoderConfig(30, 1, 32, 2, 1, 8, 32, lora=LoraSpec(2, 2.0, 0.0, "(q|down)_proj")))
    boxed = jax.eval_shape(lambda rng: (init(rng), decoder.init(rng, jnp.zeros((1, 2), int))), jax.random.key(0))
    boxes = jax.tree.leaves(boxed, is_leaf=lambda x: hasattr(x, "names"))
    assert {name for box in boxes for name in box.names} <= dict(RULES).keys()


def test_an_interrupted_run_ends_like_an_unbroken_one(tmp_path, monkeypatch):
    mesh = mesh_of(1)
    whole, lines = losses_of(mesh, tmp_path / "whole")

    state, step = start(mesh)

    class Killed(Exception):
        pass

    def dies(state, batch, calls=[]):  # noqa: B006
        calls.append(0)
        if len(calls) == 6:
            raise Killed
        return step(state, batch)

    broken = tmp_path / "broken"
    with pytest.raises(Killed):
        train(
            dies,
            state,
            batches_of(8),
            config=OPTIMIZATION,
            mesh=mesh,
            directory=broken,
            title="test",
        )
    (broken / "metrics.jsonl").open("a").write('{"step": 5, "lo')
    resumed, again = losses_of(mesh, broken)
    jax.tree.map(np.testing.assert_array_equal, whole.trainable, resumed.trainable)
    assert [{**a, "pairs_per_second": 0, "input_wait": 0} for a in lines] == [
        {**b, "pairs_per_second": 0, "input_wait": 0} for b in again
    ]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
    mesh = mesh_of(1)
    state, step = start(mesh)

    def poisoned(state, batch):
        state, metrics = step(state, batch)
        return state, {**metrics, "loss": jnp.where(state.step >= 5, jnp.nan, metrics["loss"])}

    data = batches_of(8)
    with pytest.raises(UserError, match=r"test: loss nan, .* at step 5; lower optimization.learning_rate \(0.003\)"):
        train(poisoned, state, data, config=OPTIMIZATION, mesh=mesh, directory=tmp_path, title="test")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()] == ["3"]


def test_a_damaged_checkpoint_is_named(tmp_path):
    mesh = mesh_of(1)
    losses_of(mesh, tmp_path)
    newest = tmp_path / "checkpoints" / "9"
    for file in (newest / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    state, step = start(mesh)
    with pytest.raises(UserError, match=rf"{re.escape(str(newest))}: damaged checkpoint"):
        train(step, state, batches_of(8), config=OPTIMIZATION, mesh=mesh, directory=tmp_path, title="test")


def test_variables_move_between_meshes(tmp_path):
    state, _ = start(mesh_of(1))
    save_variables(tmp_path / "v", state.trainable)
    mesh = mesh_of(8, data=1, fsdp=4, tensor=2)
    loaded = load_variables(tmp_path / "v", abstract(init, mesh, jax.random.key(0), collection="params"))
    jax.tree.map(np.testing.assert_array_equal, state.trainable, loaded)
    assert loaded["params"]["encoder"]["word_embedding"].sharding.spec == PartitionSpec("tensor", "fsdp")


def test_variables_of_another_model_are_refused(tmp_path):
    save_variables(tmp_path / "v", {"params": {"other": jnp.ones(3)}})
    with pytest.raises(UserError, match="damaged checkpoint or one of another model"):
        load_variables(tmp_path / "v", abstract(init, mesh_of(1), jax.random.key(0), collection="params"))
    with pytest.raises(UserError, match="no such checkpoint"):
        load_variables(tmp_path / "w", {})


def test_only_the_adapters_learn():
    decoder = Decoder(DecoderConfig(30, 2, 32, 2, 1, 8, 32, lora=LoraSpec(2, 2.0, 0.0, "(q|up)_proj")))
    tokens = np.random.default_rng(0).integers(0, 30, (4, 6))
    mesh, tx = mesh_of(1), make_optimizer(OPTIMIZATION)
    base = init_state(lambda rng: decoder.init(rng, tokens), "params", {}, tx, mesh, 0).trainable
    state = init_state(lambda rng: decoder.init(rng, tokens), "lora", base, tx, mesh, 0)
    loss = losses.combine(tokens=losses.term(losses.next_token_cross_entropy))
    step = shard_step(make_train_step(decoder.apply, loss, tx), mesh, state)
    batch = {"inputs": {"tokens": tokens}, "targets": tokens, "targets_mask": tokens > 3}
    before = jax.device_get(state.frozen)
    after, values = state, []
    for _ in range(8):
        after, metrics = step(after, batch)
        values.append(float(metrics["loss"]))
    assert values[-1] < values[0]
    # The base is neither changed nor given up.
    jax.tree.map(np.testing.assert_array_equal, before, base)
    jax.tree.map(np.testing.assert_array_equal, before, after.frozen)
    assert set(after.opt_state[1][0].mu) == {"lora"}


def test_one_compile_per_step_function():
    mesh = mesh_of(1)
    state, step = start(mesh)
    data = batches_of(8)
    compiles = []
    for _ in range(4):
        state, _ = step(state, shard_batch(next(data), mesh))
        compiles.append(step.compiled._cache_size())
    assert compiles == [1, 1, 1, 1]


def test_rows_that_do_not_divide_over_the_devices_are_refused():
    with pytest.raises(UserError, match="12 rows of a step do not divide over data x fsdp = 8 devices"):
        shard_batch({"x": np.zeros(12)}, mesh_of(8))


def test_a_mesh_that_does_not_fit_the_devices_is_refused():
    with pytest.raises(UserError, match="mesh: data 3, fsdp 1, tensor 1 does not make 8 devices"):
        mesh_of(8, data=3)
    assert dict(mesh_of(8, fsdp=2, tensor=2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
