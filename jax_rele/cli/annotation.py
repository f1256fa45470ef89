"""What the annotate commands do beside running the stage: prompts, workers, offline batches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from jax_rele.annotation import batch_files
from jax_rele.annotation.prompts import Prompts
from jax_rele.annotation.store import Store
from jax_rele.annotation.types import Endpoint, Task
from jax_rele.config import Config
from jax_rele.errors import UserError
from jax_rele.io import check_output_folder
from jax_rele.runs import chat_annotators as chat
from jax_rele.runs import layout, pipeline
from jax_rele.stages import annotate


def show_prompt(config: Config, pair_id: str = "") -> None:
    """Prints what a chat model is asked of a training pair, by default the first, and the schema of its answer."""
    pipeline.require(config, "prepare")
    prompts, pairs = chat.prompts_of(config), layout.load_pairs(config.run_dir, "train")
    matches = [pair for pair in pairs if pair.pair_id == pair_id or not pair_id]
    if not matches:
        raise UserError(f"annotate show-prompt: {config.run_dir} has no labelled training pair {pair_id!r}")
    for message in prompts.messages(matches[0]):
        print(f"--- {message['role']}\n{message['content']}")
    print(f"--- schema\n{json.dumps(prompts.schema, indent=1, ensure_ascii=False)}\n--- version {prompts.version}")


def annotate_worker(config: Config) -> None:
    """Asks for the first answers of a run beside other processes that do, and leaves what follows to `annotate`."""
    tasks, prompts, _ = _asked(config)
    responses = chat.asking(config, prompts)(tasks)
    total = responses.expected_answers * len(tasks)
    done = sum(len(votes) for votes in responses.votes.values())
    print(
        f"{done} of {total} answers are in {config.answers}, cost {responses.cost:.4f}",
        end="",
    )
    print(f"; {responses.stopped}" if responses.stopped else "")


def write_batch(config: Config, name: str, path: str) -> None:
    """Writes the requests of an endpoint that have no answer yet, for an offline batch."""
    check_output_folder(Path(path).absolute().parent)
    tasks, _, endpoints = _asked(config)
    matches = [endpoint for endpoint in endpoints if endpoint.name == name]
    if not matches:
        raise UserError(
            f"annotate batch write: no endpoint {name!r}; annotate.endpoints has {[one.name for one in endpoints]}"
        )
    with Store(config.answers) as store:
        files = batch_files.write_requests(tasks, matches[0], path, store)
    print("\n".join(map(str, files)) if files else f"{name}: every request has an answer, nothing to write")


def read_batch(config: Config, paths: Sequence[str]) -> None:
    """Stores the answers of an offline batch."""
    tasks, _, endpoints = _asked(config)
    with Store(config.answers) as store:
        result = batch_files.read_results(paths, tasks, endpoints, store)
    reasons = ", ".join(f"{count} {reason}" for reason, count in result.failed.most_common())
    print(
        f"{result.stored} answers stored, {result.known} were there, {result.failed.total()} failed"
        f"{f' ({reasons})' if reasons else ''}, {result.unknown} are of other requests, {result.damaged} lines are "
        "damaged"
    )
    for kind, named in result.names.items():
        if named:
            print(f"  {kind}: {', '.join(named)}")
    if not result.stored + result.known + result.failed.total():
        names = ", ".join(map(str, paths))
        raise UserError(f"{names}: no line answers a request of this run; give its files of results")


def _asked(config: Config) -> tuple[list[Task], Prompts, list[Endpoint]]:
    if config.annotate.annotator != "llm":
        raise UserError("annotate.annotator: set it to llm, and name annotate.endpoints")
    pipeline.require(config, "prepare")
    prompts = chat.prompts_of(config)
    return chat.tasks_of(prompts, annotate.pairs_of(config, config.run_dir)), prompts, chat.endpoints_of(config)
