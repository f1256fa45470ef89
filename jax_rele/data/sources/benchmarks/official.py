"""The official files of a benchmark: where they are to be had, and whether a file is one of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jax_rele.data.sources.files import file_hash
from jax_rele.errors import UserError

_POINTER = b"version https://git-lfs.github.com"


@dataclass(frozen=True)
class OfficialFile:
    """An official file: where to download it, and what it must hold.

    Attributes:
      columns: the names of its columns.
      rows: the number of its rows.
      size: its bytes, None where no public source says.
      sha256: the hash of its content, None where no public source says.
    """

    name: str
    url: str
    columns: tuple[str, ...]
    rows: int
    size: int | None = None
    sha256: str | None = None


def locate(benchmark: str, files: Sequence[OfficialFile], folder: str | os.PathLike, inside: str) -> dict[str, Path]:
    """The files in a folder, or in its subfolder `inside`, where the benchmark's repository keeps them.

    Returns:
      name -> path, in the order of `files`.

    Raises:
      UserError: the folder is none, or lacks files; names each, and where it is to be had.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"data.manual_dir {folder}: no such folder; it must hold {where_to_get(files)}")
    folders = (folder, folder / inside)
    paths = {file.name: parent / file.name for file in files for parent in folders if (parent / file.name).is_file()}
    if missing := [file for file in files if file.name not in paths]:
        raise UserError(f"data.manual_dir {folder}: {benchmark} lacks {where_to_get(missing)}; put them there")
    return {file.name: paths[file.name] for file in files}


def where_to_get(files: Iterable[OfficialFile]) -> str:
    """Names and addresses of files, for a message."""
    return ", ".join(f"{file.name} (from {file.url})" for file in files)


def check_content(file: OfficialFile, path: Path, fetched: bool = False) -> bool:
    """Whether a file must be the official one: it was fetched, or it has the official size (and checksum, if known).

    Raises:
      UserError: it is a Git LFS pointer, it has the official size but another content, or it was fetched from the
        official address and is not what should be there.
    """
    size = path.stat().st_size
    if size < 1024 and path.read_bytes().startswith(_POINTER):
        raise UserError(f"{path}: only a pointer to the file (Git LFS); run `git lfs pull`, or fetch {file.url}")
    if fetched and file.size is not None and size != file.size:
        raise UserError(f"{path}: fetched {size} bytes of {file.url}, expected {file.size}; delete it and try again")
    if size != file.size:
        return fetched
    if file.sha256 is not None and (digest := file_hash(path)) != file.sha256:
        raise UserError(
            f"{path}: the size of the official file but another content (sha256 {digest}, official {file.sha256}); "
            f"fetch it again from {file.url}"
        )
    return True


def check_columns(file: OfficialFile, path: Path, columns: Sequence[str]) -> None:
    """Raises UserError if a column of the official file is missing."""
    if missing := [name for name in file.columns if name not in columns]:
        raise UserError(
            f"{path}: lacks the columns {missing}, it has {list(columns)}; {file.name} must have the columns of the "
            f"official file ({file.url})"
        )


def check_rows(file: OfficialFile, path: Path, rows: int) -> None:
    """Raises UserError if a file that should be the official one has another number of rows."""
    if rows != file.rows:
        raise UserError(f"{path}: {rows} rows, but the official file has {file.rows}; fetch it again from {file.url}")


def facts(files: Iterable[OfficialFile]) -> Mapping[str, object]:
    """Stands for the content of official files that are not here yet."""
    return {file.name: [file.url, file.rows, file.size, file.sha256] for file in files}
