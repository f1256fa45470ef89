"""Calls for every sample that has no answer yet: many at once, again where it helps, within a budget."""

from __future__ import annotations

import asyncio
import heapq
import random
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from math import fsum
from pathlib import Path
from typing import Any

import openai

from jax_rele.annotation.budget import WorkerBudget
from jax_rele.annotation.calls import Fault, ask, fault_of, open_client
from jax_rele.annotation.completions import prompt_hash, request_body, sample_keys, worst_cost
from jax_rele.annotation.store import Store
from jax_rele.annotation.types import Endpoint, ModelAnswer, Summary, Task

BACKOFF = 0.5
"""Seconds; the nth pause is drawn from [0, BACKOFF * 2 ** n], with at most BACKOFF_MOST."""
BACKOFF_MOST = 30.0

BREAKER_FAILURES = 10
"""Failures in a row, 429 aside, after which an endpoint is left alone; one call then tries it, at growing intervals."""
BREAKER_WAIT = 1.0
BREAKER_WAIT_MOST = 30.0
BREAKER_PROBES = 6
"""Failed trials in a row after which an endpoint is down for this run."""

LONGEST_WAIT = 600.0
"""Seconds; an endpoint that asks to wait longer is down for this run."""

STOP_SECONDS = 10.0
"""For calls under way when the run is stopped; what they bring is stored, what they do not may have been charged."""

ELSEWHERE_SECONDS = 0.25
"""After which a sample that another process is asking for is looked at again."""


@dataclass(order=True)
class _Job:
    due: float
    number: int
    sample: int = field(compare=False)
    key: str = field(compare=False)
    worst: float = field(default=0.0, compare=False)
    attempts: int = field(default=0, compare=False)
    mine: bool = field(default=False, compare=False)


@dataclass
class _EndpointState:
    """An endpoint in a run.

    Attributes:
      fresh: jobs not yet looked at; `later` those that wait, soonest first.
      limit: calls in flight: falls when the server says that there are too many, and grows back.
      failures: in a row; `probes` of them are trials of an open breaker, which is closed until `opens`.
      down: why no more calls are made.
    """

    endpoint: Endpoint
    client: openai.AsyncOpenAI
    fresh: Iterator[_Job]
    limit: float
    later: list[_Job] = field(default_factory=list)
    first: deque[_Job] = field(default_factory=deque)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    active: set[asyncio.Task[None]] = field(default_factory=set)
    calls: int = 0
    narrowed: float = 0.0
    failures: int = 0
    open: bool = False
    opens: float = 0.0
    probes: int = 0
    down: str = ""


@dataclass
class _Run:
    tasks: Sequence[Task]
    prompts: list[bytes]
    store: Store
    worker_budget: WorkerBudget
    max_attempts: int
    progress: Callable[[int], None]
    on_answer: Callable[[ModelAnswer], None] | None
    states: list[_EndpointState] = field(default_factory=list)
    retries: Counter[str] = field(default_factory=Counter)
    stopped: str = ""
    error: BaseException | None = None

    def stop(self, reason: str) -> None:
        self.stopped = self.stopped or reason
        self.wake()

    def wake(self) -> None:
        for state in self.states:
            state.wake.set()


def collect(
    tasks: Sequence[Task],
    endpoints: Sequence[Endpoint],
    store_dir: str | Path,
    *,
    budget: float = 0.0,
    max_attempts: int = 6,
    progress: Callable[[int], None] | None = None,
    on_answer: Callable[[ModelAnswer], None] | None = None,
) -> Summary:
    """Asks every endpoint for every sample of every task that the store has no answer to.

    Several processes may do so at once with one store: each call is made by one of them, and all end when every sample
    has an answer or is pending. SIGINT and SIGTERM end the run as the budget does: no new calls, those under way are
    awaited for STOP_SECONDS, a second signal lets go of them.

    A failed call is made again, at most `max_attempts` times in all, after a pause with full jitter (Brooker,
    "Exponential Backoff And Jitter", 2015) and not before the server's Retry-After. An answer that refuses, is empty or
    too long, and a request that the server will never take, are stored as failures and not asked again.

    Args:
      endpoints: as `check` returns them; `auto` counts as `none` here.
      store_dir: see `Store`.
      budget: of all that the store holds, whatever tasks it is for; 0 for no limit. A call is made only if the most
        that it can cost has room, so that the sum stays within the budget while servers keep to `max_tokens`.
      progress: takes the number of samples found or stored since its last call.
      on_answer: takes each answer that this process stored, after it is stored.

    Raises:
      UserError: an answer cannot be stored.
    """
    with Store(store_dir) as store:
        prompts = [prompt_hash(task) for task in tasks]
        run = _Run(
            tasks, prompts, store, WorkerBudget(store, budget), max_attempts, progress or (lambda _: None), on_answer
        )
        asyncio.run(_collect(run, endpoints))
        if run.error is not None:
            raise run.error
        store.refresh()
        return _summary(run, endpoints)


async def _collect(run: _Run, endpoints: Sequence[Endpoint]) -> None:
    async with AsyncExitStack() as stack:
        for endpoint in endpoints:
            client = await stack.enter_async_context(open_client(endpoint))
            run.states.append(_EndpointState(endpoint, client, _jobs(run, endpoint), endpoint.concurrency))
        hurry = asyncio.Event()
        with _signals(run, hurry):
            await asyncio.gather(*[_drive(run, state) for state in run.states])
            under_way = [call for state in run.states for call in state.active]
            if under_way:
                hurried = asyncio.create_task(hurry.wait())
                done = asyncio.gather(*under_way, return_exceptions=True)
                await asyncio.wait([done, hurried], timeout=STOP_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                for call in [*under_way, hurried]:
                    call.cancel()
                await asyncio.gather(*under_way, hurried, return_exceptions=True)


@contextmanager
def _signals(run: _Run, hurry: asyncio.Event) -> Iterator[None]:
    """Ends the run at SIGINT and SIGTERM, where this is the main thread, which alone may ask for signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(name: str) -> None:
        if run.stopped:
            hurry.set()
        run.stop(f"interrupted by {name}")

    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        loop.add_signal_handler(number, stop, number.name)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            if handler is not None:
                signal.signal(number, handler)


def _jobs(run: _Run, endpoint: Endpoint) -> Iterator[_Job]:
    """What the store has no answer to."""
    for number, sample, key in sample_keys(run.prompts, endpoint):
        if key in run.store:
            run.progress(1)
        else:
            yield _Job(0.0, number, sample, key)


# ---- which call is made when


async def _drive(run: _Run, state: _EndpointState) -> None:
    """Starts the calls of an endpoint; returns when all are done, or none can be made any more."""
    loop = asyncio.get_running_loop()
    try:
        while not (run.stopped or state.down):
            state.wake.clear()
            until = _closed_until(state, loop.time())
            if until is None:
                job = _next(run, state, loop.time())
                if job is not None:
                    _start(run, state, job)
                    # Others get their turn, and so does this one.
                    await asyncio.sleep(0)
                    continue
                if not state.active and not state.later and not state.first:
                    return
                until = state.later[0].due if state.later and not state.first else float("inf")
            with suppress(TimeoutError):
                async with asyncio.timeout(None if until == float("inf") else max(0.0, until - loop.time())):
                    await state.wake.wait()
    except Exception as error:
        run.error = run.error or error
        run.stop("error")
    for job in [*state.later, *state.first]:
        if job.mine:
            run.store.release(job.key)


def _closed_until(state: _EndpointState, now: float) -> float | None:
    """Until when no call may start; none where one may."""
    if state.open:
        return state.opens if now < state.opens else None
    return float("inf") if len(state.active) >= int(state.limit) else None


def _next(run: _Run, state: _EndpointState, now: float) -> _Job | None:
    """The next call that can be made now, claimed and with its worst cost set aside."""
    while True:
        if state.first:
            job = state.first.popleft()
        elif state.later and state.later[0].due <= now:
            job = heapq.heappop(state.later)
        # What waits is bounded, so that a crowd of refused calls does not grow.
        elif len(state.later) >= 4 * state.endpoint.concurrency or (job := next(state.fresh, None)) is None:
            return None
        if not job.mine:
            if job.key in run.store:
                run.progress(1)
                continue
            if not run.store.claim(job.key):
                # Another has it, or had: this process for a task with the same messages, or another process.
                job.due = now + ELSEWHERE_SECONDS
                heapq.heappush(state.later, job)
                continue
            job.mine = True
            body = request_body(state.endpoint, run.tasks[job.number], job.sample)
            job.worst = worst_cost(state.endpoint, body)
        if not run.worker_budget.reserve(job.worst):
            state.first.append(job)
            if not run.worker_budget.calls:
                run.stop("budget")
            return None
        return job


def _start(run: _Run, state: _EndpointState, job: _Job) -> None:
    probe = state.open
    if probe:
        # Until this trial has ended.
        state.opens = float("inf")
    call = asyncio.create_task(_call(run, state, job, probe))
    state.active.add(call)
    call.add_done_callback(state.active.discard)


async def _call(run: _Run, state: _EndpointState, job: _Job, probe: bool) -> None:
    endpoint, task = state.endpoint, run.tasks[job.number]
    state.calls += 1
    fault: Fault | None = None
    try:
        try:
            answer = await ask(state.client, endpoint, task, job.sample, job.key)
        except asyncio.CancelledError:
            fault = Fault("stopped", charged=True)
        except Exception as error:
            fault = fault_of(error, endpoint)
        if fault is None:
            run.store.add(answer)
            run.store.release(job.key)
            _went_well(state)
            run.progress(1)
            if run.on_answer is not None:
                run.on_answer(answer)
        else:
            run.retries[fault.reason] += 1
            if fault.charged:
                run.store.add_unanswered(job.key, fault.reason, job.worst)
            _went_wrong(run, state, job, fault, probe)
    except Exception as error:
        run.error = run.error or error
        run.stop("error")
    finally:
        run.worker_budget.settle(job.worst)
        # All endpoints share one budget.
        asyncio.get_running_loop().call_soon(run.wake)


# ---- what a call's end says of its endpoint


def _went_well(state: _EndpointState) -> None:
    state.failures = state.probes = 0
    state.open = False
    state.limit = min(state.endpoint.concurrency, state.limit + 1 / state.limit)


def _went_wrong(run: _Run, state: _EndpointState, job: _Job, fault: Fault, probe: bool) -> None:
    now = asyncio.get_running_loop().time()
    job.attempts += 1
    if fault.fatal or fault.wait > LONGEST_WAIT:
        state.down = state.down or fault.fatal or f"{fault.reason}: asks to wait {fault.wait:.0f} s"
    if fault.reason == "429":
        if now - state.narrowed > 1.0:
            state.narrowed, state.limit = now, max(1.0, 0.7 * state.limit)
        if probe:
            state.opens = now
    elif fault.reason != "stopped":
        state.failures += 1
        if probe or (not state.open and state.failures >= BREAKER_FAILURES):
            state.probes += probe
            wait = min(BREAKER_WAIT_MOST, BREAKER_WAIT * 2**state.probes)
            state.open, state.opens = True, now + wait * random.uniform(0.5, 1.0)
            if state.probes >= BREAKER_PROBES:
                state.down = state.down or f"{fault.reason}: no answer in {state.failures} calls"
    if job.attempts >= run.max_attempts or state.down or fault.reason == "stopped":
        run.store.release(job.key)
    else:
        pause = random.uniform(0, min(BACKOFF_MOST, BACKOFF * 2**job.attempts))
        job.due = now + max(fault.wait, pause)
        heapq.heappush(state.later, job)


# ---- accounting


def _summary(run: _Run, endpoints: Sequence[Endpoint]) -> Summary:
    by_endpoint: dict[str, dict[str, Any]] = {}
    costs: dict[str, float] = {}
    asked = stored = 0
    for endpoint, state in zip(endpoints, run.states):
        counts: Counter[str] = Counter()
        own: dict[str, float] = {}
        for _, _, key in sample_keys(run.prompts, endpoint):
            asked += 1
            entry = run.store.entry(key)
            counts["unanswered"] += run.store.unanswered(key) * (key not in own)
            own[key] = run.store.cost(key)
            if entry is not None:
                stored += 1
                counts["answers"] += 1
                counts["failures"] += entry.failed
                counts["input_tokens"] += entry.input_tokens
                counts["output_tokens"] += entry.output_tokens
        costs |= own
        names = ("answers", "failures", "unanswered", "input_tokens", "output_tokens")
        by_endpoint[endpoint.name] = (
            {"calls": state.calls}
            | {name: counts[name] for name in names}
            | {"cost": fsum(own.values()), "down": state.down}
        )
    calls = sum(state.calls for state in run.states)
    spent = fsum(costs.values())
    return Summary(asked, stored, asked - stored, calls, dict(run.retries), spent, run.stopped, by_endpoint)
