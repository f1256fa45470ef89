"""predict and explain: the predictions of a finished run for pairs that are not part of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jax_rele.cli.options import MAX_UNKNOWN, check_fraction, read_options
from jax_rele.config import TextLossConfig
from jax_rele.data import write_quarantine, write_table
from jax_rele.data.parquet import QUARANTINE, join_tables
from jax_rele.data.rows import Quarantined, raw_text
from jax_rele.data.sources.files import is_remote
from jax_rele.data.sources.shards import read_numbered_pairs
from jax_rele.data.tokens.student_inputs import cross_rows, tower_rows, unreadable_pairs
from jax_rele.data.tokens.text_loss import TextLoss, check_text_loss
from jax_rele.errors import UserError
from jax_rele.io import check_output_file, check_output_folder, hash_values
from jax_rele.names import MODELS
from jax_rele.progress import pairs_bar
from jax_rele.rationale import ParseFailure
from jax_rele.runs.load import load_student, load_teacher, read_run
from jax_rele.runs.texts import check_student_texts, check_teacher_texts
from jax_rele.students.prediction import Student
from jax_rele.text import is_visible
from jax_rele.types import ITEM_FIELDS, Item, Pair, ReadOptions

PARITY = "parity.json"
"""Of every export."""


@dataclass(frozen=True)
class BatchOptions:
    """Options of `jax-rele predict` for a bundle; None where they are not given."""

    shards: str | None = None
    process: str | None = None
    rows: int | None = None
    ray: str | None = None
    workers: int | None = None
    threads: int | None = None
    max_unknown: float | None = None

    def check(self, output_path: Path | None) -> None:
        """Raises UserError for options that do not go together."""
        if (output_path is None) == (self.shards is None):
            raise UserError("give --output FILE or --shards FOLDER")
        if self.shards is None:
            for name in ("process", "rows", "ray", "workers"):
                if getattr(self, name):
                    raise UserError(f"--{name}: goes with --shards FOLDER")
        if self.ray and self.process:
            raise UserError("--process: Ray deals the shards itself; give one of --ray and --process")
        if self.workers and not self.ray:
            raise UserError(
                "--workers: goes with --ray; without it start as many processes as you want with --process N/M"
            )
        check_fraction("--max-unknown", self.max_unknown)


def predict(
    run_dir: Path,
    model: str | None,
    input_path: str,
    output_path: Path | None,
    *,
    recipe: str | None = None,
    embeddings: bool = False,
    batch: BatchOptions = BatchOptions(),
    reading: Mapping[str, Any] | None = None,
) -> None:
    """Scores a file of pairs by a model of a run, see `predict_by_run`, or by a bundle, see `predict_by_bundle`.

    `reading` are the options that `read_options` takes.

    Raises:
      UserError: options that do not fit the folder or each other.
    """
    if not (run_dir / "bundle.json").is_file():
        if not (run_dir / "config.yaml").is_file():
            exported = (run_dir / PARITY).is_file()
            other = "; it is an export of another format: `--format onnx` writes a bundle" if exported else ""
            raise UserError(f"{run_dir}: not a run folder, and no bundle{other}")
        for name, value in {**vars(batch), **(reading or {})}.items():
            if value is not None and value != []:
                raise UserError(
                    f"--{name.replace('_', '-')}: is for a bundle, and {run_dir} is none; `jax-rele export {run_dir} "
                    "--model cross_encoder --output BUNDLE` writes one"
                )
        if model is None:
            raise UserError(f"--model: {run_dir} is a run, of which one model is to judge: {', '.join(MODELS)}")
        if output_path is None:
            raise UserError("--output: give the file to write")
        return predict_by_run(run_dir, model, input_path, output_path, recipe=recipe, embeddings=embeddings)
    for option, value in {"--model": model, "--recipe": recipe, "--embeddings": embeddings}.items():
        if value:
            raise UserError(f"{option}: is for a run; a bundle holds one student")
    batch.check(output_path)
    predict_by_bundle(run_dir, input_path, output_path, batch, read_options(**(reading or {})))


def predict_by_bundle(
    bundle: Path, input_path: str, output_path: Path | None, batch: BatchOptions, reading: ReadOptions
) -> None:
    """Scores a file of pairs by a bundle, as one file or as shards, see `jax_rele.deployment.batch`.

    The columns are `pair_id`, `score`, one probability per label, the likeliest verdict of each dimension where the
    student was taught verdicts, and `tier` where the bundle has tiers.
    """
    from jax_rele.deployment.batch import FINISHED, ROWS, Worker, predict_shards
    from jax_rele.deployment.shard_folder import open_folder

    shards = batch.shards
    if shards is not None:
        if not is_remote(shards):
            check_output_folder(shards)
    else:
        assert output_path is not None
        _check_output(input_path, output_path)
        _check_quarantine(output_path.with_suffix(".quarantine.parquet"))
        # Shards of the one file; they are kept until it is whole, so that the same command resumes.
        key = hash_values([str(bundle.resolve()), input_path, asdict(reading)])
        shards = str(output_path.with_name(f".{output_path.name}.{key}.shards"))
    rows, threads = batch.rows or ROWS, batch.threads or 0
    most = MAX_UNKNOWN if batch.max_unknown is None else batch.max_unknown
    worker = Worker.parse(batch.process) if batch.process else Worker()
    try:
        if batch.ray:
            from jax_rele.deployment.ray_workers import predict_on_ray

            done = predict_on_ray(
                bundle,
                input_path,
                shards,
                address=batch.ray,
                workers=batch.workers or 0,
                reading=reading,
                rows=rows,
                cores=threads or 1,
                max_unknown=most,
            )
        else:
            done = predict_shards(
                bundle,
                input_path,
                shards,
                reading=reading,
                rows=rows,
                worker=worker,
                threads=threads,
                max_unknown=most,
            )
    except UserError:
        if output_path is not None and not any(pq.read_metadata(file).num_rows for file in _parts(Path(shards))):
            shutil.rmtree(shards, ignore_errors=True)  # there is nothing to resume
        raise
    where = output_path or shards
    print(
        f"{where}: {done.judged} shards judged, {done.skipped} were there"
        + ("" if done.finished else "; others are missing")
    )
    if not done.finished:
        return
    try:
        counts = open_folder(shards).read_json(FINISHED)
    except UserError:
        if output_path is not None and not Path(shards).exists():
            raise UserError(f"{output_path}: another process wrote it at the same time; run one at a time") from None
        raise
    print(
        f"{shards}: {counts['rows']} rows read = {counts['pairs']} pairs + {counts['quarantined']} bad rows set aside"
    )
    loss = TextLoss(counts["text_pairs"], **{name: counts[name] for name in TextLoss().counts()})
    remedies = "export a student that knows the language", "export one with a longer student.item_length"
    limits = TextLossConfig(max_unknown=1.0)
    check_text_loss(str(where), loss, limits, remedies=remedies, within="of their shard")
    print(f"{where}: {loss}")
    if output_path is not None:
        join_tables(output_path, _parts(Path(shards)), metadata={})
        quarantine = output_path.with_suffix(".quarantine.parquet")
        quarantine.unlink(missing_ok=True)
        if bad := sorted(Path(shards).glob("part-*.quarantine.parquet")):
            join_tables(quarantine, bad)
            first = Quarantined(**pq.read_table(quarantine).slice(0, 1).to_pylist()[0])
            print(f"{quarantine}: {counts['quarantined']} bad rows set aside, the first is {first.named(input_path)}")
        shutil.rmtree(shards)
        print(f"{output_path}: {counts['pairs']} pairs")


def _parts(shards: Path) -> list[Path]:
    """The files of a folder of shards, in order."""
    return sorted(file for file in shards.glob("part-*.parquet") if not file.name.endswith(".quarantine.parquet"))


def _check_output(input_path: str, output_path: Path) -> None:
    """Raises UserError for a file that cannot be the output."""
    if output_path.suffix != ".parquet":
        raise UserError(f"{output_path}: the output is a Parquet file; give a name that ends in .parquet")
    if output_path.is_dir() or output_path.resolve() == Path(input_path).resolve():
        raise UserError(f"{output_path}: is a folder or the input itself; give another file to write")
    check_output_file(output_path)


def _check_quarantine(path: Path) -> None:
    """Raises UserError for a file that an earlier call did not write, as it would be replaced or removed."""
    if path.exists():
        try:
            names = pq.read_schema(path).names
        except (OSError, pa.ArrowInvalid):
            names = []
        if names != QUARANTINE.names:
            raise UserError(f"{path}: bad rows are set aside there, and the file is not of this command; move it away")


def predict_by_run(
    run_dir: Path,
    model: str,
    input_path: str,
    output_path: Path,
    *,
    recipe: str | None = None,
    embeddings: bool = False,
) -> None:
    """Scores a file of pairs by one model of a run.

    Writes one row per pair in input order: `pair_id`, `score` (expected gain), one probability per label, and for the
    two-tower on request `query_embedding` and `item_embedding`. Bad rows go to `<output>.quarantine.parquet`.

    Args:
      run_dir: folder of a finished run.
      model: `teacher`, or one of the run's students.
      input_path: pairs in the documented format, or with the names that the run's config maps; labels are not read.
      output_path: Parquet file to write.
      recipe: of the student; by default `mkd`, or the last one that the run trained.
      embeddings: whether to write the embeddings.

    Raises:
      UserError: bad input, an unfinished run, or embeddings of a model that has none.
    """
    config = read_run(run_dir)
    if recipe is not None and model == "teacher":
        raise UserError("--recipe: the teacher has none; it is for --model cross_encoder and two_tower")
    if embeddings and model != "two_tower":
        raise UserError(f"--embeddings: the {model} has no embeddings of query and item; use --model two_tower")
    _check_output(input_path, output_path)
    _check_quarantine(output_path.with_suffix(".quarantine.parquet"))
    pairs, rows, bad = read_numbered_pairs(
        input_path,
        label_names=config.labels.names,
        reading=config.data.reading,
        for_prediction=True,
        cache=config.cache,
    )
    columns, types = {}, {}
    with pairs_bar(f"predict {model}", len(pairs)) as advance:
        if model == "teacher":
            teacher = load_teacher(run_dir, config=config)
            loss = teacher.text_loss(pairs)
            check_teacher_texts(config, "predict", loss)
            probs = teacher.predict(pairs, progress=advance).label_probs
        else:
            student = load_student(run_dir, model, recipe=recipe, config=config)
            loss = student.text_loss(pairs)
            pairs, unread = _readable(student, pairs, rows, input_path)
            if unread:  # what is not judged is unknown text, but gets nobody's score
                loss = replace(loss, merged_pairs=student.text_loss(pairs).merged_pairs)
            check_student_texts(config, f"predict: {model}", loss)
            bad += unread
            predictions = student.predict(pairs, progress=advance)
            probs = predictions.label_probs
            if embeddings:
                for name in ("query_embedding", "item_embedding"):
                    columns[name] = list(np.asarray(getattr(predictions.outputs, name)))
                    types[name] = pa.list_(pa.float32())
    schema = config.labels.schema_
    head: dict[str, list] = {
        "pair_id": [pair.pair_id for pair in pairs],
        "score": list(schema.expected_gain(probs)),
        **{name: list(probs[:, index].astype(np.float64)) for index, name in enumerate(schema.names)},
    }
    fields = [("pair_id", pa.string()), ("score", pa.float64()), *((name, pa.float64()) for name in schema.names)]
    write_table(output_path, {**head, **columns}, pa.schema(fields + list(types.items())))
    print(f"{output_path}: {len(pairs)} pairs; {loss}")
    quarantine = output_path.with_suffix(".quarantine.parquet")
    if bad:
        write_quarantine(quarantine, bad)
        print(f"{quarantine}: {len(bad)} bad rows set aside, the first is {bad[0].named(input_path)}")
    elif quarantine.exists():
        os.remove(quarantine)  # of an earlier input


def _readable(
    student: Student, pairs: list[Pair], rows: Sequence[tuple[str, int]], source: str
) -> tuple[list[Pair], list[Quarantined]]:
    """The pairs of whose texts a student knows something, and the others as bad rows; `rows` are those of the pairs."""
    items = [" ".join(text for _, text in pair.item.texts(student.fields)) for pair in pairs]
    embeds = student.model.embeds
    encode = tower_rows if embeds else cross_rows
    encoded = encode(student.tokenizer, pairs, student.fields, student.query_length, student.item_length)
    texts = [pair.query for pair in pairs], items
    wrong = unreadable_pairs(student.tokenizer, texts, encoded, embeds=embeds)
    bad = [
        Quarantined(*rows[index], f"pair {pair_id}: the {side}: {reason}", raw_text(asdict(pairs[index])))
        for index, (side, reason) in wrong.items()
        for pair_id in [pairs[index].pair_id]
    ]
    if len(wrong) == len(pairs):
        raise UserError(f"{source}: none of its {len(pairs)} pairs can be read ({bad[0].named(source)})")
    return [pair for index, pair in enumerate(pairs) if index not in wrong], bad


def explain(run_dir: Path, query: str, item: Item) -> None:
    """Prints the teacher's rationale, every student's verdicts and every model's distribution for one pair."""
    config = read_run(run_dir)
    for name, text in (("query", query), *item.texts(ITEM_FIELDS)):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"--{name} is not valid UTF-8 text; give it in the encoding of the terminal") from None
    if not is_visible(query) or not is_visible(item.title):
        raise UserError("--query and --title must not be empty")
    schema, pair = config.labels.schema_, Pair("explain", query.strip(), item)
    probs, verdicts, judged = {}, {}, None
    if not config.score.signals:
        teacher = load_teacher(run_dir, config=config)
        check_teacher_texts(config, "explain", teacher.text_loss([pair]))
        judged = teacher.explain([pair])
        probs["teacher"] = judged.label_probs[0]
    for name in config.distill.students:
        for recipe in config.distill.recipes:
            student = load_student(run_dir, name, recipe=recipe, config=config)
            if recipe == config.distill.recipes[0]:
                check_student_texts(config, f"explain: {name}", student.text_loss([pair]))
            predictions = student.predict([pair])
            probs[f"{name}:{recipe}"] = predictions.label_probs[0]
            if predictions.verdicts is not None:
                verdicts[f"{name}:{recipe}"] = predictions.verdicts[0]

    console = Console()
    console.print(f"[bold]{escape(pair.query)}[/]")
    for field, text in item.texts(config.data.item_fields):
        console.print(f"{field}: {escape(text)}")
    console.print()
    if judged is None:
        console.print("The run has no teacher: it learned from the signals of another one.")
        if verdicts:
            table = _table("verdicts", "dimension", *verdicts)
            for index, dimension in enumerate(config.rationale.dimensions):
                table.add_row(escape(dimension), *(chosen[index] for chosen in verdicts.values()))
            console.print(table)
    elif config.teacher.order == "label_only":
        console.print("The teacher of this run gives a label without a rationale (teacher.order: label_only).")
    elif isinstance(rationale := judged.rationales[0], ParseFailure):
        console.print(f"The teacher's rationale does not parse: {escape(rationale.reason)}\n{escape(judged.texts[0])}")
    else:
        table = _table("rationale", "dimension", "query", "item", "teacher", *verdicts)
        for index, comparison in enumerate(rationale.comparisons):
            table.add_row(
                escape(comparison.dimension),
                escape("; ".join(comparison.query_values)),
                escape("; ".join(comparison.item_values)),
                comparison.verdict,
                *(chosen[index] for chosen in verdicts.values()),
            )
        console.print(table)
        console.print(f"label: {escape(rationale.label or '')}\n")
    scores = _table("scores (expected gain, distribution)", "model", "score", *schema.names)
    for name, row in probs.items():
        scores.add_row(name, f"{schema.expected_gain(row):.3f}", *(f"{p:.3f}" for p in row))
    console.print(scores)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(escape(column), overflow="fold")
    return table
