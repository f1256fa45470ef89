"""Files for providers' offline batch APIs and `vllm run-batch`: requests that have no answer yet, and results."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from jax_rele.annotation import completions
from jax_rele.annotation.completions import prompt_hash, request_body, sample_keys
from jax_rele.annotation.store import Store
from jax_rele.annotation.types import Endpoint, ModelAnswer, Task
from jax_rele.errors import UserError
from jax_rele.io import atomic_path, refuse_placeholder

NAMED = 20
"""Lines of each kind whose names are listed."""


@dataclass
class Results:
    """Counts of the lines in files of results.

    Attributes:
      stored: answers that are new in the store.
      known: answers to requests that had one before, in the store or in an earlier line.
      failed: {reason: lines} without an answer; their samples can be requested again.
      unknown, damaged: lines that belong to no request of these tasks, and lines that cannot be read.
      names: {"unknown" or "damaged": the first of them, as FILE:LINE and custom_id}.
    """

    stored: int = 0
    known: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    unknown: int = 0
    damaged: int = 0
    names: dict[str, list[str]] = field(default_factory=lambda: {"unknown": [], "damaged": []})


def write_requests(
    tasks: Sequence[Task],
    endpoint: Endpoint,
    path: str | Path,
    store: Store,
    *,
    max_requests: int = 50_000,
    max_bytes: int = 190_000_000,
) -> list[Path]:
    """Writes one request per line for every sample that has no answer in the store, in the form of OpenAI's batch API.

    `vllm run-batch` reads the same form. A line is `{"custom_id", "method", "url", "body"}`; the custom_id is the
    answer's key, which suffices to store the result.

    Args:
      endpoint: as `check` returns it; `auto` counts as `none` here.
      path: `requests.jsonl` stands for `requests-001.jsonl`, `requests-002.jsonl`, ...
      max_requests, max_bytes: of one file.

    Returns:
      The files; none where every sample has an answer.

    Raises:
      UserError: there are such files already, or one request is larger than a file may be.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.glob(f"{path.stem}-[0-9][0-9][0-9]{path.suffix}"):
        raise UserError(f"{old}: is there already and may have been sent; read its results, then move it away")
    files: list[Path] = []
    requests = size = 0
    seen: set[str] = set()
    with ExitStack() as stack:
        for number, sample, key in sample_keys(map(prompt_hash, tasks), endpoint):
            if key in store or key in seen:
                continue
            seen.add(key)
            body = request_body(endpoint, tasks[number], sample)
            request = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}
            line = json.dumps(request).encode() + b"\n"
            if len(line) > max_bytes:
                raise UserError(f"{path}: the request for pair {tasks[number].pair_id} is larger than a file may be")
            if not files or requests == max_requests or size + len(line) > max_bytes:
                stack.close()
                files.append(path.with_name(f"{path.stem}-{len(files) + 1:03}{path.suffix}"))
                file = stack.enter_context(open(stack.enter_context(atomic_path(files[-1])), "wb"))
                requests = size = 0
            file.write(line)
            requests, size = requests + 1, size + len(line)
    return files


def read_results(
    paths: Iterable[str | Path], tasks: Sequence[Task], endpoints: Sequence[Endpoint], store: Store
) -> Results:
    """Stores the answers of files of results, of files of errors too, in whatever order their lines come.

    A line is `{"custom_id", "response": {"status_code", "body"}, "error"}`. What the server refuses for good (400, 413,
    415, 422) is stored as the failure `rejected: ...`; other errors, e.g. an expired batch, are counted. Costs are the
    endpoint's prices.

    Raises:
      UserError: a file cannot be read, or an answer not stored.
    """
    results = Results()
    prompts = [prompt_hash(task) for task in tasks]
    asked = {
        key: (number, endpoint, sample)
        for endpoint in endpoints
        for number, sample, key in sample_keys(prompts, endpoint)
    }
    for path in paths:
        refuse_placeholder(Path(path))
        try:
            with open(path, "rb") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        _read_line(line, f"{path}:{number}", tasks, asked, store, results)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); name a file of results") from None
    return results


def _read_line(
    line: bytes,
    where: str,
    tasks: Sequence[Task],
    asked: Mapping[str, tuple[int, Endpoint, int]],
    store: Store,
    results: Results,
) -> None:
    def name(kind: str, text: str) -> None:
        if len(results.names[kind]) < NAMED:
            results.names[kind].append(text)

    try:
        result = json.loads(line)
        key, response = str(result["custom_id"]), result.get("response") or {}
        status, body = int(response.get("status_code") or 0), response.get("body")
        error = _message(body, "message") if status else _message(result, "code")
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        results.damaged += 1
        return name("damaged", where)
    if key not in asked:
        results.unknown += 1
        return name("unknown", f"{where} {key[:64]}")
    number, endpoint, sample = asked[key]
    task = tasks[number]
    if key in store:
        results.known += 1
        return None
    if status == 200:
        worst = completions.worst_cost(endpoint, request_body(endpoint, task, sample))
        try:
            answer = completions.read_completion(body, endpoint, task, sample, key, worst)
        except completions.ErrorInside as inside:
            results.failed[str(inside.code or inside)] += 1
            return None
        except completions.Malformed:
            results.damaged += 1
            return name("damaged", where)
    elif status in completions.REFUSED_FOR_GOOD:
        failure = f"rejected: {status} {error}".strip()
        answer = ModelAnswer(task.pair_id, endpoint.name, sample, task.round, key, "", failure)
    else:
        results.failed[str(status or error or "no response")] += 1
        return None
    store.add(answer)
    results.stored += 1
    return None


def _message(body: object, name: str) -> str:
    """A field of an error, on one line; the error itself where it is a text."""
    error = body.get("error") if isinstance(body, Mapping) else None
    if isinstance(error, Mapping):
        error = error.get(name)
    return " ".join(str(error or "").split())[:200]
