"""Exports of trained students: every format, what each refuses, and what is left behind when one fails."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.numpy import load_file
from scipy.special import expit

import jax_rele
from jax_rele import cli
from jax_rele.data.tokens.student_inputs import cross_rows
from jax_rele.deployment import export, int8, load_bundle
from jax_rele.deployment.hugging_face import side_texts
from jax_rele.errors import UserError
from jax_rele.runs import layout
from jax_rele.types import Item, Pair

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", params=["tiny", "pooled", "projected", "latent", "maxsim"])
def run(request, student_run):
    return student_run(request.param)


@pytest.mark.parametrize("model", ["cross_encoder", "two_tower"])
def test_a_bundle_judges_as_the_student_does(run, model, tmp_path, capsys):
    assert cli.main(["export", str(run), "--model", model, "--output", str(tmp_path / "out")]) == 0
    assert "largest differences from JAX" in capsys.readouterr().out
    scorer, student = load_bundle(tmp_path / "out"), jax_rele.load_student(run, model)
    pairs = layout.load_pairs(run, "test")
    ours, theirs = scorer.predict(pairs), student.predict(pairs)
    temperature = scorer.manifest.temperature
    metrics = json.loads((run / layout.METRICS).read_text("utf-8"))
    assert temperature == metrics["decision"][f"{model}:mkd"]["temperature"]
    logits = np.asarray(theirs.outputs.logits, np.float64) / temperature
    probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(ours.label_probs, probs, atol=2e-6)
    np.testing.assert_allclose(ours.scores, probs @ np.array(scorer.schema.gains), atol=2e-6)
    np.testing.assert_allclose(ours.verdict_probs, theirs.verdict_probs, atol=5e-6)
    assert ours.evidence == theirs.evidence
    if model == "two_tower" and scorer.manifest.head != "maxsim":
        for side, texts in (("query", [pair.query for pair in pairs]), ("item", [pair.item for pair in pairs])):
            np.testing.assert_allclose(scorer.embed(texts, side), student.embed(texts, side), atol=3e-6)
        assert scorer.manifest.embedding_width == student.embed(["a"], "query").shape[1]
    # One at a time and all at once are the same, in the order of the input.
    single = np.concatenate([scorer.predict([pair]).scores for pair in pairs[:5]])
    np.testing.assert_allclose(single, ours.scores[:5], atol=1e-6)
    for name in scorer.manifest.graphs:
        onnx.checker.check_model(onnx.load(str(tmp_path / "out" / name)), full_check=True)
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    for text in ("expected gain", "AUC", "`mkd`", "Licences", f"{temperature:.4g}"):
        assert text in card


FORMATS = {
    ("cross_encoder", "sentence-transformers"): {
        "tiny": "verdict_pooling",
        "maxsim": "verdict_pooling",
        "latent": "latent",
    },
    ("cross_encoder", "tei"): {},
    ("cross_encoder", "stablehlo"): {},
    ("cross_encoder", "hf"): dict.fromkeys(
        ["tiny", "pooled", "projected", "latent", "maxsim"], "softmax of the verdicts"
    ),
    ("two_tower", "sentence-transformers"): {"tiny": "gated part", "latent": "mlp head", "maxsim": "maxsim head"},
    ("two_tower", "tei"): {"maxsim": "one vector per text"},
    ("two_tower", "stablehlo"): {},
    ("two_tower", "hf"): {
        "tiny": "gated",
        "latent": "mlp",
        "maxsim": "maxsim",
        "projected": "two_tower.embedding_width",
        "pooled": "two_tower.embedding_width",
    },
}


@pytest.mark.parametrize(("model", "form"), FORMATS)
def test_formats_are_exact_or_refused_by_name(run, model, form, tmp_path, capsys):
    output = tmp_path / "out"
    status = cli.main(["export", str(run), "--model", model, "--format", form, "--output", str(output)])
    reason = FORMATS[model, form].get(run.name)
    if reason is None:
        assert status == 0
        parity = json.loads((output / "parity.json").read_text("utf-8"))
        assert parity["same_order"]
        assert max(parity["largest_difference"].values()) <= 2e-5
        assert (output / "README.md").exists()
    else:
        assert status == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"--format {form}: " in error
        assert reason in error
        assert not output.exists()


def test_a_reranker_for_tei_has_one_output_whose_sigmoid_is_the_score(tiny, tmp_path):
    out, bundle = tmp_path / "tei", tmp_path / "bundle"
    for folder, form in ((out, "tei"), (bundle, "onnx")):
        assert (
            cli.main(["export", str(tiny[1]), "--model", "cross_encoder", "--format", form, "--output", str(folder)])
            == 0
        )
    config = json.loads((out / "config.json").read_text("utf-8"))
    assert config["architectures"][0].endswith("ForSequenceClassification")
    assert config["id2label"] == {"0": "score"}
    assert not list(out.glob("*.safetensors"))  # from which the server would make a head of its own
    session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_outputs()] == ["logits"]
    pairs, scorer = layout.load_pairs(tiny[1], "test")[:1], load_bundle(bundle)
    rows, types = cross_rows(
        scorer.tokenizer, pairs, scorer.manifest.fields, scorer.manifest.query_length, scorer.manifest.item_length
    )
    feed = {"input_ids": rows, "attention_mask": [[1] * len(rows[0])], "token_type_ids": types}
    (logits,) = session.run(None, {each.name: np.array(feed[each.name], np.int64) for each in session.get_inputs()})
    np.testing.assert_allclose(expit(np.float64(logits[0, 0])), scorer.predict(pairs).scores[0], atol=2e-6)


def test_a_stablehlo_program_runs_in_a_fresh_process_on_any_shape(tiny, tmp_path):
    out = tmp_path / "out"
    assert (
        cli.main(["export", str(tiny[1]), "--model", "cross_encoder", "--format", "stablehlo", "--output", str(out)])
        == 0
    )
    code = f"""
import jax, numpy as np
from safetensors.numpy import load_file
program = jax.export.deserialize(bytearray(open({str(out / "model.stablehlo")!r}, "rb").read()))
params = load_file({str(out / "params.safetensors")!r})
for batch, length in ((1, 3), (4, 9), (2, 30)):
    rows = np.ones((batch, length), np.int32)
    outputs = jax.jit(program.call)(params, {{"tokens": rows * 5, "token_types": rows * 0, "valid": rows}})
    assert outputs["logits"].shape == (batch,), outputs["logits"].shape
    assert np.isfinite(outputs["logits"]).all()
print("ran")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "ran", done.stderr[-800:]
    assert load_file(out / "params.safetensors")


def test_exports_import_no_torch(tiny, tmp_path):
    code = (
        "import sys; from jax_rele.deployment import export_student; "
        f"export_student({str(tiny[1])!r}, {str(tmp_path / 'out')!r}, 'cross_encoder'); assert 'torch' not in "
        "sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "cross_encoder", "--adapters"], "--adapters: is for the teacher"),
        (["--format", "onnx"], "--format: is for --model cross_encoder and two_tower"),
        (["--model", "two_tower", "--labels", "--format", "sentence-transformers"], "--labels: is for a cross_encoder"),
        (["--model", "two_tower", "--int8", "any", "--format", "tei"], "--int8: is for --format onnx"),
        (["--model", "two_tower", "--recipe", "mkdd"], "did you mean mkd?"),
    ],
)
def test_wrong_options_are_told_in_one_line(tiny, tmp_path, capsys, options, message):
    assert cli.main(["export", str(tiny[1]), "--output", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_form_that_differs_leaves_nothing(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export, "log_odds", lambda gains: gains)  # a wrong formula on one side
    write = export.bundle_outputs
    monkeypatch.setattr(
        export, "bundle_outputs", lambda scorer, pairs: {**write(scorer, pairs), "logits": np.zeros(len(pairs))}
    )
    assert cli.main(["export", str(tiny[1]), "--model", "cross_encoder", "--output", str(tmp_path / "out")]) == 2
    assert "differs from the student in JAX" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_full_or_occupied_folder_is_told(tiny, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    assert cli.main(["export", str(tiny[1]), "--model", "two_tower", "--output", str(tmp_path / "out")]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.onnx").unlink(), "lacks this file"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"0"), "was changed since the bundle was written"),
        (lambda folder: (folder / "bundle.json").unlink(), "no bundle"),
        (lambda folder: (folder / "bundle.json").write_text("{"), "damaged"),
        (lambda folder: (folder / "bundle.json").write_text('{"format": 9}'), "is of format 9"),
    ],
)
def test_damaged_bundles_are_told(tiny, tmp_path, damage, message):
    export.export_student(tiny[1], tmp_path / "out", "cross_encoder")
    damage(tmp_path / "out")
    with pytest.raises(UserError, match=message):
        load_bundle(tmp_path / "out")


@pytest.mark.parametrize("passes", [True, False])
def test_int8_is_gated(tiny, tmp_path, capsys, monkeypatch, passes):
    """What the gate asks for is set here, as random weights may pass or not; what it measured is said either way."""
    monkeypatch.setattr(int8, "LEAST", {"spearman": -1.0 if passes else 1.5})
    monkeypatch.setattr(int8, "MOST_AUC", 2.0)
    output = tmp_path / "out"
    status = cli.main(["export", str(tiny[1]), "--model", "two_tower", "--int8", "any", "--output", str(output)])
    captured = capsys.readouterr()
    if passes:
        assert status == 0
        assert "int8 against float32: top_10_overlap" in captured.out
        assert load_bundle(output).manifest.int8 == "any"
        assert "8-bit weights, preset `any`" in (output / "README.md").read_text("utf-8")
        nodes = {node.op_type for node in onnx.load(str(output / "query.onnx")).graph.node}
        assert nodes & {"MatMulInteger", "DynamicQuantizeMatMul"}
    else:
        assert status == 2
        assert "--int8 any is refused: spearman is" in captured.err
        assert not output.exists()


def test_other_programs_are_given_the_texts_that_the_student_reads():
    """Full-width and invisible characters: the sample that is compared may hold them."""
    data = SimpleNamespace(manifest=SimpleNamespace(fields=("brand", "title")))
    pairs = [Pair("1", "prank\uff0cpuke\u200b", Item("a", "\uff33hoe", brand="Acme"))]
    assert side_texts(data, pairs, "query") == ["prank,puke"]
    assert side_texts(data, pairs, "item") == ["Acme Shoe"]
