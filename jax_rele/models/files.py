"""Folders in the Hugging Face form: located, checked by their headers, read by slices, written tensor by tensor."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

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
from jax_rele.io import atomic_folder, refuse_placeholder, write_error, write_json
from jax_rele.models import bundled

JsonObject: TypeAlias = Mapping[str, Any]
"""A JSON object whose values are checked where they are used."""

HUB = "hf:"
"""Prefix of names on the Hugging Face hub; a source without this prefix and that of bundled weights is a folder."""

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""numpy's dtype -> its name in safetensors."""

SHOWN = 5
"""Most names that a message lists."""

BLOCK = 1 << 22
"""Bytes that are read or written at a time: few enough that a block is transposed in the processor's cache."""


def resolve(source: str | Path, patterns: Sequence[str]) -> Path:
    """The local folder of a model.

    Args:
      source: a folder, `hf:ORG/NAME` or `hf:ORG/NAME@REVISION` on the Hugging Face hub, `gguf:FILE`, or
        `bundled:NAME`.
      patterns: names of the files that are needed; only these are downloaded, into the hub's own cache.

    Raises:
      UserError: the folder does not exist, the download fails, or the bundled weights are damaged.
    """
    if str(source).startswith(bundled.BUNDLED):
        return bundled.folder(str(source))
    if str(source).startswith("gguf:"):
        from jax_rele.models import gguf  # it imports this module

        return gguf.folder(str(source))
    if str(source).startswith("embedded:"):
        raise UserError(f"{source}: is called {bundled.BUNDLED}{str(source).removeprefix('embedded:')}")
    if not str(source).startswith(HUB):
        folder = Path(source)
        if folder.is_dir():
            return folder
        if folder.is_file() and folder.suffix.lower() == ".gguf":
            raise UserError(f"{folder}: is a GGUF file; write gguf:{folder}")
        is_name = re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(source))
        hint = f"; for the Hugging Face hub write {HUB}{source}" if is_name else ""
        where = "" if folder.is_absolute() or hint else f"; it is neither beside the config nor in {Path.cwd()}"
        raise UserError(f"{folder}: no such folder{hint}{where}")
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
    # The exceptions of the network depend on the transport that the hub's client uses.
    except Exception as error:
        raise UserError(f"{source}: the download failed ({one_line(error)}); try again") from None


def is_local(source: str) -> bool:
    """Whether a model can be read without a download: it is no name on the hub, or the hub's local cache has it."""
    if not source.startswith(HUB):
        return True
    name, _, revision = source.removeprefix(HUB).partition("@")
    try:
        folder = snapshot_download(name, revision=revision or None, local_files_only=True)
    except HFValidationError:
        raise UserError(f"{source}: not a name on the Hugging Face hub; write {HUB}ORG/NAME") from None
    except LocalEntryNotFoundError:
        return False
    # Not a part of it, as a download that failed may leave.
    parts = [("config.json",), ("*.safetensors",), ("tokenizer.json", "vocab.*", "*.model")]
    return all(any(any(Path(folder).glob(name)) for name in names) for names in parts)


def one_line(error: Exception) -> str:
    """An exception's message without its line breaks."""
    return " ".join(str(error).split())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UserError where the file is missing or holds anything else."""
    refuse_placeholder(path)
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; the folder is not complete") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({one_line(error)}); fetch or write it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; fetch or write it again")
    return value


def read_config(source: Mapping[str, object] | str | Path) -> tuple[str, dict[str, object]]:
    """The name of a Hugging Face config for messages, and the config.

    Args:
      source: the config as a dict, or its folder, or `hf:ORG/NAME` or `bundled:NAME`.

    Raises:
      UserError: the config is missing or not readable.
    """
    if isinstance(source, Mapping):
        return "config", dict(source)
    path = resolve(source, ("config.json",)) / "config.json"
    if not path.is_file():
        hint = _gguf_hint(path.parent) or "give a folder in the Hugging Face form"
        raise UserError(f"{path.parent}: no config.json; {hint}")
    return str(path), read_json(path)


def words(*groups: str) -> frozenset[str]:
    """The words of some texts."""
    return frozenset(key for group in groups for key in group.split())


def check_keys(
    where: str | Path,
    raw: Mapping[str, object],
    known: Collection[str],
    fixed: Mapping[str, tuple[object, ...]],
    prefix: str = "",
) -> None:
    """Refuses keys of a config that would be ignored though they change what is computed.

    Args:
      where: the file, for the message.
      raw: the config.
      known: keys that are read or change nothing.
      fixed: keys that are not read, and their values that change nothing. Null, {} and [] never do.
      prefix: precedes the keys in messages.

    Raises:
      UserError: a key is not known and has none of these values.
    """
    for key, value in raw.items():
        if key in known or value is None or value in ({}, []):
            continue
        if key not in fixed:
            raise UserError(f"{where}: key {prefix}{key} ({value!r:.60}) is not supported")
        if value not in fixed[key]:
            supported = " or ".join(map(repr, fixed[key]))
            raise UserError(f"{where}: key {prefix}{key} is {value!r:.60}; supported is {supported}")


@dataclass(frozen=True)
class Tensor:
    """One tensor of a safetensors file, not read yet.

    Attributes:
      file: its file.
      shape: its sizes.
      dtype: its type as safetensors calls it, e.g. `BF16`.
      values: a slice of safetensors: indexing it by slices reads numpy arrays.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str
    values: Any


def open_tensors(folder: Path, stem: str = "model") -> dict[str, Tensor]:
    """Every tensor of a folder by name; only headers are read.

    Args:
      folder: holds `STEM.safetensors`, or shards and `STEM.safetensors.index.json`.
      stem: of the files' names.

    Raises:
      UserError: there are no such files, one is missing, truncated or damaged, or two hold the same tensor.
    """
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    weight_map: dict[str, str] = {}
    if index.is_file():
        weight_map = read_json(index).get("weight_map", ())
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise UserError(f"{index}: no `weight_map` from tensors to files; fetch it again")
        for name in weight_map.values():
            if name != Path(name).name:
                raise UserError(f"{index}: names a file outside of its folder, {name!r:.80}; fetch it again")
        files = [folder / name for name in sorted(set(weight_map.values()))]
    elif single.is_file():
        files = [single]
    else:
        raise UserError(_no_weights(folder, stem))
    tensors: dict[str, Tensor] = {}
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: named by {index.name} but not there; fetch the folder again")
        refuse_placeholder(file)
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
    for name, file_name in weight_map.items():
        if name not in tensors or tensors[name].file.name != file_name:
            raise UserError(f"{index}: tensor {name} is not in {file_name}; fetch the folder again")
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


def _gguf_hint(folder: Path) -> str:
    """What to do with a folder that holds GGUF files; empty where it holds none."""
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() == ".gguf")
    more = f" or another of its {len(files)} GGUF files" if len(files) > 1 else ""
    return f"for a decoder write gguf:{files[0]}{more}" if files else ""


def _no_weights(folder: Path, stem: str) -> str:
    """The message for a folder without `STEM.safetensors`; it names weights in other forms."""
    if others := sorted(folder.glob("*.safetensors")):
        return f"{folder}: has {others[0].name} but neither {stem}.safetensors nor its index; fetch it again"
    if hint := _gguf_hint(folder):
        return f"{folder}: no weights; {hint}"
    for pattern in ("*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx"):
        if files := sorted(folder.glob(pattern)):
            return (
                f"{folder}: has no safetensors, only {files[0].name}; convert it with transformers "
                "(load it, then `save_pretrained`)"
            )
    return f"{folder}: no weights; put {stem}.safetensors there, or its shards and index"


@dataclass(frozen=True)
class Outgoing:
    """One tensor to write.

    Attributes:
      name: in the file.
      shape, dtype: sizes and numpy's type.
      blocks: returns the values as arrays that follow one another along the first axis.
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
    files: Mapping[str, dict[str, object] | Path],
    tensors: Sequence[Outgoing],
    *,
    stem: str = "model",
    max_shard_size: int = 5_000_000_000,
) -> None:
    """Writes a folder that appears whole or not at all. Every process of a run calls it; the first one writes.

    Only one block of a tensor is in memory at a time (`safetensors.numpy.save_file` needs a whole shard).

    Args:
      path: the folder; it must not exist or be empty.
      files: name -> an object to write as JSON, or a file to copy.
      tensors: the weights.
      stem: of the names of the weights files.
      max_shard_size: bytes of a weights file; a larger tensor has a file of its own. Several files get an index.

    Raises:
      UserError: `path` is not empty or cannot be written.
    """
    if jax.process_index() == 0:
        path = Path(path).absolute()
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path}: exists and is not empty; choose another folder or remove it")
        try:
            with atomic_folder(path) as folder:
                for name, content in files.items():
                    if isinstance(content, Path):
                        shutil.copyfile(content, folder / name)
                    else:
                        write_json(folder / name, content)
                _write_tensors(folder, tensors, stem, max_shard_size)
        except OSError as error:
            raise write_error(path, error) from None
    else:
        # Every process takes part in gathering the blocks.
        for tensor in tensors:
            for _ in tensor.blocks():
                pass
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("write_folder")


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
    write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def _write_file(path: Path, tensors: Sequence[Outgoing]) -> None:
    """One file: header length, header, values (https://github.com/huggingface/safetensors#format)."""
    # `transformers` reads torch weights only where the metadata have this format.
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
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
