"""Queues, time-outs, failures and shutdown."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from asking import TEXTS, post, refused

from jax_rele.serving.service import Service


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


def test_routes_that_lack_their_bundle(serving):
    cross, _ = serving(("cross_encoder",), items=False)
    assert refused(cross.post("/embed", json={"inputs": "a", "side": "query"}), 404, "two_tower") == "no_model"
    refused(cross.post("/v1/embeddings", json={"input": "a", "input_type": "query"}), 404, "two_tower")
    refused(cross.post("/search", json={"query": "a"}), 404, "two_tower")
    assert refused(cross.post("/compare", json={"query": "a"}), 404, "--items") == "no_items"
    refused(cross.post("/v1/rerank", json={"query": "a", "documents": ["b"], "model": "gpt"}), 404, "cross_encoder")
    assert refused(cross.get("/nowhere"), 404) == "not_found"
    assert refused(cross.get("/rerank"), 405) == "method_not_allowed"
