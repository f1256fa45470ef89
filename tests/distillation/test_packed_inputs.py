"""Training on packed rows gives what padded ones give: losses and parameters, on any devices, resumed or not."""

import dataclasses

import jax
import numpy as np
import pytest

from jax_rele.config import Config, MeshConfig
from jax_rele.data import write_pairs, write_signals
from jax_rele.data.tokens.tokenizers import train_tokenizer
from jax_rele.rationale import render
from jax_rele.runs import layout
from jax_rele.stages import distill
from jax_rele.training import make_mesh, shard_batch
from jax_rele.types import Comparison, Item, Pair, Rationale, Signals, Span

pytestmark = pytest.mark.slow

WORDS = ["red", "blue", "shoes", "shirt", "small", "large", "cotton", "leather", "acme", "zeta"]
DRAW = np.random.default_rng(1)
PAIRS = [
    Pair(
        f"m{n}",
        " ".join(WORDS[(n // 4 + k) % 10] for k in range(1 + n // 4 % 3)),
        Item(f"i{n}", " ".join(DRAW.choice(WORDS, DRAW.integers(1, 9)))),
        label=("Exact", "Substitute", "Irrelevant", None)[n % 4],
        split="train",
    )
    for n in range(96)
]
ORDERED = sorted(PAIRS, key=lambda pair: pair.label is None)
SIGNALS = Signals(
    tuple(pair.pair_id for pair in ORDERED),
    DRAW.dirichlet(np.ones(4), 96).astype(np.float32),
    DRAW.dirichlet(np.ones(3), (96, 7)).astype(np.float32),
    ((Span("query", 0, 3, "color"),),) * 96,
    (render(Rationale((Comparison("color", ("red",), ("blue",), "mismatch"),), "Exact")),) * 96,
)
STUDENT = {
    "random": {"vocab_size": 320, "layers": 1, "width": 16, "heads": 2, "mlp_width": 16},
    "dropout": 0.0,
    "query_length": 12,
    "item_length": 20,
    "rationale_length": 12,
    "two_tower": {"embedding_width": 16, "view_width": 4},
}
CASES = {
    "cross_encoder": (("cross_encoder",), "mkd", {}),
    "two_tower": (("two_tower",), "mkd", {}),
    "joint": (("cross_encoder", "two_tower"), "score_kd", {"term_gradients": True}),
    "micro": (("cross_encoder",), "mkd", {"optimization": {"micro_batches": 2}}),
    "buckets": (("cross_encoder",), "score_kd", {"length_buckets": 2}),
    "rationale": (("cross_encoder",), "crsd", {}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    texts = [f"{pair.query} {pair.item.title}" for pair in PAIRS]
    train_tokenizer(texts, 320).save_pretrained(folder / layout.STUDENT_TOKENIZER)
    write_pairs(folder / layout.PAIRS, [pair for pair in ORDERED if pair.label is not None])
    write_pairs(folder / layout.UNLABELLED, [pair for pair in ORDERED if pair.label is None])
    config = Config.model_validate({})
    write_signals(folder / layout.SIGNALS, SIGNALS, config.labels.names, config.rationale.dimensions)
    return folder


def trainer_of(folder, names, recipe, pack_to, devices=1, selected=None, **options):
    optimization = {"steps": 4, "batch_size": 32, "learning_rate": 1e-2, "checkpoint_every": 2, "log_every": 1}
    optimization |= options.pop("optimization", {})
    fields = {"group_size": 4, "pack_to": pack_to, "students": names, "recipes": [recipe], **options}
    student = {**STUDENT, "dropout": fields.pop("dropout", 0.0)}
    config = Config.model_validate(
        {"student": student, "distill": {**fields, "optimization": optimization}, "mesh": {"data": 8}}
    ).model_copy(update={"cache_dir": str(folder / "cache")})
    distillation = distill.prepare(config, folder)
    mesh = make_mesh(MeshConfig(data=devices), jax.devices()[:devices])
    return dataclasses.replace(distillation, mesh=mesh).trainer(recipe, names, selected)


def packings(inputs):
    """The paths of the packings of a batch's inputs."""
    leaves = jax.tree_util.tree_leaves_with_path(inputs)
    return sorted(jax.tree_util.keystr(path) for path, _ in leaves if "source" in jax.tree_util.keystr(path))


def train(trainer, steps=4):
    """The parameters and the metrics of some steps, and the packings of the batches."""
    state, data, rows, packed = trainer.init_state(0), trainer.batches(0), [], []
    for _ in range(steps):
        batch = next(data)
        packed.append(packings(batch["inputs"]))
        state, metrics = trainer.step(state, shard_batch(batch, trainer.mesh))
        rows.append(jax.device_get(metrics))
    return jax.device_get(trainer.params_of(state)), rows, packed


def assert_close(one, other, tolerance=1e-4):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), one, other)


@pytest.mark.parametrize("case", CASES)
def test_packed_training_is_padded_training(folder, case):
    names, recipe, options = CASES[case]
    padded, padded_rows, none = train(trainer_of(folder, names, recipe, 0, **options))
    packed, packed_rows, some = train(trainer_of(folder, names, recipe, 48, **options))
    assert not any(none)
    assert any(some)
    assert_close(packed_rows, padded_rows)
    assert_close(packed, padded, 1e-3)
    if case == "joint":
        assert {"cross_encoder", "two_tower"} == {path.split("'")[1] for path in some[0]}
    if case == "rationale":
        assert any("augmented" in path for path in some[0])


def test_eight_devices_train_as_one(folder):
    options = {"optimization": {"batch_size": 64, "micro_batches": 2}}
    one = train(trainer_of(folder, ("cross_encoder",), "score_kd", 48, **options))
    eight = train(trainer_of(folder, ("cross_encoder",), "score_kd", 96, devices=8, **options))
    assert all(one[2])
    assert_close(eight[1], one[1])
    assert_close(eight[0], one[0], 1e-3)


def test_a_stopped_training_resumes_to_the_bit(folder, tmp_path):
    def trainer(steps):
        optimization = {"steps": steps, "schedule": "constant"}
        return trainer_of(folder, ("two_tower",), "score_kd", 48, dropout=0.1, optimization=optimization)

    whole = trainer(4).fit(0, tmp_path / "whole", "t")
    trainer(2).fit(0, tmp_path / "parts", "t")
    resumed = trainer(4).fit(0, tmp_path / "parts", "t")
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


def test_a_recipe_that_reads_the_attention_has_padded_rows(folder):
    batch = next(trainer_of(folder, ("cross_encoder",), "rationale_guided", 48).batches(0))
    assert not packings(batch["inputs"])


def test_some_of_the_pairs_have_batches_of_the_shape_of_all(folder):
    shapes = set()
    for selected in (None, np.arange(0, 48), np.arange(24, 72)):
        batch = next(trainer_of(folder, ("cross_encoder",), "label_only", 48, selected=selected).batches(0))
        shapes.add(batch["inputs"]["packing"]["source"].shape)
    assert len(shapes) == 1
