"""One side in a process of its own, so that the two share neither memory pools nor threads."""

from __future__ import annotations

import contextlib
import gc
import importlib
import math
import multiprocessing
import os
import resource
import time
import traceback
from typing import Any


def peak_memory() -> int:
    """The largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _serve(pipe, module: str, environment: dict[str, str], arguments: tuple) -> None:
    """Answers (order, arguments...) with (True, result) or (False, traceback) until the pipe closes."""
    os.environ.update(environment)
    stack, cases, run = contextlib.ExitStack(), {}, None
    while True:
        try:
            order, *rest = pipe.recv()
        except EOFError:
            return
        try:
            if order == "open":
                answer, cases = importlib.import_module(module).open_side(*arguments)
            elif order == "prepare":
                run = None
                stack.close()
                gc.collect()
                run = stack.enter_context(cases[rest[0]](*rest[1:]))
                start = time.perf_counter()
                result = run()
                compiled = time.perf_counter() - start
                start = time.perf_counter()
                run()
                answer = compiled - (time.perf_counter() - start), result
            else:
                start = time.perf_counter(), time.process_time()
                run()
                answer = time.perf_counter() - start[0], time.process_time() - start[1]
            pipe.send((True, answer))
        except Exception:
            pipe.send((False, traceback.format_exc()))


class Side:
    """A side's process; its methods block until the process has answered.

    They raise RuntimeError where the case fails, EOFError where the process has ended, TimeoutError at the deadline.

    Attributes:
      about: the versions and the device of the side.
      deadline: when the process is killed if it has not answered, by `time.monotonic`.
    """

    def __init__(self, module: str, environment: dict[str, str], *arguments: Any, deadline: float = math.inf):
        context = multiprocessing.get_context("spawn")
        self.deadline = deadline
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, module, environment, arguments), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self.about = self._ask("open")
        except BaseException:
            self.kill()
            raise

    def _ask(self, *order: Any) -> Any:
        self._pipe.send(order)
        if self.deadline < math.inf and not self._pipe.poll(max(0.0, self.deadline - time.monotonic())):
            self.kill()
            raise TimeoutError
        good, answer = self._pipe.recv()
        if not good:
            raise RuntimeError(f"{' '.join(map(str, order))}:\n{answer}")
        return answer

    def prepare(self, case: str, *arguments: Any) -> tuple[float, Any]:
        """Sets a case up in place of the one before and runs it twice.

        Returns:
          The seconds that the first run took longer, mostly compilation, and its result.
        """
        return self._ask("prepare", case, *arguments)

    def time(self) -> tuple[float, float]:
        """Seconds of one run of the case: by the clock, and of all processor cores."""
        return self._ask("time")

    def close(self) -> None:
        """Lets the process end; kills it where it does not."""
        self._pipe.close()
        self._process.join(None if self.deadline == math.inf else 10)
        self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.join(10)
