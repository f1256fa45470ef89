"""Signals that are read row by row, however many there are."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jax_rele.data.parquet import fill_missing, read_schema, reading_table
from jax_rele.data.signals.table import OPTIONAL, SCHEMA, check_metadata, signals_from_arrow
from jax_rele.errors import UserError
from jax_rele.io import FREE_CACHE, write_error
from jax_rele.types import Signals


class SignalTable:
    """The signals of a Parquet table by `pair_id`.

    The table is copied, a piece at a time, into an uncompressed Arrow file that is mapped into memory and has no name:
    only rows that are asked for are held, and the copy goes with the process.
    """

    def __init__(self, path: str | os.PathLike, label_names: Sequence[str], dimensions: Sequence[str], folder: Path):
        """Copies the table that `write_signals` wrote into `folder`, which is made if need be.

        Raises:
          UserError: as `read_signals`, but a row is validated when it is read; or the copy cannot be written.
        """
        self._path, self._labels, self._dimensions = path, tuple(label_names), tuple(dimensions)
        check_metadata(read_schema(path).metadata or {}, label_names, dimensions, path)
        hashes = [np.zeros(0, np.uint64)]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".signals-") as file:
                with pa.ipc.new_file(file.name, SCHEMA) as writer:
                    for part in _parts(path):
                        hashes.append(_hashes(part["pair_id"].to_pylist()))
                        writer.write_table(part)
                self._table = pa.ipc.open_file(pa.memory_map(file.name)).read_all()
        except OSError as error:
            raise write_error(folder, error, FREE_CACHE) from None
        known = np.concatenate(hashes)
        self._order = np.argsort(known, kind="stable")
        self._known = known[self._order]
        again = np.flatnonzero(self._known[1:] == self._known[:-1])
        if again.size:
            row = int(self._order[again[0] + 1])
            raise UserError(
                f"{path} row {row + 1} (pair_id {self._table['pair_id'][row].as_py()!r}): the pair_id is there twice; "
                "keep one of them"
            )

    def __len__(self) -> int:
        return self._table.num_rows

    def row_indices(self, pair_ids: Sequence[str]) -> np.ndarray:
        """[N] int: the row of each pair, -1 where there is none."""
        if not len(self):
            return np.full(len(pair_ids), -1)
        pair_hashes = _hashes(pair_ids)
        positions = np.minimum(np.searchsorted(self._known, pair_hashes), len(self) - 1)
        return np.where(self._known[positions] == pair_hashes, self._order[positions], -1)

    def take(self, row_indices: Sequence[int] | np.ndarray) -> Signals:
        """The signals of some rows, in their order. Raises UserError as `read_signals`."""
        table = self._table.take(pa.array(np.asarray(row_indices, np.int64)))
        return signals_from_arrow(table, self._labels, self._dimensions, str(self._path))


def _hashes(texts: Sequence[str]) -> np.ndarray:
    """[N] uint64."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, np.uint64)


def _parts(path: str | os.PathLike) -> Iterator[pa.Table]:
    with reading_table(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        for batch in file.iter_batches(batch_size=4096):
            part = fill_missing(pa.Table.from_batches([batch]), SCHEMA, OPTIONAL)
            part.validate(full=True)
            yield part.select(SCHEMA.names).cast(SCHEMA)
