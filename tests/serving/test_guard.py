"""What is around every request: key, sizes, times, log and metrics.

Over a real connection a refusal is read by a client that is still sending, and nobody is waited for.
"""

import json
import socket
import threading
import time

import pytest
import uvicorn
from asking import QUERY, TEXTS, post, raw, refused

from jax_rele.serving.app import create_app
from jax_rele.serving.service import Limits, Service

LIMIT, SECONDS = 100_000, 1.0
HEAD = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def port(scorers):
    service = Service([scorers["cross_encoder"]], Limits(body_bytes=LIMIT, seconds=SECONDS))
    server = uvicorn.Server(uvicorn.Config(create_app(service), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(20)


def answer_to(port, *parts, pause=0.0):
    """The status of the answer to bytes that are sent part by part, and whether the connection was closed well."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        content = b""
        while part := connection.recv(1 << 16):
            content += part
            if content.endswith(b"}"):
                break
    return int(content.split()[1]), content


@pytest.mark.parametrize("path", [b"/rerank", b"/nowhere"])
def test_a_client_that_sends_all_before_it_reads_has_its_answer(port, path):
    size = 20 * LIMIT
    length = HEAD % path + b"Content-Length: %d\r\n\r\n" % size
    chunks = (b"%x\r\n" % 10_000 + b"x" * 10_000 + b"\r\n") * (size // 10_000) + b"0\r\n\r\n"
    expected = 413 if path == b"/rerank" else 404
    status, _ = answer_to(port, length, b"x" * size)
    assert status == 413  # told by its length, whatever the path
    status, _ = answer_to(port, HEAD % path + b"Transfer-Encoding: chunked\r\n\r\n", chunks)
    assert status == expected


def test_a_client_that_asks_first_is_answered_before_it_sends(port):
    head = HEAD % b"/rerank" + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % (20 * LIMIT)
    status, content = answer_to(port, head)
    assert status == 413
    assert b"connection: close" in content


def test_a_body_that_does_not_come_is_not_waited_for(port):
    begin = time.monotonic()
    status, content = answer_to(port, HEAD % b"/rerank" + b"Content-Length: 50\r\n\r\n", b'{"query"')
    assert status == 408
    assert b"1 seconds" in content
    assert b"connection: close" in content
    assert SECONDS / 2 < time.monotonic() - begin < 10 * SECONDS


def test_a_slow_body_that_comes_in_time_is_answered(port):
    body = b'{"query": "red shoes", "texts": ["shoes"]}'
    head = HEAD % b"/rerank" + b"Content-Length: %d\r\n\r\n" % len(body)
    assert answer_to(port, head, body[:10], body[10:], pause=0.1)[0] == 200


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
    for field in (rb'"brand":"\ud800"', rb'"attributes":{"brand":["\ud800"]}', rb'"bullets":["\ud800"]'):
        body = rb'{"query":"a","documents":["b",{"title":"b",%s}]}' % field
        refused(raw(both, body, "/v1/rerank"), 422, "documents.1.", "Unicode")
    refused(both.post("/rerank", content=b'{"query":"a","texts":["b"]}'), 422, "Content-Type")


def test_bodies_in_another_encoding(both):
    text = '{"query": "red", "texts": ["b"]}'
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        assert refused(raw(both, text.encode(encoding)), 400, "UTF-8") == "bad_request"
        assert refused(raw(both, iter([bytes([byte]) for byte in text.encode(encoding)])), 400, "UTF-8")
    assert raw(both, text.encode("utf-8-sig")).status_code == 200


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
