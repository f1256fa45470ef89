"""The weights that the package contains, and their checksums.

Each model is a folder in the Hugging Face form, `jax_rele/bundled/NAME`, with a file `SHA256SUMS` in the format of
`sha256sum`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from jax_rele.errors import UserError
from jax_rele.io import hash_file, write_text

T = TypeVar("T")

BUNDLED = "bundled:"
"""Prefix of the names of bundled weights."""

NAMES = ("decoder", "encoder")
"""The weights of a teacher and of a student."""

ROOT = Path(__file__).parent.parent / "bundled"
NEEDED = ("config.json", "model.safetensors", "tokenizer.json")
"""Files that every folder has."""

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([\w.-]+)", re.ASCII)
_AGAIN = "reinstall the package, or make the folder again with scripts/build_bundled"


def folder(source: str) -> Path:
    """The folder of `bundled:NAME`; once per process its files are read and compared with their checksums.

    Raises:
      UserError: there are no weights of that name, or the folder is incomplete or damaged.
    """
    name = source.removeprefix(BUNDLED)
    if name not in NAMES:
        raise UserError(f"{source}: no such weights; there are {' and '.join(BUNDLED + known for known in NAMES)}")
    _verify_once(ROOT / name)
    return ROOT / name


def verify(path: Path) -> None:
    """Compares a folder's files with their checksums; hidden files are ignored.

    Raises:
      UserError: the folder or a file is missing, a file has changed or has no checksum, or the checksums cannot be
        read.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; the installation is not complete, reinstall the package")
    checksums = _read_checksums(path / SUMS)
    for name in (*NEEDED, *_names(path)):
        if name not in checksums:
            raise UserError(f"{path / name}: has no checksum in {SUMS}; {_AGAIN}")
    for name, expected in checksums.items():
        if _read(hash_file, path / name) != expected:
            raise UserError(f"{path / name}: its checksum differs from {SUMS}; {_AGAIN}")


_verify_once = functools.cache(verify)


def write_checksums(path: Path) -> None:
    """Writes the checksums of a folder's files. Raises UserError where one of `NEEDED` is missing."""
    for name in NEEDED:
        if not (path / name).is_file():
            raise UserError(f"{path / name}: no such file; write it before the checksums")
    write_text(path / SUMS, "".join(f"{_read(hash_file, path / name)}  {name}\n" for name in _names(path)))


def _names(path: Path) -> list[str]:
    """The files that need a checksum."""
    names = sorted(file.name for file in path.iterdir() if file.is_file())
    return [name for name in names if name != SUMS and not name.startswith(".")]


def _read_checksums(path: Path) -> dict[str, str]:
    """name -> SHA-256 in hexadecimal digits."""
    checksums: dict[str, str] = {}
    # Bytes that are not UTF-8 are replaced: the line is then refused as no checksum.
    for number, line in enumerate(_read(Path.read_bytes, path).decode("utf-8", "replace").splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None or match[2] in checksums:
            raise UserError(f"{path}: line {number} is not a checksum and the name of another file; {_AGAIN}")
        checksums[match[2]] = match[1]
    return checksums


def _read(read: Callable[[Path], T], path: Path) -> T:
    try:
        return read(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; the installation is not complete, reinstall the package") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; {_AGAIN}") from None
