"""Folders in the Hugging Face form: found, checked by their headers, read by slices, written tensor by tensor."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from jax.experimental import multihost_utils
from safetensors import SafetensorError, safe_open

from jax_rele.errors import UserError
from jax_rele.models import bundled

HUB = "hf:"
"""What a name on the Hugging Face hub begins with; what begins neither so nor as bundled weights is a folder."""

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""What numpy's dtypes are called in safetensors."""

SHOWN = 5
"""Names that a message lists."""

BLOCK = 1 << 22
"""Bytes that are read or written at a time: few enough that a block is transposed in the processor's cache."""


def resolve(source: str | Path, patterns: Sequence[str]) -> Path:
    """The local folder of a model.

    Args:
      source: a folder, `hf:ORG/NAME` or `hf:ORG/NAME@REVISION` on the Hugging Face hub, or `bundled:NAME`.
      patterns: names of the files that are needed; only these are downloaded, into the hub's own cache.

    Raises:
      UserError: there is no such folder, the hub does not give it, or the bundled weights are not whole.
    """
    if str(source).startswith(bundled.BUNDLED):
        return bundled.folder(str(source))
    if not str(source).startswith(HUB):
        folder = Path(source)
        if not folder.is_dir():
            hint = (
                f"; for the Hugging Face hub write {HUB}{source}"
                if re.fullmatch(r"[\w.-]+/[\w.-]+", str(source))
                else ""
            )
            raise UserError(f"{folder}: no such folder{hint}")
        return folder
    name, _, revision = str(source).removeprefix(HUB).partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(patterns)))
    except HFValidationError:
        raise UserError(f"{source}: not a name on the Hugging Face hub; write {HUB}ORG/NAME") from None
    except GatedRepoError:
        raise UserError(f"{source}: access is gated; accept its terms on the hub and run `hf auth login`") from None
    except RepositoryNotFoundError:
        raise UserError(f"{source}: not on the hub, or private; check the name or run `hf auth login`") from None
    except RevisionNotFoundError:
        raise UserError(f"{source}: the hub has no revision {revision} of it") from None
    except LocalEntryNotFoundError:
        raise UserError(f"{source}: not in the local cache and the hub cannot be reached; download it first") from None
    # The network's own errors come in the kinds of whichever transport the hub's client uses.
    except Exception as error:
        raise UserError(f"{source}: the download failed ({one_line(error)}); try again") from None


def one_line(error: Exception) -> str:
    """An exception's message without its line breaks."""
    return " ".join(str(error).split())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UserError where the file is missing or is none."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; the folder is not complete") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({one_line(error)}); fetch or write it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; fetch or write it again")
    return value


def read_config(source: Mapping[str, Any] | str | Path) -> tuple[str, dict[str, Any]]:
    """What a message calls a Hugging Face config, and the config.

    Args:
      source: the config as a dict, or its folder, or `hf:ORG/NAME` or `bundled:NAME`.

    Raises:
      UserError: the config is missing or not readable.
    """
    if isinstance(source, Mapping):
        return "config", dict(source)
    folder = resolve(source, ("config.json",))
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json; give a folder in the Hugging Face form")
    return str(folder / "config.json"), read_json(folder / "config.json")


def check_keys(
    where: str | Path, raw: Mapping[str, Any], known: Collection[str], fixed: Mapping[str, tuple[Any, ...]]
) -> None:
    """Refuses what a config says and nobody reads.

    Args:
      where: the file, for the message.
      raw: the config.
      known: keys that are read or change nothing.
      fixed: keys that are not read, and their values that change nothing. Null, {} and [] never do.

    Raises:
      UserError: a key is neither known nor at such a value.
    """
    for key, value in raw.items():
        if key in known or value is None or value in ({}, []):
            continue
        if key not in fixed:
            raise UserError(f"{where}: key {key} ({value!r:.60}) is not supported")
        if value not in fixed[key]:
            supported = " or ".join(repr(neutral) for neutral in fixed[key])
            raise UserError(f"{where}: key {key} is {value!r:.60}; supported is {supported}")


@dataclass(frozen=True)
class Tensor:
    """One tensor of a safetensors file, not read yet.

    Attributes:
      file: where it is.
      shape: its sizes.
      dtype: its type in safetensors' words, e.g. `BF16`.
      values: what slices are read from: indexing by slices gives numpy arrays.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str
    values: Any


def open_tensors(folder: Path, stem: str = "model") -> dict[str, Tensor]:
    """Every tensor of a folder by name; only headers are read.

    Args:
      folder: holds `STEM.safetensors`, or shards and `STEM.safetensors.index.json`.
      stem: what the files are called.

    Raises:
      UserError: there are no such files, one is missing, truncated or damaged, or two hold the same tensor.
    """
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        where = read_json(index).get("weight_map")
        if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
            raise UserError(f"{index}: no `weight_map` from tensors to files; fetch it again")
        files = [folder / name for name in sorted(set(where.values()))]
    elif single.is_file():
        where, files = {}, [single]
    else:
        raise UserError(_no_weights(folder, stem))
    tensors: dict[str, Tensor] = {}
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: named by {index.name} but not there; fetch the folder again")
        try:
            opened = safe_open(file, framework="numpy")
            names = opened.keys()
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: truncated or damaged ({one_line(error)}); fetch it again") from None
        for name in names:
            if name in tensors:
                raise UserError(f"{file}: tensor {name} is in {tensors[name].file.name} too; fetch the folder again")
            values = opened.get_slice(name)
            tensors[name] = Tensor(file, tuple(values.get_shape()), values.get_dtype(), values)
    for name, file in where.items():
        if name not in tensors or tensors[name].file.name != file:
            raise UserError(f"{index}: tensor {name} is not in {file}; fetch the folder again")
    return tensors


def check_names(folder: Path, config: str, expected: Collection[str], actual: Collection[str]) -> None:
    """Raises UserError where the tensors of a folder are not those that its config names."""
    parts = []
    for what, names in (
        ("missing", [name for name in expected if name not in actual]),
        ("not of the model", [name for name in actual if name not in expected]),
    ):
        if names:
            more = ", ..." if len(names) > SHOWN else ""
            parts.append(f"{len(names)} {what} ({', '.join(names[:SHOWN])}{more})")
    if parts:
        raise UserError(f"{folder}: tensors do not fit {config}: {'; '.join(parts)}; fetch both from one model")


def _no_weights(folder: Path, stem: str) -> str:
    """The message for a folder without `STEM.safetensors`, by what it holds instead."""
    for pattern in ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf"):
        if files := sorted(folder.glob(pattern)):
            if pattern == "*.safetensors":
                return f"{folder}: has {files[0].name} but neither {stem}.safetensors nor its index; fetch it again"
            return (
                f"{folder}: has no safetensors, only {files[0].name}; convert it with transformers "
                f"(load it, then `save_pretrained`)"
            )
    return f"{folder}: no weights; put {stem}.safetensors there, or its shards and index"


@dataclass(frozen=True)
class Outgoing:
    """One tensor to write.

    Attributes:
      name: in the file.
      shape, dtype: sizes and numpy's type.
      blocks: makes the values, as arrays that follow one another along the first axis.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    blocks: Callable[[], Iterable[np.ndarray]]

    @property
    def size(self) -> int:
        """Bytes."""
        return int(np.prod(self.shape)) * self.dtype.itemsize


def write_folder(
    path: str | Path,
    files: Mapping[str, dict[str, Any] | Path],
    tensors: Sequence[Outgoing],
    *,
    stem: str = "model",
    max_shard_size: int = 5_000_000_000,
) -> None:
    """Writes a folder that appears whole or not at all. Every process of a run calls it; the first one writes.

    Tensors are written one block in memory at a time (`safetensors.numpy.save_file` needs a whole shard).

    Args:
      path: the folder; it must not exist or be empty.
      files: by name, an object to write as JSON or a file to copy.
      tensors: the weights.
      stem: what their files are called.
      max_shard_size: bytes of a weights file; a larger tensor has a file of its own. Several files get an index.

    Raises:
      UserError: `path` is not empty.
    """
    if jax.process_index() == 0:
        with _fresh_folder(Path(path).absolute()) as folder:
            for name, content in files.items():
                if isinstance(content, Path):
                    shutil.copyfile(content, folder / name)
                else:
                    _write_json(folder / name, content)
            _write_tensors(folder, tensors, stem, max_shard_size)
    else:
        # Gathering takes all processes.
        for tensor in tensors:
            for _ in tensor.blocks():
                pass
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("write_folder")


@contextmanager
def _fresh_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` that becomes it when the block ends well, and vanishes otherwise."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path}: exists and is not empty; choose another folder or remove it")
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _write_tensors(folder: Path, tensors: Sequence[Outgoing], stem: str, max_shard_size: int) -> None:
    shards: list[list[Outgoing]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(other.size for other in shards[-1]) + tensor.size > max_shard_size:
            shards.append([])
        shards[-1].append(tensor)
    if len(shards) == 1:
        _write_file(folder / f"{stem}.safetensors", tensors)
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map.update({tensor.name: name for tensor in shard})
        _write_file(folder / name, shard)
    size = sum(tensor.size for tensor in tensors)
    _write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def _write_file(path: Path, tensors: Sequence[Outgoing]) -> None:
    """One file: header length, header, values (https://github.com/huggingface/safetensors#format)."""
    # Readers of torch weights ask for this word.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        offsets = [offset, offset := offset + tensor.size]
        header[tensor.name] = {
            "dtype": DTYPES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors:
            written = sum(file.write(np.ascontiguousarray(block).view(np.uint8).data) for block in tensor.blocks())
            if written != tensor.size:
                raise ValueError(f"{tensor.name}: {written} bytes where its shape says {tensor.size}")
