"""SIGTERM: a training saves a checkpoint and ends, other work ends at once; the same command resumes either."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import jax

from jax_rele.errors import Preempted
from jax_rele.training import distributed

_MARGIN = 3
"""Steps between a SIGTERM in one process and the last step of all: none is further ahead of another than two steps,
as each reads the figures of a step, for which it waits for all others, before it starts the next but one."""

_received = threading.Event()
_deferred = threading.Event()


@contextmanager
def end_on_sigterm() -> Iterator[None]:
    """Within it SIGTERM raises `Preempted` in the main thread; a training first saves a checkpoint, see `deferred`.

    In another thread, which cannot handle signals, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _received.clear()
    before = signal.signal(signal.SIGTERM, _handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _received.clear()


def _handle(number: int, frame: FrameType | None) -> None:
    _received.set()
    if not _deferred.is_set():
        raise Preempted("stopped by SIGTERM; the same command resumes")


@contextmanager
def deferred() -> Iterator[None]:
    """Within it SIGTERM is only noted, for `is_due`; one that was noted is raised when the block ends."""
    _deferred.set()
    try:
        yield
    finally:
        _deferred.clear()
    if _received.is_set():
        raise Preempted("stopped by SIGTERM; the same command resumes")


def is_due(step: int, training: str) -> bool:
    """Whether all processes are to save and end after this step, because one of them has received SIGTERM.

    All processes call this after every step. Several end a few steps later, so that all hear of it before.

    Args:
      step: its number.
      training: names the training, the same in all processes and another for each training of a run.
    """
    if distributed.process_count() == 1:
        return _received.is_set()
    last_step = distributed.peek(f"preempted/{training}")
    if last_step is None and _received.is_set():
        last_step = str(step + _MARGIN)
        with suppress(jax.errors.JaxRuntimeError):  # another process has announced its own step just now
            distributed.announce(f"preempted/{training}", last_step)
    return last_step is not None and step >= int(last_step)
