"""Scores of any number of pairs: shards of rows, each written whole or not at all, by any number of processes.

The rows of the input, bad ones too, are counted through in order; shard k is the rows k * `rows` to (k + 1) * `rows`.
Process n of N judges the shards whose number is n modulo N and skips those that are there, so the same command resumes
after any interruption, on any number of processes. Whatever starts processes deals the work: a shell, SLURM, an indexed
job of Kubernetes, or Ray (`jax_rele.deployment.ray_workers`).

    OUT/plan.json                       the bundle and the input that the folder belongs to
    OUT/part-000000.parquet             a row per pair of shard 0, in the order of the input
    OUT/part-000000.quarantine.parquet  its bad rows, where there are any
    OUT/finished.json                   how many rows were read, judged and set aside, once all shards are there
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jax_rele.config import DataConfig
from jax_rele.data.columns import check_columns, check_mapping
from jax_rele.data.parquet import write_quarantine, write_table
from jax_rele.data.rows import Quarantined, RowError, parse_row
from jax_rele.data.sources.shards import open_shards, raw_text, source_hash
from jax_rele.deployment.bundle import read_manifest
from jax_rele.deployment.scorer import Scorer, load_bundle
from jax_rele.errors import UserError
from jax_rele.io import lock, write_error, write_json
from jax_rele.models.files import read_json
from jax_rele.types import VERDICTS, Pair

ROWS = 1024
"""Rows of a shard."""
PLAN, FINISHED = "plan.json", "finished.json"


@dataclass(frozen=True)
class Worker:
    """Process `number` of `count`, from 0."""

    number: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Worker:
        """`2/8` is the second of eight. Raises UserError for anything else."""
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise UserError(f"--process: is N/M, e.g. 2/8 for the second of eight processes, not {text!r:.40}")
        return cls(int(number) - 1, int(count))


@dataclass(frozen=True)
class Progress:
    """What one call did: shards judged by it, shards that were there, and whether all shards of the input are there."""

    judged: int
    skipped: int
    finished: bool


def predict_shards(
    bundle: str | Path,
    source: str,
    output: str | os.PathLike,
    *,
    fields: Mapping[str, str] | None = None,
    rows: int = ROWS,
    worker: Worker = Worker(),
    threads: int = 0,
    encoding: str = "utf-8",
    cache: str | os.PathLike = ".cache",
    progress: Callable[[int], None] = lambda pairs: None,
) -> Progress:
    """Judges this process's shards of the pairs of a source.

    Args:
      bundle: folder of a bundle.
      source: as `data.path` in a config: a file, folder or pattern, here or in a bucket; or a data set.
      output: folder of the shards; made where it is missing.
      fields: canonical name -> name in the file.
      rows: of a shard.
      worker: which process of how many this is.
      threads: of ONNX Runtime; 0 is one for each core.
      encoding: of text files.
      cache: where a benchmark is converted.
      progress: called after each shard with its number of rows.

    Raises:
      UserError: the bundle or the source cannot be read; the folder belongs to another bundle or input; the disk is
        full.
    """
    folder = Path(output)
    data = DataConfig(path=source, fields=dict(fields or {}), encoding=encoding)
    manifest = read_manifest(bundle)
    plan = {"bundle": manifest.identity, "input": source_hash(data), "fields": dict(fields or {}), "rows": rows}
    try:
        check_mapping(data.fields, {}, ())
        scorer = load_bundle(bundle, threads=threads)
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder / ".plan.lock"):
            _check_plan(folder, plan)
        return _judge(scorer, data, folder, rows, worker, Path(cache), progress)
    except OSError as error:
        raise write_error(folder, error) from error


def _check_plan(folder: Path, plan: Mapping[str, object]) -> None:
    path = folder / PLAN
    if not path.exists():
        if others := sorted(file.name for file in folder.iterdir() if not file.name.startswith(".")):
            raise UserError(f"{folder}: is no folder of shards: it holds {others[0]}; give a new folder")
        write_json(path, plan)
        return
    known = read_json(path)
    for name, what in (("bundle", "by another bundle"), ("input", "of another input, or of one that was changed")):
        if known.get(name) != plan[name]:
            raise UserError(f"{folder}: holds scores {what}; give a new folder, or delete this one")
    for name, option in (("fields", "--fields"), ("rows", "--rows")):
        if known.get(name) != plan[name]:
            raise UserError(f"{folder}: was begun with {option} {known.get(name)}; give the same, or a new folder")


def _judge(
    scorer: Scorer,
    data: DataConfig,
    folder: Path,
    rows: int,
    worker: Worker,
    cache: Path,
    progress: Callable[[int], None],
) -> Progress:
    judged, number, block = 0, -1, None
    whole: set[int] = set()  # a shard that was read once stays there

    def is_whole(number: int) -> bool:
        if number not in whole and _is_readable(_part(folder, number)):
            whole.add(number)
        return number in whole

    def is_due(number: int) -> bool:
        return number % worker.count == worker.number and not is_whole(number)

    for number, block in _blocks(data, rows, cache, is_due):
        if block is None:
            continue
        pairs, bad = block
        quarantine = folder / f"part-{number:06d}.quarantine.parquet"
        if bad:
            write_quarantine(quarantine, bad)
        # Written last: where it is there, the shard is whole.
        write_table(_part(folder, number), *_table(scorer, pairs))
        judged += 1
        progress(len(pairs) + len(bad))
    if number < 0:
        (folder / PLAN).unlink(missing_ok=True)
        raise UserError(f"{data.path}: no rows")
    missing = [n for n in range(number + 1) if not is_whole(n)]
    if not missing and not (folder / FINISHED).exists():
        _finish(folder, data.path, number + 1, rows)
    return Progress(judged, number + 1 - len(missing) - judged, not missing)


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:06d}.parquet"


def _is_readable(path: Path) -> bool:
    """Whether a shard is there and can be read; its description is at the end of the file."""
    try:
        pq.read_metadata(path)
    except (OSError, pa.ArrowInvalid):
        return False
    return True


def _blocks(
    data: DataConfig, rows: int, cache: Path, is_due: Callable[[int], bool]
) -> Iterator[tuple[int, tuple[list[Pair], list[Quarantined]] | None]]:
    """Each shard's number with its pairs and bad rows; None in their place where it is not due."""
    block: tuple[list[Pair], list[Quarantined]] | None = None
    count = -1
    for shard in open_shards(data, cache):
        checked = not shard.uniform
        for row_number, row, raw in shard.rows():
            count += 1
            if count % rows == 0:
                if count:
                    yield count // rows - 1, block
                block = ([], []) if is_due(count // rows) else None
            if block is None:
                continue
            try:
                if isinstance(row, RowError):
                    raise row
                if not checked:
                    check_columns(row, data.fields, shard.name)
                    checked = True
                pair = parse_row(
                    row,
                    fields=data.fields,
                    label_map={},
                    label_names=(),
                    for_prediction=True,
                    max_characters=data.max_characters,
                )
                block[0].append(pair)
            except RowError as error:
                block[1].append(Quarantined(shard.name, row_number, str(error), raw_text(raw)))
    if count >= 0:
        yield count // rows, block


def _table(scorer: Scorer, pairs: Sequence[Pair]) -> tuple[dict[str, list], pa.Schema]:
    """Columns of scores and their types."""
    manifest = scorer.manifest
    names = manifest.labels.names
    columns: dict[str, list] = {"pair_id": [pair.pair_id for pair in pairs], "score": []}
    columns |= {name: [] for name in names}
    dimensions = manifest.dimensions if manifest.has_verdicts else ()
    verdicts: dict[str, list] = {f"verdict_{name}": [] for name in dimensions}
    if pairs:
        scores = scorer.predict(pairs)
        columns["score"] = list(scores.scores)
        columns |= {name: list(scores.label_probs[:, index]) for index, name in enumerate(names)}
        if scores.verdict_probs is not None:
            best = np.array(VERDICTS)[scores.verdict_probs.argmax(axis=-1)]
            verdicts = {f"verdict_{name}": best[:, index].tolist() for index, name in enumerate(dimensions)}
    kinds = [("pair_id", pa.string()), ("score", pa.float64()), *((name, pa.float64()) for name in names)]
    kinds += [(name, pa.string()) for name in verdicts]
    if manifest.tiers:
        columns["tier"] = [tier_of(score, manifest.tiers) for score in columns["score"]]
        kinds.insert(2, ("tier", pa.string()))
    return {**columns, **verdicts}, pa.schema(kinds)


def tier_of(score: float, tiers: Sequence) -> str:
    """The name of the best tier that a score reaches, or ''."""
    return next((tier.name for tier in sorted(tiers, key=lambda tier: -tier.least) if score >= tier.least), "")


def _finish(folder: Path, source: str, shards: int, rows: int) -> None:
    """Writes the counts, which must account for every row."""
    judged = sum(pq.read_metadata(_part(folder, number)).num_rows for number in range(shards))
    bad = sum(pq.read_metadata(file).num_rows for file in folder.glob("part-*.quarantine.parquet"))
    if not (shards - 1) * rows < judged + bad <= shards * rows:
        raise UserError(
            f"{folder}: its {shards} shards of {rows} rows hold {judged} pairs and {bad} bad rows; a file was changed: "
            "delete the folder and run again"
        )
    if not judged:
        reason = "; ".join(
            f"row {row['row']}: {row['reason']}"
            for file in sorted(folder.glob("part-*.quarantine.parquet"))[:1]
            for row in pq.read_table(file).slice(0, 1).to_pylist()
        )
        raise UserError(
            f"{source}: none of its {bad} rows is a pair ({reason}); fix the rows, or map names by --fields"
        )
    write_json(folder / FINISHED, {"shards": shards, "rows": judged + bad, "pairs": judged, "quarantined": bad})
