"""What chat models, or the teacher of another run, say of pairs: from a config to votes and decisions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from jax_rele.annotation import extra
from jax_rele.annotation.answers import Failure, read
from jax_rele.annotation.completions import prompt_hash, sample_keys
from jax_rele.annotation.prompts import Prompts, read_examples
from jax_rele.annotation.store import Store
from jax_rele.annotation.types import Endpoint, Summary, Task
from jax_rele.annotation.verify import verify
from jax_rele.annotation.votes import TO_ASK_AGAIN, Decision, Vote, consensus
from jax_rele.config import Config, MeshConfig
from jax_rele.errors import UserError
from jax_rele.io import write_text
from jax_rele.progress import every, pairs_bar
from jax_rele.rationale import ParseFailure, parse_output
from jax_rele.runs.load import load_teacher
from jax_rele.runs.other_runs import read_other
from jax_rele.teacher import Sampling, Teacher, judge, sample
from jax_rele.types import Pair, Rationale

DRAWN = "annotate/drawn"
"""The folder of texts that a teacher has written, in a run's folder, until the stage has finished."""

SHARD = 1024
"""Pairs of a file of such texts."""

Texts = dict[tuple[str, str, int, int], str]
"""(pair_id, model, sample, round) -> the answer as it came."""


@dataclass
class Responses:
    """What was said of pairs.

    Attributes:
      votes: {pair_id: votes} of both rounds; a pair of which nothing was said has none.
      texts: of the answers.
      wanted: answers that a pair is to have, in each round.
      stopped: why calls ended early; empty where they did not.
      cost: of all calls.
    """

    votes: dict[str, list[Vote]]
    texts: Texts = field(default_factory=dict)
    expected_answers: int = 1
    stopped: str = ""
    cost: float = 0.0


class Verification(NamedTuple):
    """The fields of an item that annotators have read, and whether their values may end within a word."""

    fields: Sequence[str]
    cut_values: bool


Ask = Callable[[Sequence[Task]], Responses]


def endpoints_of(config: Config) -> list[Endpoint]:
    """The endpoints as the config names them."""
    return [Endpoint(**dict(endpoint)) for endpoint in config.annotate.endpoints]


def prompts_of(config: Config) -> Prompts:
    """The prompts. Raises UserError for a template, example or definition that is not right."""
    annotate, labels, dimensions = config.annotate, config.labels.names, config.rationale.dimensions
    return Prompts.load(
        annotate.prompt,
        dimensions={name: annotate.dimension_definitions.get(name, "") for name in dimensions},
        labels={name: annotate.definitions.get(name, "") for name in labels},
        rules=[str(rule) for rule in config.rules_],
        examples=read_examples(annotate.examples, dimensions, labels, "annotate.examples"),
        fields=annotate.fields,
        reasoning=annotate.reasoning,
    )


def tasks_of(prompts: Prompts, pairs: Sequence[Pair]) -> list[Task]:
    """The first question about each pair."""
    return [Task(pair.pair_id, prompts.messages(pair), prompts.schema) for pair in pairs]


def asking(config: Config, prompts: Prompts) -> Ask:
    """Asks the endpoints, which are tried first, or reads what they answered before.

    Raises:
      UserError: a package of the extra `annotate` is missing, or an endpoint cannot be used.
    """
    extra.require(*extra.PACKAGES)
    from jax_rele.annotation.endpoints import check

    endpoints = endpoints_of(config)
    ready: list[Endpoint] = []

    def ask(tasks: Sequence[Task]) -> Responses:
        hashes = [prompt_hash(task) for task in tasks]
        with Store(config.answers) as store:
            asked = sum(key not in store for endpoint in endpoints for *_, key in sample_keys(hashes, endpoint))
            damaged = store.damaged
        stopped = ""
        if damaged:
            print(
                f"warning: {config.answers}: {damaged} damaged lines are skipped, and what they held is asked again; "
                "restore the folder from a copy to pay for no answer twice"
            )
        if asked:
            # Tried when there is something to ask, so that a finished run can be repeated without its servers.
            ready[:] = ready or check(endpoints, prompts.schema)
            total = len(tasks) * sum(endpoint.samples for endpoint in endpoints)
            with pairs_bar("annotate (answers)", total) as advance:
                stopped = _reason(_collect(config, tasks, ready, advance))
        return _read_answers(config, tasks, hashes, endpoints, stopped)

    return ask


def _collect(
    config: Config, tasks: Sequence[Task], endpoints: Sequence[Endpoint], progress: Callable[[int], None]
) -> Summary:
    from jax_rele.annotation.runner import collect  # needs the extra `annotate`

    return collect(
        tasks,
        endpoints,
        config.answers,
        budget=config.annotate.budget,
        max_attempts=config.annotate.max_attempts,
        progress=progress,
    )


def _reason(summary: Summary) -> str:
    if not summary.pending:
        return ""
    down = [f"{name}: {state['down']}" for name, state in summary.by_endpoint.items() if state["down"]]
    last = {name: state["last_fault"] for name, state in summary.by_endpoint.items() if state["last_fault"]}
    words = "; ".join(f"{name}: {fault}" for name, fault in last.items())
    failed = f"calls failed too often, the last ones with {words}" if words else "calls failed too often"
    return "; ".join(filter(None, [summary.stopped, *down])) or failed


def _read_answers(
    config: Config, tasks: Sequence[Task], hashes: Sequence[bytes], endpoints: Sequence[Endpoint], stopped: str
) -> Responses:
    """What the store holds of these tasks."""
    dimensions, labels = config.rationale.dimensions, config.labels.names
    expected_answers = sum(endpoint.samples for endpoint in endpoints)
    responses = Responses(
        {task.pair_id: [] for task in tasks},
        expected_answers=expected_answers,
        stopped=stopped,
    )
    with Store(config.answers) as store:
        for endpoint in endpoints:
            for number, sample, key in sample_keys(hashes, endpoint):
                answer, task = store.get(key), tasks[number]
                if answer is None:
                    continue
                vote = Vote(
                    task.pair_id, endpoint.name, read(answer, dimensions, labels), sample, task.round, store.cost(key)
                )
                responses.votes[task.pair_id].append(vote)
                responses.texts[task.pair_id, endpoint.name, sample, task.round] = answer.text
                responses.cost += vote.cost
    return responses


def read_teacher_run(config: Config) -> Config:
    """The config of the run whose teacher annotates, for the devices that are here.

    Raises:
      UserError: there is no such run, it has no teacher or one without rationales, or other labels or dimensions.
    """
    run_dir, where = Path(config.annotate.teacher_run), "annotate.teacher_run"
    other = read_other(config, run_dir, "finetune", where)
    for name in ("prefer", "reinforce"):
        if getattr(other, name).enabled:
            read_other(config, run_dir, name, where)
    if other.score.signals:
        raise UserError(f"{where}: the run {run_dir} has no teacher: its signals are those of its score.signals")
    if other.teacher.order == "label_only":
        raise UserError(f"{where}: the teacher of {run_dir} writes no rationales (order: label_only)")
    return other.model_copy(update={"mesh": MeshConfig()})


def ask_teacher(config: Config, run_dir: Path, pairs: Sequence[Pair]) -> Responses:
    """The rationales that the teacher of another run writes, each a vote.

    Their texts are in shards in this run's folder, so that an interrupted run resumes after the last whole one.

    Raises:
      UserError: as `read_teacher_run`.
    """
    dimensions, labels = config.rationale.dimensions, config.labels.names
    shards = [pairs[start : start + SHARD] for start in range(0, len(pairs), SHARD)]
    paths = [run_dir / DRAWN / f"{number:05d}.jsonl" for number in range(len(shards))]
    left = [number for number, path in enumerate(paths) if not path.exists()]
    if left:
        teacher_run, other = Path(config.annotate.teacher_run), read_teacher_run(config)
        # Whatever that run's own signals were made from, a rationale of its teacher is one that it writes, with the
        # label that follows from it.
        teacher = replace(load_teacher(teacher_run, config=other), annotator=None, perspectives=())
        with pairs_bar("annotate", sum(len(shards[number]) for number in left)) as advance:
            for number in left:
                texts = _draw(config, teacher, shards[number], advance)
                rows = zip((pair.pair_id for pair in shards[number]), texts)
                paths[number].parent.mkdir(parents=True, exist_ok=True)
                write_text(paths[number], "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    votes: dict[str, list[Vote]] = {}
    answers: Texts = {}
    for path in paths:
        for line in filter(None, path.read_text("utf-8").split("\n")):
            pair_id, texts = json.loads(line)
            votes[pair_id] = []
            for number, text in enumerate(texts):
                parsed = parse_output(text, dimensions=dimensions, labels=labels)
                outcome = Failure("wrong_schema", str(parsed)) if isinstance(parsed, ParseFailure) else parsed
                votes[pair_id].append(Vote(pair_id, "teacher", outcome, number))
                answers[pair_id, "teacher", number, 0] = text
    return Responses(votes, answers, expected_answers=config.annotate.teacher_samples)


def _draw(
    config: Config, teacher: Teacher, pairs: Sequence[Pair], progress: Callable[[int], None]
) -> list[tuple[str, ...]]:
    """The texts of each pair."""
    count = config.annotate.teacher_samples
    if count == 1:
        drawn = [judge(teacher, pairs, progress=progress)]
    else:
        sampling = Sampling(temperature=config.annotate.teacher_temperature, seed=config.seed)
        drawn = list(sample(teacher, pairs, count, sampling, progress=every(count, progress)))
    return list(zip(*(one.texts for one in drawn)))


def verification_of(config: Config) -> Verification:
    """What rationales are checked against: what their authors have read."""
    if config.annotate.annotator == "teacher":
        return Verification(read_teacher_run(config).data.item_fields, True)
    return Verification(config.annotate.fields, False)


def decide(config: Config, responses: Responses, pairs: Mapping[str, Pair], gold: Mapping[str, str]) -> list[Decision]:
    """What the votes say together.

    A teacher's is one vote, which there is nothing to weigh against; nor is it asked again: what disagrees with the
    gold label is dropped.
    """
    annotate, rules, verification = config.annotate, config.rules_, verification_of(config)
    again = annotate.annotator == "llm"

    def flaws(pair_id: str, rationale: Rationale) -> int:
        checked = verify(pairs[pair_id], rationale, verification.fields, rules, cut_values=verification.cut_values)
        return len(checked.hallucinated) + len(checked.contradictions)

    return consensus(
        responses.votes,
        config.labels.schema_,
        config.rationale.dimensions,
        gold=gold,
        weights=annotate.weights if again else "equal",
        min_vote_fraction=annotate.min_vote_fraction,
        gold_filter="drop" if annotate.gold_filter == "ask_again" and not again else annotate.gold_filter,
        expected_answers=responses.expected_answers,
        flaws=flaws,
        max_flaws=annotate.max_flaws,
    )


def ask_again(
    ask: Ask, prompts: Prompts, responses: Responses, decisions: Sequence[Decision], pairs: Mapping[str, Pair]
) -> bool:
    """Points out the gold label to the models where their vote was another; whether there was anything to ask."""
    tasks = [
        Task(
            decision.pair_id,
            prompts.messages_again(pairs[decision.pair_id], decision.rationale, decision.gold),
            prompts.schema,
            round=1,
        )
        for decision in decisions
        if decision.status == "pending"
        and decision.reason.startswith(TO_ASK_AGAIN)
        and decision.rationale is not None
        and decision.gold is not None
    ]
    if not tasks:
        return False
    more = ask(tasks)
    for pair_id, votes in more.votes.items():
        responses.votes[pair_id] += votes
    responses.texts |= more.texts
    responses.cost += more.cost
    responses.stopped = responses.stopped or more.stopped
    return True
