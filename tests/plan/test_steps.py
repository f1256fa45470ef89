"""Planned states and batches are those that the stages make, and their sizes those of real arrays."""

import jax
import numpy as np
import pytest

from jax_rele.config import MeshConfig, from_dict
from jax_rele.data import write_pairs, write_signals
from jax_rele.data.batches.loader import Groups
from jax_rele.data.tokens.policy_rows import policy_rows
from jax_rele.data.tokens.preference_rows import preference_rows, with_references
from jax_rele.data.tokens.prompts import Answer, language_rows
from jax_rele.data.tokens.tokenizers import train_tokenizer
from jax_rele.distillation.fields import batch_fields
from jax_rele.distillation.trainer import query_groups
from jax_rele.errors import UserError
from jax_rele.models import build_teacher
from jax_rele.models.decoder import init_decoder
from jax_rele.plan.abstract import bytes_per_chip, train_state
from jax_rele.plan.steps import language_batch, policy_batch, preference_batch, steps, student_batch
from jax_rele.rationale import render
from jax_rele.runs import layout
from jax_rele.stages import distill
from jax_rele.training import init_state, make_mesh, make_optimizer
from jax_rele.types import Comparison, Item, Pair, Rationale, Signals

SHAPE = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "mlp_width": 64, "vocab_size": 512}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


@pytest.fixture(scope="module")
def config():
    return from_dict(
        {
            "teacher": {"random": SHAPE, "remat": "full"},
            "finetune": {"pack_to": 64, "optimization": {"batch_size": 8, "micro_batches": 2}},
            "student": {
                "random": {"layers": 1, "width": 32, "mlp_width": 64, "vocab_size": 300},
                "cross_encoder": {"latent_width": 32},
            },
            "score": {"batch_size": 16},
        }
    )


def outline(tree, rows):
    """Structure, types and shapes behind the first axis, which has `rows`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    assert {leaf.shape[0] for _, leaf in leaves} == {rows}
    return {jax.tree_util.keystr(path): (leaf.dtype, leaf.shape[1:]) for path, leaf in leaves}


@pytest.mark.parametrize("pack_to", [0, 16])
def test_a_planned_batch_of_the_teacher_is_that_of_the_stage(mesh, pack_to):
    answers = [Answer([4, 5, 6], ["fixed"] * 3)] * 4
    real = language_rows([[1, 2, 3, 4, 5, 6]] * 4, answers, 0, pack_to)
    count, length = real["targets"].shape
    planned = language_batch(mesh, 4, length, packed=bool(pack_to))
    assert outline(planned, 4) == outline(real, count)


@pytest.mark.parametrize("pack_to", [0, 40])
def test_a_planned_batch_of_preferences_is_that_of_the_stage(mesh, pack_to):
    answers = [Answer([4, 5, 6], ["fixed"] * 3)] * 4
    real = with_references(preference_rows([[1, 2, 3]] * 4, answers, answers, 0, pack_to), np.zeros((4, 2)))
    count, length = real["inputs"]["tokens"].shape
    assert outline(preference_batch(mesh, 4, length, real["preferences"].shape[1]), 4) == outline(real, count)


def test_a_step_on_preferences_costs_what_its_tokens_cost(config, mesh):
    """The reference's log-probabilities are data."""
    prefer = config.prefer.model_copy(update={"enabled": True, "optimization": config.finetune.optimization})
    makers = dict(steps(config.model_copy(update={"prefer": prefer}), mesh, "tpu", ["finetune", "prefer"]))
    finetune, preferences = (makers[name]() for name in ("finetune", "prefer"))
    cost = (preferences.required / preferences.tokens) / (finetune.required / finetune.tokens)
    # More than 1 for the attention of longer rows, as both texts of a preference stand in one.
    assert 1 <= cost < 2.2
    assert "prefer" not in dict(steps(config, mesh, "tpu", ["finetune", "prefer"]))


def test_a_planned_batch_of_rewards_is_that_of_the_stage(config, mesh):
    real = policy_rows([[1, 2, 3]] * 4, [[4, 5, 6]] * 4, [[True, False, False]] * 4, [1.0] * 4, 0, 8)
    real |= dict.fromkeys(("old_log_probs", "reference_log_probs"), np.zeros_like(real["advantages"]))
    assert outline(policy_batch(mesh, 4, 8), 4) == outline(real, len(real["targets"]))
    same = {"optimization": config.finetune.optimization, "pack_to": config.finetune.pack_to}
    reinforce = config.reinforce.model_copy(update={"enabled": True, **same})
    makers = dict(steps(config.model_copy(update={"reinforce": reinforce}), mesh, "tpu", ["finetune", "reinforce"]))
    finetune, rewarded = (makers[name]() for name in ("finetune", "reinforce"))
    assert 0.9 < (rewarded.required / rewarded.tokens) / (finetune.required / finetune.tokens) < 1.1
    assert "reinforce" not in dict(steps(config, mesh, "tpu", ["finetune", "reinforce"]))


@pytest.mark.parametrize(
    ("name", "recipe"),
    [("cross_encoder", "mkd"), ("two_tower", "mkd"), ("cross_encoder", "lrkd"), ("cross_encoder", "crsd")],
)
def test_a_planned_batch_of_a_student_is_that_of_the_stage(config, mesh, name, recipe, tmp_path):
    pairs = [
        Pair(f"p{n}", f"query {n // 4}", Item(f"i{n}", f"title {n}"), label="Exact", split="train") for n in range(16)
    ]
    tokenizer = train_tokenizer([pair.query + " " + pair.item.title for pair in pairs], 300)
    labels, dimensions = len(config.labels.names), config.rationale.dimensions
    signals = Signals(
        pair_ids=tuple(pair.pair_id for pair in pairs),
        label_probs=np.full((16, labels), 1 / labels, np.float32),
        verdict_probs=np.full((16, len(dimensions), 3), 1 / 3, np.float32),
        evidence=((),) * 16,
        rationales=(render(Rationale((Comparison("brand", verdict="match"),), "Exact")),) * 16,
    )
    for path, table in ((layout.PAIRS, pairs), (layout.UNLABELLED, [])):
        write_pairs(tmp_path / path, table)
    write_signals(tmp_path / layout.SIGNALS, signals, config.labels.names, dimensions)
    tokenizer.save_pretrained(tmp_path / layout.STUDENT_TOKENIZER)
    options = config.distill.model_copy(update={"students": (name,), "recipes": (recipe,)})
    config = config.model_copy(update={"cache_dir": str(tmp_path), "distill": options})
    distillation = distill.prepare(config, tmp_path)
    student, terms = distillation.students[name], distillation.terms[recipe][name]
    dataset = distillation.datasets[name]
    columns = dataset.select(batch_fields(student.model, student.input_spec, [terms]))
    groups = query_groups(dataset.columns["query"], dataset.labelled, config.distill.group_size, unlabelled=True)
    real = Groups(columns, groups)(np.arange(len(groups)), np.arange(len(groups)))
    planned = student_batch(student.model, student.input_spec, mesh, 16, terms)
    assert outline(planned, 16) == outline(real, 16)


@pytest.mark.parametrize("name", ["cross_encoder", "two_tower"])
def test_a_planned_student_reads_packed_rows(config, mesh, name):
    def planned(**options):
        distill = config.distill.model_copy(update={"students": (name,), **options})
        return dict(steps(config.model_copy(update={"distill": distill}), mesh, "gpu", ("distill",)))[name]()

    padded, packed = planned(pack_to=0), planned(pack_to=128)
    inputs = packed.resident["batch"]["inputs"]
    packings = [inputs[key] for key in inputs if key.endswith("packing")]
    assert len(packings) == {"cross_encoder": 1, "two_tower": 2}[name]
    assert packed.tokens == sum(packing["source"].size for packing in packings) < 0.7 * padded.tokens
    assert packed.shape == f"{padded.shape}; packed into {packed.tokens // 32} a pair"
    assert packed.executed < padded.executed
    for packing in packings:
        # Every chip of data x fsdp has rows of its own.
        parts, rows, length = packing["source"].shape
        assert (parts, length, packing["target"].shape[0]) == (4, 128, 32)
        assert packing["source"].sharding.shard_shape(packing["source"].shape) == (1, rows, length)
    # What reads the first token's attention has padded rows.
    if name == "cross_encoder":
        assert planned(recipes=("rationale_guided",)).tokens == padded.tokens


@pytest.mark.parametrize("trainable", ["params", "lora"])
def test_a_planned_state_is_the_real_one(config, mesh, trainable):
    model = build_teacher(config.teacher, 512)
    tx, init = make_optimizer(config.finetune.optimization), init_decoder(model)
    planned = train_state(init, trainable, {}, tx, mesh)
    real = init_state(init, trainable, {}, tx, mesh, 0)
    assert jax.tree.structure(planned) == jax.tree.structure(real)
    for expected, leaf in zip(jax.tree.leaves(real), jax.tree.leaves(planned)):
        assert (leaf.shape, leaf.dtype) == (expected.shape, expected.dtype)
        assert leaf.sharding.is_equivalent_to(expected.sharding, expected.ndim)
    expected_bytes = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(real))
    assert bytes_per_chip(planned) == expected_bytes


@pytest.mark.parametrize(
    ("kind", "bits", "scales"),
    # A scale an output channel in float32, or in bfloat16 one for 64 inputs or fewer.
    [("none", 32, 0), ("int8", 8, 4), ("nf4", 4, 2)],
)
def test_a_quantized_base_takes_what_its_bits_take(config, mesh, kind, bits, scales):
    teacher = config.teacher.model_copy(update={"quantize": kind})
    ((_, make),) = steps(config.model_copy(update={"teacher": teacher}), mesh, "gpu", ("score",))
    layers, width, mlp = 2, 32, 64
    weights = 3 * layers * width * mlp // 4  # fsdp x tensor
    channels = layers * (2 * mlp // 2 + width // 2)  # gate and up over tensor, down over fsdp
    assert bytes_per_chip(make().resident["base"]["layers"]["mlp"]) == weights * bits // 8 + channels * scales


def test_the_steps_of_a_run(config, mesh):
    makers = dict(steps(config, mesh, "gpu", ("adapt", "finetune", "generate", "distill")))
    assert list(makers) == ["adapt", "finetune", "generate", "cross_encoder", "two_tower"]
    step = makers["finetune"]()
    assert (step.tokens, step.shape) == (8 * 64, "8 rows of 64 tokens, 2 at a time")
    assert 0 < step.required < step.executed
    assert list(step.lower) == ["xla", "cudnn"]
    # cuDNN reads a 16-bit mask of the four rows that two chips share, and writes its gradient.
    assert step.unseen == {"cudnn": 2 * 2 * 64 * 64 * (8 // 2 // 4)}
    assert set(step.resident) == {"base", "trained", "optimizer", "batch"}
    # Adam keeps two numbers for each that learns, and two counts.
    assert bytes_per_chip(step.resident["optimizer"]) == 2 * bytes_per_chip(step.resident["trained"]) + 2 * 4


def test_the_layers_of_a_cache_are_not_rows(config, mesh):
    """Three layers do not divide over the four chips of data x fsdp, and need not."""
    random = config.teacher.random.model_copy(update={"layers": 3})
    teacher = config.teacher.model_copy(update={"random": random})
    ((_, make),) = steps(config.model_copy(update={"teacher": teacher}), mesh, "gpu", ("generate",))
    assert {leaf.shape[0] for leaf in jax.tree.leaves(make().resident["cache"])} == {3}


def test_what_learns_is_float32_whatever_the_activations_are(config, mesh):
    teacher = config.teacher.model_copy(update={"dtype": "bfloat16"})
    makers = dict(steps(config.model_copy(update={"teacher": teacher}), mesh, "gpu", ("adapt", "finetune")))
    adapt, finetune = (makers[name]().resident for name in ("adapt", "finetune"))
    for learns in (adapt["trained"], finetune["trained"]):
        assert {leaf.dtype for leaf in jax.tree.leaves(learns)} == {np.dtype("float32")}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(finetune["base"])} == {"bfloat16"}


@pytest.mark.parametrize(
    ("sizes", "names", "message"),
    [
        ({"data": 2, "fsdp": 1, "tensor": 4}, ("score",), "tensor = 4 devices do not divide the teacher's 2 kv_heads"),
        ({"data": 8, "fsdp": 1, "tensor": 1}, ("finetune",), "do not divide over"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(config, sizes, names, message):
    mesh = make_mesh(MeshConfig(**sizes))
    with pytest.raises(UserError, match=message):
        [make() for _, make in steps(config, mesh, "gpu", names)]


@pytest.mark.parametrize(("kind", "attention"), [("gpu", "splash"), ("tpu", "cudnn")])
def test_attention_for_other_chips_is_refused(config, mesh, kind, attention):
    teacher = config.teacher.model_copy(update={"attention": attention})
    with pytest.raises(UserError, match=f"teacher.attention: {attention} is not for {kind.upper()}s"):
        list(steps(config.model_copy(update={"teacher": teacher}), mesh, kind, ("score",)))
