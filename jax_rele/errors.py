"""The exceptions that end a command without a traceback: a user's mistake, and SIGTERM."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Bad input, said in one line: what is wrong, where (file, row or config path), and what to do.

    The command line prints the message without a traceback and exits with status 2. Library code raises it for input
    that a user wrote (files, configs, run folders); programming errors stay `ValueError` and `TypeError`.
    """


@contextmanager
def named(path: str, *sources: object) -> Iterator[None]:
    """Puts a config path before the messages of `UserError`s that begin with one of its values, or files in them."""
    try:
        yield
    except UserError as error:
        if str(error).startswith(tuple(map(str, sources))):
            raise UserError(f"{path}: {error}") from None
        raise


class Preempted(KeyboardInterrupt):
    """SIGTERM was received, and what can resume is saved. The command line says so in one line and exits with status 0.

    Not an `Exception`, so that what handles errors of the work does not take it for one.
    """

    @property
    def status(self) -> int:
        """Of the command: 0, or what `JAX_RELE_PREEMPTED_STATUS` says, for schedulers that take 0 for the end."""
        text = os.environ.get("JAX_RELE_PREEMPTED_STATUS", "")
        return int(text) if text.isdecimal() and int(text) < 256 else 0
