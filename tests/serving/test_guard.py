"""Bodies over a real connection: a refusal is read by a client that is still sending, and nobody is waited for."""

import socket
import threading
import time

import pytest
import uvicorn

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
