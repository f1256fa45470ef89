"""Every sample ends with an answer or pending, once; what is charged is known; nothing that was stored is lost."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server import BROKEN, REFUSED, SPOILT, Plan, running

from jax_rele.annotation.runner import collect
from jax_rele.annotation.store import Store
from jax_rele.annotation.types import Endpoint, Task
from jax_rele.errors import UserError

SCHEMA = {"type": "object"}


def make_tasks(count: int) -> list[Task]:
    return [Task(f"p{number}", ({"role": "user", "content": f"query {number}"},), SCHEMA) for number in range(count)]


def make(url: str, name: str = "a", **fields) -> Endpoint:
    fields = {"samples": 2, "structured": "none", "concurrency": 4, "timeout": 20.0, "max_tokens": 20, **fields}
    return Endpoint(name, url, f"model-{name}", input_price=1.0, output_price=10.0, **fields)


FAULTS = [*REFUSED, *BROKEN, *SPOILT]
RATES = st.dictionaries(st.sampled_from(FAULTS), st.sampled_from([0.05, 0.2, 0.6]), max_size=4)


@settings(max_examples=30)
@given(
    rates=RATES,
    seed=st.integers(0, 1000),
    pairs=st.integers(1, 6),
    concurrency=st.integers(1, 8),
    max_attempts=st.integers(1, 5),
    budget=st.sampled_from([0.0, 0.0, 0.0005, 0.002, 0.005]),
)
def test_with_any_faults_every_sample_ends_once_and_all_that_is_charged_is_known(
    tmp_path_factory, rates, seed, pairs, concurrency, max_attempts, budget
):
    folder, tasks = tmp_path_factory.mktemp("store"), make_tasks(pairs)
    plan = Plan(seed=seed, rates=rates, latency=(0, 0.004), hang=0.05, enormous=300_000)
    heard, figures = [], []
    with running(plan) as server:
        endpoints = [make(server.url, name, concurrency=concurrency) for name in "ab"]
        summary = collect(
            tasks,
            endpoints,
            folder,
            budget=budget,
            max_attempts=max_attempts,
            on_answer=heard.append,
            progress=figures.append,
        )
        counts = server.counts()
        ends = summary.by_endpoint.values()

        def total(name):
            return sum(end[name] for end in ends)

        assert summary.asked == 2 * 2 * pairs
        assert summary.stored + summary.pending == summary.asked
        assert summary.stored == len(heard) == len({answer.key for answer in heard}) == sum(figures)
        if max_attempts > plan.spared and not budget and not any(end["down"] for end in ends):
            assert summary.pending == 0
        assert summary.calls == counts["calls"] == total("calls")
        assert summary.calls == summary.stored + sum(summary.retries.values())
        assert counts["answered"] == total("answers") == summary.stored
        assert counts["charged"] == total("answers") + total("unanswered")
        assert counts["input_tokens"] == total("input_tokens")
        assert counts["output_tokens"] == total("output_tokens")
        assert (counts["input_tokens"] + 10 * counts["output_tokens"]) / 1e6 <= summary.cost + 1e-12
        assert not budget or summary.cost <= budget + 1e-12
        assert (summary.stopped == "budget") <= (budget > 0)
        assert counts["most_in_flight"] <= 2 * concurrency
        with Store(folder) as store:
            for answer in heard:
                assert replace(store.get(answer.key), cost=answer.cost) == answer
            assert sum(store.cost(answer.key) for answer in heard) <= summary.cost + 1e-12

        # What has an answer is not asked again.
        again = collect([task for task in tasks for _ in range(2)], endpoints, folder, budget=1e-9)
        assert (again.calls, again.stored) == (0, 2 * summary.stored)
        assert again.cost == pytest.approx(summary.cost, rel=1e-12)


def test_answers_belong_to_their_questions(tmp_path):
    def answer(messages, model, sample):
        return f"{messages[0]['content']} by {model}, {sample}"

    with running(Plan(rates={"500": 0.2, "cut": 0.1}, latency=(0, 0.02)), answer) as server:
        endpoints = [make(server.url, name, concurrency=16, samples=3) for name in "ab"]
        heard = []
        collect(make_tasks(20), endpoints, tmp_path, on_answer=heard.append)
    assert len(heard) == 120
    for one in heard:
        assert one.text == f"query {one.pair_id[1:]} by model-{one.endpoint}, {one.sample}"


@pytest.mark.parametrize(("fault", "asks", "least"), [("429_after", 0.4, 0.4), ("429_date", 2.0, 1.0)])
def test_the_servers_wish_to_wait_is_honoured(tmp_path, fault, asks, least):
    with running(Plan(rates={fault: 1.0}, spared=1, retry_after=asks)) as server:
        started = time.monotonic()
        summary = collect(make_tasks(3), [make(server.url)], tmp_path)
        assert time.monotonic() - started >= least
    assert (summary.pending, summary.retries) == (0, {"429": 6})


def test_a_call_that_hangs_is_given_up_and_made_again(tmp_path):
    with running(Plan(rates={"hang": 1.0}, spared=1, hang=30.0)) as server:
        started = time.monotonic()
        summary = collect(make_tasks(2), [make(server.url, timeout=1.0)], tmp_path)
        assert 1.0 <= time.monotonic() - started < 20.0
    assert summary.pending == 0
    assert summary.retries["timeout"] >= 4
    assert summary.by_endpoint["a"]["unanswered"] == summary.retries["timeout"]


def test_one_that_asks_to_wait_for_long_is_down(tmp_path):
    with running(Plan(rates={"429_after": 1.0}, retry_after=3600)) as server:
        summary = collect(make_tasks(30), [make(server.url)], tmp_path)
    assert summary.stored == 0
    assert summary.by_endpoint["a"]["down"] == "429: asks to wait 3600 s"
    assert summary.calls <= 4


def test_an_endpoint_that_goes_down_is_left_alone_and_others_go_on(tmp_path):
    with running(Plan(down_after=7)) as down, running(Plan(latency=(0, 0.01))) as up:
        tasks = make_tasks(50)
        summary = collect(tasks, [make(down.url), make(up.url, "b")], tmp_path)
        ends = summary.by_endpoint
        assert (ends["a"]["answers"], ends["b"]["answers"]) == (7, 100)
        assert (summary.pending, ends["b"]["down"]) == (93, "")
        assert ends["a"]["down"].startswith("503: no answer in")
        # Those that opened the breaker, those then under way, and its trials.
        assert down.calls <= 7 + 10 + 4 + 6
    with running() as back:
        assert collect(tasks, [make(back.url), make(back.url, "b")], tmp_path).pending == 0
        assert back.calls == 93


def test_an_endpoint_that_comes_back_is_used_again(tmp_path):
    with running(Plan(rates={"500": 1.0}, spared=1)) as server:
        summary = collect(make_tasks(7), [make(server.url)], tmp_path)
    assert (summary.pending, summary.retries) == (0, {"500": 14})


def test_a_wrong_key_ends_an_endpoint_at_once(tmp_path):
    with running(Plan(key="k")) as server:
        summary = collect(make_tasks(50), [make(server.url)], tmp_path)
    assert (summary.stored, summary.pending) == (0, 100)
    assert summary.calls <= 4
    assert summary.by_endpoint["a"]["down"].startswith("401")


def test_a_request_that_is_refused_for_good_is_an_answer(tmp_path):
    with running(Plan(structured=())) as server:
        endpoint = make(server.url, structured="json_object")
        heard = []
        summary = collect(make_tasks(2), [endpoint], tmp_path, on_answer=heard.append)
    assert (summary.stored, summary.calls, summary.cost) == (4, 4, 0)
    assert {one.failure for one in heard} == {"rejected: 400 response_format of type json_object is not supported"}


def test_tasks_with_the_same_messages_share_a_call(tmp_path):
    tasks = [replace(make_tasks(1)[0], pair_id=name) for name in "xyz"]
    with running(Plan(latency=(0.01, 0.02))) as server:
        summary = collect(tasks, [make(server.url)], tmp_path)
        assert (summary.stored, server.calls) == (6, 2)


def test_an_error_of_the_caller_comes_through(tmp_path):
    def fail(_):
        raise UserError("no")

    with running() as server, pytest.raises(UserError, match="no"):
        collect(make_tasks(9), [make(server.url)], tmp_path, on_answer=fail)


# ---- processes

WORKER = """
import json, sys
from dataclasses import asdict
from jax_rele.annotation import runner
from jax_rele.annotation.types import Endpoint, Task
runner.BACKOFF, runner.ELSEWHERE_SECONDS = 0.004, 0.02
url, folder, pairs, budget = sys.argv[1:]
tasks = [Task(f"p{n}", ({"role": "user", "content": f"query {n}"},), {"type": "object"}) for n in range(int(pairs))]
endpoint = Endpoint("a", url, "model-a", samples=2, structured="none", concurrency=8, timeout=5.0, max_tokens=20,
                    input_price=1.0, output_price=10.0)
summary = runner.collect(tasks, [endpoint], folder, budget=float(budget),
                         on_answer=lambda answer: print(answer.key, flush=True))
assert "jax" not in sys.modules
print(json.dumps(asdict(summary)))
"""


@pytest.fixture
def start(bare_package):
    def start(url, folder, pairs, budget=0.0):
        command = [sys.executable, "-c", bare_package + WORKER, url, str(folder), str(pairs), str(budget)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    return start


def ended(worker):
    lines = worker.stdout.read().splitlines()
    assert worker.wait() == 0
    return lines[:-1], json.loads(lines[-1])


def test_a_killed_worker_loses_nothing_and_repeats_no_more_than_was_under_way(tmp_path, start):
    figures = []
    with running(Plan(latency=(0.005, 0.02))) as server:
        for heard_before_the_kill in (1, 17, 40):
            worker = start(server.url, tmp_path, 60)
            figures += [worker.stdout.readline().strip() for _ in range(heard_before_the_kill)]
            worker.send_signal(signal.SIGKILL)
            figures += worker.stdout.read().split()
            worker.wait()
            with Store(tmp_path) as store:
                assert all(key in store for key in figures if len(key) == 32)
        lines, summary = ended(start(server.url, tmp_path, 60))
        figures += lines
        assert (summary["stored"], summary["pending"]) == (120, 0)
        assert 120 <= server.calls <= 120 + 3 * 8
        assert len(figures) == len(set(figures)) <= 120


def test_workers_share_the_calls_and_the_budget(tmp_path, start):
    with running(Plan(latency=(0.01, 0.03), rates={"500": 0.1, "cut": 0.05}, spared=1)) as server:
        first = start(server.url, tmp_path, 150)
        second = start(server.url, tmp_path, 150)
        (one, summary), (two, other) = ended(first), ended(second)
        assert summary["stored"] == other["stored"] == 300
        assert summary["calls"] + other["calls"] == server.calls
        assert server.answered == 300 == len({*one, *two}) == len(one) + len(two)
        assert min(len(one), len(two)) > 20
        assert summary["cost"] == other["cost"]

    budget = 0.5 * summary["cost"]
    with running(Plan(latency=(0.01, 0.03), rates={"cut": 0.2})) as server:
        workers = [start(server.url, tmp_path / "budget", 150, budget) for _ in range(2)]
        ends = [ended(worker)[1] for worker in workers]
        assert {end["stopped"] for end in ends} == {"budget"}
        with Store(tmp_path / "budget") as store:
            assert 0.8 * budget < store.others() <= budget


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_worker_stores_what_is_under_way(tmp_path, start, number):
    with running(Plan(latency=(0.05, 0.1))) as server:
        worker = start(server.url, tmp_path, 500)
        first = worker.stdout.readline().strip()
        worker.send_signal(number)
        lines, summary = ended(worker)
        assert summary["stopped"] == f"interrupted by {number.name}"
        assert server.calls == server.charged == summary["stored"] == len({first, *lines})
        assert summary["pending"] == 1000 - summary["stored"]
