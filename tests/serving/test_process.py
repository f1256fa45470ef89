"""The command in a process of its own: it starts, answers, and ends well; mistakes are one line before the start."""

import json
import signal
import socket
import threading

import httpx2
import pytest

from jax_rele import cli


@pytest.mark.slow
def test_a_server_answers_finishes_what_it_took_and_ends_with_0(
    serve_process, cross_bundle, tower_bundle, items_file, tmp_path
):
    server = serve_process(cross_bundle, tower_bundle, "--items", items_file, "--judgements", tmp_path / "j.jsonl")
    hits = httpx2.post(f"{server.url}/search", json={"query": "red shoes", "k": 3}).json()
    assert len(hits["results"]) == 3
    # Enough rows to be at work when the signal comes.
    body = {"query": "red shoes", "texts": [f"shoes number {n} of many with a long title" * 4 for n in range(1000)]}
    answers = []
    asking = threading.Thread(target=lambda: answers.append(httpx2.post(f"{server.url}/rerank", json=body, timeout=60)))
    asking.start()
    for _ in range(1000):
        text = httpx2.get(f"{server.url}/metrics").text
        if any(line.startswith("jax_rele_queue_rows") and not line.endswith(" 0.0") for line in text.splitlines()):
            break
    else:
        raise AssertionError("the request never waited")
    assert server.end() == 0
    asking.join(60)
    assert answers[0].status_code == 200
    assert len(answers[0].json()) == 1000
    with pytest.raises(httpx2.TransportError):
        httpx2.get(f"{server.url}/health")
    rows = [json.loads(line) for line in server.lines if line.startswith("{")]
    assert [row["rows"] for row in rows if row["route"] == "/rerank"] == [1000]
    assert all(line.startswith(("{", "embedding", "serving")) for line in server.lines), server.lines


@pytest.mark.slow
def test_the_openai_client(serve_process, tower_bundle):
    import numpy as np
    import openai

    from jax_rele.deployment.scorer import load_bundle

    server = serve_process(tower_bundle, JAX_RELE_API_KEY="sesame")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="sesame", max_retries=0)
    scorer, texts = load_bundle(tower_bundle, threads=1), ["red shoes", "a garden hose"]
    for side in ("query", "item"):
        expected = scorer.embed(texts, side)
        # By default the client asks for base64 and unpacks it.
        answers = [
            client.embeddings.create(model=f"two_tower:{side}", input=texts),
            client.embeddings.create(model="two_tower", input=texts, extra_body={"input_type": side}),
            client.embeddings.create(model=f"two_tower:{side}", input=texts, encoding_format="float"),
        ]
        for answer in answers:
            np.testing.assert_allclose([row.embedding for row in answer.data], expected, atol=1e-5)
            assert answer.usage.total_tokens > 0
    assert [model.id for model in client.models.list()] == ["two_tower"]
    with pytest.raises(openai.UnprocessableEntityError, match="input_type"):
        client.embeddings.create(model="two_tower", input=texts)
    with pytest.raises(openai.UnprocessableEntityError, match="dimensions"):
        client.embeddings.create(model="two_tower:item", input=texts, dimensions=4)
    with pytest.raises(openai.NotFoundError, match="two_tower"):
        client.embeddings.create(model="text-embedding-3-small", input=texts)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong").models.list()
    assert server.end(signal.SIGINT) == 0


def refusal(capfd, *arguments):
    """The one line that the command ends with."""
    assert cli.main(["serve", *map(str, arguments)]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("key", ["", "  ", "s\xe9same", "\udcff", "a\x07b"])
def test_a_key_that_no_request_can_bear_does_not_open_the_service(capfd, cross_bundle, monkeypatch, key):
    monkeypatch.setenv("JAX_RELE_API_KEY", key)
    assert "JAX_RELE_API_KEY: is set, but" in refusal(capfd, cross_bundle, "--port", 0)


def test_mistakes_are_one_line(capfd, cross_bundle, tower_bundle, items_file, tmp_path):
    port = ("--port", 0)
    assert "no bundle" in refusal(capfd, tmp_path, *port)
    assert "both hold a cross_encoder" in refusal(capfd, cross_bundle, cross_bundle, *port)
    assert "3 bundles" in refusal(capfd, cross_bundle, tower_bundle, tower_bundle, *port)
    assert "no such file" in refusal(capfd, cross_bundle, "--items", tmp_path / "none.jsonl", *port)
    assert "No such file" in refusal(capfd, cross_bundle, "--queries", tmp_path / "none.txt", *port)
    assert "--timeout: 1e+30 seconds are more than a day" in refusal(capfd, cross_bundle, "--timeout", 10**30, *port)
    assert "--max-queue-rows" in refusal(capfd, cross_bundle, "--max-queue-rows", 1, *port)
    assert "no such folder" in refusal(capfd, cross_bundle, "--judgements", tmp_path / "none" / "j.jsonl", *port)
    # Before the items are embedded, which may take long.
    late = (tower_bundle, "--items", items_file)
    assert "no such folder" in refusal(capfd, *late, "--judgements", tmp_path / "none" / "j.jsonl", *port)
    assert "No such file" in refusal(capfd, *late, "--queries", tmp_path / "none.txt", *port)
    assert "--port 99999" in refusal(capfd, cross_bundle, "--port", 99999)
    assert "cannot listen at 192.0.2.1" in refusal(capfd, cross_bundle, "--host", "192.0.2.1", *port)
    assert "--items out" in refusal(capfd, tower_bundle, "--items", items_file, "--index", tmp_path, *port)
    assert "two-tower's bundle" in refusal(capfd, cross_bundle, "--index", tmp_path, *port)
    bad = tmp_path / "bad.jsonl"
    for content, part in (
        ('{"title": null}\n{"title": ""}\n', "none of its 2 rows is an item (row 1: missing title)"),
        ('{"title"', "row 1"),
        ("", "has no rows"),
    ):
        bad.write_text(content)
        assert part in refusal(capfd, cross_bundle, "--items", bad, *port)
    bad.write_text('{"title": "a"}\n')
    assert "--delimiter '::'" in refusal(capfd, cross_bundle, "--items", bad, "--delimiter", "::", *port)
    assert "go with --items" in refusal(capfd, cross_bundle, "--quoting", "none", *port)
    bad.write_text("")
    for content, part in ((" \n", "no query"), ('{"q": "a"}', "row 1"), ("a\n{", "row 2")):
        bad.write_text(content)
        assert part in refusal(capfd, cross_bundle, "--queries", bad, *port)
    bad.write_bytes(b"\xff\n")
    assert "UTF-8" in refusal(capfd, cross_bundle, "--queries", bad, *port)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        number = listener.getsockname()[1]
        assert f"--port {number}" in refusal(capfd, cross_bundle, "--port", number)


def test_a_client_that_reads_the_address_may_connect_at_once(cross_bundle, capfd, monkeypatch):
    connected = []

    def connect(app, service, listener):
        number = listener.getsockname()[1]
        assert f"at http://127.0.0.1:{number}\n" in capfd.readouterr().err
        with socket.create_connection(("127.0.0.1", number), timeout=10) as connection:
            connected.append(connection.getpeername()[1])

    monkeypatch.setattr("jax_rele.serving.command.run_server", connect)
    assert cli.main(["serve", str(cross_bundle), "--port", "0"]) == 0
    assert len(connected) == 1


def test_a_late_interaction_two_tower_scores_and_cannot_be_searched(serving, scorers, write_bundle, tmp_path):
    from jax_rele.deployment.scorer import load_bundle
    from jax_rele.errors import UserError
    from jax_rele.serving.command import exact_search
    from jax_rele.types import Item

    scorer = load_bundle(write_bundle(tmp_path / "late", "two_tower", head="maxsim"), threads=1)
    with pytest.raises(UserError, match="maxsim"):
        exact_search(scorer, [Item("a", "b")])
    scorers = scorers | {"two_tower": scorer}
    client, _ = serving(("two_tower",), items=False, bundles=scorers)
    texts = ["red shoes", "a much longer title with a garden hose", "x"]
    answer = client.post("/rerank", json={"query": "red running shoes", "texts": texts}).json()
    expected = scorer.predict([("red running shoes", text) for text in texts]).scores
    assert {row["index"]: row["score"] for row in answer} == pytest.approx(dict(enumerate(expected)), abs=1e-5)
    refused = client.post("/embed", json={"inputs": "a", "side": "query"})
    assert (refused.status_code, "maxsim" in refused.json()["error"]) == (422, True)
