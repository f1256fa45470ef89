"""Sources of pairs: what `data.path` names, as shards of rows, and the rows as pairs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

from jax_rele.config import DataConfig, LabelsConfig
from jax_rele.config.data import HuggingFaceConfig
from jax_rele.data.columns import MappedFields, check_columns, check_mapping, has_label_column
from jax_rele.data.rows import Quarantined, RowError, known_split, parse_row, raw_text
from jax_rele.data.sources import hugging_face, tfds
from jax_rele.data.sources.files import SourceFile, find_files, fingerprint
from jax_rele.data.sources.readers import Chunk, Row, check_encoding, read_chunks, read_file
from jax_rele.errors import UserError
from jax_rele.types import Pair, ReadOptions

SAMPLE = "sample"
"""The name of the bundled sample: 1,526 pairs of the Amazon ESCI data set, with human query tags (QueryNER) for 185."""

_SAMPLE_FILE = str(Path(__file__).parents[1] / "sample" / "esci_tiny_us.jsonl")
SAMPLE_FIELDS = {"item": "product", "query_tags": "queryner"}
"""The names of the sample's fields; configs that are written for it serve for other files too."""
_SAMPLE_LABELS = {name[0]: name for name in LabelsConfig().names}

WITHOUT_LABEL_COLUMN = "without_label_column"
"""Note on a shard: unlabelled pairs of rows that have no column for the label, perhaps as it has another name there."""


@dataclass(frozen=True)
class Shard:
    """A part of a source: a file, or a split of a data set.

    Attributes:
      name: for messages.
      rows: gives its rows, from the first one at each call.
      uniform: whether all rows have the same columns.
      split: the split of rows that have none, or None.
      notes: what a user should know of it, counted while its rows are read; see `delimited_rows`.
      chunks: gives its rows as chunks that may be read in other processes; None where they may not.
    """

    name: str
    rows: Callable[[], Iterator[Row]]
    uniform: bool = True
    split: str | None = None
    notes: Counter[str] = field(default_factory=Counter)
    chunks: Callable[[], Iterator[Chunk]] | None = None


def open_shards(
    path: str,
    reading: ReadOptions,
    cache: Path,
    *,
    manual_dir: str = "",
    hub: HuggingFaceConfig | None = None,
) -> list[Shard]:
    """The shards of a source, in order.

    Args:
      path: as `data.path` in a config.
      reading: how files are read.
      cache: the folder of the cache, where benchmarks are converted.
      manual_dir: folder of a benchmark's official files.
      hub: how a data set of the Hugging Face hub is read.

    Raises:
      UserError: there is no such source.
    """
    kind, name = _kind(path)
    if kind in ("hf", "tfds"):
        splits = hugging_face.load(name, hub or HuggingFaceConfig()) if kind == "hf" else tfds.load(name)
        rows = hugging_face.rows if kind == "hf" else tfds.rows
        return [
            Shard(f"{path} {split}", partial(rows, part, f"{path} {split}"), True, known_split(split))
            for split, part in splits.items()
        ]
    if kind == "benchmark":
        from jax_rele.data.sources import benchmarks

        examples = partial(benchmarks.rows, name, manual_dir, cache)
        return [Shard(path, lambda: ((number, row, row) for number, row in enumerate(examples(), 1)))]
    check_encoding(reading)
    return [_file_shard(file, reading) for file in _files(path)]


def open_source(data: DataConfig, cache: Path) -> list[Shard]:
    """The shards of the source of a config, see `open_shards`."""
    return open_shards(data.path, data.reading, cache, manual_dir=data.manual_dir, hub=data.hugging_face)


def with_sample_fields(path: str, reading: ReadOptions) -> ReadOptions:
    """The options, with the names of fields that the bundled sample has where the path names it."""
    return replace(reading, fields={**SAMPLE_FIELDS, **reading.fields}) if path == SAMPLE else reading


def with_sample_names(
    path: str, reading: ReadOptions, label_map: Mapping[str, str], label_names: Sequence[str]
) -> tuple[ReadOptions, dict[str, str]]:
    """The options and the map of labels, with the names of the bundled sample where the path names it.

    Raises:
      UserError: a field or a label that is mapped does not exist.
    """
    reading, label_map = with_sample_fields(path, reading), dict(label_map)
    if path == SAMPLE:
        label_map = {code: name for code, name in _SAMPLE_LABELS.items() if name in label_names} | label_map
    check_mapping(reading, label_map, label_names)
    return reading, label_map


def _file_shard(file: SourceFile, reading: ReadOptions) -> Shard:
    notes: Counter[str] = Counter()

    rows = partial(read_file, file, reading, notes=notes)
    chunks = partial(read_chunks, file, reading, notes=notes)
    return Shard(file.name, rows, "json" not in file.suffix, notes=notes, chunks=chunks)


def source_hash(data: DataConfig) -> str:
    """What changes when the content of the source does. Raises UserError where there is no such source."""
    kind, name = _kind(data.path)
    if kind == "hf":
        return hugging_face.fingerprint(name, data.hugging_face)
    if kind == "benchmark":
        from jax_rele.data.sources import benchmarks

        return benchmarks.content_hash(name, data.manual_dir)
    if kind == "tfds":
        return tfds.version(name)
    return fingerprint(_files(data.path))


def parse_shards(
    shards: Sequence[Shard],
    path: str,
    reading: ReadOptions,
    *,
    label_names: Sequence[str],
    label_map: Mapping[str, str],
    require_label: bool = False,
    for_prediction: bool = False,
    with_split: bool = True,
) -> Iterator[tuple[int, int, Pair | Quarantined, object]]:
    """Every row of the shards of `path`, in order: (index of its shard, its number there, the pair or what is wrong,
    raw row). The other arguments are of `parse_row`.

    Raises:
      UserError: a shard cannot be read, one has no column for a field that every pair needs, no row of any is valid, or
        none has a column that the user has mapped; for prediction that counts where the command itself maps it.
    """
    reading, label_map = with_sample_names(path, reading, label_map, label_names)
    mapped = None
    if reading.from_command or not for_prediction:
        # The configs that are written for the sample serve for other files too.
        mapped = MappedFields(reading, {} if reading.from_command else SAMPLE_FIELDS)
    n_good, n_bad = 0, 0
    first_bad: Quarantined | None = None
    columns: dict[str, None] = {}
    for shard_index, shard in enumerate(shards):
        checked = not shard.uniform
        for number, row, raw in shard.rows():
            try:
                if isinstance(row, RowError):
                    raise row
                if not checked:  # all rows have the same columns: no need to read on without the right ones
                    check_columns(row, reading, shard.name, require_label)
                    checked = True
                if mapped:
                    mapped.read(row)
                    if shard.uniform and shard_index == len(shards) - 1:  # no other columns will come
                        mapped.check(path)
                if not n_good and len(columns) < 100:
                    columns.update(dict.fromkeys(row))
                pair = parse_row(
                    row,
                    reading,
                    label_map=label_map,
                    label_names=label_names,
                    require_label=require_label,
                    for_prediction=for_prediction,
                    with_split=with_split,
                )
            except RowError as error:
                n_bad += 1
                bad = Quarantined(shard.name, number, str(error), raw_text(raw))
                first_bad = first_bad or bad
                yield shard_index, number, bad, raw
            else:
                n_good += 1
                if pair.label is None and not for_prediction and not has_label_column(row, reading):
                    shard.notes[WITHOUT_LABEL_COLUMN] += 1
                if shard.split and pair.split is None and not for_prediction:
                    pair = replace(pair, split=shard.split)
                yield shard_index, number, pair, raw
    if not n_good:
        check = partial(check_columns, columns, reading, require_label=require_label)
        names = reading.name_of("fields") + ("" if for_prediction else f" and labels by {reading.name_of('aliases')}")
        raise no_valid_row(path, shards, names, first_bad, n_bad, check if columns else None)
    if mapped:
        mapped.check(path)


def check_mapped_fields(shards: Sequence[Shard], path: str, reading: ReadOptions) -> None:
    """Raises UserError for a mapped column that no row of a source has; reads until each was seen."""
    mapped = MappedFields(reading)
    for shard in shards:
        for _, row, _ in shard.rows() if mapped.unseen else ():
            if not isinstance(row, RowError):
                mapped.read(row)
            if shard.uniform or not mapped.unseen:
                break
    if mapped.columns:
        mapped.check(path)


def read_pairs(
    path: str | os.PathLike,
    *,
    label_names: Sequence[str],
    reading: ReadOptions = ReadOptions(),
    label_map: Mapping[str, str] | None = None,
    require_label: bool = False,
    for_prediction: bool = False,
    with_split: bool = True,
    cache: str | os.PathLike = ".cache",
) -> tuple[list[Pair], list[Quarantined]]:
    """Reads pairs, in the order of the shards and their rows; bad rows are quarantined with their reason.

    Args:
      path: as `data.path` in a config: `sample` (the bundled one), `hf:NAME`, `tfds:NAME`, or a file, folder or glob
        pattern, here or in another file system (`.jsonl`, `.json` with one object a line, `.csv`, `.tsv`, each also
        compressed; `.parquet`).
      label_names: the names of the label schema.
      reading: how files are read, and what they call the fields. The sample has its own names.
      label_map: label in the file -> name of the label schema.
      require_label: quarantine rows without label.
      for_prediction: read what a model needs and nothing else; the same pair may come twice.
      with_split: whether the split of a row is read.
      cache: where a benchmark is converted.

    Returns:
      The pairs, and the quarantined rows, among them the second row with a `pair_id` unless they are for prediction.

    Raises:
      UserError: no such source, an unknown suffix, a damaged file, no column for a field that every pair needs, or no
        valid row.
    """
    pairs, _, bad = read_numbered_pairs(
        path,
        label_names=label_names,
        reading=reading,
        label_map=label_map,
        require_label=require_label,
        for_prediction=for_prediction,
        with_split=with_split,
        cache=cache,
    )
    return pairs, bad


def read_numbered_pairs(
    path: str | os.PathLike,
    *,
    label_names: Sequence[str],
    reading: ReadOptions = ReadOptions(),
    label_map: Mapping[str, str] | None = None,
    require_label: bool = False,
    for_prediction: bool = False,
    with_split: bool = True,
    cache: str | os.PathLike = ".cache",
) -> tuple[list[Pair], list[tuple[str, int]], list[Quarantined]]:
    """As `read_pairs`, with the source and the row number of each pair between the pairs and the quarantined rows."""
    name = os.fspath(path)
    pairs: list[Pair] = []
    rows: list[tuple[str, int]] = []
    bad: list[Quarantined] = []
    first_seen: dict[str, tuple[str, int]] = {}
    shards = open_shards(name, reading, Path(cache))
    parsed = parse_shards(
        shards,
        name,
        reading,
        label_names=label_names,
        label_map=label_map or {},
        require_label=require_label,
        for_prediction=for_prediction,
        with_split=with_split,
    )
    for shard_index, number, pair, raw in parsed:
        if isinstance(pair, Quarantined):
            bad.append(pair)
        elif pair.pair_id in first_seen and not for_prediction:
            source, (where, first) = shards[shard_index].name, first_seen[pair.pair_id]
            reason = f"duplicate pair_id, first seen at {'' if where == source else f'{where} '}row {first}"
            bad.append(Quarantined(source, number, reason, raw_text(raw)))
        else:
            first_seen[pair.pair_id] = (shards[shard_index].name, number)
            pairs.append(pair)
            rows.append((shards[shard_index].name, number))
    return pairs, rows, bad


def no_labels(data: DataConfig, cache: Path) -> UserError:
    """The error for a source none of whose rows has a label: no column holds it, or the column is empty."""
    for shard in open_source(data, cache):
        columns: dict[str, None] = {}
        for _, row, _ in islice(shard.rows(), 1000):
            columns.update({} if isinstance(row, RowError) else dict.fromkeys(row))
        try:
            check_columns(columns, data.reading, shard.name, require_label=True)
        except UserError as error:
            return error
    return UserError(f"{data.path}: the label is empty in every row; fill it, or name another column in data.fields")


def read_rows(file: str | os.PathLike) -> Iterator[tuple[int, Mapping | RowError]]:
    """The number of each row of a file, from 1, and the row as it is, or what is wrong with it.

    Raises:
      UserError: the file cannot be read.
    """
    for number, row, _ in read_file(SourceFile(str(file), str(file))):
        yield number, row


def check_bad_fraction(
    n_rows: int, n_bad: int, examples: Sequence[Quarantined], max_bad_fraction: float, source: str
) -> None:
    """Raises UserError if more than `max_bad_fraction` (0 to 1) of the rows are bad; names the examples' reasons."""
    if not n_bad or n_bad / n_rows <= max_bad_fraction:
        return
    reasons = "; ".join(f"row {row.row} of {row.source}: {row.reason}" for row in examples)
    raise UserError(
        f"{source}: {n_bad} of {n_rows} rows are bad ({n_bad / n_rows:.1%}), more than data.max_bad_fraction "
        f"{max_bad_fraction:.1%} ({reasons}); fix them, or raise data.max_bad_fraction"
    )


def _kind(path: str) -> tuple[str, str]:
    prefix, colon, name = path.partition(":")
    if not colon or prefix not in ("hf", "tfds"):
        return "files", path
    if not name:
        raise UserError(f"{path}: give a name after the colon, e.g. {prefix}:NAME")
    if prefix == "tfds":
        from jax_rele.data.sources.benchmarks import BENCHMARKS

        if name.partition("/")[0].partition(":")[0] in BENCHMARKS:
            return "benchmark", name
    return prefix, name


def _files(path: str) -> list[SourceFile]:
    return [SourceFile(SAMPLE, _SAMPLE_FILE)] if path == SAMPLE else find_files(path)


def no_valid_row(
    path: str,
    shards: Sequence[Shard],
    names: str,
    first: Quarantined | None,
    n_bad: int,
    check: Callable[[str], None] | None,
) -> UserError:
    """The error for a source without a valid row; `check` raises one where a column is missing.

    `names` is what the user sets to map names.
    """
    if first is None and len(shards) == 1:
        return UserError(f"{shards[0].name}: the file has no rows; give one with pairs in it")
    if first is None:
        return UserError(f"{path}: none of the {len(shards)} files has a row; give one with pairs in it")
    if first.raw.lstrip().startswith("["):
        return UserError(f"{first.source}: the file is one JSON array; write one object a line (jq -c '.[]' does it)")
    if check:
        check(first.source)
    where = f"row {first.row}" if first.source == path else f"row {first.row} of {first.source}"
    return UserError(
        f"{path}: none of its {n_bad} rows is a valid pair ({where}: {first.reason}); fix the rows, or map names by "
        f"{names}"
    )
