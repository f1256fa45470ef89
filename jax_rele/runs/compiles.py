"""How many programs XLA compiles while something runs, and how long that takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"


@dataclass
class Compiles:
    """What was compiled.

    Attributes:
      programs: how many.
      seconds: how long XLA took, without tracing and lowering.
    """

    programs: int = 0
    seconds: float = 0.0


@contextmanager
def count_compiles() -> Iterator[Compiles]:
    """Counts the programs that this process compiles in the block."""
    compiles = Compiles()

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == _EVENT:
            compiles.programs += 1
            compiles.seconds += duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiles
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
