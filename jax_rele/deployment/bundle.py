"""A bundle: the folder that `jax-rele export` writes and every serving command reads.

bundle.json       what the student is, how it is asked, and the SHA-256 of every other file
model.onnx        a cross-encoder; a two-tower has query.onnx, item.onnx and compare.onnx
tokenizer.json …  the tokenizer, in the Hugging Face form
config.json       the encoder's, in the Hugging Face form
parity.json       the exported form against the student in JAX, on a sample of pairs
README.md         the model card
triton/           Triton's config of each graph
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import pydantic

from jax_rele.data.rows import unique_keys
from jax_rele.errors import UserError
from jax_rele.io import hash_file, hash_values, refuse_placeholder, write_json
from jax_rele.names import StudentName
from jax_rele.types import ITEM_FIELDS, LabelSchema

MANIFEST = "bundle.json"
FORMAT = 1
CROSS_ENCODER = ("model.onnx",)
TWO_TOWER = ("query.onnx", "item.onnx", "compare.onnx")


R = TypeVar("R", bound="Record")

Length = Annotated[int, pydantic.Field(ge=1, le=1_000_000)]


def _file_name(name: str) -> str:
    if name != Path(name).name or not name.isprintable():
        raise ValueError(f"{name!r:.60} is no name of a file in the folder")
    return name


def _item_field(name: str) -> str:
    if name not in ITEM_FIELDS:
        raise ValueError(f"{name!r:.40} is none of an item's texts, {', '.join(ITEM_FIELDS)}")
    return name


Files = dict[Annotated[str, pydantic.AfterValidator(_file_name)], str]
"""SHA-256 by the name of a file in the same folder."""


class Record(pydantic.BaseModel):
    """Values that are read from a file: nothing unknown, nothing changed afterwards."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Labels(Record):
    """The label schema; `aliases` maps other spellings in files to its names."""

    names: tuple[str, ...]
    gains: tuple[float, ...]
    positive: tuple[str, ...]
    aliases: dict[str, str] = {}

    @pydantic.model_validator(mode="after")
    def _check(self):
        LabelSchema(self.names, self.gains, self.positive)
        for alias, name in self.aliases.items():
            if name not in self.names:
                raise ValueError(f"aliases: {alias!r:.40} stands for {name!r:.40}, which is none of the labels")
        return self


class Tier(Record):
    """A band of scores: pairs at or above `least`, below the next higher tier's.

    Attributes:
      name: e.g. `relevant`.
      least: the smallest score of the tier.
      promise: what was shown of the pairs at or above `least`, in words.
    """

    name: str
    least: Annotated[float, pydantic.Field(ge=0, le=1)]
    promise: str = ""


class Manifest(Record):
    """What a bundle holds.

    Attributes:
      format: version of the bundle's form.
      model: which student.
      recipe: the objective that it was trained by.
      labels: its labels.
      dimensions: names of the D dimensions.
      has_verdicts, has_evidence: whether its recipe trained these heads, so that the graphs have them.
      fields: the item's texts that it reads, joined by one space.
      query_length, item_length: most tokens of a side, markers included.
      temperature: by which label logits are divided in the graph; fitted on validation pairs.
      head: how a two-tower compares embeddings: `cosine`, `mlp` or `maxsim`; empty for a cross-encoder.
      embedding_width: of a two-tower's embeddings; 0 for a cross-encoder.
      unit_length: whether item embeddings all have the same length, so that cosines order as inner products do.
      score_rises: whether the score never falls where the inner product rises.
      int8: the preset by which the graphs were quantised; empty for float32.
      source: name of the run, and a hash of the student's parameters.
      tiers: bands of scores, best first, see `jax-rele threshold`.
      files: SHA-256 of each other file.
    """

    format: Literal[1] = 1
    model: StudentName
    recipe: str
    labels: Labels
    dimensions: tuple[str, ...]
    has_verdicts: bool
    has_evidence: bool
    fields: Annotated[tuple[Annotated[str, pydantic.AfterValidator(_item_field)], ...], pydantic.Field(min_length=1)]
    query_length: Length
    item_length: Length
    temperature: Annotated[float, pydantic.Field(gt=0)]
    head: Literal["", "cosine", "mlp", "maxsim"] = ""
    embedding_width: Annotated[int, pydantic.Field(ge=0)] = 0
    unit_length: bool = False
    score_rises: bool = False
    int8: Literal["", "any", "vnni"] = ""
    source: dict[str, str]
    tiers: tuple[Tier, ...] = ()
    files: Files = {}

    @property
    def schema_(self) -> LabelSchema:
        """The labels as the library has them."""
        return LabelSchema(self.labels.names, self.labels.gains, self.labels.positive)

    @property
    def graphs(self) -> tuple[str, ...]:
        """Names of the ONNX files."""
        return CROSS_ENCODER if self.model == "cross_encoder" else TWO_TOWER

    def tier_of(self, score: float) -> str | None:
        """The name of the best tier that a score reaches; None where it reaches none."""
        reached = [tier for tier in self.tiers if score >= tier.least]
        return max(reached, key=lambda tier: tier.least).name if reached else None

    @property
    def identity(self) -> str:
        """A hash of what decides scores and embeddings: an index belongs to one."""
        values = self.model_dump(mode="json", exclude={"tiers", "files", "source"})
        values["labels"].pop("aliases")
        files = {name: sha for name, sha in self.files.items() if name.endswith(".onnx") or "tokenizer" in name}
        return hash_values([values, files])


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Writes `bundle.json`, with the hashes of the files that are there; returns what was written."""
    names = sorted(file.name for file in folder.iterdir() if file.is_file() and file.name != MANIFEST)
    manifest = manifest.model_copy(update={"files": {name: hash_file(folder / name) for name in names}})
    write_record(folder / MANIFEST, manifest)
    return manifest


def set_tiers(folder: Path, tiers: tuple[Tier, ...]) -> Manifest:
    """Replaces a bundle's tiers."""
    manifest = read_manifest(folder).model_copy(update={"tiers": tiers})
    write_record(folder / MANIFEST, manifest)
    return manifest


def write_record(path: Path, record: Record) -> None:
    """Writes the description of a folder, with a hash of what it says."""
    values = record.model_dump(mode="json")
    write_json(path, {**values, "checksum": hash_values(values)})


def read_record(path: Path, kind: type[R], what: str, fix: str) -> R:
    """Reads the description of a folder, of format `FORMAT`.

    Args:
      path: the JSON file.
      kind: what it holds.
      what: the folder, in a word, and `fix`: what to do, for messages.

    Raises:
      UserError: it cannot be read, is of another format, or does not hold what it should.
    """
    refuse_placeholder(path)
    try:
        values = json.loads(path.read_text("utf-8"), object_pairs_hook=unique_keys)
        number = values.get("format") if isinstance(values, dict) else FORMAT
        if number != FORMAT or isinstance(number, bool):
            raise UserError(f"{path}: the {what} is of format {number!r:.20}, this version reads {FORMAT}; {fix}")
        # A description without one was written before there were any.
        checksum = values.pop("checksum", None) if isinstance(values, dict) else None
        record = kind.model_validate_json(json.dumps(values), strict=True)
        if checksum is not None and checksum != hash_values(values):
            raise UserError(f"{path}: damaged: was changed since the {what} was written; {fix}")
        return record
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or what
        message = " ".join(first["msg"].removeprefix("Value error, ").split())
        raise UserError(f"{path}: damaged: {name}: {message}; {fix}") from None
    except RecursionError:
        raise UserError(f"{path}: damaged: nested too deeply; {fix}") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: damaged: {str(error).splitlines()[0]}; {fix}") from None


def read_manifest(folder: str | Path) -> Manifest:
    """Reads a bundle's description and checks that its files are there and whole.

    Raises:
      UserError: the folder is no bundle, is of another version, lacks a file, or a file was changed.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder}: no bundle ({MANIFEST} is missing); `jax-rele export RUN --format onnx` writes one")
    manifest = read_record(path, Manifest, "bundle", "export it again")
    needed = {*manifest.graphs, "tokenizer.json", "config.json"}
    for name in sorted(needed - manifest.files.keys()):
        raise UserError(f"{path}: damaged: the bundle has no {name}; export it again")
    for name, expected in manifest.files.items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: the bundle lacks this file; export it again")
        if hash_file(folder / name) != expected:
            refuse_placeholder(folder / name)
            raise UserError(f"{folder / name}: was changed since the bundle was written; export it again")
    return manifest
