"""What the builders of the benchmarks have in common: finding their files, and checking them."""

from __future__ import annotations

import abc
import os
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.csv
import tensorflow_datasets as tfds

from jax_rele.data.rows import one_line
from jax_rele.data.sources.benchmarks.official import OfficialFile, check_columns, check_content, locate, where_to_get
from jax_rele.errors import UserError

SHARD_ROWS = 20_000
"""Rows of a shard; TFDS holds those of one in memory."""


class Benchmark(tfds.core.ShardBasedBuilder):
    """A benchmark that is made of a few official files.

    It is a `ShardBasedBuilder` because the shuffling of `GeneratorBasedBuilder` needs TensorFlow from 1 GB on. Shards
    are written in the order of the files.
    """

    FILES: ClassVar[tuple[OfficialFile, ...]]
    """The official files."""
    INSIDE: ClassVar[str]
    """The folder of the official repository that holds them."""
    HOMEPAGE: ClassVar[str]
    TEXTS: ClassVar[Mapping[str, str]]
    """The text features, and what they hold where the name does not say it."""
    NUMBERS: ClassVar[tuple[str, ...]] = ()
    """The numeric features."""

    # TFDS looks for checksums beside the code, and for that imports importlib_resources, which it does not require.
    code_path = None
    MANUAL_DOWNLOAD_INSTRUCTIONS = "The official files; see docs/data.md."

    def _info(self) -> tfds.core.DatasetInfo:
        features = {name: tfds.features.Text(doc=doc or None) for name, doc in self.TEXTS.items()}
        features |= {name: tfds.features.Scalar(np.float32) for name in self.NUMBERS}
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            homepage=self.HOMEPAGE,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    @abc.abstractmethod
    def _rows(self, part: pa.Table, *arguments) -> Iterator[tuple[int, dict[str, object]]]:
        """The examples of a shard, numbered."""

    def _shards(self, part: pa.Table, *arguments) -> list[Callable]:
        """`_rows` of each slice of a table."""
        starts = range(0, part.num_rows, SHARD_ROWS)
        return [partial(self._rows, part.slice(start, SHARD_ROWS), *arguments) for start in starts]

    @classmethod
    def official(cls, name: str) -> OfficialFile:
        """The official file of that name."""
        return next(file for file in cls.FILES if file.name == name)

    def located(self, dl_manager: tfds.download.DownloadManager) -> tuple[dict[str, Path], dict[str, bool]]:
        """The files of `manual_dir`, or, where there is none, fetched ones.

        Returns:
          name -> path, and name -> whether it must be the official file: its rows remain to be counted.

        Raises:
          UserError: files are missing, cannot be fetched, or are damaged.
        """
        try:
            folder = os.fspath(dl_manager.manual_dir)
        except AssertionError:  # none was named, or it does not exist
            paths, fetched = self._fetched(dl_manager), True
        else:
            paths, fetched = locate(self.name, self.FILES, folder, self.INSIDE), False
        return paths, {file.name: check_content(file, paths[file.name], fetched) for file in self.FILES}

    def _fetched(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Path]:
        try:
            for file in self.FILES:  # TFDS would try for minutes
                with urllib.request.urlopen(urllib.request.Request(file.url, method="HEAD"), timeout=20):
                    pass
            paths = dl_manager.download({file.name: file.url for file in self.FILES})
        except Exception as error:  # of requests, of TFDS, of the file system: whatever it is, the files are not there
            raise UserError(
                f"{self.name}: the official files cannot be fetched ({one_line(error)}); put "
                f"{where_to_get(self.FILES)} into a folder and name it in data.manual_dir"
            ) from error
        return {name: Path(os.fspath(path)) for name, path in paths.items()}


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what a damaged file makes pyarrow raise into a UserError."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if line := _other_encoding(path):
            raise UserError(f"{path}: line {line} is not UTF-8; save the file in UTF-8, or fetch it again") from error
        raise UserError(
            f"{path}: the file cannot be read ({one_line(error)}); if it is damaged, fetch it again"
        ) from error


def read_csv(file: OfficialFile, path: Path, **options) -> pa.Table:
    """The columns of an official CSV file, all texts; `options` are those of `pyarrow.csv.ParseOptions`."""
    with reading(path):
        table = pyarrow.csv.read_csv(
            path,
            # A row must lie within a block: the file is one.
            read_options=pyarrow.csv.ReadOptions(block_size=min(max(path.stat().st_size, 1 << 20), (1 << 31) - 1)),
            parse_options=pyarrow.csv.ParseOptions(**options),
            convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(file.columns, pa.string())),
        )
    check_columns(file, path, table.column_names)
    return table.select(file.columns)


def _other_encoding(path: Path) -> int:
    """The first line of a text file that is not UTF-8; 0 where all are, or it is no text."""
    if path.suffix != ".csv":
        return 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 0


def notice(official: bool) -> str:
    """The sentence on its files in the metadata of a built benchmark."""
    if official:
        return "built from the official files"
    return "not built from the official files but from others of their form: figures do not compare with published ones"
