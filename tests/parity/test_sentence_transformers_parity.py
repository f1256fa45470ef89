"""Students in the form of sentence-transformers, loaded by it as it is: predictions, ranks, embeddings equal ours."""

import numpy as np
import openvino
import pytest
import torch
from scipy.special import softmax
from sentence_transformers import CrossEncoder, SentenceTransformer

import jax_rele
from jax_rele import cli
from jax_rele.deployment import load_bundle
from jax_rele.runs import layout
from jax_rele.types import Item, Pair

# The chain's softmax is over the last axis of a matrix, which is what torch takes where no axis is given.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Implicit dimension choice for softmax"),
    pytest.mark.timeout(900),
    pytest.mark.slow,
]
LONG = "red running shoes for women with a wide toe box and waterproof membrane "


@pytest.fixture(scope="module", params=["pooled", "projected"])
def run(request, student_run):
    return student_run(request.param)


def exported(run, model, form, folder, *options):
    command = ["export", str(run), "--model", model, "--format", form, "--output", str(folder), *options]
    assert cli.main(command) == 0
    return folder


def test_pairs(run):
    """The run's, and long ones on either side: both programs cut them alike."""
    pairs = layout.load_pairs(run, "test")
    texts = [(LONG * 3, "shoes"), ("shoes", LONG * 3), (LONG * 3, LONG * 5), ("a", "b"), ("", "shoes")]
    return [*pairs, *(Pair(f"x{n}", query, Item("", title)) for n, (query, title) in enumerate(texts))]


test_pairs.__test__ = False


def texts_of(bundle, pairs):
    return [(pair.query, bundle.item_text(pair.item)) for pair in pairs]


def test_cross_encoder(run, tmp_path):
    bundle = load_bundle(exported(run, "cross_encoder", "onnx", tmp_path / "onnx"))
    pairs = test_pairs(run)
    texts, ours = texts_of(bundle, pairs), bundle.predict(pairs)
    scorer = CrossEncoder(str(exported(run, "cross_encoder", "sentence-transformers", tmp_path / "score")))
    assert scorer.num_labels == 1
    with torch.no_grad():
        np.testing.assert_allclose(scorer.predict(texts), ours.scores, atol=1e-5)
        ranked = scorer.rank("shoes", [item for _, item in texts])
    expected = bundle.predict([("shoes", item) for _, item in texts]).scores
    np.testing.assert_allclose([row["score"] for row in ranked], np.sort(expected)[::-1], atol=1e-5)
    labels = CrossEncoder(str(exported(run, "cross_encoder", "sentence-transformers", tmp_path / "labels", "--labels")))
    assert labels.num_labels == len(bundle.schema)
    with torch.no_grad():
        np.testing.assert_allclose(softmax(labels.predict(texts), axis=-1), ours.label_probs, atol=1e-5)


def test_two_tower(run, tmp_path):
    folder = exported(run, "two_tower", "sentence-transformers", tmp_path / "st")
    model, student = SentenceTransformer(str(folder)), jax_rele.load_student(run, "two_tower")
    pairs = test_pairs(run)
    bundle = load_bundle(exported(run, "two_tower", "onnx", tmp_path / "onnx"))
    texts = texts_of(bundle, pairs)
    queries, items = (
        model.encode_query([query for query, _ in texts]),
        model.encode_document([item for _, item in texts]),
    )
    np.testing.assert_allclose(queries, student.embed([pair.query for pair in pairs], "query"), atol=1e-5)
    np.testing.assert_allclose(items, student.embed([pair.item for pair in pairs], "item"), atol=1e-5)
    np.testing.assert_allclose(model.similarity(queries, items), queries @ items.T, atol=1e-5)


@pytest.mark.parametrize("model", ["cross_encoder", "two_tower"])
def test_openvino_runs_every_graph(run, model, tmp_path):
    folder = exported(run, model, "onnx", tmp_path / "onnx")
    bundle, core = load_bundle(folder), openvino.Core()
    name = bundle.manifest.graphs[0]
    graph = core.compile_model(core.read_model(folder / name), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    rng = np.random.default_rng(0)
    for batch, length in ((1, 1), (3, 9), (2, 12)):
        rows = rng.integers(5, 200, (batch, length))
        feed = {"input_ids": rows, "attention_mask": np.ones_like(rows), "token_type_ids": np.zeros_like(rows)}
        session = bundle.sessions[name]
        known = [each.name for each in session.get_inputs()]
        expected = session.run(None, {key: feed[key] for key in known})
        outputs = graph({key: feed[key] for key in known})
        for output, value in zip(session.get_outputs(), expected):
            np.testing.assert_allclose(outputs[output.name], value, atol=1e-4)
