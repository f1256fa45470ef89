"""Several processes as one run: start-up, what process 0 decides for all, and one end for all when one fails.

Processes agree through the key-value store of `jax.distributed`, not through device collectives: a stage of process 0
may take hours, and a process that waits for it must still notice that another one has failed.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import jax

# JAX has no public way to the store; its own documentation and Orbax take it from here.
from jax._src.distributed import global_state

from jax_rele.errors import Preempted, UserError

ADDRESS_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
DETECT = "JAX_RELE_DISTRIBUTED"

T = TypeVar("T")

_AGAIN = "start all processes again with the same command"
_LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Gloo ", "heartbeat")
_FAILED = "jax_rele/failed"
_POLL_MS = 2_000
_UNWIND_SECONDS = 3.0
"""How long a process may take to end by itself after another has failed; it may hang in a collective for ever."""
_LEAVE_SECONDS = 8.0
"""How long process 0, which holds the store, waits for the others to end."""

ALIVE_SECONDS = 60.0
"""After how long without a sign of life process 0 takes another one for lost."""

_calls = itertools.count()
_failed = threading.Event()
_over = threading.Event()
_leaving = threading.Lock()


def initialize() -> bool:
    """Joins the processes of one run where the environment says that there are several. Before any use of a device.

    Either `JAX_COORDINATOR_ADDRESS` (host:port of process 0), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` are all given,
    or `JAX_RELE_DISTRIBUTED=1` asks `jax.distributed` to find out from the cluster: TPU VMs and GKE, SLURM, Open MPI,
    Kubernetes. Without either the process is alone. On CPUs the collectives are Gloo's, JAX's default.

    Returns:
      Whether there are several processes.

    Raises:
      UserError: the variables are incomplete or invalid, or the other processes cannot be reached.
    """
    detect = os.environ.get(DETECT, "0")
    if detect not in ("0", "1"):
        raise UserError(f"{DETECT} is {detect!r}; set it to 1 where the cluster knows the processes, or unset it")
    variables = {name: os.environ[name] for name in ADDRESS_VARIABLES if os.environ.get(name)}
    if detect == "0" and not variables:
        return False
    if detect == "0" and len(variables) < len(ADDRESS_VARIABLES):
        missing = ", ".join(name for name in ADDRESS_VARIABLES if name not in variables)
        raise UserError(
            f"{', '.join(variables)} is set without {missing}; set all three, or {DETECT}=1 where the cluster sets them"
        )
    count, process = _number("JAX_NUM_PROCESSES", variables), _number("JAX_PROCESS_ID", variables)
    if count is not None and process is not None and process >= count:
        raise UserError(f"{ADDRESS_VARIABLES[2]} is {process}; with {ADDRESS_VARIABLES[1]}={count} it must be less")
    # With it SIGTERM would only be recorded; it is to end the run, which resumes from its last checkpoint.
    jax.config.update("jax_enable_preemption_service", False)
    if ":" not in variables.get(ADDRESS_VARIABLES[0], ":"):
        raise UserError(
            f"{ADDRESS_VARIABLES[0]} is {variables[ADDRESS_VARIABLES[0]]!r}; it must be HOST:PORT of process 0"
        )
    try:
        jax.distributed.initialize(
            variables.get("JAX_COORDINATOR_ADDRESS"),
            count,
            process,
            cluster_detection_method=None if detect == "1" else "deactivate",
        )
        # The processes tell each other their devices, and wait for that only minutes: not while one works alone.
        jax.devices()
    except (RuntimeError, ValueError, LookupError, OSError) as error:
        what = f"{DETECT}=1" if detect == "1" else f"{ADDRESS_VARIABLES[0]}={variables[ADDRESS_VARIABLES[0]]}"
        raise UserError(f"{what}: the processes cannot join: {' '.join(str(error).split())[:300]}") from None
    return True


def _number(name: str, variables: dict[str, str]) -> int | None:
    if name not in variables:
        return None
    if not variables[name].isdecimal():
        raise UserError(f"{name} is {variables[name]!r}; it must be a whole number")
    return int(variables[name])


def _store():
    """The key-value store of the processes."""
    assert global_state.client is not None, "jax.distributed is not initialised"
    return global_state.client


def process_count() -> int:
    """How many processes the run has; does not touch a device."""
    return global_state.num_processes


def is_main() -> bool:
    """Whether this is process 0, which alone writes logs, manifests and tables; does not touch a device."""
    return global_state.process_id == 0


def on_main(make: Callable[[], T]) -> T:
    """Runs `make()` in process 0 and returns its value, which JSON can hold, in every process; they wait for it.

    All processes must call this, `gather` and `barrier` in the same order.
    """
    if process_count() == 1:
        return make()
    key = f"jax_rele/{next(_calls)}"
    if is_main():
        value = make()
        _store().key_value_set(key, json.dumps(value))
        return value
    return json.loads(_wait(key))


def gather(value: T) -> list[T]:
    """The value of every process, which JSON can hold, in every process and in their order."""
    if process_count() == 1:
        return [value]
    key = f"jax_rele/{next(_calls)}"
    if not is_main():
        _store().key_value_set(f"{key}/{global_state.process_id}", json.dumps(value))
    return on_main(lambda: [value] + [json.loads(_wait(f"{key}/{other}")) for other in range(1, process_count())])


def barrier(name: str) -> None:
    """Waits for all processes. Raises RuntimeError where one of them is elsewhere in the program."""
    names = gather(name)
    if set(names) != {name}:
        raise RuntimeError(f"the processes are at different points of the run: {names}")


def announce(key: str, text: str) -> None:
    """Tells all processes a text under a key. Raises JaxRuntimeError where another one has been told."""
    _store().key_value_set(f"jax_rele/{key}", text)


def peek(key: str) -> str | None:
    """The text that a process has announced under a key so far; None where none has."""
    try:
        return _store().key_value_try_get(f"jax_rele/{key}")
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" not in str(error):
            raise
        return None


def _wait(key: str) -> str:
    while not _failed.is_set():
        try:
            return _store().blocking_key_value_get(key, _POLL_MS)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
    raise RuntimeError("another process has failed")


@contextmanager
def join_processes() -> Iterator[None]:
    """Joins the processes of a run; an error in one ends all of them, with one line from process 0.

    With several processes an error does not leave the context: it ends the process, with status 2 for a `UserError`,
    130 for an interruption and 1, after a traceback, for anything else. A process that is killed tells nobody: the
    others end when a collective fails, or `ALIVE_SECONDS` after its last sign of life. Where process 0 is killed, JAX
    aborts the others at once, with a report of its own.
    """
    if not initialize():
        yield
        return
    threading.Thread(target=_end_after_failure, daemon=True).start()
    life = threading.Thread(target=_show_life, daemon=True)
    life.start()
    try:
        yield
        barrier("the end of the run")
    except BaseException as error:
        _fail(error)
    # A thread that is within the store when the interpreter ends would abort it.
    _over.set()
    life.join()
    jax.distributed.shutdown()


def _end_after_failure() -> None:
    """Ends this process some seconds after another has failed, whatever it is doing."""
    while True:
        try:
            _store().blocking_key_value_get(_FAILED, 86_400_000)
            break
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                return  # the run is over
    _failed.set()
    time.sleep(_UNWIND_SECONDS)
    _leave()


def _show_life() -> None:
    """Gives signs of life to process 0, and in process 0 looks for those of the others, as long as the run lasts."""
    own, last_seen = global_state.process_id, dict.fromkeys(range(1, process_count()), ("", time.monotonic()))
    for count in itertools.count():
        try:
            if own:
                _store().key_value_set(f"jax_rele/alive/{own}", str(count), allow_overwrite=True)
            for other, (before, since) in last_seen.items() if is_main() else ():
                sign, now = peek(f"alive/{other}") or "", time.monotonic()
                if sign != before:
                    last_seen[other] = sign, now
                elif now - since > ALIVE_SECONDS:
                    message = f"no sign of life for {ALIVE_SECONDS:.0f} s: killed, or its host is lost; {_AGAIN}"
                    failure = {"process": other, "status": 1, "message": message}
                    _store().key_value_set(_FAILED, json.dumps(failure))
                    return
        except (jax.errors.JaxRuntimeError, AssertionError):
            return  # the run is over, or another failure was first
        if _over.wait(ALIVE_SECONDS / 12):
            return


def _is_lost_peer(error: BaseException) -> bool:
    """Whether a collective failed because another process is gone."""
    # JAX raises either, as the collective runs within or after a call.
    is_of_jax = isinstance(error, jax.errors.JaxRuntimeError | ValueError)
    return is_of_jax and any(sign in str(error) for sign in _LOST_PEER)


def _fail(error: BaseException) -> None:
    """Tells the others why this process ends, unless one of them was first, and ends it."""
    if isinstance(error, UserError):
        status, message = 2, str(error)
    elif isinstance(error, Preempted):
        status, message = error.status, str(error)
    elif isinstance(error, KeyboardInterrupt):
        status, message = 130, "interrupted; the same command resumes"
    elif _is_lost_peer(error):
        status, message = 1, f"another process is gone: {' '.join(str(error).split())[:160]}; {_AGAIN}"
    else:
        status, message = 1, f"{type(error).__name__}; its traceback is above or in its own log"
    client = _store()
    if not is_main():
        _failed.wait(1.0)  # an error that every process meets is reported by process 0
    try:
        client.key_value_try_get(_FAILED)
    except (
        jax.errors.JaxRuntimeError
    ):  # no process has failed before: what goes wrong after a failure elsewhere follows from it
        if status == 1 and not _is_lost_peer(error):
            traceback.print_exception(error)
        failure = {"process": global_state.process_id, "status": status, "message": message}
        with suppress(jax.errors.JaxRuntimeError):  # another one did just now, or process 0 is gone
            client.key_value_set(_FAILED, json.dumps(failure))
    _leave()


def _leave() -> None:
    """Ends this process; process 0 says why, and goes last, for the store goes with it."""
    _leaving.acquire()
    client, status = _store(), 1
    with suppress(jax.errors.JaxRuntimeError):  # a process that is gone already
        failure = json.loads(client.blocking_key_value_get(_FAILED, _POLL_MS))
        status = failure["status"]
        if is_main():
            who = f"process {failure['process']}: " if failure["process"] else ""
            print(f"jax-rele: {who}{failure['message']}", file=sys.stderr)
            deadline = time.monotonic() + _LEAVE_SECONDS
            for other in range(1, process_count()):
                left = max(1, round(1000 * (deadline - time.monotonic())))
                client.blocking_key_value_get(f"jax_rele/left/{other}", left)
        else:
            client.key_value_set(f"jax_rele/left/{global_state.process_id}", "")
        # Together: a process that loses the store while it is still connected ends with a crash report.
        jax.distributed.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
