"""Progress bars on a terminal, with pairs per second and time left; silent elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def make_progress(title: str, suffix: str) -> Progress:
    """A bar with a title; `suffix` is a rich format of what follows the counts."""
    console = Console(stderr=True)
    return Progress(
        TextColumn(f"{title:34}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(suffix),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def every(count: int, progress: Callable[[int], None]) -> Callable[[int], None]:
    """A function that takes numbers of predictions, of which `count` make a pair, and calls `progress` with pairs."""
    finished = 0

    def advance(predictions: int) -> None:
        nonlocal finished
        before, finished = finished // count, finished + predictions
        progress(finished // count - before)

    return advance


@contextmanager
def pairs_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar over pairs; gives a function that takes the number of pairs done since its last call."""
    with make_progress(title, "{task.fields[rate]:.0f} pairs/s") as progress:
        task = progress.add_task(title, total=total, rate=0.0)

        def advance(pairs: int) -> None:
            progress.advance(task, pairs)
            progress.update(task, rate=progress.tasks[0].speed or 0.0)

        yield advance
