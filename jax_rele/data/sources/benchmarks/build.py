"""Building a benchmark once, and reading its rows."""

from __future__ import annotations

import io
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path

import tensorflow_datasets as tfds

from jax_rele.data.rows import one_line
from jax_rele.data.sources.benchmarks.builder import Benchmark
from jax_rele.data.sources.benchmarks.esci import Esci
from jax_rele.data.sources.benchmarks.official import facts, locate
from jax_rele.data.sources.benchmarks.wands import Wands
from jax_rele.data.sources.files import file_hash
from jax_rele.errors import UserError
from jax_rele.io import FREE_CACHE, disk_is_full, hash_values, lock, write_error

BENCHMARKS: dict[str, type[Benchmark]] = {"esci": Esci, "wands": Wands}
"""The benchmarks by name, as after `tfds:`."""

_READ_AT_ONCE = 1024
_log = logging.getLogger(__name__)


def content_hash(name: str, manual_dir: str) -> str:
    """A hash of what a benchmark is built from, see `rows`: its files' content and the builder's version.

    Where the files are to be fetched, the sizes and checksums of the official ones stand for their content.

    Raises:
      UserError: an unknown name, or missing files.
    """
    builder, _ = _parse(name)
    if manual_dir:
        paths = locate(builder.name, builder.FILES, manual_dir, builder.INSIDE)
        content: Mapping[str, object] = {file: file_hash(path) for file, path in paths.items()}
    else:
        content = facts(builder.FILES)
    return hash_values([builder.name, str(builder.VERSION), content])


def rows(name: str, manual_dir: str, cache: Path) -> Iterator[dict[str, object]]:
    """The rows of all splits of a benchmark, as `parse_row` takes them; each names its `split`.

    The benchmark is built at the first call, into `cache/tfds/<content_hash>`, a TFDS `data_dir`, whole or not at all.

    Args:
      name: e.g. `esci/task1_us`, `wands`.
      manual_dir: the folder of the official files; empty: they are fetched.
      cache: the folder of the cache.

    Raises:
      UserError: an unknown name; missing, damaged or wrong files; no network; a full disk.
    """
    builder, config = _parse(name)
    data_dir = Path(cache) / "tfds" / content_hash(name, manual_dir)
    if not _is_built(_open(builder, config, data_dir)):
        _build(builder, config, data_dir, manual_dir)
    return _read(_open(builder, config, data_dir))


def _parse(name: str) -> tuple[type[Benchmark], str | None]:
    benchmark, _, config = name.partition("/")
    builder = BENCHMARKS.get(benchmark)
    if builder is None:
        raise UserError(f"data.path tfds:{name}: no such benchmark; there are {', '.join(BENCHMARKS)}")
    if config not in (known := list(builder.builder_configs) or [""]):
        listed = ", ".join(f"tfds:{benchmark}/{each}" if each else f"tfds:{benchmark}" for each in known)
        raise UserError(f"data.path tfds:{name}: no such configuration; there are {listed}")
    return builder, config or None


def _open(builder: type[Benchmark], config: str | None, data_dir: Path) -> Benchmark:
    return builder(config=config, data_dir=data_dir, file_format="array_record")


def _is_built(builder: Benchmark) -> bool:
    # `is_prepared` does the same, but warns where it is not built.
    return (Path(builder.data_dir) / "dataset_info.json").is_file()


def _build(builder: type[Benchmark], config: str | None, data_dir: Path, manual_dir: str) -> None:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with lock(data_dir / ".lock") as is_locked:
            for incomplete in data_dir.rglob("incomplete.*") if is_locked else ():  # what a killed process left
                shutil.rmtree(incomplete, ignore_errors=True)
            opened = _open(builder, config, data_dir)
            options = tfds.download.DownloadConfig(manual_dir=Path(manual_dir).expanduser() if manual_dir else None)
            try:
                # TFDS writes into a folder of another name, renames it when it is whole, and does nothing where another
                # process was first.
                with redirect_stdout(io.StringIO()):  # it reports downloads where there are none
                    opened.download_and_prepare(download_config=options)
            except OSError:
                # Where the file system knows no locks, another process may have been first.
                if not _is_built(opened):
                    raise
            _log.info("%s: %s", builder.name, opened.info.metadata["notice"])
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) or disk_is_full(error) or "write() failed" in str(error):  # of ArrayRecord
            raise write_error(data_dir, error, FREE_CACHE) from error
        raise


def _read(builder: Benchmark) -> Iterator[dict[str, object]]:
    for split, info in builder.info.splits.items():
        if not info.shard_lengths:
            continue
        source = builder.as_data_source(split=split)
        for start in range(0, len(source), _READ_AT_ONCE):
            try:
                examples = source.__getitems__(range(start, min(start + _READ_AT_ONCE, len(source))))
            except (OSError, ValueError, IndexError, RuntimeError) as error:
                raise UserError(
                    f"{builder.data_dir}: the built benchmark is damaged ({one_line(error)}); delete the folder"
                ) from error
            for example in examples:
                row = {name: value.decode() if isinstance(value, bytes) else value for name, value in example.items()}
                yield {**row, "split": split}
