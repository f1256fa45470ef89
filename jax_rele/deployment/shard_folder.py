"""The folder of a batch job's shards: on this machine, or in a bucket (`gs://`, `s3://`, ... by fsspec).

Files appear whole or not at all: here they are renamed, in a bucket an upload is atomic. Buckets have no locks.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from jax_rele.data.sources.files import file_system, is_remote, unreachable
from jax_rele.errors import UserError
from jax_rele.io import lock, write_error, write_json
from jax_rele.models.files import read_json

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


@dataclass(frozen=True)
class ShardFolder:
    """A folder of shards.

    Attributes:
      name: as it was given, for messages.
      path: where it is.
      system: an fsspec file system; None for this machine's.
    """

    name: str
    path: str
    system: AbstractFileSystem | None = None

    def create(self) -> None:
        """Makes the folder where it is missing; a bucket has none."""
        if self.system is None:
            with self._errors():
                Path(self.path).mkdir(parents=True, exist_ok=True)

    def names(self) -> list[str]:
        """Names of its files, in order, without hidden ones."""
        with self._errors():
            if self.system is None:
                names = [file.name for file in Path(self.path).iterdir()]
            else:
                self.system.invalidate_cache()
                exists = self.system.isdir(self.path)
                names = [each.rsplit("/", 1)[-1] for each in self.system.ls(self.path, detail=False)] if exists else []
        return sorted(name for name in names if not name.startswith("."))

    def write(self, name: str, write: Callable[[Path], object]) -> None:
        """Writes a file: `write` fills it at the path that it is given."""
        if self.system is None:
            write(Path(self.path) / name)
            return
        with tempfile.TemporaryDirectory() as temporary:
            file = Path(temporary) / name
            write(file)
            with self._errors():
                self.system.makedirs(self.path, exist_ok=True)
                self.system.put_file(str(file), self._inside(name))

    def write_json(self, name: str, values: object) -> None:
        """Writes a JSON file."""
        self.write(name, lambda path: write_json(path, values))

    def read_json(self, name: str) -> dict[str, Any]:
        """Reads a JSON object. Raises UserError where it is missing or holds anything else."""
        if self.system is None:
            return read_json(Path(self.path) / name)
        try:
            with self._errors():
                return dict(json.loads(self.system.cat_file(self._inside(name))))
        except (ValueError, TypeError):
            raise UserError(f"{self.name}/{name}: damaged; give a new folder") from None

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name."""
        if self.system is None:
            return (Path(self.path) / name).exists()
        with self._errors():
            self.system.invalidate_cache()
            return bool(self.system.exists(self._inside(name)))

    def rows(self, name: str) -> int | None:
        """The number of rows of a table, which stands at its end; None where it is missing or damaged."""
        try:
            if self.system is None:
                return pq.read_metadata(Path(self.path) / name).num_rows
            if not self.exists(name):
                return None
            with self.system.open(self._inside(name), "rb") as file:
                return pq.read_metadata(file).num_rows
        except (OSError, pa.ArrowInvalid):
            return None

    def metadata(self, name: str) -> dict[str, str]:
        """The metadata of a table."""
        if self.system is None:
            schema = pq.read_schema(Path(self.path) / name)
        else:
            with self._errors(), self.system.open(self._inside(name), "rb") as file:
                schema = pq.read_schema(file)
        return {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}

    def read_table(self, name: str) -> pa.Table:
        """A table."""
        if self.system is None:
            return pq.read_table(Path(self.path) / name)
        with self._errors(), self.system.open(self._inside(name), "rb") as file:
            return pq.read_table(file)

    def remove(self, name: str) -> None:
        """Removes a file, where it is there."""
        if self.system is None:
            (Path(self.path) / name).unlink(missing_ok=True)
        elif self.exists(name):
            with self._errors():
                self.system.rm_file(self._inside(name))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes on this machine, or on machines that mount the folder, out of another such block."""
        if self.system is None:
            with self._errors(), lock(Path(self.path) / ".plan.lock"):
                yield
        else:
            yield

    def _inside(self, name: str) -> str:
        return f"{self.path}/{name}"

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # each file system has its own
            if self.system is None:
                raise (write_error(self.name, error) if isinstance(error, OSError) else error) from error
            raise unreachable(self.name, error) from error


def open_folder(path: str | os.PathLike) -> ShardFolder:
    """The folder that a path or an address names. Raises UserError where nothing here reads such an address."""
    name = os.fspath(path)
    if not is_remote(name):
        return ShardFolder(name, os.path.abspath(os.path.expanduser(name)))
    if name.partition("://")[0] in ("http", "https"):
        raise UserError(f"{name}: cannot be written to; give a folder, or an address in a bucket (gs://, s3://)")
    system, root = file_system(name)
    if "file" in (system.protocol if isinstance(system.protocol, tuple | list) else (system.protocol,)):
        return ShardFolder(name, root)
    return ShardFolder(name.rstrip("/"), root.rstrip("/"), system)
