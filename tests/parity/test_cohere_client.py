"""Cohere's own client, both versions, against a running service."""

import importlib.util
import threading
import time
from pathlib import Path

import cohere
import pytest
import uvicorn

from jax_rele.deployment.scorer import load_bundle
from jax_rele.serving.app import create_app
from jax_rele.serving.service import Service

QUERY, DOCUMENTS = "red shoes", ["blue cotton shirt", "red running shoes", "a garden hose"]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    path = Path(__file__).parent.parent / "deployment" / "conftest.py"
    spec = importlib.util.spec_from_file_location("deployment_conftest", path)
    bundles = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bundles)
    return load_bundle(bundles.write_bundle(tmp_path_factory.mktemp("bundles") / "cross", "cross_encoder"), threads=1)


@pytest.fixture(scope="module")
def url(scorer):
    app = create_app(Service([scorer]), api_key="sesame")
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


@pytest.mark.parametrize("kind", [cohere.Client, cohere.ClientV2])
def test_rerank(url, scorer, kind):
    client = kind(api_key="sesame", base_url=url)
    expected = scorer.predict([(QUERY, document) for document in DOCUMENTS]).scores
    order = sorted(range(3), key=lambda index: -expected[index])
    answer = client.rerank(model="cross_encoder", query=QUERY, documents=DOCUMENTS)
    assert [row.index for row in answer.results] == order
    assert [row.relevance_score for row in answer.results] == pytest.approx([expected[n] for n in order], abs=1e-5)
    assert answer.id
    best = client.rerank(model="cross_encoder", query=QUERY, documents=DOCUMENTS, top_n=1)
    assert [row.index for row in best.results] == order[:1]
    with pytest.raises(cohere.NotFoundError, match="cross_encoder"):
        client.rerank(model="rerank-v3.5", query=QUERY, documents=DOCUMENTS)
    with pytest.raises(cohere.UnauthorizedError):
        kind(api_key="wrong", base_url=url).rerank(model="cross_encoder", query=QUERY, documents=DOCUMENTS)


def test_documents_as_objects_come_back(url):
    client = cohere.Client(api_key="sesame", base_url=url)
    answer = client.rerank(
        model="cross_encoder", query=QUERY, documents=[{"text": "red shoes"}, {"text": "hose"}], return_documents=True
    )
    assert {row.document.text for row in answer.results} == {"red shoes", "hose"}
