"""Files: atomic writes, locks and content hashes."""

from __future__ import annotations

import codecs
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jax_rele.errors import UserError

_FREE_DISK = "make room, then run the same command again"
FREE_CACHE = "free some space, or set cache_dir to another place"
"""What to do where the disk of the cache is full."""


_ADVICE = {
    errno.EROFS: "give a folder elsewhere",
    errno.EACCES: "change its permissions, or give a folder elsewhere",
    errno.EPERM: "change its permissions, or give a folder elsewhere",
    errno.ENOTDIR: "a part of the path is a file",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EMFILE: "raise the limit of open files: ulimit -n",
    errno.ENFILE: "raise the limit of open files",
}
"""What to do about an error of the operating system."""

_IN_MESSAGES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE)
"""Errors that libraries in other languages name in their messages alone."""


def disk_is_full(error: BaseException) -> bool:
    """Whether an error says that the disk is full; libraries in other languages say so in their message alone."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return full or os.strerror(errno.ENOSPC) in str(error)


def system_error(error: BaseException) -> UserError | None:
    """The line for an error of the operating system, or one that it caused; None for any other error."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    for each in chain:
        if isinstance(each, OSError) and each.errno is not None:
            names = [os.fsdecode(name) for name in (each.filename, each.filename2) if isinstance(name, str | bytes)]
            where = " -> ".join(names) or "a file or connection"
            if disk_is_full(each):
                return UserError(f"{where}: the disk is full; {_FREE_DISK}")
            return UserError(f"{where}: {each.strerror}{_advice(each)}")
        if isinstance(each, OSError):  # of a library, e.g. pyarrow, without a number
            return UserError(" ".join(str(each).split())[:300] or type(each).__name__)
    for code in filter(None, map(_code_in_message, chain)):
        words = " ".join(str(error).split())[:200]
        if code in (errno.ENOSPC, errno.EDQUOT):
            return UserError(f"the disk is full; {_FREE_DISK} ({words})")
        return UserError(f"{os.strerror(code)}: {words}")
    return None


def _code_in_message(error: BaseException) -> int:
    """The number of the operating system's error that a message names; 0 where it names none."""
    return next((code for code in _IN_MESSAGES if os.strerror(code) in str(error)), 0)


def _advice(error: BaseException) -> str:
    advice = _ADVICE.get(getattr(error, "errno", None) or 0, "")
    return f"; {advice}" if advice else ""


def handles_are_out(error: Exception) -> bool:
    """Whether an error says that no more files may be open, see `disk_is_full`."""
    return getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE) or os.strerror(errno.EMFILE) in str(error)


def write_error(path: str | Path, error: Exception, fix: str = _FREE_DISK) -> UserError:
    """The error for a file or folder that cannot be written; `fix` is for a full disk."""
    if disk_is_full(error):
        return UserError(f"{path}: the disk is full; {fix}")
    if handles_are_out(error):
        return UserError(f"{path}: too many files are open; {_ADVICE[errno.EMFILE]}")
    return UserError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}{_advice(error)}")


def check_output_file(path: str | Path) -> None:
    """Tries to write a file, so that what would fail after long work fails before it; what is there stays.

    Raises:
      UserError: it is a folder, its folder is missing, or it cannot be written there.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; give a file to write")
        _refuse_dangling(path)
        parent = path.resolve().parent
        if not parent.is_dir():
            raise UserError(f"{parent}: no such folder to write to; create it first")
        _try(_temporary(path))
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise write_error(path, error) from None


def check_output_folder(path: str | Path) -> None:
    """Tries to write where a folder is, or is to be made; nothing stays.

    Raises:
      UserError: it is a file, or nothing can be written there.
    """
    path = Path(path).absolute()
    try:
        _refuse_dangling(path)
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        if not existing.is_dir():
            what = "is a file" if existing == path else f"cannot be made: {existing} is a file"
            raise UserError(f"{path}: {what}; give another folder")
        # The name of what is tried is as long as the longest that will be written.
        _try(_temporary(existing / path.name))
    except OSError as error:
        raise write_error(path, error) from None


def _refuse_dangling(path: Path) -> None:
    for part in (path, *path.parents):
        if part.is_symlink() and not os.path.exists(part):
            raise UserError(f"{part}: is a link to {os.readlink(part)}, which is not there; remove or mend the link")


def _try(temporary: Path) -> None:
    try:
        temporary.write_bytes(b"0")
    finally:
        with suppress(OSError):
            temporary.unlink()


_COMMENTS = r"(?:<!--.*?-->\s*|<\?xml.*?\?>\s*)*"
_WEB_PAGE = re.compile(rf"{_COMMENTS}(?:<!doctype\s+html|<(?:html|head|body|table)(?=[\s>/]))".encode(), re.DOTALL)


def placeholder(start: bytes) -> str:
    """What a file that begins so stands for, and what to do: a Git LFS pointer or a web page. Empty for others."""
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        if start.startswith(mark):
            start = start.removeprefix(mark).decode(encoding, "ignore").encode("utf-8", "ignore")
    start = start.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file; fetch the file with `git lfs pull`"
    if _WEB_PAGE.match(start):
        return "is a web page, not the file; download the file itself"
    return ""


def stands_for_another(line: bytes) -> bool:
    """Whether a line begins a Git LFS pointer or a web page, or names a pointer's object."""
    return bool(placeholder(line)) or line.strip().startswith(b"oid sha256:")


def refuse_placeholder(path: Path) -> None:
    """Raises UserError for a file that stands for another one, see `placeholder`, or that may not be read."""
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except PermissionError as error:
        # Libraries call such a file damaged.
        raise UserError(f"{path}: cannot be read: {error.strerror}; change its permissions") from None
    except OSError:
        return  # whoever reads it says why
    if message := placeholder(start):
        raise UserError(f"{path}: {message}")


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
    except Exception as error:
        if isinstance(error, OSError) or (not isinstance(error, UserError) and _code_in_message(error)):
            raise write_error(path, error) from error
        raise
    finally:
        with suppress(OSError):  # on media that are read-only
            temporary.unlink()


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
    except Exception as error:
        # Libraries in other languages raise errors of their own.
        if not isinstance(error, OSError | UserError) and (code := _code_in_message(error)):
            raise OSError(code, os.strerror(code), str(path)) from error
        raise
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
