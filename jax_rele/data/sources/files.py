"""Where files of pairs lie: on this machine or in another file system, plain or compressed."""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import lzma
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pyarrow as pa

from jax_rele.data.rows import one_line
from jax_rele.errors import UserError
from jax_rele.io import hash_bytes, hash_file

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

TEXT_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
PARQUET = ".parquet"
SUFFIXES = f"{', '.join(TEXT_SUFFIXES)} (each also compressed: .gz, .bz2, .xz, .zst), {PARQUET}"  # for messages
_CONTENT_KEYS = ("etag", "ETag", "md5Hash", "md5", "crc32c", "generation", "Content-MD5", "content_md5")
_TIME_KEYS = ("mtime", "LastModified", "last_modified", "updated", "Last-Modified", "created")


class _Streams(io.RawIOBase):
    """What compressed streams, one behind the other, hold.

    The readers of `bz2` and `lzma` end in silence at a second stream that is damaged, or at what is no stream: here it
    is an OSError or LZMAError, as for gzip.
    """

    def __init__(self, stream: IO[bytes], decompressor: Callable[[], Any], padding: bytes = b""):
        self.stream, self.new, self.padding = stream, decompressor, padding
        self.current = decompressor()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while True:
            compressed = b""
            if self.current.eof:
                compressed = self.current.unused_data.lstrip(self.padding)
                while not compressed:
                    if not (block := self.stream.read(io.DEFAULT_BUFFER_SIZE)):
                        return 0
                    compressed = block.lstrip(self.padding)
                self.current = self.new()
            elif self.current.needs_input and not (compressed := self.stream.read(io.DEFAULT_BUFFER_SIZE)):
                raise EOFError("the compressed data end too early")
            if plain := self.current.decompress(compressed, len(buffer)):
                buffer[: len(plain)] = plain
                return len(plain)


_DECOMPRESS: dict[str, Callable[..., AbstractContextManager]] = {
    ".gz": gzip.open,
    ".bz2": lambda stream: io.BufferedReader(_Streams(stream, bz2.BZ2Decompressor, padding=b"\0")),
    ".xz": lambda stream: io.BufferedReader(_Streams(stream, lzma.LZMADecompressor, padding=b"\0")),
    ".zst": lambda stream: io.BufferedReader(pa.CompressedInputStream(stream, "zstd")),
}


@dataclass(frozen=True)
class SourceFile:
    """A file of rows.

    Attributes:
      name: for messages.
      path: in its file system.
      system: an fsspec file system; None for this machine's.
    """

    name: str
    path: str
    system: AbstractFileSystem | None = None

    @property
    def suffix(self) -> str:
        """The suffix that says the format, without that of a compression; empty for an unknown one."""
        stem, suffix = os.path.splitext(self._base)
        if suffix in _DECOMPRESS:
            suffix = os.path.splitext(stem)[1]
            return suffix if suffix in TEXT_SUFFIXES else ""
        return suffix if suffix in (*TEXT_SUFFIXES, PARQUET) else ""

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The bytes of the file, uncompressed."""
        with open(self.path, "rb") if self.system is None else self.system.open(self.path, "rb") as stream:
            decompress = _DECOMPRESS.get(os.path.splitext(self._base)[1], nullcontext)
            with decompress(stream) as plain:
                yield plain

    @property
    def _base(self) -> str:
        # The part of a web address after the path is no part of the name.
        path = self.path if self.system is None else urlsplit(self.path).path
        return os.path.basename(path).lower()


def find_files(path: str | os.PathLike) -> list[SourceFile]:
    """The files that a file, a folder or a glob pattern stands for, sorted by name.

    Raises:
      UserError: there is none, one has an unknown suffix, or the file system cannot be reached.
    """
    name = os.fspath(path)
    files = _remote_files(name) if is_remote(name) else _local_files(name)
    for file in files:
        if not file.suffix:
            raise UserError(f"{file.name}: unknown suffix; convert the file to one of {SUFFIXES}")
    return files


def fingerprint(files: Sequence[SourceFile]) -> str:
    """A hash that changes with the content of the files.

    Of files on this machine the content is read; for others the file system gives a checksum or version where it has
    one, otherwise size and time.
    """
    return hash_bytes(b"".join(map(_content_hash, files)))


def file_hash(path: str | os.PathLike) -> str:
    """The SHA-256 of a file in hexadecimal digits; it is read once in a process unless size, time or inode change."""
    status = os.stat(path)
    return _file_hash(os.fspath(path), status.st_size, status.st_mtime_ns, status.st_ino)


@lru_cache(maxsize=100_000)
def _file_hash(path: str, *_: int) -> str:
    return hash_file(path)


def _content_hash(file: SourceFile) -> bytes:
    if file.system is None:
        return bytes.fromhex(file_hash(file.path))
    try:
        info = file.system.info(file.path)
    except Exception as error:
        raise unreachable(file.name, error) from error
    known = [(key, str(info[key])) for key in _CONTENT_KEYS if info.get(key)]
    known = known or [(key, str(info[key])) for key in _TIME_KEYS if info.get(key)]
    return repr((file.name, info.get("size"), known)).encode()


def _local_files(path: str) -> list[SourceFile]:
    name = os.path.expanduser(path)
    if os.path.isfile(name):
        names = [name]
    elif os.path.isdir(name):
        names = sorted(entry.path for entry in os.scandir(name) if entry.is_file() and entry.name[0] not in "._")
        names = [file for file in names if SourceFile(file, file).suffix]
        if not names:
            raise UserError(f"{path}: the folder holds no file of pairs; known suffixes are {SUFFIXES}")
    elif glob.has_magic(name):
        names = sorted(file for file in glob.glob(name, recursive=True) if os.path.isfile(file))
        if not names:
            raise UserError(f"{path}: no file matches the pattern; check the path")
    else:
        raise UserError(f"{path}: no such file; check the path, or use 'sample' for the bundled sample")
    return [SourceFile(file, file) for file in names]


def is_remote(path: str) -> bool:
    """Whether a path is the address of another file system, as `gs://bucket/folder`."""
    return "://" in path


def file_system(path: str) -> tuple[AbstractFileSystem, str]:
    """The file system of an address, and the path in it.

    Raises:
      UserError: nothing here reads such an address.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(path)
    except ImportError as error:
        protocol = path.partition("://")[0]
        package = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs", "http": "aiohttp", "https": "aiohttp"}
        advice = f"pip install {package[protocol]}" if protocol in package else one_line(error)
        raise UserError(f"{path}: a package that reads {protocol}:// is not installed; {advice}") from None
    except ValueError as error:
        raise UserError(f"{path}: {one_line(error)}; check the part before ://") from None


def _remote_files(path: str) -> list[SourceFile]:
    system, root = file_system(path)
    inside: list[str] = []
    try:
        if system.isfile(root):
            inside = [root]
        elif system.isdir(root):
            listed = sorted(entry["name"] for entry in system.ls(root, detail=True) if entry["type"] == "file")
            listed = [name for name in listed if PurePosixPath(name).name[0] not in "._"]
            inside = [name for name in listed if SourceFile(name, name, system).suffix]
        elif "*" in root or (glob.has_magic(root) and "http" not in path.partition("://")[0]):
            inside = sorted(filter(system.isfile, system.glob(root)))
    except Exception as error:  # each file system has its own
        raise unreachable(path, error) from error
    if not inside:
        raise UserError(f"{path}: no file of pairs is there; check the address; known suffixes are {SUFFIXES}")
    return [SourceFile(system.unstrip_protocol(name), name, system) for name in inside]


def unreachable(name: str, error: Exception) -> UserError:
    """The error for a file or data set on another machine that cannot be reached."""
    reason = one_line(error) or type(error).__name__
    return UserError(f"{name}: cannot be reached ({reason}); check the address, the network and your credentials")
