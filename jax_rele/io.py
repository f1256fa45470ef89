"""Files: atomic writes, locks and content hashes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jax_rele.errors import UserError

_FREE_DISK = "make room, then run the same command again"
FREE_CACHE = "free some space, or set cache_dir to another place"
"""What to do where the disk of the cache is full."""


def disk_is_full(error: Exception) -> bool:
    """Whether an error says that the disk is full; libraries in other languages say so in their message alone."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return full or os.strerror(errno.ENOSPC) in str(error)


def handles_are_out(error: Exception) -> bool:
    """Whether an error says that no more files may be open, see `disk_is_full`."""
    return getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE) or os.strerror(errno.EMFILE) in str(error)


def write_error(path: str | Path, error: Exception, fix: str = _FREE_DISK) -> UserError:
    """The error for a file or folder that cannot be written; `fix` is for a full disk."""
    if disk_is_full(error):
        return UserError(f"{path}: the disk is full; {fix}")
    if handles_are_out(error):
        return UserError(f"{path}: too many files are open; allow more, e.g. by `ulimit -n 4096`")
    return UserError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}")


def sync(path: str | Path) -> None:
    """Waits until a file or the names in a folder are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends, and is removed where the block raises.

    A reader sees the old file or the whole new one, also after a crash. `atomic_folder` is for folders.

    Raises:
      UserError: the file cannot be written.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    # In the same folder, as a file is renamed atomically within one file system only.
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 text file whole or not at all. Raises UserError where it cannot be written."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, "utf-8")


def write_json(path: str | Path, values: object, *, indent: int | None = 2) -> None:
    """Writes a JSON file whole or not at all; NaN and infinity are refused with a ValueError."""
    write_text(path, json.dumps(values, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """An empty folder beside `path` that becomes `path` when the block ends, and is removed where the block raises.

    Raises:
      OSError: it cannot be written, or `path` is a folder that is not empty.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            sync(file)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def lock(path: str | Path, on_busy: Callable[[], Exception] | None = None) -> Iterator[bool]:
    """Holds an exclusive lock on a file; the operating system releases it however the process ends.

    Yields whether the lock is held.

    Args:
      path: the lock file; its folder exists.
      on_busy: makes the error to raise where another process holds the lock; None waits for it, and continues without a
        lock where the file system has none.
    """
    with Path(path).open("a") as file:
        is_locked = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if on_busy else 0))
        except OSError:
            if on_busy is not None:
                raise on_busy() from None
            is_locked = False
        yield is_locked


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


def hash_folder(path: str | Path, without: str = "") -> str:
    """A hash of the names and contents of all files in a folder, but for those called `without`."""
    path = Path(path)
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file() and file.name != without):
        digest.update(f"{file.relative_to(path).as_posix()}\0".encode())
        digest.update(bytes.fromhex(hash_file(file)))
    return digest.hexdigest()[:16]


def hash_ends(files: Iterable[Path], ends: int = 1 << 20) -> str:
    """A hash of names, sizes and both ends of files that are too large to be read whole at every start."""
    digest = hashlib.sha256()
    for file in sorted(files):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(ends))
            stream.seek(max(size - ends, 0))
            digest.update(stream.read(ends))
    return digest.hexdigest()[:16]
