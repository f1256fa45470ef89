"""What is done with a run beside its stages.

predict and explain: what a finished run's models say of new pairs; export: the teacher for other programs;
check_signals: what a file of another teacher's signals holds; show_prompt, annotate_worker, write_batch, read_batch:
what the stage annotate asks of chat models.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jax_rele import pipeline
from jax_rele.annotation import batch_files
from jax_rele.annotation.prompts import Prompts
from jax_rele.annotation.store import Store
from jax_rele.annotation.types import Endpoint, Task
from jax_rele.config import Config, Mesh
from jax_rele.data import read_pairs, write_quarantine, write_table
from jax_rele.errors import UserError
from jax_rele.models import save_peft, to_hf
from jax_rele.models.bundled import BUNDLED
from jax_rele.models.files import HUB
from jax_rele.progress import pairs_bar
from jax_rele.rationale import ParseFailure
from jax_rele.stages import annotate, artefacts, chat, imported, objectives, students
from jax_rele.students import label_probs
from jax_rele.students import predict as predict_student
from jax_rele.teacher import judge
from jax_rele.training import make_mesh
from jax_rele.types import ITEM_FIELDS, VERDICTS, Item, Pair

MODELS = ("teacher", "cross_encoder", "two_tower")


def main_recipe(config: Config) -> str:
    """The recipe of the students that `predict` uses: `mkd` where the run trained it, otherwise the last one."""
    recipes = config.distill.recipes
    return "mkd" if "mkd" in recipes else recipes[-1]


def predict(run_dir: Path, model: str, input_path: str, output_path: Path, *, embeddings: bool = False) -> None:
    """Scores a file of pairs by one model of a run.

    Writes one row per pair in input order: `pair_id`, `score` (expected gain), one probability per label, and for the
    two-tower on request `query_embedding` and `item_embedding`. Bad rows go to `<output>.quarantine.parquet`.

    Args:
      run_dir: folder of a finished run.
      model: one of `MODELS`.
      input_path: pairs in the documented format, or with the names that the run's config maps; labels are not read.
      output_path: Parquet file to write.
      embeddings: whether to write the embeddings.

    Raises:
      UserError: bad input, an unfinished run, or embeddings of a model that has none.
    """
    config = _config(run_dir)
    if embeddings and model != "two_tower":
        raise UserError(f"--embeddings: the {model} has no embeddings of query and item; use --model two_tower")
    if output_path.suffix != ".parquet":
        raise UserError(f"{output_path}: the output is a Parquet file; give a name that ends in .parquet")
    if output_path.is_dir() or output_path.resolve() == Path(input_path).resolve():
        raise UserError(f"{output_path}: is a folder or the input itself; give another file to write")
    if not output_path.resolve().parent.is_dir():
        raise UserError(f"{output_path.resolve().parent}: no such folder to write to; create it first")
    pairs, bad = read_pairs(
        input_path,
        label_names=config.labels.names,
        fields=config.data.fields,
        for_prediction=True,
        encoding=config.data.encoding,
        max_characters=config.data.max_characters,
        cache=config.cache,
    )
    columns, types = {}, {}
    with pairs_bar(f"predict {model}", len(pairs)) as advance:
        if model == "teacher":
            probs = judge(artefacts.load_teacher(config, run_dir), pairs, write=False, progress=advance).label_probs
        else:
            student = students.load_student(config, run_dir, model, main_recipe(config))
            outputs = predict_student(student, pairs, progress=advance)
            probs = label_probs(outputs)
            if embeddings:
                for name in ("query_embedding", "item_embedding"):
                    columns[name] = list(np.asarray(getattr(outputs, name)))
                    types[name] = pa.list_(pa.float32())
    schema = config.labels.schema_
    head = {"pair_id": [pair.pair_id for pair in pairs], "score": schema.expected_gain(probs)}
    head |= {name: probs[:, place].astype(np.float64) for place, name in enumerate(schema.names)}
    fields = [("pair_id", pa.string()), ("score", pa.float64()), *((name, pa.float64()) for name in schema.names)]
    write_table(output_path, {**head, **columns}, pa.schema(fields + list(types.items())))
    print(f"{output_path}: {len(pairs)} pairs")
    quarantine = output_path.with_suffix(".quarantine.parquet")
    if bad:
        write_quarantine(quarantine, bad)
        print(f"{quarantine}: {len(bad)} bad rows set aside, the first is row {bad[0].row}: {bad[0].reason}")
    elif quarantine.exists():
        os.remove(quarantine)  # of an earlier input


def explain(run_dir: Path, query: str, item: Item) -> None:
    """Prints the teacher's rationale, every student's verdicts and every model's distribution for one pair."""
    config = _config(run_dir)
    for name, text in (("query", query), *item.texts(ITEM_FIELDS)):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"--{name} is not valid UTF-8 text; give it in the encoding of the terminal") from None
    if not query.strip() or not item.title.strip():
        raise UserError("--query and --title must not be empty")
    schema, pair = config.labels.schema_, Pair("explain", query.strip(), item)
    probs, verdicts, judged = {}, {}, None
    if not config.score.signals:
        teacher = artefacts.load_teacher(config, run_dir)
        judged = judge(teacher, [pair], write=teacher.order != "label_only")
        probs["teacher"] = judged.label_probs[0]
    for name in config.distill.students:
        for recipe in config.distill.recipes:
            outputs = predict_student(students.load_student(config, run_dir, name, recipe), [pair])
            probs[f"{name}:{recipe}"] = label_probs(outputs)[0]
            if objectives.learns_verdicts(config, recipe):
                verdicts[f"{name}:{recipe}"] = np.asarray(outputs.verdict_logits)[0].argmax(axis=-1)

    console = Console()
    console.print(f"[bold]{escape(pair.query)}[/]")
    for field, text in item.texts(config.data.item_fields):
        console.print(f"{field}: {escape(text)}")
    console.print()
    if judged is None:
        console.print("The run has no teacher: it learned from the signals of another one.")
        if verdicts:
            said = _table("verdicts", "dimension", *verdicts)
            for place, dimension in enumerate(config.rationale.dimensions):
                said.add_row(escape(dimension), *(VERDICTS[chosen[place]] for chosen in verdicts.values()))
            console.print(said)
    elif config.teacher.order == "label_only":
        console.print("The teacher of this run gives a label without a rationale (teacher.order: label_only).")
    elif isinstance(found := judged.rationales[0], ParseFailure):
        console.print(f"The teacher's rationale does not parse: {escape(found.reason)}\n{escape(judged.texts[0])}")
    else:
        rationale = _table("rationale", "dimension", "query", "item", "teacher", *verdicts)
        for place, comparison in enumerate(found.comparisons):
            rationale.add_row(
                escape(comparison.dimension),
                escape("; ".join(comparison.query_values)),
                escape("; ".join(comparison.item_values)),
                comparison.verdict,
                *(VERDICTS[chosen[place]] for chosen in verdicts.values()),
            )
        console.print(rationale)
        console.print(f"label: {escape(found.label)}\n")
    scores = _table("scores (expected gain, distribution)", "model", "score", *schema.names)
    for name, row in probs.items():
        scores.add_row(name, f"{schema.expected_gain(row):.3f}", *(f"{p:.3f}" for p in row))
    console.print(scores)


def export(run_dir: Path, output: Path, *, adapters: bool = False) -> None:
    """Writes the teacher of a run in the Hugging Face form, for torch or a serving engine.

    Args:
      run_dir: folder of a run whose teacher is fine-tuned.
      output: folder to write; it must not exist or be empty.
      adapters: write the adapters alone, in PEFT's form, instead of the whole model, with them merged, and its
        tokenizer.

    Raises:
      UserError: an unfinished run, or a folder that is not empty.
    """
    config = _config(run_dir)
    if config.score.signals:
        raise UserError(f"{run_dir}: the run has no teacher to export: it learned from the signals of another one")
    if config.teacher.quantize != "none":
        # Adapters are merged into, and belong to, the weights as they were before they were quantized.
        teacher = config.teacher.model_copy(update={"quantize": "none"})
        config = config.model_copy(update={"teacher": teacher})
    mesh = make_mesh(config.mesh)
    model, _ = artefacts.teacher_model(config, run_dir)
    variables, own = artefacts.load_lora(model, run_dir, mesh), config.teacher.init == "random"
    if adapters:
        named = config.teacher.init.removeprefix(HUB)
        # PEFT knows the hub's names and folders.
        base = str(artefacts.base_folder(config)) if named.startswith(BUNDLED) else named
        save_peft(model, variables, output, base=None if own else base)
        print(f"{output}: the teacher's adapters")
    else:
        variables |= artefacts.load_base(config, model, run_dir, mesh)
        source = run_dir / artefacts.TEACHER_TOKENIZER if own else artefacts.base_folder(config)
        to_hf(model, variables, output, source=source)
        print(f"{output}: the teacher's weights, adapters merged, and its tokenizer")


def check_signals(config: Config, path: str) -> None:
    """Prints what a file of signals holds for the pairs of a run.

    Raises:
      UserError: `score` would refuse the file, or `prepare` has not finished.
    """
    pipeline.require(config, "prepare")
    found = imported.read(config, config.run_dir, path)
    print(f"{path}: signals of {len(found.file.signals.pair_ids)} pairs of {config.run_dir}")
    for line in imported.summary(config, found):
        print(f"  {line}")


def _config(run_dir: Path) -> Config:
    """The run's config, with the devices that are here: a run may have been trained on others."""
    return pipeline.read_config(run_dir).model_copy(update={"mesh": Mesh()})


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(escape(column), overflow="fold")
    return table


def show_prompt(config: Config, pair_id: str = "") -> None:
    """Prints what a chat model is asked of a training pair, by default the first, and the schema of its answer."""
    pipeline.require(config, "prepare")
    prompts, pairs = chat.prompts_of(config), artefacts.load_pairs(config.run_dir, "train")
    found = [pair for pair in pairs if pair.pair_id == pair_id or not pair_id]
    if not found:
        raise UserError(f"--show-prompt: {config.run_dir} has no labelled training pair {pair_id!r}")
    for message in prompts.messages(found[0]):
        print(f"--- {message['role']}\n{message['content']}")
    print(f"--- schema\n{json.dumps(prompts.schema, indent=1, ensure_ascii=False)}\n--- version {prompts.version}")


def annotate_worker(config: Config) -> None:
    """Asks for the first answers of a run beside other processes that do, and leaves what follows to `annotate`."""
    tasks, prompts, _ = _asked(config)
    said = chat.asking(config, prompts)(tasks)
    done = sum(len(votes) for votes in said.votes.values())
    print(f"{done} of {said.wanted * len(tasks)} answers are in {config.answers}, cost {said.cost:.4f}", end="")
    print(f"; {said.stopped}" if said.stopped else "")


def write_batch(config: Config, name: str, path: str) -> None:
    """Writes the requests of an endpoint that have no answer yet, for an offline batch."""
    tasks, _, endpoints = _asked(config)
    found = [endpoint for endpoint in endpoints if endpoint.name == name]
    if not found:
        raise UserError(
            f"--write-batch: no endpoint {name!r}; annotate.endpoints has {[one.name for one in endpoints]}"
        )
    with Store(config.answers) as store:
        files = batch_files.write_requests(tasks, found[0], path, store)
    print("\n".join(map(str, files)) if files else f"{name}: every request has an answer, nothing to write")


def read_batch(config: Config, paths: Sequence[str]) -> None:
    """Stores the answers of an offline batch."""
    tasks, _, endpoints = _asked(config)
    with Store(config.answers) as store:
        found = batch_files.read_results(paths, tasks, endpoints, store)
    print(
        f"{found.stored} answers stored, {found.known} were there, {found.failed} failed, {found.unknown} are of other "
        f"requests, {found.damaged} lines are damaged"
    )
    for named in found.names:
        print(f"  {named}")


def _asked(config: Config) -> tuple[list[Task], Prompts, list[Endpoint]]:
    if config.annotate.annotator != "llm":
        raise UserError("annotate.annotator: set it to llm, and name annotate.endpoints")
    pipeline.require(config, "prepare")
    prompts = chat.prompts_of(config)
    return chat.tasks_of(prompts, annotate.pairs_of(config, config.run_dir)), prompts, chat.endpoints_of(config)
