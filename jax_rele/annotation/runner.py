"""Calls for every sample that has no answer yet: concurrent, with retries, within a budget."""

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
from math import fsum, inf
from pathlib import Path

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
"""Consecutive failures, 429 aside, that open an endpoint's circuit breaker; single calls then probe the endpoint."""
BREAKER_WAIT = 1.0
BREAKER_WAIT_MOST = 30.0
BREAKER_PROBES = 6
"""Consecutive failed probes after which an endpoint is down for this run."""

LONGEST_WAIT = 600.0
"""Seconds; an endpoint that asks to wait longer is down for this run."""

STOP_SECONDS = 10.0
"""For calls in flight when the run is stopped; those that take longer may have been charged."""

ELSEWHERE_SECONDS = 0.25
"""Until a sample that another process is requesting is checked again."""


@dataclass(order=True)
class _Job:
    due: float
    number: int
    sample: int = field(compare=False)
    key: str = field(compare=False)
    worst: float = field(default=0.0, compare=False)
    attempts: int = field(default=0, compare=False)
    claimed: bool = field(default=False, compare=False)


@dataclass
class _EndpointState:
    """An endpoint in a run.

    Attributes:
      fresh: jobs that were not looked at yet.
      delayed: a heap of jobs that wait, the earliest first; `unfunded` are those that the budget did not cover.
      limit: of calls in flight: falls when the server says that there are too many, and grows back.
      failures: consecutive; `probes` of them are probes of an open breaker, which allows none before `opens`.
      last_fault: what the last call without an answer met.
      down: why no more calls are made.
    """

    endpoint: Endpoint
    client: openai.AsyncOpenAI
    fresh: Iterator[_Job]
    limit: float
    delayed: list[_Job] = field(default_factory=list)
    unfunded: deque[_Job] = field(default_factory=deque)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    active: set[asyncio.Task[None]] = field(default_factory=set)
    calls: int = 0
    narrowed: float = 0.0
    failures: int = 0
    open: bool = False
    opens: float = 0.0
    probes: int = 0
    last_fault: str = ""
    down: str = ""


@dataclass
class _Run:
    tasks: Sequence[Task]
    prompts: list[bytes]
    store: Store
    worker_budget: WorkerBudget
    max_attempts: int
    progress: Callable[[int], None]
    on_answer: Callable[[ModelAnswer], None]
    states: list[_EndpointState] = field(default_factory=list)
    retries: Counter[str] = field(default_factory=Counter)
    stopped: str = ""
    error: Exception | None = None

    def stop(self, reason: str) -> None:
        self.stopped = self.stopped or reason
        self.wake()

    def fail(self, error: Exception) -> None:
        self.error = self.error or error
        self.stop("error")

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
    progress: Callable[[int], None] = lambda _: None,
    on_answer: Callable[[ModelAnswer], None] = lambda _: None,
) -> Summary:
    """Asks every endpoint for every sample of every task that has no answer in the store.

    Several processes may do so at once with one store: each call is made by one of them, and all end when every sample
    has an answer or is pending. SIGINT and SIGTERM end the run as the budget does: no new calls are made, those in
    flight are awaited for STOP_SECONDS; a second signal cancels them.

    A failed call is repeated, up to `max_attempts` calls in all, after a pause with full jitter (Brooker, "Exponential
    Backoff And Jitter", 2015) and not before the server's Retry-After. Refusals, empty or overlong answers, and
    requests that the server refuses for good, are stored as failures and not repeated.

    Args:
      endpoints: as `check` returns them; `auto` counts as `none` here.
      store_dir: see `Store`.
      budget: for everything in the store, whatever tasks it is for; 0 for no limit. A call is made only if the budget
        covers the most that it can cost, so that it holds while servers keep to `max_tokens`.
      progress: is called with the number of samples that were found or stored.
      on_answer: is called with each answer that this process stored, after it is stored.

    Raises:
      UserError: an answer cannot be stored.
    """
    with Store(store_dir) as store:
        prompts = [prompt_hash(task) for task in tasks]
        run = _Run(tasks, prompts, store, WorkerBudget(store, budget), max_attempts, progress, on_answer)
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
        with _signals(run):
            await asyncio.gather(*[_drive(run, state) for state in run.states])
            if calls := [call for state in run.states for call in state.active]:
                await asyncio.wait(calls, timeout=STOP_SECONDS)
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)


@contextmanager
def _signals(run: _Run) -> Iterator[None]:
    """Ends the run at SIGINT and SIGTERM, where this is the main thread, since no other may handle signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(name: str) -> None:
        if run.stopped:
            for state in run.states:
                for call in state.active:
                    call.cancel()
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
    """The samples that have no answer in the store."""
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
            until = _blocked_until(state, loop.time())
            if until is None:
                job = _next(run, state, loop.time())
                if job is not None:
                    _start(run, state, job)
                    await asyncio.sleep(0)  # lets the call and other endpoints run
                    continue
                if not state.active and not state.delayed and not state.unfunded:
                    return
                until = state.delayed[0].due if state.delayed and not state.unfunded else inf
            with suppress(TimeoutError):
                async with asyncio.timeout(None if until == inf else max(0.0, until - loop.time())):
                    await state.wake.wait()
    except Exception as error:
        run.fail(error)
    for job in [*state.delayed, *state.unfunded]:
        if job.claimed:
            run.store.release(job.key)


def _blocked_until(state: _EndpointState, now: float) -> float | None:
    """Until when no call may start; None where one may."""
    if state.open:
        return state.opens if now < state.opens else None
    return inf if len(state.active) >= int(state.limit) else None


def _next(run: _Run, state: _EndpointState, now: float) -> _Job | None:
    """The next call that can be made now, claimed and with its worst cost reserved."""
    while True:
        if state.unfunded:
            job = state.unfunded.popleft()
        elif state.delayed and state.delayed[0].due <= now:
            job = heapq.heappop(state.delayed)
        else:
            # The bound keeps refused calls from piling up.
            bounded = len(state.delayed) < 4 * state.endpoint.concurrency
            fresh = next(state.fresh, None) if bounded else None
            if fresh is None:
                return None
            job = fresh
        if not job.claimed:
            if job.key in run.store:
                run.progress(1)
                continue
            if not run.store.claim(job.key):
                # Another process has claimed it, or this one for a task with the same messages.
                job.due = now + ELSEWHERE_SECONDS
                heapq.heappush(state.delayed, job)
                continue
            job.claimed = True
            job.worst = worst_cost(state.endpoint, request_body(state.endpoint, run.tasks[job.number], job.sample))
        if run.worker_budget.reserve(job.worst):
            return job
        state.unfunded.append(job)
        if not run.worker_budget.calls:
            run.stop("budget")
        return None


def _start(run: _Run, state: _EndpointState, job: _Job) -> None:
    probe = state.open
    if probe:
        state.opens = inf  # until this probe has ended
    call = asyncio.create_task(_call(run, state, job, probe))
    state.active.add(call)
    call.add_done_callback(state.active.discard)


async def _call(run: _Run, state: _EndpointState, job: _Job, probe: bool) -> None:
    state.calls += 1
    fault: Fault | None = None
    try:
        try:
            answer = await ask(state.client, state.endpoint, run.tasks[job.number], job.sample, job.key)
        except asyncio.CancelledError:
            fault = Fault("stopped", charged=True)
        except Exception as error:
            fault = fault_of(error, state.endpoint)
        if fault is None:
            run.store.add(answer)
            run.store.release(job.key)
            _record_success(state)
            run.progress(1)
            run.on_answer(answer)
        else:
            run.retries[fault.reason] += 1
            if fault.charged:
                run.store.add_unanswered(job.key, fault.reason, job.worst if fault.cost is None else fault.cost)
            _record_fault(run, state, job, fault, probe)
    except Exception as error:
        run.fail(error)
    finally:
        run.worker_budget.settle(job.worst)
        asyncio.get_running_loop().call_soon(run.wake)  # of all endpoints, which share the budget


# ---- what the end of a call means for its endpoint


def _record_success(state: _EndpointState) -> None:
    state.failures = state.probes = 0
    state.open = False
    state.limit = min(state.endpoint.concurrency, state.limit + 1 / state.limit)


def _record_fault(run: _Run, state: _EndpointState, job: _Job, fault: Fault, probe: bool) -> None:
    now = asyncio.get_running_loop().time()
    job.attempts += 1
    state.last_fault = f"{fault.reason}: {fault.detail}" if fault.detail else fault.reason
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
                words = f", the last: {fault.detail}" if fault.detail else ""
                state.down = state.down or f"{fault.reason}: no answer in {state.failures} calls{words}"
    if job.attempts >= run.max_attempts or state.down or fault.reason == "stopped":
        run.store.release(job.key)
    else:
        pause = random.uniform(0, min(BACKOFF_MOST, BACKOFF * 2**job.attempts))
        job.due = now + max(fault.wait, pause)
        heapq.heappush(state.delayed, job)


def _summary(run: _Run, endpoints: Sequence[Endpoint]) -> Summary:
    by_endpoint: dict[str, dict[str, object]] = {}
    costs: dict[str, float] = {}
    asked = stored = 0
    for endpoint, state in zip(endpoints, run.states):
        counts = dict.fromkeys(("answers", "failures", "unanswered", "input_tokens", "output_tokens"), 0)
        own: dict[str, float] = {}
        for _, _, key in sample_keys(run.prompts, endpoint):
            asked += 1
            counts["unanswered"] += run.store.unanswered(key) * (key not in own)
            own[key] = run.store.cost(key)
            if (entry := run.store.entry(key)) is not None:
                stored += 1
                counts["answers"] += 1
                counts["failures"] += entry.failed
                counts["input_tokens"] += entry.input_tokens
                counts["output_tokens"] += entry.output_tokens
        costs |= own
        by_endpoint[endpoint.name] = {"calls": state.calls, **counts, "cost": fsum(own.values()), "down": state.down}
        by_endpoint[endpoint.name]["last_fault"] = state.last_fault
    calls, spent = sum(state.calls for state in run.states), fsum(costs.values())
    return Summary(asked, stored, asked - stored, calls, dict(run.retries), spent, run.stopped, by_endpoint)
