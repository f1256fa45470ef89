"""Our own routes against the students themselves."""

import json

import numpy as np
import pytest
from asking import QUERY, TEXTS, post, refused

from jax_rele.deployment.bundle import Tier
from jax_rele.types import Item, Pair


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


def test_info_has_what_clients_of_text_embeddings_inference_read(serving):
    for kind, name, most in (("cross_encoder", "reranker", 44), ("two_tower", "embedding", 33)):
        info = serving((kind,), items=False)[0].get("/info").json()
        assert info["model_id"] == "tiny"
        assert info["model_dtype"] == "float32"
        assert list(info["model_type"]) == [name]
        assert info["max_input_length"] == most
        assert info["model_sha"] == info["models"][kind]["identity"]


def test_search_without_items(serving):
    client, _ = serving(("two_tower",), items=False)
    assert refused(client.post("/search", json={"query": "a"}), 404, "--items or --index") == "no_items"
    refused(client.post("/search", json={"query": "a", "rerank": True}), 404, "cross_encoder")
