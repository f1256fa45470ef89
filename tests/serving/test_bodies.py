"""Bodies that are refused, each by the path of what is wrong."""

import pytest
from asking import refused


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
