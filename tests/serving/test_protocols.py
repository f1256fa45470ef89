"""Routes of other services against the students themselves."""

import base64

import numpy as np
import pytest
from asking import QUERY, TEXTS, post
from scipy.special import expit

from jax_rele.serving.bodies import SIDES
from jax_rele.types import Item, Pair


@pytest.mark.parametrize("kind", ["cross_encoder", "two_tower"])
def test_rerank_as_text_embeddings_inference(serving, scorers, kind):
    client, _ = serving((kind,))
    expected = scorers[kind].predict([(QUERY, text) for text in TEXTS]).scores
    answer = post(client, "/rerank", query=QUERY, texts=TEXTS, return_text=True)
    order = sorted(range(4), key=lambda index: -expected[index])
    assert [row["index"] for row in answer] == order
    assert [row["text"] for row in answer] == [TEXTS[index] for index in order]
    np.testing.assert_allclose([row["score"] for row in answer], expected[order], atol=1e-5)
    raw = post(client, "/rerank", query=QUERY, texts=TEXTS, raw_scores=True, truncate=True)
    np.testing.assert_allclose(expit([row["score"] for row in raw]), expected[order], atol=1e-5)
    assert all("text" not in row for row in raw)


def test_equal_texts_keep_their_order(both):
    assert [row["index"] for row in post(both, "/rerank", query="x", texts=["same"] * 5)] == list(range(5))


@pytest.mark.parametrize("kind", ["cross_encoder", "two_tower"])
def test_predict_as_text_embeddings_inference(serving, scorers, kind):
    client, _ = serving((kind,))
    pairs = [(QUERY, text) for text in TEXTS]
    expected = scorers[kind].predict(pairs).label_probs
    answer = post(client, "/predict", inputs=pairs)
    names = scorers[kind].schema.names
    for row, probs in zip(answer, expected):
        assert [each["score"] for each in row] == sorted((each["score"] for each in row), reverse=True)
        by_label = {each["label"]: each["score"] for each in row}
        np.testing.assert_allclose([by_label[name] for name in names], probs, atol=1e-5)
    alone = post(client, "/predict", inputs=pairs[0])
    assert [each["label"] for each in alone] == [each["label"] for each in answer[0]]
    assert [each["score"] for each in alone] == pytest.approx([each["score"] for each in answer[0]], abs=1e-5)
    logs = {each["label"]: each["score"] for each in post(client, "/predict", inputs=pairs, raw_scores=True)[0]}
    np.testing.assert_allclose(np.exp([logs[name] for name in names]), expected[0], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "side"),
    [(name, SIDES[name]) for name in ("query", "search_query", "item", "document", "search_document")],
)
def test_embeddings_of_each_interface_are_the_towers(both, scorers, name, side):
    expected = scorers["two_tower"].embed(TEXTS, side)
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    for field in ("side", "prompt_name"):
        np.testing.assert_allclose(post(both, "/embed", inputs=TEXTS, **{field: name}), unit, atol=1e-5)
        plain = post(both, "/embed", inputs=TEXTS, normalize=False, **{field: name})
        np.testing.assert_allclose(plain, expected, atol=1e-5)
    answer = post(both, "/v1/embeddings", input=TEXTS, model="two_tower", input_type=name)
    assert [row["index"] for row in answer["data"]] == list(range(4))
    np.testing.assert_allclose([row["embedding"] for row in answer["data"]], expected, atol=1e-5)
    packed = post(both, "/v1/embeddings", input=TEXTS[0], model=f"two_tower:{name}", encoding_format="base64")
    vector = np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(vector, expected[0], atol=1e-5)
    lengths = [len(row) for row in scorers["two_tower"].token_rows(TEXTS, side)]
    assert answer["usage"] == {"prompt_tokens": sum(lengths), "total_tokens": sum(lengths)}


def test_embed_normalises_unless_told_not_to(serving, scorers, tmp_path, monkeypatch):
    client, service = serving(("two_tower",))
    scorer = service.models["two_tower"].scorer
    stretched = {"query.onnx": 3.0, "item.onnx": 1.0, "compare.onnx": 1.0}
    run = scorer.run
    monkeypatch.setattr(
        service.models["two_tower"].batcher, "_run",
        lambda name, rows, types: {key: stretched[name] * value for key, value in run(name, rows, types).items()},
    )  # fmt: skip
    unit = np.array(post(client, "/embed", inputs=TEXTS, side="query"))
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-5)
    plain = np.array(post(client, "/embed", inputs=TEXTS, side="query", normalize=False))
    np.testing.assert_allclose(plain, 3 * scorer.embed(TEXTS, "query"), atol=1e-5)


@pytest.mark.parametrize("version", [1, 2])
def test_rerank_as_cohere(both, scorers, version):
    documents = ["red running shoes", {"text": "blue shirt"}, {"title": "shoes", "brand": "Acme", "color": "red"}]
    items = [Item("", "red running shoes"), Item("", "blue shirt"), Item("", "shoes", brand="Acme", color="red")]
    expected = scorers["cross_encoder"].predict([Pair("", QUERY, item) for item in items]).scores
    path = f"/v{version}/rerank"
    answer = post(both, path, model="cross_encoder", query=QUERY, documents=documents, return_documents=True)
    order = np.argsort(-expected)
    assert [row["index"] for row in answer["results"]] == order.tolist()
    np.testing.assert_allclose([row["relevance_score"] for row in answer["results"]], expected[order], atol=1e-5)
    returned = {row["index"]: row["document"] for row in answer["results"]}
    assert returned == {0: {"text": "red running shoes"}, 1: documents[1], 2: documents[2] | {"attributes": {}}} or (
        returned == {0: {"text": "red running shoes"}, 1: documents[1], 2: documents[2]}
    )
    assert answer["meta"]["api_version"]["version"] == str(version)
    assert answer["id"]
    top = post(both, path, query=QUERY, documents=documents, top_n=1)
    assert [row["index"] for row in top["results"]] == [order[0]]
    by_tower = post(both, path, model="two_tower", query=QUERY, documents=documents)
    towers = scorers["two_tower"].predict([Pair("", QUERY, item) for item in items]).scores
    assert {row["index"]: row["relevance_score"] for row in by_tower["results"]} == pytest.approx(
        dict(enumerate(towers)), abs=1e-5
    )


@pytest.mark.parametrize("kind", ["cross_encoder", "two_tower"])
def test_max_tokens_per_doc_cuts_the_document(serving, scorers, kind):
    client, _ = serving((kind,))
    tokenizer = scorers[kind].tokenizer
    text = "red running shoes with blue garden hose"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    for most in (1, 3, len(ids), 500):
        cut = tokenizer.decode(ids[:most])
        assert tokenizer(cut, add_special_tokens=False)["input_ids"] == ids[:most]
        answer = post(client, "/v1/rerank", query=QUERY, documents=[text], max_tokens_per_doc=most)
        expected = scorers[kind].predict([(QUERY, cut.strip())]).scores[0]
        assert answer["results"][0]["relevance_score"] == pytest.approx(expected, abs=1e-5)


def test_rank_fields_as_cohere(both, scorers):
    document = {"title": "running shoes", "brand": "Acme", "color": "red"}
    body = {
        "query": QUERY,
        "documents": [document, "red shoes", {"text": "hose"}],
        "rank_fields": ["color", "title", "text"],
    }
    texts = ("red running shoes", "red shoes", "hose")
    expected = scorers["cross_encoder"].predict([(QUERY, text) for text in texts]).scores
    answer = {row["index"]: row["relevance_score"] for row in post(both, "/v1/rerank", **body)["results"]}
    assert answer == pytest.approx(dict(enumerate(expected)), abs=1e-5)
