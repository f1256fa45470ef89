"""Scores of any number of pairs: shards of rows, each written whole or not at all, by any number of processes.

The rows of the input, bad ones too, are counted through in order; shard k is the rows k * `rows` to (k + 1) * `rows`.
Process n of N judges the shards whose number is n modulo N and skips those that are there, so the same command resumes
after any interruption, on any number of processes. Whatever starts processes deals the work: a shell, SLURM, an indexed
job of Kubernetes, or Ray (`jax_rele.deployment.ray_workers`).

    OUT/plan.json                       the bundle and the input that the folder belongs to
    OUT/part-000000.parquet             a row per pair of shard 0, in the order of the input
    OUT/part-000000.quarantine.parquet  its bad rows, where there are any
    OUT/finished.json                   rows read, judged and set aside, text that was not read; once all are there

OUT may be in a bucket, where nothing can be locked: each process compares the plan again before it writes a shard, so
that of two commands that disagree and begin at the same moment one ends.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from jax_rele.config import DataConfig
from jax_rele.data.columns import check_columns, check_mapping
from jax_rele.data.parquet import write_quarantine, write_table
from jax_rele.data.rows import Quarantined, RowError, parse_row, raw_text
from jax_rele.data.sources.shards import check_mapped_fields, open_shards, source_hash, with_sample_fields
from jax_rele.data.tokens.text_loss import TextLoss, summarize
from jax_rele.deployment.bundle import read_manifest
from jax_rele.deployment.scorer import Scorer, load_bundle
from jax_rele.deployment.shard_folder import ShardFolder, open_folder
from jax_rele.errors import UserError
from jax_rele.io import write_error
from jax_rele.types import VERDICTS, Pair, ReadOptions

ROWS = 1024
"""Rows of a shard."""
PLAN, FINISHED, QUARANTINED = "plan.json", "finished.json", ".quarantine.parquet"
TEXT_LOSS, BAD_ROWS, SHARD = "text_loss", "bad_rows", "shard"
"""Keys of a shard's metadata."""


@dataclass(frozen=True)
class _Row:
    """A row that is a pair, and where it comes from."""

    pair: Pair
    source: str
    number: int
    raw: object

    def set_aside(self, reason: str) -> Quarantined:
        return Quarantined(self.source, self.number, reason, raw_text(self.raw))


Block = tuple[int, tuple[list[_Row], list[Quarantined]] | None]
"""The number of a shard, and its pairs and bad rows; None where it is not due."""


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
    reading: ReadOptions = ReadOptions(),
    rows: int = ROWS,
    worker: Worker = Worker(),
    threads: int = 0,
    max_unknown: float = 0.25,
    cache: str | os.PathLike = ".cache",
    progress: Callable[[int], None] = lambda pairs: None,
) -> Progress:
    """Judges this process's shards of the pairs of a source.

    Args:
      bundle: folder of a bundle.
      source: as `data.path` in a config: a file, folder or pattern, here or in a bucket; or a data set.
      output: folder of the shards, here or in a bucket; made where it is missing.
      reading: how files are read, and what they call the fields.
      rows: of a shard.
      worker: which process of how many this is.
      threads: of ONNX Runtime; 0 is one for each core.
      max_unknown: fraction of a shard's characters that may be unknown to the tokenizer.
      cache: where a benchmark is converted.
      progress: called after each shard with its number of rows.

    Raises:
      UserError: the bundle or the source cannot be read; the folder belongs to another bundle or input; the disk is
        full.
    """
    folder = open_folder(output)
    reading = with_sample_fields(source, reading)
    check_mapping(reading, {}, ())
    manifest = read_manifest(bundle)
    plan: dict[str, object] = {
        "bundle": manifest.identity,
        "input": source_hash(DataConfig(path=source)),
        "rows": rows,
        **{name: value for name, value in asdict(reading).items() if name != "from_command"},
    }
    try:
        check_mapped_fields(open_shards(source, reading, Path(cache)), source, reading)
        scorer = load_bundle(bundle, threads=threads)
        folder.create()
        with folder.locked():
            if not folder.exists(PLAN):
                if others := folder.names():
                    raise UserError(f"{output}: is no folder of shards: it holds {others[0]}; give a new folder")
                folder.write_json(PLAN, plan)
            _check_plan(folder, plan)
        blocks = partial(_blocks, source, reading, rows, Path(cache))
        return _judge(scorer, source, blocks, folder, plan, worker, progress, max_unknown)
    except OSError as error:
        raise write_error(folder.name, error) from error


def _check_plan(folder: ShardFolder, plan: Mapping[str, object]) -> None:
    known = folder.read_json(PLAN)
    for name, what in (("bundle", "by another bundle"), ("input", "of another input, or of one that was changed")):
        if known.get(name) != plan[name]:
            raise UserError(f"{folder.name}: holds scores {what}; give a new folder, or delete this one")
    for name in ("rows", *(option.name for option in fields(ReadOptions) if option.name in plan)):
        if (before := known.get(name, plan[name])) != plan[name]:
            option = f"--{name.replace('_', '-')} {before if before not in ('', {}) else 'left out'}"
            raise UserError(f"{folder.name}: was begun with {option}; give the same, or a new folder")


def _judge(
    scorer: Scorer,
    source: str,
    blocks: Callable[[Callable[[int], bool]], Iterator[Block]],
    folder: ShardFolder,
    plan: Mapping[str, object],
    worker: Worker,
    progress: Callable[[int], None],
    max_unknown: float,
) -> Progress:
    judged, number, block, rows = 0, -1, None, int(str(plan["rows"]))
    whole: set[int] = set()  # a shard that was read once stays there

    def is_whole(number: int) -> bool:
        if number not in whole and folder.rows(_part(number)) is not None:
            metadata = folder.metadata(_part(number))
            bad = int(metadata.get(BAD_ROWS, 0))
            if int(metadata.get(SHARD, number)) != number:
                return False  # a copy of another one
            if not bad or folder.rows(_quarantine(number)) == bad:
                whole.add(number)
        return number in whole

    def is_due(number: int) -> bool:
        return number % worker.count == worker.number and not is_whole(number)

    for number, block in blocks(is_due):
        if block is None:
            continue
        rows_read, bad = block
        columns, schema, unreadable = _table(scorer, [each.pair for each in rows_read])
        loss = TextLoss(**json.loads(schema.metadata[TEXT_LOSS.encode()]))
        if loss.unknown_fraction > max_unknown:
            first = number * rows + 1
            raise UserError(
                f"{source}, rows {first} to {first + len(rows_read) + len(bad) - 1}: {loss.unknown_fraction:.1%} of "
                f"the characters are unknown to the student's tokenizer, more than --max-unknown {max_unknown:g}; "
                "judge them by a student that knows the language"
            )
        bad += [rows_read[index].set_aside(f"the {side}: {reason}") for index, (side, reason) in unreadable.items()]
        if folder.system is not None:
            _check_plan(folder, plan)
        if bad:
            folder.write(_quarantine(number), partial(write_quarantine, bad=bad))
        schema = schema.with_metadata({**schema.metadata, BAD_ROWS: str(len(bad)), SHARD: str(number)})
        # Written last: where it is there, the shard is whole.
        folder.write(_part(number), partial(write_table, data=columns, schema=schema))
        judged += 1
        progress(len(columns["pair_id"]) + len(bad))
    if number < 0:
        folder.remove(PLAN)
        raise UserError(f"{source}: no rows")
    missing = [n for n in range(number + 1) if not is_whole(n)]
    if not missing and not _is_finished(folder):
        _finish(folder, source, number + 1, rows)
    return Progress(judged, number + 1 - len(missing) - judged, not missing)


def _part(number: int) -> str:
    return f"part-{number:06d}.parquet"


def _quarantine(number: int) -> str:
    return f"part-{number:06d}{QUARANTINED}"


def _is_finished(folder: ShardFolder) -> bool:
    try:
        return (
            folder.exists(FINISHED)
            and {"rows", "pairs", "quarantined", "text_pairs"} <= folder.read_json(FINISHED).keys()
        )
    except UserError:  # damaged, and counted anew
        return False


def _blocks(
    source: str, reading: ReadOptions, rows: int, cache: Path, is_due: Callable[[int], bool]
) -> Iterator[Block]:
    """Each shard's number with its pairs and bad rows; None in their place where it is not due."""
    block: tuple[list[_Row], list[Quarantined]] | None = None
    count = -1
    for shard in open_shards(source, reading, cache):
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
                    check_columns(row, reading, shard.name)
                    checked = True
                pair = parse_row(row, reading, label_map={}, label_names=(), for_prediction=True)
                block[0].append(_Row(pair, shard.name, row_number, raw))
            except RowError as error:
                block[1].append(Quarantined(shard.name, row_number, str(error), raw_text(raw)))
    if count >= 0:
        yield count // rows, block


def _table(scorer: Scorer, pairs: Sequence[Pair]) -> tuple[dict[str, list], pa.Schema, dict[int, tuple[str, str]]]:
    """Columns of scores and their types, with what the student did not read of the texts as metadata.

    Pairs with a text of which the student knows nothing have no score: they are returned, see
    `Scorer.unreadable_pairs`.
    """
    manifest = scorer.manifest
    names = manifest.labels.names
    losses: list[np.ndarray] = []
    loss = TextLoss()
    unreadable: dict[int, tuple[str, str]] = {}
    if pairs:
        encoded = scorer.encode(pairs, losses)
        unreadable = scorer.unreadable_pairs(encoded, pairs)
        judged = [index for index in range(len(pairs)) if index not in unreadable]
        first, second = ([rows[index] for index in judged] for rows in encoded)
        pairs = [pairs[index] for index in judged]
        # What is not judged is unknown text, but is merged with nothing.
        loss = replace(summarize(losses), merged_pairs=summarize([np.concatenate(losses)[judged]]).merged_pairs)
    columns: dict[str, list] = {"pair_id": [pair.pair_id for pair in pairs], "score": []}
    columns |= {name: [] for name in names}
    dimensions = manifest.dimensions if manifest.has_verdicts else ()
    verdicts: dict[str, list] = {f"verdict_{name}": [] for name in dimensions}
    if pairs:
        scores = scorer.predict_rows((first, second), pairs)
        columns["score"] = list(scores.scores)
        columns |= {name: list(scores.label_probs[:, index]) for index, name in enumerate(names)}
        if scores.verdict_probs is not None:
            best = np.array(VERDICTS)[scores.verdict_probs.argmax(axis=-1)]
            verdicts = {f"verdict_{name}": best[:, index].tolist() for index, name in enumerate(dimensions)}
    kinds = [("pair_id", pa.string()), ("score", pa.float64()), *((name, pa.float64()) for name in names)]
    kinds += [(name, pa.string()) for name in verdicts]
    if manifest.tiers:
        columns["tier"] = [manifest.tier_of(score) or "" for score in columns["score"]]
        kinds.insert(2, ("tier", pa.string()))
    schema = pa.schema(kinds, metadata={TEXT_LOSS: json.dumps(asdict(loss))})
    return {**columns, **verdicts}, schema, unreadable


def _finish(folder: ShardFolder, source: str, shards: int, rows: int) -> None:
    """Writes the counts, which must account for every row."""
    names = {*map(_part, range(shards)), *map(_quarantine, range(shards))}
    if strays := [name for name in folder.names() if name.startswith("part-") and name not in names]:
        raise UserError(f"{folder.name}: {strays[0]} is none of its {shards} shards; delete it")
    judged = sum(folder.rows(_part(number)) or 0 for number in range(shards))
    set_aside = [name for name in folder.names() if name.endswith(QUARANTINED)]
    bad = sum(folder.rows(name) or 0 for name in set_aside)
    if not (shards - 1) * rows < judged + bad <= shards * rows:
        raise UserError(
            f"{folder.name}: its {shards} shards of {rows} rows hold {judged} pairs and {bad} bad rows; a file was "
            "changed: delete the folder and run again"
        )
    if not judged:
        reason = "; ".join(
            f"row {row['row']}: {row['reason']}"
            for name in set_aside[:1]
            for row in folder.read_table(name).slice(0, 1).to_pylist()
        )
        raise UserError(
            f"{source}: none of its {bad} rows is a pair ({reason}); fix the rows, or map names by --fields"
        )
    parts = (folder.metadata(_part(number)).get(TEXT_LOSS, "{}") for number in range(shards))
    loss = sum((TextLoss(**json.loads(part)) for part in parts), TextLoss())
    # What is lost is counted of the pairs that cannot be judged for it too.
    counts = {"shards": shards, "rows": judged + bad, "pairs": judged, "quarantined": bad, "text_pairs": loss.pairs}
    folder.write_json(FINISHED, counts | loss.counts())
