"""Processes that parse rows, and end with the process that started them, whichever way that ends.

A worker is a Python process that imports neither jax nor the main module of the program. It reads chunks of rows from
its standard input until that is closed, and writes what they are to its standard output.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from queue import SimpleQueue
from typing import IO

from jax_rele.data.pairs.facts import Parsing
from jax_rele.data.pairs.parsing import ParsedRows, parse_rows
from jax_rele.data.sources.readers import Chunk
from jax_rele.errors import UserError

_COMMAND = "from jax_rele.data.pairs.workers import work; work()"


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Some processes that parse rows."""

    def __init__(self, processes: list[subprocess.Popen[bytes]]):
        self.processes = processes
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        for process in processes:
            self._idle.put(process)
        self.threads = ThreadPoolExecutor(len(processes), "rows")

    def submit(self, chunk: Chunk, parsing: Parsing) -> Future[ParsedRows]:
        """What the rows of a chunk are. Raises UserError where they cannot be read, or a process was killed."""
        return self.threads.submit(self._parse, pickle.dumps((chunk, parsing), pickle.HIGHEST_PROTOCOL))

    def _parse(self, task: bytes) -> ParsedRows:
        process = self._idle.get()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(task)
            process.stdin.flush()
            result = pickle.load(process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            raise _ended(process) from None
        finally:
            self._idle.put(process)
        if isinstance(result, Exception):
            raise result
        return result


@contextmanager
def start_workers(count: int) -> Iterator[Workers]:
    """Starts some processes, and ends them."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            processes.append(_start())
        workers = Workers(processes)
        try:
            yield workers
        finally:
            for process in processes:
                process.kill()
            workers.threads.shutdown(cancel_futures=True)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _start() -> subprocess.Popen[bytes]:
    # Ctrl-C in a terminal is for the process that started them, which ends them: hence the group of their own.
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _COMMAND],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
        process_group=0,
    )


def _ended(process: subprocess.Popen[bytes]) -> UserError:
    """The error for a process that has ended before its time."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    code = process.returncode
    how = f"with status {code}" if code is None or code >= 0 else f"by {signal.Signals(-code).name}"
    return UserError(f"a process that read rows was ended {how}, perhaps as memory ran out; run the stage again")


def work() -> None:
    """The loop of a worker."""
    # What else is printed must not come between the results.
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # Of the many objects of rows none refers to itself.
    gc.disable()
    with suppress(EOFError, BrokenPipeError):
        for result in map(_result, iter(partial(_task, sys.stdin.buffer), None)):
            pickle.dump(result, results, pickle.HIGHEST_PROTOCOL)
            results.flush()
    os._exit(0)


def _task(stream: IO[bytes]) -> tuple[Chunk, Parsing]:
    return pickle.load(stream)


def _result(task: tuple[Chunk, Parsing]) -> ParsedRows | Exception:
    chunk, parsing = task
    try:
        return parse_rows(chunk(), parsing)
    except UserError as error:
        return error
    except Exception:
        return RuntimeError(traceback.format_exc())
