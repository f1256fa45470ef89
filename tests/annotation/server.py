"""A chat server on loopback that misbehaves by a seeded plan, counts what it is asked and charges tokens."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from email.utils import formatdate
from typing import Any

Text = Callable[[Sequence[Mapping[str, str]], str, int], str]

REFUSED = ("429", "429_after", "429_date", "500", "503")
"""Faults that cost nothing."""

BROKEN = ("hang", "cut", "malformed")
"""Faults after which the tokens are charged and the client does not learn how many."""

SPOILT = ("wrong_schema", "refusal", "length", "empty", "enormous", "twice")
"""Answers that arrive, and are not what was asked for (`twice`: the same choice is in the response two times)."""


@dataclass(frozen=True)
class Plan:
    """How the server behaves.

    Attributes:
      seed, rates: {fault: probability}; what happens to the nth attempt of a request depends on the seed, the request
        and n alone, in whatever order requests come.
      spared: attempts of a request from this one on meet no fault of `REFUSED` or `BROKEN`.
      latency: (least, most) seconds of an answer; drawn for each, so that answers come in another order than requests.
      retry_after: seconds, of `429_after` and `429_date`.
      hang: seconds until a hanging connection is closed.
      enormous: characters of an enormous answer.
      key: what the bearer must be; empty for none.
      models: those that exist; any does where empty.
      lists_models: whether there is a route /models.
      structured: the response formats that it takes.
      down_after: requests after which every one gets a 503; never where negative.
    """

    seed: int = 0
    rates: Mapping[str, float] = field(default_factory=dict)
    spared: int = 2
    latency: tuple[float, float] = (0.0, 0.0)
    retry_after: float = 0.0
    hang: float = 5.0
    enormous: int = 400_000
    key: str = ""
    models: tuple[str, ...] = ()
    lists_models: bool = True
    structured: tuple[str, ...] = ("json_schema", "json_object")
    down_after: int = -1


def echo(messages: Sequence[Mapping[str, str]], model: str, sample: int) -> str:
    """A text that says what was asked, as JSON."""
    digest = hashlib.sha256(messages[-1]["content"].encode()).hexdigest()[:8]
    return json.dumps({"of": digest, "model": model, "sample": sample})


def prompt_tokens(messages: Sequence[Mapping[str, str]]) -> int:
    """What the server charges for a prompt: a word is a token."""
    return sum(len(message["content"].split()) + 4 for message in messages)


class Server:
    """What a server was asked and what it charged.

    Attributes:
      url: for `Endpoint.base_url`.
      requests: {hash of the body: attempts} of chat requests that were heard.
      faults: {fault: times}.
      calls, charged: chat requests that came; those that were charged, clearly or not.
      answered: those whose answer was sent whole, the charge with it.
      input_tokens, output_tokens: of `answered`.
      in_flight, most_in_flight: at once.
      seconds: spent in handling requests, without waiting.
    """

    def __init__(self, plan: Plan, text: Text) -> None:
        self.plan, self.text = plan, text
        self.url = ""
        self.requests: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.calls = self.charged = self.answered = self.input_tokens = self.output_tokens = 0
        self.in_flight = self.most_in_flight = 0
        self.seconds = 0.0

    def counts(self) -> dict[str, Any]:
        names = ("calls", "charged", "answered", "input_tokens", "output_tokens", "most_in_flight", "seconds")
        return {name: getattr(self, name) for name in names} | {"faults": dict(self.faults)}

    def handle(self, line: str, headers: dict[str, str], body: bytes) -> tuple[float, bytes | None, bool]:
        """(seconds to wait, response or none, whether the connection ends)."""
        plan = self.plan
        method, path, _ = line.split(" ", 2)
        if path == "/counts":
            return 0.0, _response(200, self.counts()), False
        if plan.key and headers.get("authorization") != f"Bearer {plan.key}":
            return 0.0, _error(401, "Incorrect API key provided"), False
        if path == "/v1/models" and plan.lists_models:
            return 0.0, _response(200, {"object": "list", "data": [{"id": name} for name in plan.models]}), False
        if (method, path) != ("POST", "/v1/chat/completions"):
            return 0.0, _error(404, "no such route"), False
        self.calls += 1
        request = json.loads(body)
        if plan.models and request["model"] not in plan.models:
            return 0.0, _error(404, f"The model `{request['model']}` does not exist"), False
        form = request.get("response_format", {}).get("type")
        if form is not None and form not in plan.structured:
            return 0.0, _error(400, f"response_format of type {form} is not supported"), False
        if 0 <= plan.down_after < self.calls:
            self.faults["down"] += 1
            return 0.0, _error(503, "going down"), False

        name = hashlib.sha256(body).hexdigest()
        attempt = self.requests[name]
        self.requests[name] += 1
        rng = random.Random(f"{plan.seed} {name} {attempt}")
        fault = self._fault(rng, attempt)
        if fault:
            self.faults[fault] += 1
        wait = rng.uniform(*plan.latency)
        if fault in REFUSED:
            later = {
                "429_after": {"retry-after": f"{plan.retry_after:g}"},
                "429_date": {"retry-after": formatdate(time.time() + plan.retry_after, usegmt=True)},
            }
            return wait, _error(int(fault[:3]), f"fault {fault}", later.get(fault)), False

        self.charged += 1
        sample = request.get("seed", 0)
        text = self.text(request["messages"], request["model"], sample)
        if fault == "hang":
            return plan.hang, None, True
        response = self._answer(request, fault, text)
        if fault == "cut":
            return wait, response[: len(response) // 2], True
        if fault == "malformed":
            return wait, _whole(200, b'{"choices": [{"mess'), False
        return wait, response, False

    def _fault(self, rng: random.Random, attempt: int) -> str:
        draw, total = rng.random(), 0.0
        for fault, rate in self.plan.rates.items():
            total += rate
            if draw < total:
                return "" if attempt >= self.plan.spared and fault not in SPOILT else fault
        return ""

    def _answer(self, request: dict[str, Any], fault: str, text: str) -> bytes:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        reason = "stop"
        if fault == "wrong_schema":
            message["content"] = '{"something": ["else"]}'
        elif fault == "refusal":
            message |= {"content": None, "refusal": "I cannot help with that."}
        elif fault == "length":
            message["content"], reason = text[: len(text) // 2], "length"
        elif fault == "empty":
            message["content"] = ""
        elif fault == "enormous":
            message["content"] = text + "x" * self.plan.enormous
        tokens = min(len((message["content"] or "").split()), request.get("max_tokens") or 1 << 30)
        usage = {"prompt_tokens": prompt_tokens(request["messages"]), "completion_tokens": tokens}
        if fault not in BROKEN:
            self.answered += 1
            self.input_tokens += usage["prompt_tokens"]
            self.output_tokens += usage["completion_tokens"]
        choices = [{"index": 0, "message": message, "finish_reason": reason}] * (2 if fault == "twice" else 1)
        whole = {
            "id": "chatcmpl-0", "object": "chat.completion", "created": 0, "model": request["model"],
            "choices": choices, "usage": usage | {"total_tokens": sum(usage.values())},
        }  # fmt: skip
        return _response(200, whole)


def _whole(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} X", "content-type: application/json", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _response(status: int, value: Any, headers: Mapping[str, str] | None = None) -> bytes:
    return _whole(status, json.dumps(value).encode(), headers)


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> bytes:
    return _response(status, {"error": {"message": message, "type": "error", "code": None}}, headers)


class _Connection(asyncio.Protocol):
    """HTTP/1.1 with content-length and keep-alive, one request at a time: as much as the client sends."""

    def __init__(self, server: Server) -> None:
        self.server, self.buffer = server, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, matches, rest = self.buffer.partition(b"\r\n\r\n")
        if not matches:
            return
        line, *fields = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (text.partition(":") for text in fields)}
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            return
        self.buffer = rest[length:]
        started = time.perf_counter()
        wait, response, ends = self.server.handle(line, headers, rest[:length])
        self.server.seconds += time.perf_counter() - started
        self.server.in_flight += 1
        self.server.most_in_flight = max(self.server.most_in_flight, self.server.in_flight)
        if wait > 0:
            asyncio.get_running_loop().call_later(wait, self.send, response, ends)
        else:
            self.send(response, ends)

    def send(self, response: bytes | None, ends: bool) -> None:
        self.server.in_flight -= 1
        if response:
            self.transport.write(response)
        if ends:
            self.transport.close()


async def _serve(server: Server, port: int, ready: Callable[[int], None], stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: _Connection(server), "127.0.0.1", port, backlog=2048)
    ready(listener.sockets[0].getsockname()[1])
    await stop.wait()
    listener.close()


@contextmanager
def running(plan: Plan | None = None, answer: Text = echo, port: int = 0) -> Iterator[Server]:
    """A server in a thread; `url` of what is yielded is for `Endpoint.base_url`."""
    server = Server(plan or Plan(), answer)
    loop, stop, started = asyncio.new_event_loop(), asyncio.Event(), threading.Event()

    def ready(port: int) -> None:
        server.url = f"http://127.0.0.1:{port}/v1"
        started.set()

    def body() -> None:
        loop.run_until_complete(_serve(server, port, ready, stop))
        # What hangs is let go.
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    if not started.wait(10):
        raise RuntimeError("the server did not start")
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


def main() -> None:
    """Serves in this process until standard input ends; prints the URL as its first line."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--plan", default="{}", help="fields of Plan, as JSON")
    fields = asdict(Plan()) | json.loads(parser.parse_args().plan)
    for name in ("latency", "models", "structured"):
        fields[name] = tuple(fields[name])
    with running(Plan(**fields)) as server:
        print(server.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
