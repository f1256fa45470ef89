"""Teacher and students that start from folders in the Hugging Face form, and a teacher that goes back to one."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from safetensors.numpy import load_file, save_file

from jax_rele import cli
from jax_rele.config import local_name
from jax_rele.data import read_signals
from jax_rele.models import Encoder, EncoderConfig, from_hf, load_peft, to_hf
from jax_rele.rationale import parse
from jax_rele.runs import layout, pipeline
from jax_rele.runs.load import load_student, load_teacher, load_zero_shot_teacher, read_run

pytestmark = pytest.mark.slow

OPEN = """
name: open
data: {{path: {pairs}, fields: {{item: product, query_tags: queryner}}, candidates: {{per_query: 1}}}}
labels:
  aliases: {{E: Exact, S: Substitute, C: Complement, I: Irrelevant}}
run_root: {root}
teacher:
  init: {folder}
  instructions: "Compare query and item."
  dtype: float32
  remat: full
  prompt_length: 64
  lora: {{rank: 4, alpha: 8, rank_stabilized: true, targets: "(q|v|down)_proj"}}
adapt: {{enabled: false}}
finetune:
  pack_to: 256
  evaluate_every: 2
  optimization: {{steps: 4, batch_size: 16, micro_batches: 2, learning_rate: 1.0e-2, checkpoint_every: 2, log_every: 2}}
student:
  init: {encoder}
  query_length: 12
  item_length: 20
  two_tower: {{towers: separate, embedding_width: 0}}
distill:
  students: [cross_encoder, two_tower]
  recipes: [mkd]
  group_size: 2
  optimization: {{steps: 2, batch_size: 16, checkpoint_every: 2, log_every: 2}}
evaluate: {{bootstrap_samples: 50, report_pairs: 4, zero_shot: true}}
"""
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}judge:"


def jax_rele(*arguments) -> int:
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def open_model(tiny, tmp_path_factory):
    """(config file, run folder, folder of the base) of a finished run; the base is another run's teacher, exported."""
    root = tmp_path_factory.mktemp("open")
    assert jax_rele("export", tiny[1], "--output", root / "base") == 0
    (root / "base" / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    write_encoder(tiny[1] / layout.STUDENT_TOKENIZER, root / "encoder")
    file = root / "open.yaml"
    pairs = tiny[0].parent / "pairs.jsonl"
    filled = OPEN.format(pairs=pairs, root=root / "runs", folder=root / "base", encoder=root / "encoder")
    file.write_text(filled, "utf-8")
    assert jax_rele("run", file) == 0
    return file, root / "runs" / "open", root / "base"


def write_encoder(tokenizer, folder):
    """A small BERT with random weights, and a tokenizer for it."""
    config = EncoderConfig(640, 40, layers=1, width=32, heads=2, mlp_width=32)
    model, ids = Encoder(config), jnp.zeros((1, 4), jnp.int32)
    variables = nn.unbox(model.init(jax.random.key(5), ids, ids, ids == 0))
    to_hf(model, variables, folder, source=tokenizer)


def test_students_start_from_the_weights_of_the_folder(open_model):
    """Two small steps from there: nowhere near another start."""
    file, run_dir, _ = open_model
    start = from_hf(file.parent / "encoder", dtype=jnp.float32)[1]["params"]
    config = pipeline.read_config(run_dir)
    for name, towers in (("cross_encoder", ["encoder"]), ("two_tower", ["query_encoder", "item_encoder"])):
        params = load_student(run_dir, name, recipe="mkd", config=config).variables["params"]
        for tower in towers:
            apart = np.abs(params[tower]["word_embedding"] - start["word_embedding"]).max()
            assert 0 < apart < 0.01


def test_students_of_other_weights_learn_from_the_same_signals(open_model, tmp_path, capsys):
    file, run_dir, _ = open_model
    copy = tmp_path / "runs" / "open"
    shutil.copytree(run_dir, copy)
    shutil.copytree(file.parent / "encoder", tmp_path / "other")
    options = ("--run_root", copy.parent, "--student.init", tmp_path / "other")
    assert jax_rele("run", file, *options) == 2
    assert f"{copy / 'distill'} belongs to another config: student.init is" in capsys.readouterr().err
    for stage in ("distill", "evaluate"):
        shutil.rmtree(copy / stage)
    assert jax_rele("run", file, *options) == 0
    out = capsys.readouterr().out
    for stage in ("prepare", "annotate", "adapt", "finetune", "score"):
        assert re.search(rf"{stage} +finished before .*, nothing to do", out)
    assert re.search(r"distill +finished in", out)


def test_every_stage_runs_and_adapt_does_nothing(open_model):
    _, run_dir, base = open_model
    names = [name for name, stage in pipeline.STAGES.items() if not stage.optional]
    manifests = {name: json.loads((run_dir / name / "manifest.json").read_text()) for name in names}
    assert all(manifest["status"] == "finished" for manifest in manifests.values())
    assert list(manifests["prepare"]["inputs"]) == [f"data.path {local_name(pipeline.read_config(run_dir).data.path)}"]
    for stage in ("adapt", "finetune", "score", "evaluate"):
        assert f"teacher.init {local_name(str(base))}" in manifests[stage]["inputs"]
    assert "student.init encoder" in manifests["distill"]["inputs"]
    assert not (run_dir / "adapt" / "base").exists()
    signals = read_signals(
        run_dir / "score" / "signals.parquet", *(read(pipeline.read_config(run_dir)) for read in (labels, dimensions))
    )
    assert all(parse(text).comparisons for text in signals.rationales)


def test_prompts_are_chats_and_the_untrained_weights_are_measured(open_model):
    _, run_dir, base = open_model
    teacher, untrained = load_teacher(run_dir), load_zero_shot_teacher(run_dir, config=read_run(run_dir))
    assert (teacher.chat, teacher.instructions) == (True, "Compare query and item.")
    assert (untrained.chat, untrained.order) == (True, "label_only")
    metrics = json.loads((run_dir / layout.METRICS).read_text())
    assert set(metrics["models"]["teacher, zero-shot"]) == set(metrics["models"]["teacher"])
    assert "| teacher, zero-shot |" in (run_dir / "evaluate" / "table.md").read_text()
    # A folder of the weights themselves has no adapters: its scores are the zero-shot ones.
    model, variables = from_hf(base, dtype=jnp.float32)
    plain = dataclasses.replace(untrained, model=model, variables=variables, mesh=None)
    pairs = [("red shoes", "Acme red shoes"), ("battery", "Acme red shoes")]
    probs = plain.predict(pairs).label_probs
    np.testing.assert_allclose(untrained.predict(pairs).label_probs, probs, atol=1e-5)
    assert np.abs(teacher.predict(pairs).label_probs - probs).max() > 1e-4


def labels(config):
    return config.labels.names


def dimensions(config):
    return config.rationale.dimensions


def test_held_out_loss_and_accuracy_are_measured_while_it_runs(open_model):
    lines = [json.loads(line) for line in (open_model[1] / "finetune" / "metrics.jsonl").read_text().splitlines()]
    held_out = [line for line in lines if any(key.startswith("eval/") for key in line)]
    assert [line["step"] for line in held_out] == [2, 4]
    for line in held_out:
        assert 0 < line["eval/loss"] < 20
        assert 0 <= line["eval/label_accuracy"] <= 1


def test_exported_weights_are_base_and_adapters(open_model, tmp_path):
    _, run_dir, base = open_model
    assert jax_rele("export", run_dir, "--output", tmp_path / "merged") == 0
    assert jax_rele("export", run_dir, "--output", tmp_path / "adapters", "--adapters") == 0
    model, variables = from_hf(base, dtype=jnp.float32)
    adapted, lora = load_peft(tmp_path / "adapters", model)
    assert adapted.config.lora.scale == 4.0
    merged, merged_variables = from_hf(tmp_path / "merged", dtype=jnp.float32)
    tokens = np.arange(12).reshape(1, 12)
    one = adapted.apply({**variables, **lora}, tokens).hidden
    np.testing.assert_allclose(one, merged.apply(merged_variables, tokens).hidden, atol=1e-4)
    assert np.abs(one - model.apply(variables, tokens).hidden).max() > 1e-3
    assert (tmp_path / "merged" / "chat_template.jinja").read_text() == TEMPLATE
    assert (tmp_path / "merged" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert dataclasses.replace(merged.config, lora=None) == dataclasses.replace(model.config, lora=None)
    assert jax_rele("export", run_dir, "--output", tmp_path / "merged") == 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda base: (base / "config.json").unlink(), "config.json"),
        (lambda base: truncate(base / "model.safetensors"), "model.safetensors"),
        (lambda base: drop(base / "model.safetensors", "model.norm.weight"), "model.norm.weight"),
        (lambda base: cut_embedding(base), "tokens"),
        (lambda base: edit(base / "config.json", hidden_act="gelu"), "hidden_act"),
        (lambda base: edit(base / "config.json", max_position_embeddings=80), "80"),
        (lambda base: (base / "tokenizer.json").unlink(), "tokenizer"),
        (lambda base: (base / "chat_template.jinja").write_text("{% for %}"), "teacher.chat_template"),
    ],
)
def test_a_bad_folder_is_one_line_before_anything_is_written(open_model, tmp_path, capsys, damage, message):
    file, _, base = open_model
    copy = tmp_path / "base"
    copy.mkdir()
    for path in base.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    damage(copy)
    capsys.readouterr()
    options = ["--teacher.init", copy, "--run_root", tmp_path / "runs"]
    assert jax_rele("run", file, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs" / "open" / "prepare").exists()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def drop(path, name):
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path)


def cut_embedding(base):
    tensors = load_file(base / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors:
            tensors[name] = tensors[name][:400]
    save_file(tensors, base / "model.safetensors")
    edit(base / "config.json", vocab_size=400)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
