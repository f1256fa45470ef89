"""Calls of `annotate` against a server on loopback: throughput, the client's cost of a call, and the accounting.

    python scripts/bench/annotate.py [--pairs 10000] [--samples 3] [--in-flight 256] [--json OUT]

The server is a process of its own and answers after 50 to 150 ms, with two models. Timed in turn: the openai library
alone, `collect` with a server without faults, and `collect` with one with faults (429 with and without Retry-After,
500, 503, cut connections, hanging, malformed and invalid answers). The server's counts of calls and charges are
compared with those of `collect`. See docs/benchmarks/annotate.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import openai
from worker import peak_memory

from jax_rele.annotation.calls import open_client
from jax_rele.annotation.completions import request_body
from jax_rele.annotation.runner import collect
from jax_rele.annotation.types import Endpoint, Summary, Task

SERVER = Path(__file__).parents[2] / "tests" / "annotation" / "server.py"
LATENCY = (0.05, 0.15)
FAULTS = {
    "429": 0.01, "429_after": 0.01, "429_date": 0.002, "500": 0.02, "503": 0.01, "hang": 0.001, "cut": 0.01,
    "malformed": 0.01, "wrong_schema": 0.02, "refusal": 0.01, "length": 0.01, "empty": 0.005, "enormous": 0.001,
    "twice": 0.005,
}  # fmt: skip
GOAL_MS = 2.0
LIBRARY_DIVISOR = 10
"""The library alone makes this part of the calls."""


@dataclass(frozen=True)
class Timed:
    """A run: its calls, wall and processor seconds of this process, and seconds that the server spent on handling."""

    name: str
    calls: int
    wall: float
    processor: float
    server: float


@contextmanager
def serving(plan: Mapping[str, Any]) -> Iterator[str]:
    """URL of a server in another process."""
    command = [sys.executable, str(SERVER), "--plan", json.dumps({"latency": LATENCY, "hang": 2.0, **plan})]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().strip()
        process.stdin.close()


def counts(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/counts") as response:
        return json.load(response)


def make_tasks(pairs: int) -> list[Task]:
    """Prompts of about 500 tokens, most of which all share, with the schema of ten dimensions."""
    values = {"type": "array", "items": {"type": "string"}}
    verdict = {"enum": ["match", "mismatch", "absent"]}
    dimension = {"type": "object", "properties": {"query": values, "item": values, "verdict": verdict}}
    names = [f"dimension {number}" for number in range(10)]
    schema = {"type": "object", "properties": dict.fromkeys(names, dimension), "required": names}
    guide = "Compare the query and the item by dimensions, then give the label. " * 30
    return [
        Task(
            f"pair {number}",
            ({"role": "system", "content": guide}, {"role": "user", "content": f"query {number}; " + "a title " * 30}),
            schema,
        )
        for number in range(pairs)
    ]


def make_endpoints(url: str, options: argparse.Namespace) -> list[Endpoint]:
    shared = {
        "samples": options.samples, "structured": "json_schema", "concurrency": options.in_flight // 2, "timeout": 1.5,
        "input_price": 0.5, "output_price": 2.0,
    }  # fmt: skip
    return [Endpoint(model, url, model, **shared) for model in ("model-a", "model-b")]


async def library_alone(tasks: Sequence[Task], endpoints: Sequence[Endpoint], calls: int) -> None:
    """The calls of `collect` by the library alone, which only reads the answers."""

    async def worker(client: openai.AsyncOpenAI, endpoint: Endpoint, numbers: Iterator[int]) -> None:
        for number in numbers:
            body = request_body(endpoint, tasks[number % len(tasks)], number)
            response = await client.post("/chat/completions", cast_to=httpx2.Response, body=body)
            json.loads(response.content)["choices"][0]["message"]["content"]

    async def all_of(endpoint: Endpoint) -> None:
        numbers = iter(range(calls // len(endpoints)))
        async with open_client(endpoint) as client:
            await asyncio.gather(*[worker(client, endpoint, numbers) for _ in range(endpoint.concurrency)])

    await asyncio.gather(*[all_of(endpoint) for endpoint in endpoints])


def timed(name: str, url: str, work: Any) -> tuple[Timed, Any]:
    before, processor, start = counts(url), time.process_time(), time.perf_counter()
    result = work()
    wall, processor = time.perf_counter() - start, time.process_time() - processor
    after = counts(url)
    return Timed(name, after["calls"] - before["calls"], wall, processor, after["seconds"] - before["seconds"]), result


def accounting(summary: Summary, server: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """{what: (the client's count, the server's)}."""
    ends = list(summary.by_endpoint.values())
    answers, unanswered = (sum(end[name] for end in ends) for name in ("answers", "unanswered"))
    return {
        "calls": (summary.calls, server["calls"]),
        "answers charged": (answers, server["answered"]),
        "calls charged, without an answer too": (answers + unanswered, server["charged"]),
        "input tokens of answers": (sum(end["input_tokens"] for end in ends), server["input_tokens"]),
        "output tokens of answers": (sum(end["output_tokens"] for end in ends), server["output_tokens"]),
    }


def table(rows: Sequence[Timed], in_flight: int) -> str:
    lines = [
        f"| {in_flight} in flight | calls | calls/s | wall a call | processor a call | the server's handling a call |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        spent = [f"{1000 * seconds / row.calls:.2f} ms" for seconds in (row.wall, row.processor, row.server)]
        lines.append(f"| {row.name} | {row.calls} | {row.calls / row.wall:.0f} | {' | '.join(spent)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args(arguments)
    tasks = make_tasks(options.pairs)
    rows: list[Timed] = []
    accounts: dict[str, dict[str, tuple[int, int]]] = {}
    for name, rates in (("without faults", {}), ("with faults", FAULTS)):
        with serving({"rates": rates}) as url, tempfile.TemporaryDirectory() as folder:
            endpoints = make_endpoints(url, options)
            if not rates:
                calls = max(1, 2 * options.pairs * options.samples // LIBRARY_DIVISOR)
                alone = library_alone(tasks, endpoints, calls)
                rows.append(timed("openai library alone", url, partial(asyncio.run, alone))[0])
            before = counts(url)
            row, summary = timed(f"`collect`, server {name}", url, partial(collect, tasks, endpoints, folder))
            rows.append(row)
            after = counts(url)
            server = {key: after[key] - before[key] for key in after if key != "faults"}
            accounts[name] = accounting(summary, server)
            if summary.pending:
                raise RuntimeError(f"{summary.pending} of {summary.asked} samples are pending: {summary}")
            again = collect(tasks, endpoints, folder)
            if again.calls or again.cost != summary.cost:
                raise RuntimeError(f"a second run made {again.calls} calls")
            print(f"{row.wall:.0f} s  {row.name}; failed calls {dict(summary.retries)}", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps({"rows": [asdict(row) for row in rows], "accounts": accounts}, indent=1))
    print(table(rows, options.in_flight))
    print()
    overhead = 1000 * (rows[1].wall / rows[1].calls)
    print(f"- the client's cost of a call, by the wall, is {overhead:.2f} ms at most; the goal is under {GOAL_MS:g} ms")
    for name, account in accounts.items():
        text = "; ".join(f"{what} {ours} and {theirs}" for what, (ours, theirs) in account.items())
        print(f"- counts of ours and of the server {name}: {text}")
    print(f"- memory at most {peak_memory() / 2**20:.0f} MB, of this process")
    print(f"- {len(os.sched_getaffinity(0))} CPU cores, of which the server has one")
    unequal = [what for account in accounts.values() for what, (ours, theirs) in account.items() if ours != theirs]
    if unequal:
        raise SystemExit(f"the accounting differs in {', '.join(unequal)}")


if __name__ == "__main__":
    main()
