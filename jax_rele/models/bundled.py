"""The weights that the package brings along, and the checksums that say whether they are whole.

Each lies in a folder in the Hugging Face form, `jax_rele/bundled/NAME`, beside `SHA256SUMS` in the form that
`sha256sum` writes and checks.
"""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path

from jax_rele.errors import UserError

BUNDLED = "bundled:"
"""What their names begin with."""

NAMES = ("decoder", "encoder")
"""A teacher's and a student's."""

ROOT = Path(__file__).parent.parent / "bundled"
NEEDED = ("config.json", "model.safetensors", "tokenizer.json")
"""Files that each of the folders has."""

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([\w.-]+)", re.ASCII)
_AGAIN = "reinstall the package, or make the folder again with scripts/build_bundled"


def folder(source: str) -> Path:
    """The folder of `bundled:NAME`, whole: its files are read and compared with their checksums, once per process.

    Raises:
      UserError: there are no weights of that name, or the folder is not whole.
    """
    name = source.removeprefix(BUNDLED)
    if name not in NAMES:
        raise UserError(f"{source}: no such weights; there are {' and '.join(BUNDLED + known for known in NAMES)}")
    _verify_once(ROOT / name)
    return ROOT / name


def verify(path: Path) -> None:
    """Compares a folder's files with their checksums.

    Files whose names begin with a dot are nobody's.

    Raises:
      UserError: the folder or a file is missing, a file has changed or has no checksum, or the checksums cannot be
        read.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; the installation is not complete, reinstall the package")
    listed = _read_checksums(path / SUMS)
    for name in (*NEEDED, *_names(path)):
        if name not in listed:
            raise UserError(f"{path / name}: has no checksum in {SUMS}; {_AGAIN}")
    for name, expected in listed.items():
        if _digest(path / name) != expected:
            raise UserError(f"{path / name}: its checksum differs from {SUMS}; {_AGAIN}")


_verify_once = functools.cache(verify)


def write_checksums(path: Path) -> None:
    """Writes the checksums of a folder that holds all of its other files.

    Raises:
      UserError: a file that every folder has is missing.
    """
    for name in NEEDED:
        if not (path / name).is_file():
            raise UserError(f"{path / name}: no such file; write it before the checksums")
    lines = [f"{_digest(path / name)}  {name}\n" for name in _names(path)]
    (path / SUMS).write_text("".join(lines), "utf-8")


def _names(path: Path) -> list[str]:
    """The files that have a checksum, or ought to."""
    return sorted(
        file.name for file in path.iterdir() if file.is_file() and file.name != SUMS and not file.name.startswith(".")
    )


def _read_checksums(path: Path) -> dict[str, str]:
    """name -> SHA-256 in hexadecimal digits."""
    listed: dict[str, str] = {}
    # Whatever is no text is no checksum either.
    for number, line in enumerate(_read(path).decode("utf-8", "replace").splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None or match[2] in listed:
            raise UserError(f"{path}: line {number} is not a checksum and the name of another file; {_AGAIN}")
        listed[match[2]] = match[1]
    return listed


def _digest(path: Path) -> str:
    return hashlib.sha256(_read(path)).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; the installation is not complete, reinstall the package") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; {_AGAIN}") from None
