"""HTTP beside direct calls: throughput at saturation, what a queue that is full answers, and the latency that it adds.

    python scripts/bench/serving.py BUNDLE [--seconds 15] [--rate 50]

BUNDLE is a cross-encoder that `jax-rele export` wrote. Three measurements against a service of its own on this machine:

- saturation: clients that each rerank 20 items of the sample again and again, beside the same requests judged one after
  the other by `Scorer.predict` in one process, in turns;
- beyond the queue: more rows at once than the queue holds; every answer must be a 200 or a 429;
- overhead: requests at fixed times (open loop, latency from the intended time) to `/health` and to `/rerank` of one
  short text, less the time that the model takes for it.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import numpy as np
from deploy import processor

from jax_rele.data import read_pairs
from jax_rele.deployment import load_bundle

ITEMS, TURNS = 20, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement")
    parser.add_argument("--rate", type=float, default=50.0, help="requests per second of the overhead's measurement")
    parser.add_argument("--clients", type=int, default=4)
    options = parser.parse_args()
    pairs, _ = read_pairs("sample", label_names=("Exact", "Substitute", "Complement", "Irrelevant"))
    scorer = load_bundle(options.bundle)
    titles = [scorer.item_text(pair.item) for pair in pairs]
    bodies = [{"query": pairs[n].query, "texts": titles[n : n + ITEMS]} for n in range(0, len(pairs) - ITEMS, ITEMS)]
    port = free_port()
    print(f"{processor()}, {os.cpu_count()} cores\n")
    limits = ["--max-queue-rows", "400", "--max-rows", "400"]
    command = [sys.executable, "-m", "jax_rele.cli", "serve", str(options.bundle), "--port", str(port), *limits]
    service = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url)
        ratios, direct_rates, http_rates = [], [], []
        for _ in range(TURNS):
            direct_rates.append(direct(scorer, bodies, options.seconds / TURNS))
            http_rates.append(saturated(url, bodies, options.seconds / TURNS, options.clients))
            ratios.append(http_rates[-1] / direct_rates[-1])
        print("| what | measured | target |\n|---|---|---|")
        print(f"| direct calls, pairs/s | {statistics.median(direct_rates):.0f} | |")
        print(f"| HTTP, {options.clients} clients, pairs/s | {statistics.median(http_rates):.0f} | |")
        print(f"| HTTP / direct, median of {TURNS} turns | {statistics.median(ratios):.2f} | ≥ 0.85 |")
        answers = overload(url, bodies)
        statuses = ", ".join(f"{count} × {status}" for status, count in sorted(answers.items()))
        print(f"| 60 requests of {ITEMS} items at once, a queue of 400 rows | {statuses} | 200 and 429 alone |")
        short = {"query": "shoes", "texts": ["red shoes"]}
        model = statistics.median(timed(lambda: scorer.predict([("shoes", "red shoes")])) for _ in range(200))
        for name, call in (("/health", None), ("/rerank of one text", short)):
            latencies = open_loop(url, call, options.rate, options.seconds)
            p50, p95, p99 = np.quantile(latencies, [0.5, 0.95, 0.99]) * 1e3
            less = model * 1e3 if call else 0.0
            print(
                f"| {name} at {options.rate:.0f}/s: p50, p95, p99 in ms (p99 less the model's {less:.1f}) | "
                f"{p50:.1f}, {p95:.1f}, {p99:.1f} ({p99 - less:.1f}) | ≤ 15 |"
            )
    finally:
        service.terminate()
        service.wait(30)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def wait_until_ready(url: str, seconds: int = 60) -> None:
    """Returns once the service has warmed up."""
    for _ in range(10 * seconds):
        try:
            if httpx.get(f"{url}/ready").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"the service did not become ready within {seconds} seconds")


def timed(call) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def direct(scorer, bodies: list[dict], seconds: float) -> float:
    """Pairs per second of calls without HTTP."""
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        body = bodies[count // ITEMS % len(bodies)]
        scorer.predict([(body["query"], text) for text in body["texts"]])
        count += ITEMS
    return count / (time.perf_counter() - begin)


def saturated(url: str, bodies: list[dict], seconds: float, clients: int) -> float:
    """Pairs per second of clients that ask again as soon as they have an answer."""
    done = [0] * clients
    end = time.perf_counter() + seconds

    def ask(number: int) -> None:
        with httpx.Client(base_url=url) as client:
            turn = number
            while time.perf_counter() < end:
                client.post("/rerank", json=bodies[turn % len(bodies)]).raise_for_status()
                done[number] += ITEMS
                turn += clients

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - begin)


def overload(url: str, bodies: list[dict]) -> Counter[int]:
    """The statuses of requests that are sent at once."""
    with httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(60) as pool:
        return Counter(pool.map(lambda body: client.post("/rerank", json=body).status_code, bodies[:60]))


def open_loop(url: str, body: dict | None, rate: float, seconds: float) -> np.ndarray:
    """Latencies in seconds of requests at fixed random times, each from the time at which it was to be sent."""
    arrivals = np.cumsum(np.random.default_rng(0).exponential(1 / rate, int(rate * seconds)))
    with httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(32) as pool:
        begin = time.perf_counter() + 0.2

        def ask(arrival: float) -> float:
            response = client.get("/health") if body is None else client.post("/rerank", json=body)
            response.raise_for_status()
            return time.perf_counter() - begin - arrival

        waiting = []
        for arrival in arrivals:
            time.sleep(max(0.0, begin + arrival - time.perf_counter()))
            waiting.append(pool.submit(ask, arrival))
        return np.array([each.result() for each in waiting])


if __name__ == "__main__":
    main()
