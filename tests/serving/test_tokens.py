"""Texts that the models cannot read are refused by their path in the request, on every route alike."""

import json

import pytest
from asking import QUERY, post, refused
from tokenizers import normalizers

from jax_rele.deployment.scorer import load_bundle
from jax_rele.types import Item, Pair

KNOWN, UNKNOWN = "red shoes", "\u7ea2\u8272"


@pytest.fixture(scope="module")
def word_scorers(word_bundles):
    return {kind: load_bundle(folder, threads=1) for kind, folder in word_bundles.items()}


@pytest.fixture
def client(serving, word_scorers):
    return serving(bundles=word_scorers, items=False)[0]


def message(answer):
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    return error if isinstance(error, str) else error["message"]


PAIR = {"query": KNOWN, "item": KNOWN}
CASES = [
    ("/rerank", {"query": UNKNOWN, "texts": [KNOWN]}, "query: "),
    ("/rerank", {"query": KNOWN, "texts": [KNOWN, KNOWN, UNKNOWN]}, "texts.2: "),
    ("/predict", {"inputs": [UNKNOWN, KNOWN]}, "inputs.0: "),
    ("/predict", {"inputs": [[KNOWN, KNOWN], [KNOWN, UNKNOWN]]}, "inputs.1.1: "),
    ("/predict", {"inputs": [[KNOWN, KNOWN], [UNKNOWN, KNOWN]]}, "inputs.1.0: "),
    ("/score", {"query": KNOWN, "items": [KNOWN, {"title": UNKNOWN}]}, "items.1: "),
    ("/score", {"pairs": [PAIR, PAIR | {"query": UNKNOWN}]}, "pairs.1.query: "),
    ("/score", {"pairs": [PAIR, PAIR, PAIR | {"item": UNKNOWN}]}, "pairs.2.item: "),
    ("/v1/rerank", {"query": KNOWN, "documents": [KNOWN, {"text": UNKNOWN}]}, "documents.1: "),
    ("/v2/rerank", {"query": UNKNOWN, "documents": [KNOWN]}, "query: "),
    (
        "/v1/rerank",
        {"query": KNOWN, "documents": [{"title": KNOWN, "brand": UNKNOWN}], "rank_fields": ["brand"]},
        "documents.0: ",
    ),
]


@pytest.mark.parametrize(("path", "body", "start"), CASES)
@pytest.mark.parametrize("kind", ["cross_encoder", "two_tower"])
def test_a_text_of_which_nothing_is_known_is_named(serving, word_scorers, kind, path, body, start):
    client = serving((kind,), bundles=word_scorers, items=False)[0]
    refusal = message(client.post(path, json=body))
    assert refusal.startswith(start)
    assert "the model knows nothing of" in refusal


@pytest.mark.parametrize("side", ["query", "item"])
def test_embeddings_of_unknown_texts_are_refused(client, side):
    for path, field, option in (("/embed", "inputs", "side"), ("/v1/embeddings", "input", "input_type")):
        for texts, start in ((UNKNOWN, f"{field}: "), ([KNOWN, UNKNOWN], f"{field}.1: ")):
            assert message(client.post(path, json={field: texts, option: side})).startswith(start)


def test_a_text_that_is_partly_known_is_answered(client):
    for path, body, _ in CASES:
        text = json.dumps(body, ensure_ascii=False).replace(UNKNOWN, f"{UNKNOWN} red")
        assert client.post(path, json=json.loads(text)).status_code == 200


def test_a_search_for_what_nothing_is_known_of_is_refused(serving, word_scorers):
    client, _ = serving(bundles=word_scorers)
    for path in ("/compare", "/search"):
        assert message(client.post(path, json={"query": UNKNOWN})).startswith("query: ")
        assert client.post(path, json={"query": f"{UNKNOWN} red"}).status_code == 200


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
    for model in service.models.values():
        backend = model.scorer.tokenizer.backend_tokenizer
        parts = [normalizers.Replace("~", ""), *([backend.normalizer] if backend.normalizer else [])]
        monkeypatch.setattr(backend, "normalizer", normalizers.Sequence(parts))
    refused(client.post("/rerank", json={"query": "~~", "texts": ["b"]}), 422, "query", "no tokens")
    refused(client.post("/embed", json={"inputs": ["a", "~"], "side": "query"}), 422, "inputs.1", "no tokens")
    refused(client.post("/rerank", json={"query": "a", "texts": ["b", "~"]}), 422, "texts.1", "no tokens")


def test_a_marker_in_a_title_changes_nothing_but_text(both, scorers):
    for marker in ("</s>", "[SEP]", "<s>"):
        ids = scorers["cross_encoder"].pair_rows([Pair("", QUERY, Item("", f"shoes {marker} red"))])[0][0]
        specials = [token for token in ids if token in scorers["cross_encoder"].tokenizer.all_special_ids]
        plain = scorers["cross_encoder"].pair_rows([Pair("", QUERY, Item("", "shoes red"))])[0][0]
        assert specials == [t for t in plain if t in scorers["cross_encoder"].tokenizer.all_special_ids]
        expected = scorers["cross_encoder"].predict([(QUERY, f"shoes {marker} red")]).scores[0]
        answer = post(both, "/rerank", query=QUERY, texts=[f"shoes {marker} red"])
        assert answer[0]["score"] == pytest.approx(expected, abs=1e-5)
