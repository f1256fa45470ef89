"""A chat server on loopback whose answers depend on the messages alone."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[dict], tuple[int, dict]]


def well(request: dict) -> tuple[int, dict]:
    """An answer of the schema that is asked for, with values drawn by a hash of the messages, so that samples agree."""
    rng = random.Random(hashlib.sha256(json.dumps(request["messages"], sort_keys=True).encode()).hexdigest())
    schema = request.get("response_format", {}).get("json_schema", {}).get("schema", {})
    text = json.dumps(_draw(schema, rng))
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return 200, {"id": "x", "object": "chat.completion", "model": request["model"], "choices": choices, "usage": usage}


def _draw(schema: dict, rng: random.Random) -> object:
    """A value that fits a JSON schema of objects, lists, strings and enumerations."""
    if "enum" in schema:
        return rng.choice(schema["enum"])
    if schema.get("type") == "object" or "properties" in schema:
        return {name: _draw(each, rng) for name, each in schema.get("properties", {}).items()}
    if schema.get("type") == "array":
        return [_draw(schema.get("items", {}), rng) for _ in range(rng.randint(0, 2))]
    return rng.choice(["red", "shoe", "steel", "large"])


@contextmanager
def answering(answer: Answer = well, key: str = "") -> Iterator[str]:
    """Serves chat completions; yields the base URL. With a key, calls without it are refused, and it is quoted."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            bearer = self.headers.get("authorization", "")
            if key and bearer != f"Bearer {key}":
                self._send(401, {"error": {"message": f"Incorrect API key provided: {bearer.removeprefix('Bearer ')}"}})
            else:
                self._send(*answer(body))

        def do_GET(self) -> None:
            self._send(404, {"error": {"message": "no such route"}})

        def _send(self, status: int, values: dict) -> None:
            content = json.dumps(values).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
