"""The types that the modules of this package share: endpoints, tasks, answers, and the accounting of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Endpoint:
    """A model behind an OpenAI-compatible server.

    Attributes:
      name: of the endpoint in the run; unique.
      base_url: e.g. http://localhost:8000/v1.
      model: the server's name of the model.
      key_variable: the environment variable that holds the key; empty for a server without keys.
      samples: answers per pair.
      temperature, top_p, max_tokens: sampling parameters.
      structured: how the form of an answer is asked for: `json_schema`, `json_object` or `none`; `auto` tries them in
        this order at the start.
      concurrency: calls in flight.
      timeout: seconds of one call.
      input_price, output_price: cost of a million tokens, in the budget's currency.
      extra: further fields of the request body, e.g. {"chat_template_kwargs": {"enable_thinking": false}}.
    """

    name: str
    base_url: str
    model: str
    key_variable: str = ""
    samples: int = 1
    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 1024
    structured: str = "auto"
    concurrency: int = 16
    timeout: float = 60.0
    input_price: float = 0.0
    output_price: float = 0.0
    extra: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A question that every endpoint answers as often as it has samples.

    Attributes:
      pair_id: the pair that it is about.
      messages: the chat, [{"role", "content"}, ...].
      schema: JSON schema of the answer.
      round: 0, or 1 for a repeated question that points out a disagreement.
    """

    pair_id: str
    messages: tuple[Mapping[str, str], ...]
    schema: Mapping[str, object]
    round: int = 0


@dataclass(frozen=True)
class ModelAnswer:
    """An endpoint's answer to one sample of a task.

    Attributes:
      pair_id, endpoint, sample, round: what was asked, and whom.
      key: hash of model, messages, schema, sampling parameters and sample number.
      text: empty where there is none.
      failure: empty, or why there is no text: `refusal`, `length`, `empty`, `rejected: ...` (the server refuses this
        request for good); after a colon what is known of it.
      input_tokens, output_tokens: as the server counts them.
      cost: of this call, charged attempts that failed included.
      seconds: of the call that answered.
    """

    pair_id: str
    endpoint: str
    sample: int
    round: int
    key: str
    text: str
    failure: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Summary:
    """Accounting of a run of calls.

    Attributes:
      asked: samples over all tasks and endpoints.
      stored: samples that have an answer in the store, failures included.
      pending: samples without one: the budget ended, an endpoint is down, or the run was stopped.
      calls: HTTP calls made in this run, retries included.
      retries: {reason: count}, e.g. {"429": 3, "timeout": 1}.
      cost: of everything that the store holds for these tasks.
      stopped: empty, or why the run ended early, e.g. `budget`.
      by_endpoint: {name: {"calls", "answers", "failures", "unanswered", "input_tokens", "output_tokens", "cost",
        "down", "last_fault"}}.
    """

    asked: int
    stored: int
    pending: int
    calls: int
    retries: Mapping[str, int]
    cost: float
    stopped: str
    by_endpoint: Mapping[str, Mapping[str, object]]
