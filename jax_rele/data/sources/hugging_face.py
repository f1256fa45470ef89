"""Hugging Face data sets as rows: of the hub, copied or streamed, and of folders written by `save_to_disk`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from jax_rele.config import HuggingFaceConfig
from jax_rele.data.rows import RowError, one_line
from jax_rele.data.sources.files import unreachable
from jax_rele.data.sources.readers import Row, python_rows, with_exact_floats
from jax_rele.errors import UserError
from jax_rele.io import hash_folder, refuse_placeholder

# `datasets` is imported where it is used: that takes a second.
if TYPE_CHECKING:
    from datasets import ClassLabel, Dataset, IterableDataset


def load(name: str, options: HuggingFaceConfig) -> dict[str, Dataset | IterableDataset]:
    """The splits of a data set, by name.

    Args:
      name: a name on the hub, or a folder that `save_to_disk` has written.
      options: subset, revision, and whether to stream; a folder takes none of them.

    Raises:
      UserError: no such data set, it cannot be reached, or the folder is no saved data set.
    """
    import datasets
    import huggingface_hub

    # The hub warns of every retry; the error that follows is enough.
    huggingface_hub.utils.logging.set_verbosity_error()
    try:
        if folder := saved_folder(name):
            for file in sorted(folder.rglob("*")):
                refuse_placeholder(file)
            loaded = datasets.load_from_disk(str(folder))
        else:
            revision = options.revision or None
            loaded = datasets.load_dataset(name, options.subset or None, revision=revision, streaming=options.streaming)
    except UserError:
        raise
    except Exception as error:
        raise _refusal(name, error) from error
    # A single data set has the name of its split, where it has one.
    return dict(loaded) if isinstance(loaded, Mapping) else {str(loaded.split or "all"): loaded}


def rows(data_set: Dataset | IterableDataset, name: str) -> Iterator[Row]:
    """The rows of one split; class numbers become the names of their classes.

    Raises:
      UserError: the data set cannot be read on.
    """
    import datasets

    features = data_set.features or {}
    classes = {field: kind for field, kind in features.items() if isinstance(kind, datasets.ClassLabel)}
    number = 0
    try:
        for row in _plain_rows(data_set):
            number += 1
            if classes and not isinstance(row, RowError):
                row = {**row, **{field: _class_name(kind, row.get(field)) for field, kind in classes.items()}}
            yield number, row, row
    except Exception as error:
        raise unreachable(f"{name} after row {number}", error) from error


def fingerprint(name: str, options: HuggingFaceConfig) -> str:
    """What changes when the data set does: the content of a saved folder, the commit on the hub.

    A `revision` that is a commit needs no look at the hub.

    Raises:
      UserError: as `load`.
    """
    import datasets

    if folder := saved_folder(name):
        return hash_folder(folder)
    if re.fullmatch("[0-9a-f]{40}", options.revision):
        return options.revision[:16]
    try:
        builder = datasets.load_dataset_builder(name, options.subset or None, revision=options.revision or None)
    except Exception as error:
        raise _refusal(name, error) from error
    return str(builder.hash)[:16]


def saved_folder(name: str) -> Path | None:
    """The folder that `name` is; None for a name on the hub. Raises UserError for a folder of something else."""
    folder = Path(os.path.expanduser(name))
    if not folder.is_dir():
        if name.startswith((".", "/", "~")):
            raise UserError(f"hf:{name}: no such folder; check the path")
        return None
    if not any((folder / marker).is_file() for marker in ("dataset_dict.json", "state.json")):
        raise UserError(
            f"hf:{name}: the folder was not written by save_to_disk; give a folder of files without `hf:` as data.path"
        )
    return folder


def _plain_rows(data_set: Dataset | IterableDataset) -> Iterator[Mapping | RowError]:
    import datasets

    if not isinstance(data_set, datasets.Dataset):  # streamed
        schema = pa.schema([]) if data_set.features is None else data_set.features.arrow_schema
        for row in data_set:
            yield from with_exact_floats([row], schema)
        return
    for table in data_set.with_format("arrow").iter(batch_size=1024):
        for batch in table.to_batches():
            yield from python_rows(batch)


def _class_name(kind: ClassLabel, value: object) -> str | None:
    # -1 stands for an example without a label.
    return kind.int2str(value) if isinstance(value, int) and 0 <= value < kind.num_classes else None


def _refusal(name: str, error: Exception) -> UserError:
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        return unreachable(f"hf:{name}", error)
    return UserError(
        f"hf:{name}: the data set cannot be loaded ({one_line(error)}); check the name, data.hugging_face.subset and "
        f"data.hugging_face.revision"
    )
