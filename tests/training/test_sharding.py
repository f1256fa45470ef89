"""Where the presets' parameters live, and what a step sends over a mesh of 256 devices that are not here."""

import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from jax_rele import config as configs
from jax_rele.models import build_teacher
from jax_rele.models.decoder import init_decoder
from jax_rele.models.partitioning import AXES
from jax_rele.plan.abstract import init_abstract, train_state
from jax_rele.training import make_mesh, make_optimizer
from jax_rele.training.sharding import spread

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"

# ---- the golden table: Qwen3-8B, 36 layers

GOLDEN = {
    # parameter: (shape, over which mesh axes each of its axes is split)
    "params/embedding": ((151936, 4096), P("tensor", "fsdp")),
    "params/output_embedding": ((151936, 4096), P("tensor", "fsdp")),
    "params/final_norm/scale": ((4096,), P("fsdp")),
    "params/layers/input_norm/scale": ((36, 4096), P(None, "fsdp")),
    "params/layers/mlp_norm/scale": ((36, 4096), P(None, "fsdp")),
    "params/layers/attention/q_norm/scale": ((36, 128), P(None, None)),
    "params/layers/attention/k_norm/scale": ((36, 128), P(None, None)),
    "params/layers/attention/q_proj/kernel": ((36, 4096, 4096), P(None, "fsdp", "tensor")),
    "params/layers/attention/k_proj/kernel": ((36, 4096, 1024), P(None, "fsdp", "tensor")),
    "params/layers/attention/v_proj/kernel": ((36, 4096, 1024), P(None, "fsdp", "tensor")),
    "params/layers/attention/o_proj/kernel": ((36, 4096, 4096), P(None, "tensor", "fsdp")),
    "params/layers/mlp/gate_proj/kernel": ((36, 4096, 12288), P(None, "fsdp", "tensor")),
    "params/layers/mlp/up_proj/kernel": ((36, 4096, 12288), P(None, "fsdp", "tensor")),
    "params/layers/mlp/down_proj/kernel": ((36, 12288, 4096), P(None, "tensor", "fsdp")),
    "lora/layers/attention/q_proj/a": ((36, 4096, 16), P(None, "fsdp", None)),
    "lora/layers/attention/q_proj/b": ((36, 16, 4096), P(None, None, "tensor")),
    "lora/layers/attention/k_proj/a": ((36, 4096, 16), P(None, "fsdp", None)),
    "lora/layers/attention/k_proj/b": ((36, 16, 1024), P(None, None, "tensor")),
    "lora/layers/attention/v_proj/a": ((36, 4096, 16), P(None, "fsdp", None)),
    "lora/layers/attention/v_proj/b": ((36, 16, 1024), P(None, None, "tensor")),
    "lora/layers/attention/o_proj/a": ((36, 4096, 16), P(None, "tensor", None)),
    "lora/layers/attention/o_proj/b": ((36, 16, 4096), P(None, None, "fsdp")),
    "lora/layers/mlp/gate_proj/a": ((36, 4096, 16), P(None, "fsdp", None)),
    "lora/layers/mlp/gate_proj/b": ((36, 16, 12288), P(None, None, "tensor")),
    "lora/layers/mlp/up_proj/a": ((36, 4096, 16), P(None, "fsdp", None)),
    "lora/layers/mlp/up_proj/b": ((36, 16, 12288), P(None, None, "tensor")),
    "lora/layers/mlp/down_proj/a": ((36, 12288, 16), P(None, "tensor", None)),
    "lora/layers/mlp/down_proj/b": ((36, 16, 4096), P(None, None, "fsdp")),
}

MESHES = {
    # preset: data, fsdp, tensor, where the preset says -1 for all that are left
    "qwen3_8b_v5e_4x4": (1, 16, 1),
    "qwen3_8b_v6e_2x4": (8, 1, 1),
    "qwen3_8b_gpu_8x80gb": (8, 1, 1),
}

PER_CHIP = {
    # What one chip has of some of them, on the presets' own meshes and on the one for scoring on v5e.
    (1, 16, 1): {
        "params/embedding": (151936, 256),
        "params/layers/attention/q_proj/kernel": (36, 256, 4096),
        "params/layers/attention/o_proj/kernel": (36, 4096, 256),
        "params/layers/mlp/down_proj/kernel": (36, 12288, 256),
        "lora/layers/mlp/up_proj/a": (36, 256, 16),
        "lora/layers/mlp/up_proj/b": (36, 16, 12288),
    },
    (4, 1, 4): {
        "params/embedding": (37984, 4096),
        "params/layers/attention/q_proj/kernel": (36, 4096, 1024),
        "params/layers/attention/o_proj/kernel": (36, 1024, 4096),
        "params/layers/mlp/down_proj/kernel": (36, 3072, 4096),
        "lora/layers/mlp/up_proj/a": (36, 4096, 16),
        "lora/layers/mlp/up_proj/b": (36, 16, 3072),
    },
    (8, 1, 1): {path: shape for path, (shape, _) in GOLDEN.items()},
}


def leaves(tree):
    return {
        jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def preset(name):
    config = configs.load(CONFIGS / f"{name}.yaml")
    assert config.teacher.init == "hf:Qwen/Qwen3-8B"
    teacher = config.teacher.model_copy(update={"init": str(CONFIGS / "models" / "qwen3_8b"), "attention": "xla"})
    return config.model_copy(update={"teacher": teacher})


def abstract_mesh(sizes):
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3)


@pytest.mark.parametrize("name", MESHES)
def test_the_parameters_of_a_preset_live_where_the_table_says(name):
    config = preset(name)
    sizes = MESHES[name]
    for axis, size in zip(AXES, sizes):
        assert getattr(config.mesh, axis) in (size, -1)
    results = leaves(init_abstract(init_decoder(build_teacher(config.teacher, 0)), abstract_mesh(sizes)))
    assert {path: (x.shape, x.sharding.spec) for path, x in results.items()} == GOLDEN
    for path, shape in PER_CHIP[sizes].items():
        assert results[path].sharding.shard_shape(results[path].shape) == shape, path


def test_a_mesh_for_scoring_splits_heads_and_inner_widths():
    results = leaves(
        init_abstract(init_decoder(build_teacher(preset("qwen3_8b_v5e_4x4").teacher, 0)), abstract_mesh((4, 1, 4)))
    )
    for path, shape in PER_CHIP[4, 1, 4].items():
        assert results[path].sharding.shard_shape(results[path].shape) == shape, path


@pytest.mark.parametrize("name", MESHES)
def test_the_optimizers_state_follows_what_it_belongs_to(name):
    config = preset(name)
    init, tx = init_decoder(build_teacher(config.teacher, 0)), make_optimizer(config.finetune.optimization)
    results = leaves(train_state(init, "lora", {}, tx, abstract_mesh(MESHES[name])).opt_state)
    moments = {path: x for path, x in results.items() if "lora" in path}
    assert len(moments) == 2 * sum(path.startswith("lora/") for path in GOLDEN)
    for path, x in moments.items():
        assert (x.shape, x.sharding.spec) == GOLDEN["lora/" + path.partition("lora/")[2]], path


# ---- several slices


@pytest.mark.parametrize(
    ("shape", "slices", "across"),
    [
        ((16, 256, 1), 16, [16, 1, 1]),
        ((32, 32, 4), 16, [16, 1, 1]),
        ((1, 4096, 1), 16, [1, 16, 1]),
        ((2, 8, 4), 4, [2, 2, 1]),
        ((1, 1, 8), 2, [1, 1, 2]),
        ((6, 2, 1), 4, [2, 2, 1]),
    ],
)
def test_slices_are_along_the_first_axes_that_they_divide(shape, slices, across):
    assert spread(shape, slices) == across


def test_a_mesh_over_two_slices_has_one_along_data():
    device = dataclasses.make_dataclass("Device", ["id", "slice_index", "platform", "device_kind"], frozen=True)
    devices = [device(n, n // 4, "cpu", "cpu") for n in range(8)]
    mesh = make_mesh(configs.MeshConfig(data=4, fsdp=1, tensor=2), devices)
    assert [[device.id for device in row.flat] for row in mesh.devices] == [[0, 1], [2, 3], [4, 5], [6, 7]]


# ---- collectives on 256 devices

LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_DIM, MLP, VOCABULARY, RANK = 3, 128, 8, 4, 16, 320, 4096, 4
QUERIES, KEYS = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
ROWS, LENGTH = 512, 48
FLOAT = 4

CODE = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 256)
from jax_rele.config import from_dict
from jax_rele.plan.hlo import collectives
from jax_rele.plan.steps import steps
from jax_rele.training import make_mesh
found = []
for values in json.load(sys.stdin):
    config = from_dict(values)
    ((_, make),) = steps(config, make_mesh(config.mesh), "gpu", ("finetune",))
    text = make().lower["xla"]().compile().as_text()
    found.append([[x.kind, x.bytes, x.group, x.count, x.source] for x in collectives(text)])
print(json.dumps(found))
"""
"""A process that compiles the fine-tuning step for as many CPU devices as it is told there are."""


@pytest.fixture(scope="module")
def sent():
    """(collectives with data 256, collectives with data 8, fsdp 8, tensor 4)."""
    values = {
        "teacher": {
            "remat": "full",
            "lora": {"rank": RANK},
            "random": {
                "layers": LAYERS,
                "width": WIDTH,
                "heads": HEADS,
                "kv_heads": KV_HEADS,
                "head_dim": HEAD_DIM,
                "mlp_width": MLP,
                "vocab_size": VOCABULARY,
            },
        },
        "finetune": {"pack_to": LENGTH, "optimization": {"batch_size": ROWS}},
    }
    meshes = [{"data": 256, "fsdp": 1, "tensor": 1}, {"data": 8, "fsdp": 8, "tensor": 4}]
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        input=json.dumps([{**values, "mesh": mesh} for mesh in meshes]),
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def adapters(fsdp, tensor):
    """Bytes of one layer's adapters whose axes of the residual stream, and of heads and inner width, are so split."""
    stream = 5 * WIDTH + 2 * WIDTH  # in of q, k, v, gate, up; out of o, down
    inner = 2 * QUERIES + 2 * KEYS + 3 * MLP  # out of q, k, v, gate, up; in of o, down
    return FLOAT * RANK * (stream // fsdp + inner // tensor)


def test_with_a_replicated_base_nothing_is_sent_but_gradients(sent):
    results = sent[0]
    # No look-up in the embedding, no activation and no weight: only sums over the batch.
    assert {kind for kind, *_ in results} == {"all-reduce"}
    assert {group for _, _, group, *_ in results} == {256}
    gradients = [(size, count) for _, size, _, count, source in results if "dot_general" in source]
    assert sum(size * count for size, count in gradients) == LAYERS * adapters(1, 1)
    # The rest are the loss and its counts.
    assert sum(size * count for _, size, _, count, source in results if "dot_general" not in source) < 100


def test_weights_are_gathered_over_fsdp_and_activations_never(sent):
    gathers = [(size, group, count) for kind, size, group, count, _ in sent[1] if kind == "all-gather"]
    assert {group for _, group, _ in gathers} == {8}
    weights = {
        FLOAT * WIDTH * VOCABULARY // 4: "embedding",
        FLOAT * WIDTH * QUERIES // 4: "queries, output",
        FLOAT * WIDTH * KEYS // 4: "keys, values",
        FLOAT * WIDTH * MLP // 4: "gate, up, down",
        FLOAT * WIDTH * RANK: "adapters",
        FLOAT * WIDTH: "norms",
    }
    assert {size for size, _, _ in gathers} <= set(weights)
    # No activation of a chip's 8 rows could be taken for one of them.
    assert all(
        8 * LENGTH * features * FLOAT not in weights for features in (WIDTH, QUERIES, KEYS, MLP, VOCABULARY // 4)
    )
    # The output embedding once, not once a chunk; each kernel forward, in what is recomputed, and backward, at most.
    runs = Counter()
    for size, _, count in gathers:
        runs[weights[size]] += count
    assert runs["embedding"] == 1
    assert runs["gate, up, down"] <= 3 * 3 * LAYERS
    assert runs["queries, output"] <= 3 * 2 * LAYERS


def test_gradients_are_summed_once_over_the_devices_that_share_the_batch(sent):
    # Each chip sums the adapters that belong to its part of heads and inner widths over data x fsdp.
    over_batch = [
        (size, count) for kind, size, group, count, source in sent[1] if group == 64 and "dot_general" in source
    ]
    assert sum(size * count for size, count in over_batch) == LAYERS * adapters(1, 4)


def test_products_over_tensor_are_summed_as_rows_of_their_chip(sent):
    assert {kind for kind, *_ in sent[1]} == {"all-gather", "all-reduce"}
    rows = 8 * LENGTH * WIDTH * FLOAT
    over_tensor = sum(size * count for kind, size, group, count, _ in sent[1] if kind == "all-reduce" and group == 4)
    # Of a chip's rows of the residual stream: the look-up in the split vocabulary and the gradient of the logits; in
    # each layer the outputs of attention and MLP, the one that is recomputed, and five gradients of their inputs.
    # What adapters add is a few percent.
    assert over_tensor < 1.05 * rows * (2 + 8 * LAYERS)
