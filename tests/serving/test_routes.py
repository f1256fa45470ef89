"""Every route against the students themselves, and every refusal."""

import base64
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.special import expit

from jax_rele.deployment.bundle import Tier
from jax_rele.serving.bodies import SIDES
from jax_rele.serving.service import Service
from jax_rele.types import Item, Pair

QUERY = "red running shoes"
TEXTS = ["blue cotton shirt", "red running shoes 1", "garden hose", "red shoes"]


@pytest.fixture
def both(serving):
    return serving()[0]


def post(client, path, **body):
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(answer, status, *parts):
    """An error is one line of JSON that names what is wrong."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    if answer.request.url.path == "/v1/embeddings":
        body = {"error": body["error"]["message"], "error_type": body["error"]["type"]}
    assert set(body) == {"error", "error_type"}
    assert "\n" not in body["error"]
    for part in parts:
        assert part in body["error"]
    return body["error_type"]


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


def test_score_has_labels_verdicts_and_evidence(both, scorers):
    scorer = scorers["cross_encoder"]
    items = [Item("", "red shoes"), Item("i", "running shoes", brand="Acme", color="red", attributes=(("size", "9"),))]
    expected = scorer.predict([Pair("", QUERY, item) for item in items])
    body = {"title": "running shoes", "brand": "Acme", "color": "red", "id": "i", "attributes": {"size": 9}}
    answer = post(both, "/score", query=QUERY, items=[" red shoes\n", body])
    again = post(both, "/score", pairs=[{"query": QUERY, "item": "red shoes"}, {"query": QUERY, "item": body}])
    assert answer["model"] == "cross_encoder"
    for index, row in enumerate(answer["results"]):
        assert row["index"] == index
        assert row["score"] == pytest.approx(expected.scores[index], abs=1e-5)
        assert list(row["labels"].values()) == pytest.approx(expected.label_probs[index].tolist(), abs=1e-5)
        assert tuple(row["labels"]) == scorer.schema.names
        assert row["label"] == scorer.schema.names[expected.label_probs[index].argmax()]
        verdicts = row["verdicts"]
        assert tuple(verdicts) == scorer.manifest.dimensions
        assert tuple(each["verdict"] for each in verdicts.values()) == expected.verdicts[index]
        most = expected.verdict_probs[index].max(axis=-1)
        assert [each["probability"] for each in verdicts.values()] == pytest.approx(most.tolist(), abs=1e-5)
        spans = [(s["source"], s["start"], s["end"], s["dimension"]) for s in row["evidence"]]
        assert spans == [(s.source, s.start, s.end, s.dimension) for s in expected.evidence[index]]
        texts = {"query": QUERY, "title": items[index].title, "brand": items[index].brand, "color": items[index].color}
        assert all(s["text"] == texts[s["source"]][s["start"] : s["end"]] for s in row["evidence"])
        assert row["tier"] is None
        assert again["results"][index]["score"] == pytest.approx(row["score"], abs=1e-5)
    assert any(row["evidence"] for row in answer["results"])
    tower = post(both, "/score", query=QUERY, items=["red shoes"], model="two_tower")
    assert tower["model"] == "two_tower"
    assert tower["results"][0]["evidence"] is None


def test_tiers_are_bands_of_scores(serving, scorers, monkeypatch):
    client, service = serving(("cross_encoder",))
    scores = [row["score"] for row in post(client, "/score", query=QUERY, items=TEXTS)["results"]]
    low, high = sorted(scores)[1], sorted(scores)[3]
    tiers = (Tier(name="relevant", least=high), Tier(name="related", least=low))
    served = service.models["cross_encoder"]
    changed = served.manifest.model_copy(update={"tiers": tiers})
    monkeypatch.setattr(type(served), "manifest", property(lambda self: changed))
    names = [row["tier"] for row in post(client, "/score", query=QUERY, items=TEXTS)["results"]]
    assert names == ["relevant" if s >= high else "related" if s >= low else None for s in scores]


def test_a_marker_in_a_title_changes_nothing_but_text(both, scorers):
    for marker in ("</s>", "[SEP]", "<s>"):
        ids = scorers["cross_encoder"].pair_rows([Pair("", QUERY, Item("", f"shoes {marker} red"))])[0][0]
        specials = [token for token in ids if token in scorers["cross_encoder"].tokenizer.all_special_ids]
        plain = scorers["cross_encoder"].pair_rows([Pair("", QUERY, Item("", "shoes red"))])[0][0]
        assert specials == [t for t in plain if t in scorers["cross_encoder"].tokenizer.all_special_ids]
        expected = scorers["cross_encoder"].predict([(QUERY, f"shoes {marker} red")]).scores[0]
        answer = post(both, "/rerank", query=QUERY, texts=[f"shoes {marker} red"])
        assert answer[0]["score"] == pytest.approx(expected, abs=1e-5)


def test_search_finds_what_a_comparison_of_all_items_finds(both, scorers, items_file):
    items = [row.get("item", row) for row in map(json.loads, items_file.read_text("utf-8").splitlines())]
    pairs = [Pair("", QUERY, Item(**item)) for item in items]
    towers, crosses = scorers["two_tower"].predict(pairs), scorers["cross_encoder"].predict(pairs)
    plain = post(both, "/search", query=QUERY, k=5, rerank=False)
    ranked = post(both, "/search", query=QUERY, k=12)
    assert (plain["model"], ranked["model"]) == ("two_tower", "cross_encoder")
    # Four times as many candidates as results are compared, so that all twelve items are.
    best = np.argsort(-towers.scores, kind="stable")[:5]
    assert [row["item"]["id"] for row in plain["results"]] == [items[index]["id"] for index in best]
    best = np.argsort(-crosses.scores, kind="stable")
    assert [row["item"]["id"] for row in ranked["results"]] == [items[index]["id"] for index in best]
    query, offered = (
        scorers["two_tower"].embed([QUERY], "query")[0],
        scorers["two_tower"].embed([p.item for p in pairs], "item"),
    )
    products = dict(zip((item["id"] for item in items), offered @ query))
    for row in plain["results"]:
        assert row["inner_product"] == pytest.approx(products[row["item"]["id"]], abs=1e-5)
    assert [row["index"] for row in ranked["results"]] == list(range(12))
    spans = dict(zip((item["id"] for item in items), crosses.evidence))
    for row in ranked["results"]:
        assert [(s["source"], s["start"], s["end"]) for s in row["evidence"]] == [
            (span.source, span.start, span.end) for span in spans[row["item"]["id"]]
        ]
    assert set(plain["ms"]) == {"tokenise", "queue", "infer", "search"}


def test_filters_are_exact(both):
    hits = post(both, "/search", query=QUERY, k=12, filters={"color": "RED", "brand": "Acme"})["results"]
    assert sorted(row["item"]["id"] for row in hits) == ["red-1", "red-3"]
    assert post(both, "/search", query=QUERY, filters={"color": "pink"})["results"] == []
    assert post(both, "/search", query=QUERY, filters={"attributes.size": "9"})["results"] == []
    for name in ("colour", "attributes.", "attributes"):
        refused(both.post("/search", json={"query": "x", "filters": {name: "y"}}), 422, "filters", name)


def test_compare_for_the_page(both, scorers):
    answer = post(both, "/compare", query=QUERY, k=4)
    columns = {column["name"]: column for column in answer["columns"]}
    assert list(columns) == ["two_tower", "cross_encoder", "bm25"]
    titles = [item["title"] for item in answer["items"]]
    by_words = [titles[index] for index in columns["bm25"]["order"]]
    assert by_words[0].startswith("red running shoes")
    assert all(set(title.split()) & set(QUERY.split()) for title in by_words)
    scores = [row["score"] for row in answer["judged"]]
    assert columns["cross_encoder"]["order"] == np.argsort(-np.array(scores), kind="stable")[:4].tolist()
    assert all(column["scores"] == sorted(column["scores"], reverse=True) for column in columns.values())
    assert len(set(titles)) == len(titles)
    # A query that shares no word with any item still has neighbours.
    other = {column["name"]: column["order"] for column in post(both, "/compare", query="zzz", k=3)["columns"]}
    assert (other["bm25"], len(other["two_tower"]), len(other["cross_encoder"])) == ([], 3, 3)


def test_the_page_works_with_one_bundle(serving):
    for kind, columns in (("cross_encoder", ["cross_encoder", "bm25"]), ("two_tower", ["two_tower", "bm25"])):
        client, _ = serving((kind,))
        assert client.get("/page").json()["rankers"] == columns
        assert [column["name"] for column in post(client, "/compare", query=QUERY)["columns"]] == columns


def test_what_is_served(both):
    info = both.get("/info").json()
    assert set(info["models"]) == {"cross_encoder", "two_tower"}
    assert info["models"]["cross_encoder"]["labels"] == {"Exact": 1.0, "Substitute": 0.1, "Irrelevant": 0.0}
    assert info["models"]["two_tower"]["embedding_width"] == 56
    assert [model["id"] for model in both.get("/v1/models").json()["data"]] == ["cross_encoder", "two_tower"]
    assert both.get("/health").json() == {"status": "ok"}
    assert set(both.get("/openapi.json").json()["paths"]) >= {
        "/rerank", "/embed", "/predict", "/info", "/v1/rerank", "/v2/rerank", "/v1/embeddings", "/score", "/search",
        "/health", "/ready", "/metrics", "/judgements",
    }  # fmt: skip
    assert both.get("/docs").status_code == 200


def test_ready_only_after_the_warm_up(serving, monkeypatch):
    released = threading.Event()
    warm_up = Service.warm_up
    monkeypatch.setattr(Service, "warm_up", lambda self: released.wait(10) and warm_up(self))
    client, service = serving()
    assert refused(client.get("/ready"), 503, "warming up") == "not_ready"
    assert client.get("/health").status_code == 200
    released.set()
    for _ in range(200):
        if client.get("/ready").status_code == 200:
            break
        threading.Event().wait(0.05)
    assert client.get("/ready").json() == {"status": "ready"}
    assert service.ready


def test_metrics_count_requests_failures_stages_and_batches(serving):
    client, service = serving(("cross_encoder",))
    service.warm_up()
    for _ in range(3):
        post(client, "/rerank", query=QUERY, texts=TEXTS)
    client.post("/rerank", json={"query": QUERY})
    text = client.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['jax_rele_requests_total{route="/rerank",status="200"}'] == "3.0"
    assert lines['jax_rele_requests_total{route="/rerank",status="422"}'] == "1.0"
    assert lines['jax_rele_failures_total{error_type="validation",route="/rerank"}'] == "1.0"
    assert lines['jax_rele_rows_total{route="/rerank"}'] == "12.0"
    loss = service.model().scorer.text_loss([(QUERY, text) for text in TEXTS])
    counted = {
        kind: float(lines[f'jax_rele_text_tokens_total{{kind="{kind}"}}']) for kind in ("read", "unknown", "cut")
    }
    assert counted == {"read": 3 * (loss.tokens - loss.cut_tokens), "unknown": 0, "cut": 3 * loss.cut_tokens}
    assert lines['jax_rele_queue_rows{model="cross_encoder"}'] == "0.0"
    for stage in ("tokenise", "queue", "infer"):
        assert lines[f'jax_rele_stage_seconds_count{{stage="{stage}"}}'] == "3.0"
    assert lines['jax_rele_batch_rows_sum{model="cross_encoder"}'] == "12.0"
    assert float(lines['jax_rele_batch_tokens_sum{model="cross_encoder"}']) >= 12 * 8


def test_one_line_a_request_is_logged_without_texts_unless_asked(serving, capfd):
    for log_texts in (False, True):
        client, _ = serving(("cross_encoder",), log_texts=log_texts)
        capfd.readouterr()
        post(client, "/rerank", query="sécret\nquery", texts=TEXTS)
        client.post("/rerank", json={"query": "sécret"})
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == 2
        good, bad = map(json.loads, lines)
        assert (good["route"], good["status"], good["rows"], good["method"]) == ("/rerank", 200, 4, "POST")
        assert set(good["ms"]) == {"all", "tokenise", "queue", "infer"}
        assert (bad["status"], bad["error_type"]) == (422, "validation")
        assert ("sécret" in lines[0]) is log_texts
        assert "sécret" not in lines[1]
        if log_texts:
            assert good["body"]["texts"] == TEXTS


@pytest.mark.parametrize(
    ("path", "body", "parts"),
    [
        ("/rerank", {"query": "a", "texts": ["b"], "top": 1}, ["top", "no such field"]),
        ("/rerank", {"texts": ["b"]}, ["query", "missing"]),
        ("/rerank", {"query": "a", "text": ["b"]}, ["text: there is no such field"]),
        ("/rerank", {"query": "a", "texts": []}, ["texts"]),
        ("/rerank", {"query": "a", "texts": ["b", " \n"]}, ["texts.1", "blank"]),
        ("/rerank", {"query": "a", "texts": ["b", 3]}, ["texts.1", "string"]),
        ("/rerank", {"query": "\x00", "texts": ["b"]}, ["query", "blank"]),
        ("/rerank", {"query": "a", "texts": ["b"] * 1001}, ["1001", "1000"]),
        ("/rerank", [1], ["dictionary"]),
        ("/predict", {"inputs": [["a"]]}, ["inputs.0.1", "missing"]),
        ("/predict", {"inputs": [["a", "b", "c"]]}, ["inputs.0"]),
        ("/predict", {"inputs": []}, ["inputs"]),
        ("/embed", {"inputs": "a"}, ["prompt_name", "query or item"]),
        ("/embed", {"inputs": "a", "side": "query", "prompt_name": "item"}, ["differ"]),
        ("/embed", {"inputs": "a", "side": "left"}, ["side", "query"]),
        ("/embed", {"inputs": "a", "side": "query", "dimensions": 8}, ["dimensions", "56"]),
        ("/v1/embeddings", {"input": "a"}, ["input_type", "query or item"]),
        ("/v1/embeddings", {"input": "a", "model": "two_tower:left"}, ["left", ":query or :item"]),
        ("/v1/embeddings", {"input": "a", "model": "two_tower:item", "input_type": "query"}, ["differ"]),
        ("/v1/embeddings", {"input": "a", "input_type": "query", "dimensions": 31}, ["dimensions", "56"]),
        ("/v1/embeddings", {"input": [[1, 2]], "input_type": "query"}, ["input.0", "string"]),
        ("/v1/rerank", {"query": "a", "documents": [{"title": ""}]}, ["documents.0.title", "blank"]),
        ("/v1/rerank", {"query": "a", "documents": [{"titel": "b"}]}, ["documents.0.titel", "no such"]),
        ("/v1/rerank", {"query": "a", "documents": [{"title": "b", "colour": "c"}]}, ["documents.0.colour", "no such"]),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": 0}, ["top_n"]),
        ("/v2/rerank", {"query": "a", "documents": [None]}, ["documents.0"]),
        ("/score", {"query": "a"}, ["query and items, or pairs"]),
        ("/score", {"query": "a", "items": ["b"], "pairs": [{"query": "a", "item": "b"}]}, ["or pairs"]),
        ("/score", {"pairs": [{"query": "a"}]}, ["pairs.0.item", "missing"]),
        ("/score", {"pairs": [{"query": "a", "item": {"title": "x", "attributes": {"a": {"b": 1}}}}]}, ["attributes"]),
        ("/search", {"query": "a", "k": 0}, ["k"]),
        ("/judgements", {"judge": "ann", "query": "a", "item": {"title": "b"}, "label": "Good"}, ["label", "Exact"]),
        ("/judgements", {"query": "a", "item": {"title": "b"}, "label": "Exact"}, ["judge", "missing"]),
        ("/judgements", {"judge": " ", "query": "a", "item": {"title": "b"}, "label": "Exact"}, ["judge", "blank"]),
        ("/search", {"query": "a", "k": True}, ["k", "integer"]),
        ("/search", {"query": "a", "k": "5"}, ["k", "integer"]),
        ("/search", {"query": "a", "candidates": 5.0}, ["candidates", "integer"]),
        ("/search", {"query": "a", "rerank": 1}, ["rerank", "boolean"]),
        ("/rerank", {"query": "a", "texts": ["b"], "raw_scores": "yes"}, ["raw_scores", "boolean"]),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": True}, ["top_n", "integer"]),
        ("/v1/embeddings", {"input": "a", "input_type": "query", "dimensions": True}, ["dimensions", "integer"]),
        ("/rerank", {"query": "\u200b\ufeff", "texts": ["b"]}, ["query", "blank"]),
        ("/rerank", {"query": "a", "texts": ["\u2800\u3164"]}, ["texts.0", "blank"]),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "rank_fields": ["titel"]}, ["rank_fields.0", "title"]),
        ("/v1/rerank", {"query": "a", "documents": [{"title": "b"}], "rank_fields": ["brand"]}, ["none of brand"]),
    ],
)  # fmt: skip
def test_bad_bodies(both, path, body, parts):
    assert refused(both.post(path, json=body), 422, *parts) == "validation"


def raw(client, content, path="/rerank", **headers):
    return client.post(path, content=content, headers={"content-type": "application/json"} | headers)


def test_bodies_that_are_no_json(both):
    for content in (b'{"query":', b"", b'{"query":"\xff","texts":["b"]}', b"[" * 100_000):
        kind = refused(raw(both, content), 400 if content else 422)
        assert kind == ("bad_request" if content else "validation")
    for key, path, content in (
        ("query", "/rerank", b'{"query":"a","texts":["b"],"query":"c"}'),
        ("brand", "/v2/rerank", b'{"query":"a","documents":[{"title":"b","brand":"x","brand":"y"}]}'),
        ("size", "/score", b'{"query":"a","items":[{"title":"b","attributes":{"size":1,"size":1}}]}'),
        ("input", "/v1/embeddings", b'{"input":"a","input":"a","input_type":"query"}'),
        ("brand", "/search", rb'{"query":"a","filters":{"brand":"x","br\u0061nd":"y"}}'),
    ):
        assert refused(raw(both, content, path), 400, f"the key '{key}' twice") == "bad_request"
    refused(raw(both, b'{"query":"a","texts":["b"],"k":' + b"9" * 5000 + b"}"), 400, "digits")
    assert refused(raw(both, b'{"query":NaN,"texts":["b"]}'), 422, "query") == "validation"
    refused(raw(both, b'{"query":"a","k":NaN}', "/search"), 422, "k")
    refused(raw(both, rb'{"query":"\ud800","texts":["b"]}'), 422, "query", "Unicode")
    refused(raw(both, rb'{"query":"a","documents":["b"],"model":"\ud800"}', "/v1/rerank"), 422, "model", "Unicode")
    refused(raw(both, rb'{"query":"a","documents":[{"title":"b","brand":"\ud800"}]}', "/v1/rerank"), 422, "brand")
    refused(both.post("/rerank", content=b'{"query":"a","texts":["b"]}'), 422, "Content-Type")


def test_bodies_in_another_encoding(both):
    text = '{"query": "red", "texts": ["b"]}'
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        assert refused(raw(both, text.encode(encoding)), 400, "UTF-8") == "bad_request"
        assert refused(raw(both, iter([bytes([byte]) for byte in text.encode(encoding)])), 400, "UTF-8")
    assert raw(both, text.encode("utf-8-sig")).status_code == 200


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


def test_info_has_what_clients_of_text_embeddings_inference_read(serving):
    for kind, name, most in (("cross_encoder", "reranker", 44), ("two_tower", "embedding", 33)):
        info = serving((kind,), items=False)[0].get("/info").json()
        assert info["model_id"] == "tiny"
        assert info["model_dtype"] == "float32"
        assert list(info["model_type"]) == [name]
        assert info["max_input_length"] == most
        assert info["model_sha"] == info["models"][kind]["identity"]


def test_texts_that_are_too_long_are_cut_unless_told_not_to(serving):
    for kind in ("cross_encoder", "two_tower"):
        client, service = serving((kind,), items=False)
        long = "garden hose " * 100
        assert len(post(client, "/rerank", query=long, texts=[long])) == 1
        for body in ({"query": long, "texts": ["a"]}, {"query": "a", "texts": ["b", long]}):
            refused(client.post("/rerank", json=body | {"truncate": False}), 413, "tokens", "truncate is false")
        # At the limit nothing is cut; a token more is refused.
        scorer = service.models[kind].scorer
        word = "~"
        statuses = []
        for count in range(1, 60):
            text = " ".join([word] * count)
            answer = client.post("/rerank", json={"query": "a", "texts": [text], "truncate": False})
            pair = Pair("", "a", Item("", text))
            row = scorer.pair_rows([pair])[0][0] if kind == "cross_encoder" else scorer.token_rows([text], "item")[0]
            is_whole = row.count(scorer.tokenizer(word, add_special_tokens=False)["input_ids"][-1]) == count
            assert (answer.status_code == 200) == is_whole, count
            statuses.append(answer.status_code)
        assert {200, 413} == set(statuses)


def test_a_query_without_tokens_is_refused(serving, monkeypatch):
    client, service = serving(items=False)
    kind = type(service.models["two_tower"].scorer.tokenizer)
    tokenize = kind.__call__

    def without_tildes(self, texts, *more, **options):
        texts = [text.replace("~", "") for text in texts] if isinstance(texts, list) else texts
        return tokenize(self, texts, *more, **options)

    monkeypatch.setattr(kind, "__call__", without_tildes)
    refused(client.post("/rerank", json={"query": "~~", "texts": ["b"]}), 422, "query", "no tokens")
    refused(client.post("/embed", json={"inputs": ["a", "~"], "side": "query"}), 422, "inputs.1", "no tokens")
    refused(client.post("/rerank", json={"query": "a", "texts": ["b", "~"]}), 422, "texts.1", "no tokens")


def test_bodies_over_the_limit_with_and_without_length(serving):
    client, _ = serving(("cross_encoder",), body_bytes=2000)
    big = json.dumps({"query": "a", "texts": ["b" * 3000]}).encode()
    assert refused(raw(client, big), 413, "2000 bytes") == "too_large"

    def parts():
        for start in range(0, len(big), 100):
            yield big[start : start + 100]

    assert refused(raw(client, parts()), 413, "2000 bytes") == "too_large"
    assert post(client, "/rerank", query="a", texts=["b" * 1000])


def test_the_key(serving):
    client, _ = serving(("cross_encoder",), api_key="sesame")
    body = {"query": "a", "texts": ["b"]}
    for value in (None, "Bearer wrong", "sesame", "Basic sesame", "Bearer s\xe9same".encode("latin-1")):
        answer = client.post("/rerank", json=body, headers={"authorization": value} if value else {})
        assert refused(answer, 401, "Authorization: Bearer") == "unauthorized"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert client.post("/rerank", json=body, headers={"authorization": "bearer sesame"}).status_code == 200
    for path in ("/metrics", "/docs", "/info", "/openapi.json"):
        refused(client.get(path), 401)
    for path in ("/", "/health"):
        assert client.get(path).status_code == 200


def test_routes_that_lack_their_bundle(serving):
    cross, _ = serving(("cross_encoder",), items=False)
    assert refused(cross.post("/embed", json={"inputs": "a", "side": "query"}), 404, "two_tower") == "no_model"
    refused(cross.post("/v1/embeddings", json={"input": "a", "input_type": "query"}), 404, "two_tower")
    refused(cross.post("/search", json={"query": "a"}), 404, "two_tower")
    assert refused(cross.post("/compare", json={"query": "a"}), 404, "--items") == "no_items"
    refused(cross.post("/v1/rerank", json={"query": "a", "documents": ["b"], "model": "gpt"}), 404, "cross_encoder")
    assert refused(cross.get("/nowhere"), 404) == "not_found"
    assert refused(cross.get("/rerank"), 405) == "method_not_allowed"


def test_search_without_items(serving):
    client, _ = serving(("two_tower",), items=False)
    assert refused(client.post("/search", json={"query": "a"}), 404, "--items or --index") == "no_items"
    refused(client.post("/search", json={"query": "a", "rerank": True}), 404, "cross_encoder")


class Gated:
    """Makes a bundle's batches wait."""

    def __init__(self, service, kind, monkeypatch):
        self.opened, self.entered = threading.Event(), threading.Event()
        batcher = service.models[kind].batcher
        run = batcher._run

        def wait(*arguments):
            self.entered.set()
            self.opened.wait(20)
            return run(*arguments)

        monkeypatch.setattr(batcher, "_run", wait)


def test_beyond_the_queue_429_and_what_was_taken_is_answered(serving, monkeypatch):
    client, service = serving(("cross_encoder",), queue_rows=4, request_rows=4)
    gated = Gated(service, "cross_encoder", monkeypatch)
    body = {"query": "a", "texts": TEXTS}
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(client.post, "/rerank", json=body)
        assert gated.entered.wait(10)
        second = pool.submit(client.post, "/rerank", json=body)
        while service.models["cross_encoder"].batcher.waiting < 4:
            threading.Event().wait(0.01)
        third = client.post("/rerank", json={"query": "a", "texts": ["b"]})
        assert refused(third, 429, "later") == "overloaded"
        assert int(third.headers["retry-after"]) >= 1
        gated.opened.set()
        assert first.result(20).status_code == second.result(20).status_code == 200
        assert [row["index"] for row in first.result().json()] == [row["index"] for row in second.result().json()]


def test_a_refused_half_of_a_request_leaves_nothing_in_the_queue(serving, monkeypatch):
    client, service = serving(("two_tower",), queue_rows=4, request_rows=4, items=False)
    gated = Gated(service, "two_tower", monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.post, "/embed", json={"inputs": "a", "side": "query"})
        assert gated.entered.wait(10)
        refused(client.post("/rerank", json={"query": "a", "texts": TEXTS}), 429)
        again = pool.submit(client.post, "/embed", json={"inputs": TEXTS, "side": "item"})
        while service.models["two_tower"].batcher.waiting < 4:
            threading.Event().wait(0.01)
        gated.opened.set()
        assert first.result(20).status_code == again.result(20).status_code == 200


def test_a_request_that_takes_too_long(serving, monkeypatch):
    client, service = serving(("cross_encoder",), seconds=0.2)
    gated = Gated(service, "cross_encoder", monkeypatch)
    assert refused(client.post("/rerank", json={"query": "a", "texts": ["b"]}), 504, "0.2 seconds") == "timeout"
    gated.opened.set()
    assert client.post("/rerank", json={"query": "a", "texts": ["b"]}).status_code == 200


def test_shutdown_finishes_what_it_took_and_refuses_the_rest(serving, monkeypatch):
    client, service = serving(("cross_encoder",))
    gated = Gated(service, "cross_encoder", monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.post, "/rerank", json={"query": "a", "texts": TEXTS})
        assert gated.entered.wait(10)
        service.draining = True
        answer = client.post("/rerank", json={"query": "a", "texts": ["b"]})
        assert refused(answer, 503, "shutting down") == "closed"
        metrics = service.metrics.text().decode()
        assert 'jax_rele_failures_total{error_type="closed",route="/rerank"} 1.0' in metrics
        refused(client.get("/ready"), 503, "shutting down")
        assert client.get("/health").status_code == 200
        gated.opened.set()
        assert len(first.result(20).json()) == 4
    service.close()
    service.draining = False
    refused(client.post("/rerank", json={"query": "a", "texts": ["b"]}), 503)


def test_a_model_that_fails(serving, monkeypatch):
    client, service = serving(("cross_encoder",))

    def fail(*_):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(service.models["cross_encoder"].batcher, "_run", fail)
        assert refused(client.post("/rerank", json={"query": "a", "texts": ["b"]}), 500, "RuntimeError") == "backend"
    assert client.post("/rerank", json={"query": "a", "texts": ["b"]}).status_code == 200


def test_requests_side_by_side_are_answered_as_alone(both):
    bodies = [{"query": f"{TEXTS[n % 4]} {n}", "texts": TEXTS[: n % 4 + 1]} for n in range(24)]
    alone = [post(both, "/rerank", **body) for body in bodies]
    with ThreadPoolExecutor(12) as pool:
        side_by_side = list(pool.map(lambda body: post(both, "/rerank", **body), bodies))
    for one, other in zip(alone, side_by_side):
        scores = {row["index"]: row["score"] for row in other}
        assert scores == pytest.approx({row["index"]: row["score"] for row in one}, abs=1e-5)
