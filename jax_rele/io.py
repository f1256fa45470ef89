"""Files: atomic writes, locks and content hashes."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jax_rele.errors import UserError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends, and is removed where the block raises.

    A reader sees the old file or the whole new one. Works for files; `atomic_folder` is for folders.

    Raises:
      UserError: the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 text file whole or not at all. Raises UserError where it cannot be written."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, "utf-8")


def write_json(path: str | Path, values: object, *, indent: int | None = 2) -> None:
    """Writes a JSON file whole or not at all; NaN and infinity are refused with a ValueError."""
    write_text(path, json.dumps(values, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """An empty folder beside `path` that becomes `path` when the block ends, and is removed where the block raises."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def lock(path: str | Path, on_busy: Callable[[], Exception] | None = None) -> Iterator[None]:
    """Holds an exclusive lock on a file; the operating system releases it however the process ends.

    Args:
      path: the lock file; its folder exists.
      on_busy: makes the error to raise where another process holds the lock; None waits for it.
    """
    with Path(path).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if on_busy else 0))
        except OSError:
            if on_busy is None:
                raise
            raise on_busy() from None
        yield


def hash_bytes(content: bytes) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of some bytes."""
    return hashlib.sha256(content).hexdigest()[:16]


def hash_values(values: object) -> str:
    """A hash of plain data (dicts, lists, numbers, strings) that does not depend on the order of keys."""
    return hash_bytes(json.dumps(values, sort_keys=True, ensure_ascii=False).encode())


def hash_file(path: str | Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_folder(path: str | Path) -> str:
    """A hash of the names and contents of all files in a folder."""
    path = Path(path)
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0".encode())
        digest.update(bytes.fromhex(hash_file(file)))
    return digest.hexdigest()[:16]
