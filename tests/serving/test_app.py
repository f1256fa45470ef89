"""What the application serves."""


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
