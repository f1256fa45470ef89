"""Data sets that TensorFlow Datasets has prepared, as rows; read without TensorFlow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jax_rele.data.rows import RowError, one_line
from jax_rele.data.sources.files import SourceFile, fingerprint
from jax_rele.data.sources.readers import Row
from jax_rele.errors import UserError

# `tensorflow_datasets` is imported where it is used: that takes seconds.
if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder
    from tensorflow_datasets.core.data_sources import BaseDataSource


def load(name: str, data_dir: str | None = None) -> dict[str, BaseDataSource]:
    """The splits of a prepared data set, by name, as sequences of examples.

    Args:
      name: `NAME`, `NAME/CONFIG` or `NAME/CONFIG:VERSION`.
      data_dir: where it was prepared; None for TFDS's own folder (the variable TFDS_DATA_DIR).

    Raises:
      UserError: there is no such data set, or it is not prepared in a format with random access.
    """
    builder = _builder(name, data_dir)
    try:
        sources = builder.as_data_source()
    except Exception as error:
        raise UserError(
            f"tfds:{name}: not prepared for random access in {builder.data_dir} ({one_line(error)}); run "
            f"`tfds build {name} --file_format=array_record`, or set TFDS_DATA_DIR"
        ) from error
    return dict(sources)


def rows(source: BaseDataSource, name: str) -> Iterator[Row]:
    """The examples of one split as rows: bytes become text, class numbers the names of their classes.

    Raises:
      UserError: the files are damaged.
    """
    features = source.dataset_info.features
    for index in range(len(source)):
        try:
            example = source[index]
        except Exception as error:
            raise UserError(
                f"{name}: example {index + 1} cannot be read ({one_line(error)}); prepare the data set again"
            ) from error
        try:
            row: Mapping | RowError = _plain(example, features)
        except UnicodeDecodeError as error:
            row = RowError(f"not valid UTF-8: {one_line(error)}")
        yield index + 1, row, row


def version(name: str, data_dir: str | None = None) -> str:
    """What changes when the data set does: name, version, and the sizes that TFDS keeps beside it.

    Raises:
      UserError: there is no such data set.
    """
    builder = _builder(name, data_dir)
    stored = Path(builder.data_dir) / "dataset_info.json"
    files = [SourceFile(str(stored), str(stored))] if stored.is_file() else []
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    return f"{builder.info.full_name} {fingerprint(files)} {json.dumps(sizes, sort_keys=True)}"


def _builder(name: str, data_dir: str | None) -> DatasetBuilder:
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=data_dir)
    except Exception as error:
        # Its message goes on with the names of all data sets.
        raise UserError(
            f"tfds:{name}: no such data set ({str(error).strip().splitlines()[0][:200]}); check the name, or set "
            f"TFDS_DATA_DIR to the folder that it was prepared in"
        ) from error


def _plain(value: object, feature: Any = None) -> Any:
    """An example's value in Python's types."""
    if isinstance(value, Mapping):
        return {key: _plain(inner, feature[key] if _has(feature, key) else None) for key, inner in value.items()}
    if hasattr(feature, "int2str") and isinstance(value, int | np.integer):
        return feature.int2str(int(value)) if value >= 0 else None
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.ndarray | list | tuple):
        inner = getattr(feature, "feature", None)
        return [_plain(one, inner) for one in (value.tolist() if isinstance(value, np.ndarray) else value)]
    return value.item() if isinstance(value, np.generic) else value


def _has(feature: object, key: str) -> bool:
    try:
        return key in feature  # type: ignore[operator]  # a feature without names raises TypeError
    except TypeError:
        return False
