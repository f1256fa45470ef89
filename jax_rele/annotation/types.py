"""What crosses the room: whom to ask, what to ask, and what was answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Endpoint:
    """A model behind an OpenAI-compatible server.

    Attributes:
      name: what the run calls it; unique.
      base_url: e.g. http://localhost:8000/v1.
      model: the server's name of the model.
      key_variable: the environment variable that holds the key; empty for a server that asks for none.
      samples: answers per pair.
      temperature, top_p, max_tokens: sampling parameters.
      structured: `json_schema`, `json_object` or `none`: how the form of an answer is asked for; `auto` tries them in
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
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """One thing to ask every endpoint, as often as it has samples.

    Attributes:
      pair_id: what it is about.
      messages: the chat, [{"role", "content"}, ...].
      schema: JSON schema of the answer.
      round: 0, or 1 for what is asked again with a disagreement pointed out.
    """

    pair_id: str
    messages: tuple[Mapping[str, str], ...]
    schema: Mapping[str, Any]
    round: int = 0


@dataclass(frozen=True)
class ModelAnswer:
    """What came back for one sample of a task from one endpoint.

    Attributes:
      pair_id, endpoint, sample, round: what was asked of whom.
      key: hash of model, messages, schema, sampling parameters and sample number.
      text: the answer's text; empty where there is none.
      failure: empty, or why there is none: `refusal`, `length`, `empty`, `rejected: ...` (the server refuses this
        request for good).
      input_tokens, output_tokens: as the server counts them.
      cost: of this call, failed attempts that were paid for included.
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
      asked: samples wanted, over all tasks and endpoints.
      stored: samples that have an answer in the store, failed ones included.
      pending: samples without one: the budget ended, an endpoint is down, or the run was stopped.
      calls: HTTP calls made in this run, retries included.
      retries: {reason: count}, e.g. {"429": 3, "timeout": 1}.
      cost: in all, of what the store holds for these tasks.
      stopped: empty, or why the run ended early, e.g. `budget`.
      by_endpoint: {name: {"calls", "answers", "failures", "input_tokens", "output_tokens", "cost", "down"}}.
    """

    asked: int
    stored: int
    pending: int
    calls: int
    retries: Mapping[str, int]
    cost: float
    stopped: str
    by_endpoint: Mapping[str, Mapping[str, Any]]
