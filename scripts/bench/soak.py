"""A service under load and faults for a long time: memory and file handles stay flat, and nothing fails.

    python scripts/bench/soak.py BUNDLE [BUNDLE] --minutes 30 --rate 4 [--items sample]

Starts `jax-rele serve` on the bundles. Good requests to every route come at random times that are fixed beforehand
(open loop, latency from the intended time). Beside them come faults: slow clients, cut connections, huge bodies, wrong
JSON, texts that are no UTF-8, lines that are no HTTP, and three times 1,000 open connections. Each fault has the
statuses that it may be answered with.

Prints requests by kind and status, latencies of good requests, memory and open files of the service at 10%, 50% and
100% of the time, and ends with status 1 where something is not as it should be: a status that was not expected, any
5xx, a traceback in the log, memory or file handles that grow, a service that does not end well.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2 as httpx
import numpy as np
from deploy import processor
from serving import free_port, wait_until_ready

from jax_rele.data import read_pairs
from jax_rele.deployment.bundle import read_manifest

BODY_BYTES, TIMEOUT = 1_000_000, 15
"""Limits of the service: bytes of a body, seconds of a request."""
CONNECTIONS = 1000
BURSTS = (0.05, 0.5, 0.85)
"""When the many connections are opened, as fractions of the time."""
FRACTIONS = (0.1, 0.5, 1.0)
GROWTH, SPARE_MB, SPARE_FILES = 1.1, 20, 10
"""Memory at the end is at most GROWTH times that at 10% and SPARE_MB more; open files at most SPARE_FILES more."""

Fault = Callable[[int], Awaitable["int | None"]]
"""Takes the port; gives the status of the answer, or None where there was none."""


@dataclass
class Record:
    """What happened.

    Attributes:
      statuses: (kind, status) -> count; the status is None where no answer came.
      latencies: seconds of good requests that were answered 200.
      unexpected: sentences.
      samples: (seconds, bytes of memory, open files) of the service.
    """

    statuses: Counter[tuple[str, int | None]] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    samples: list[tuple[float, int, int]] = field(default_factory=list)

    def add(self, kind: str, status: int | None, allowed: Sequence[int | None], what: str = "") -> None:
        self.statuses[kind, status] += 1
        if status not in allowed:
            self.unexpected.append(f"{kind}: {status} {what}".rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=4.0, help="good requests per second; a fifth as many faults")
    parser.add_argument("--items", default="sample", help="to search, where there is a two-tower")
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime; the clients need a core too")
    parser.add_argument("--connections", type=int, default=CONNECTIONS, help="that are open at once")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    kinds = {read_manifest(bundle).model for bundle in options.bundles}
    seconds, port, record = 60 * options.minutes, free_port(), Record()
    command = [sys.executable, "-m", "jax_rele.cli", "serve", *map(str, options.bundles), "--port", str(port)]
    command += ["--max-body-bytes", str(BODY_BYTES), "--timeout", str(TIMEOUT), "--threads", str(options.threads)]
    if "two_tower" in kinds:
        command += ["--items", options.items]
    print(f"{processor()}, {os.cpu_count()} cores; {seconds:g} s, {options.rate:g} good requests/s", flush=True)
    with tempfile.TemporaryFile("w+") as log:
        service = subprocess.Popen(command, stderr=log)
        try:
            wait_until_ready(f"http://127.0.0.1:{port}", 600)
            asyncio.run(run(options, kinds, seconds, port, service.pid, record))
            if service.poll() is not None:
                record.unexpected.append(f"the service ended with status {service.returncode}")
        finally:
            service.send_signal(signal.SIGTERM)
            status = service.wait(60)
        log.seek(0)
        lines = log.read().splitlines()
    if status != 0:
        record.unexpected.append(f"after SIGTERM the service ended with status {status}")
    # The last is the server's word for a line that is no HTTP.
    usual = ("{", "serving", "embedding", "WARNING:  Invalid HTTP request received.")
    strange = [line for line in lines if not line.startswith(usual)]
    record.unexpected += [f"log: {line}" for line in strange[:5]]
    record.unexpected += flat(record.samples, seconds)
    print_tables(record, seconds)
    sys.exit(1 if record.unexpected else 0)


async def run(
    options: argparse.Namespace, kinds: set[str], seconds: float, port: int, pid: int, record: Record
) -> None:
    """Load, faults and samples side by side, until the time is over."""
    begin = time.perf_counter()
    requests = good_requests(kinds)
    warm = [*itertools.islice(requests, 20), *full_batches(kinds)]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        # ONNX Runtime keeps the memory of the largest batch that it has run.
        for path, body in warm:
            await ask(client, path, body, time.perf_counter(), Record())
        begin = time.perf_counter()
        sampling = asyncio.create_task(sample(pid, begin, record))
        await asyncio.gather(
            load(client, requests, begin, seconds, options.rate, record),
            faults(port, begin, seconds, options.rate / 5, record),
            *(burst(client, port, begin + fraction * seconds, options.connections, record) for fraction in BURSTS),
        )
        await asyncio.sleep(2 * TIMEOUT + 6)  # the slowest are refused, and connections without work are closed
        record.samples.append((time.perf_counter() - begin, *usage(pid)))
        sampling.cancel()
        metrics = (await client.get("/metrics")).text.splitlines()
    for line in metrics:
        # /ready says 503 before the service is warm.
        is_failure = "requests_total{" in line and 'status="5' in line and "/ready" not in line
        if is_failure or (line.startswith("jax_rele_queue_rows") and not line.endswith(" 0.0")):
            record.unexpected.append(line)


def good_requests(kinds: set[str]):
    """Endless (path, body) of requests that must be answered."""
    pairs, _ = read_pairs("sample", label_names=("Exact", "Substitute", "Complement", "Irrelevant"))
    for number in itertools.count():
        near = [pairs[(7 * number + n) % len(pairs)] for n in range(5)]
        query, texts = near[0].query, [pair.item.title for pair in near]
        yield "/rerank", {"query": query, "texts": texts}
        yield "/v2/rerank", {"query": query, "documents": texts, "top_n": 3}
        yield "/score", {"query": query, "items": [{"title": text, "brand": "Acme"} for text in texts]}
        yield "/predict", {"inputs": [[query, text] for text in texts]}
        if "two_tower" in kinds:
            yield "/embed", {"inputs": texts, "side": "item"}
            yield "/search", {"query": query, "k": 5}
            yield "/compare", {"query": query}


def full_batches(kinds: set[str]) -> Iterator[tuple[str, dict]]:
    """Requests that fill the largest batch of each graph."""
    long = ["Acme running shoes for men " * 20] * 300
    yield "/rerank", {"query": "red shoes", "texts": long}
    if "two_tower" in kinds:
        yield "/embed", {"inputs": long, "side": "item"}
        yield "/embed", {"inputs": long, "side": "query"}


async def ask(client: httpx.AsyncClient, path: str, body: dict, intended: float, record: Record) -> None:
    """A good request, whose latency counts from the time at which it was to be sent."""
    try:
        response = await client.post(path, json=body)
    except httpx.TransportError as error:
        record.add(path, None, (200,), type(error).__name__)
        return
    record.add(path, response.status_code, (200,), response.text[:200] if response.status_code != 200 else "")
    if response.status_code == 200:
        record.latencies.append(time.perf_counter() - intended)


async def load(client, requests, begin: float, seconds: float, rate: float, record: Record) -> None:
    """Good requests at fixed random times."""
    waiting: set[asyncio.Task] = set()
    async for intended in arrivals(begin, seconds, rate, 0):
        path, body = next(requests)
        task = asyncio.create_task(ask(client, path, body, intended, record))
        waiting.add(task)
        task.add_done_callback(waiting.discard)
    await asyncio.gather(*waiting)


async def arrivals(begin: float, seconds: float, rate: float, seed: int):
    """The times of a Poisson process, each when it has come."""
    rng, at = np.random.default_rng(seed), 0.0
    while (at := at + rng.exponential(1 / rate)) < seconds:
        await asyncio.sleep(max(0.0, begin + at - time.perf_counter()))
        yield begin + at


def http(path: str, body: bytes, length: int | None = None, more: str = "") -> bytes:
    """A request as bytes."""
    size = len(body) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nHost: soak\r\nContent-Type: application/json\r\nConnection: close\r\n{more}"
    return f"{head}Content-Length: {size}\r\n\r\n".encode() + body


GOOD = json.dumps({"query": "red shoes", "texts": ["Acme running shoes"] * 20}).encode()


async def exchange(port: int, pieces: Sequence[bytes], pause: float = 0.0, wait: float = 60.0) -> int | None:
    """Sends pieces with pauses; the status of the answer, or None where the connection ended without one."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return None
    try:
        for number, piece in enumerate(pieces):
            if number:
                await asyncio.sleep(pause)
            writer.write(piece)
            await writer.drain()
        line = await asyncio.wait_for(reader.readline(), wait)
        return int(line.split()[1]) if line.startswith(b"HTTP/") else None
    except (TimeoutError, OSError):
        return None
    finally:
        writer.transport.abort()


async def cut(port: int, content: bytes) -> None:
    """Sends some bytes and resets the connection."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(content)
    await writer.drain()
    raw: socket.socket = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def slices(content: bytes, count: int) -> list[bytes]:
    """Bytes in about so many pieces."""
    size = -(-len(content) // count)
    return [content[start : start + size] for start in range(0, len(content), size)]


def body_fault(content: bytes) -> Fault:
    """A whole body that is wrong."""
    return lambda port: exchange(port, [http("/rerank", content)])


async def cut_in_the_body(port: int) -> None:
    await cut(port, http("/rerank", GOOD[:50], len(GOOD)))


async def cut_before_the_answer(port: int) -> None:
    await cut(port, http("/rerank", GOOD))


HUGE = b'{"query": "' + b"x" * (5 * BODY_BYTES) + b'"}'
CHUNKS = b"".join(b"10000\r\n" + b"x" * 0x10000 + b"\r\n" for _ in range(5 * BODY_BYTES // 0x10000)) + b"0\r\n\r\n"
CHUNKED = b"POST /rerank HTTP/1.1\r\nHost: soak\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"

FAULTS: dict[str, tuple[Fault, tuple[int | None, ...]]] = {
    "slow body, whole": (lambda port: exchange(port, slices(http("/rerank", GOOD), 10), 0.2), (200,)),
    "slow body, never whole": (lambda port: exchange(port, [http("/rerank", GOOD[:40], len(GOOD))]), (408,)),
    "cut in the body": (cut_in_the_body, (None,)),
    "cut before the answer": (cut_before_the_answer, (None,)),
    "huge body": (lambda port: exchange(port, [http("/rerank", HUGE)]), (413,)),
    "huge body in chunks": (lambda port: exchange(port, [CHUNKED, CHUNKS]), (413,)),
    "wrong JSON": (body_fault(b'{"query": "red shoes", "texts": ['), (400,)),
    "no UTF-8": (body_fault(b'{"query": "\xff\xfe", "texts": ["a"]}'), (400,)),
    "UTF-16": (body_fault('{"query": "red", "texts": ["a"]}'.encode("utf-16")), (400,)),
    "unknown field": (body_fault(b'{"query": "red", "texts": ["a"], "k": 1}'), (422,)),
    "NaN": (body_fault(b'{"query": "red", "texts": [NaN]}'), (400, 422)),
    "too many rows": (body_fault(json.dumps({"query": "a", "texts": ["b"] * 5000}).encode()), (422,)),
    "no HTTP": (lambda port: exchange(port, [b"\x00\x16\x03 hello\r\n\r\n"]), (400,)),
}
"""Kind -> (what is done, the statuses that it may be answered with)."""


async def faults(port: int, begin: float, seconds: float, rate: float, record: Record) -> None:
    """Faults at fixed random times, each kind in turn."""

    async def one(kind: str) -> None:
        act, allowed = FAULTS[kind]
        record.add(kind, await act(port), allowed)

    waiting: set[asyncio.Task] = set()
    kinds = itertools.cycle(FAULTS)
    async for _ in arrivals(begin, seconds, rate, 1):
        task = asyncio.create_task(one(next(kinds)))
        waiting.add(task)
        task.add_done_callback(waiting.discard)
    await asyncio.gather(*waiting)


async def burst(client: httpx.AsyncClient, port: int, at: float, count: int, record: Record) -> None:
    """Many connections that are open at once, every other one in the midst of a request; good ones are answered."""
    await asyncio.sleep(max(0.0, at - time.perf_counter()))
    kind, opened = f"{count} open connections", []
    try:
        for number in range(count):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            opened.append(writer)
            if number % 2:
                writer.write(b"POST /rerank HTTP/1.1\r\nHost: so")
        response = await client.post("/rerank", json={"query": "red shoes", "texts": ["Acme running shoes"]})
        record.add(kind, response.status_code, (200,))
        await asyncio.sleep(2)
    except OSError as error:
        record.add(kind, None, (200,), str(error))
    finally:
        for writer in opened:
            writer.transport.abort()


def usage(pid: int) -> tuple[int, int]:
    """Bytes of memory and open files of a process."""
    fields = Path(f"/proc/{pid}/status").read_text("utf-8").split("VmRSS:")[1].split()
    return 1024 * int(fields[0]), len(os.listdir(f"/proc/{pid}/fd"))


async def sample(pid: int, begin: float, record: Record) -> None:
    """Measures the service every half second."""
    while True:
        record.samples.append((time.perf_counter() - begin, *usage(pid)))
        await asyncio.sleep(0.5)


def at_fractions(samples: Sequence[tuple[float, int, int]], seconds: float) -> list[tuple[int, int]]:
    """Memory and open files at each of `FRACTIONS`; the last is after the load has ended."""
    return [
        samples[-1][1:] if fraction == 1 else min(samples, key=lambda each: abs(each[0] - fraction * seconds))[1:]
        for fraction in FRACTIONS
    ]


def flat(samples: Sequence[tuple[float, int, int]], seconds: float) -> list[str]:
    """What grew."""
    (early, _), _, (late, open_files) = at_fractions(samples, seconds)
    messages = []
    if late > GROWTH * early + SPARE_MB * 2**20:
        messages.append(f"memory grew from {early / 2**20:.0f} to {late / 2**20:.0f} MB")
    if open_files > samples[0][2] + SPARE_FILES:
        messages.append(f"open files grew from {samples[0][2]} to {open_files}")
    return messages


def print_tables(record: Record, seconds: float) -> None:
    """Prints everything as Markdown."""
    print("\n| requests | answers |\n|---|---|")
    for kind in dict.fromkeys(kind for kind, _ in record.statuses):
        counts = sorted((str(status), count) for (name, status), count in record.statuses.items() if name == kind)
        shown = ", ".join(f"{count} × {'none' if status == 'None' else status}" for status, count in counts)
        print(f"| {kind} | {shown} |")
    failures = sum(count for (_, status), count in record.statuses.items() if status is not None and status >= 500)
    p50, p95, p99 = np.quantile(record.latencies or [np.nan], [0.5, 0.95, 0.99]) * 1e3
    print("\n| what | measured | target |\n|---|---|---|")
    print(f"| good requests: p50, p95, p99 in ms | {p50:.1f}, {p95:.1f}, {p99:.1f} | |")
    print(f"| 5xx | {failures} | 0 |")
    (m1, f1), (m2, f2), (m3, f3) = at_fractions(record.samples, seconds)
    shown = ", ".join(f"{memory / 2**20:.0f}" for memory in (m1, m2, m3))
    print(f"| memory at 10%, 50%, 100% in MB | {shown} | at most {GROWTH:g} × + {SPARE_MB} |")
    print(f"| open files at the start, 10%, 50%, 100% | {record.samples[0][2]}, {f1}, {f2}, {f3} | + {SPARE_FILES} |")
    print(f"| not as expected | {len(record.unexpected)} | 0 |")
    for line in record.unexpected[:20]:
        print(f"- {line}", file=sys.stderr)


if __name__ == "__main__":
    main()
