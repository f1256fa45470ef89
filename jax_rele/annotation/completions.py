"""Chat completions: the body of a request, the key and the cost of an answer, and the answer in a completion."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jax_rele.annotation.types import Endpoint, ModelAnswer, Task

MAX_TEXT = 1 << 18
"""Characters of an answer; a longer one is cut there and has the failure `length`."""

REFUSED_FOR_GOOD = (400, 413, 415, 422)
"""Statuses with which a server says that it will never take this request, and may take others."""


class Malformed(Exception):
    """A response of status 200 that is no chat completion."""


def prompt_hash(task: Task) -> bytes:
    """Hash of messages and schema."""
    return _digest([[dict(message) for message in task.messages], task.schema])


def sampling_hash(endpoint: Endpoint) -> bytes:
    """Hash of model and sampling parameters.

    `structured` is not part of it, so that no call is repeated where `auto` settles on another form than before.
    Neither are name and address.
    """
    return _digest([endpoint.model, endpoint.temperature, endpoint.top_p, endpoint.max_tokens, dict(endpoint.extra)])


def answer_key(prompt: bytes, sampling: bytes, sample: int) -> str:
    """Key of an answer: 32 hexadecimal digits."""
    return hashlib.sha256(prompt + sampling + sample.to_bytes(4)).hexdigest()[:32]


def sample_keys(prompts: Iterable[bytes], endpoint: Endpoint) -> Iterator[tuple[int, int, str]]:
    """(index of the prompt, sample, key) of every answer that an endpoint is asked for.

    The samples of a prompt follow one another, since servers cache prompts.
    """
    sampling = sampling_hash(endpoint)
    for index, prompt in enumerate(prompts):
        for sample in range(endpoint.samples):
            yield index, sample, answer_key(prompt, sampling, sample)


def request_body(endpoint: Endpoint, task: Task, sample: int) -> dict[str, object]:
    """Body of a request to /chat/completions.

    The sample's number is its `seed`. Fields of `extra` replace others; null removes a field, e.g. `{"max_tokens":
    null, "max_completion_tokens": 2048}` or `{"seed": null}` for a server that does not know it.
    """
    body: dict[str, object] = {
        "model": endpoint.model,
        "messages": [dict(message) for message in task.messages],
        "temperature": endpoint.temperature,
        "top_p": endpoint.top_p,
        "max_tokens": endpoint.max_tokens,
        "seed": sample,
    }
    if endpoint.structured == "json_schema":
        schema = {"name": "answer", "schema": task.schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif endpoint.structured == "json_object":
        body["response_format"] = {"type": "json_object"}
    body |= endpoint.extra
    return {name: value for name, value in body.items() if value is not None}


def worst_cost(endpoint: Endpoint, body: Mapping[str, Any]) -> float:
    """The most that a call can cost: a token has at least one byte, and `max_tokens` bounds those that are generated.

    A server that exceeds `max_tokens`, or adds a prompt of its own, can charge more.
    """
    if not endpoint.input_price and not endpoint.output_price:
        return 0.0
    generated = body.get("max_tokens", body.get("max_completion_tokens", endpoint.max_tokens))
    return _cost(endpoint, len(json.dumps(body, ensure_ascii=False).encode(errors="replace")), generated)


def read_completion(
    completion: Any, endpoint: Endpoint, task: Task, sample: int, key: str, worst: float, seconds: float = 0.0
) -> ModelAnswer:
    """The answer in a chat completion, as a server sends it or a batch file holds it.

    The text is kept whole, with a think block where the model wrote one into it; separate fields of reasoning are
    ignored. After a refusal the text is what the model said, after `length` as much as came.

    Args:
      worst: the cost where the server reports no token counts.

    Raises:
      Malformed: it is no chat completion.
    """
    try:
        choice = completion["choices"][0]
        message = choice["message"]
        text = message.get("content") or ""
        if isinstance(text, list):
            text = "".join(part.get("text") or "" for part in text)
        refusal = message.get("refusal") or ""
        reason = choice.get("finish_reason")
        usage = completion.get("usage") or {}
        tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        # A lone surrogate, which JSON can carry, has no UTF-8 form.
        text, refusal = (part.encode(errors="replace").decode() for part in (text, refusal))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise Malformed("no chat completion") from None
    if refusal or reason == "content_filter":
        failure, text = "refusal", text or refusal
    elif reason == "length" or len(text) > MAX_TEXT:
        failure = "length"
    else:
        failure = "" if text.strip() else "empty"
    cost = _cost(endpoint, *tokens) if any(tokens) else worst
    identity = task.pair_id, endpoint.name, sample, task.round, key
    return ModelAnswer(*identity, text[:MAX_TEXT], failure, *tokens, cost, seconds)


def _digest(value: object) -> bytes:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()


def _cost(endpoint: Endpoint, input_tokens: int, output_tokens: int) -> float:
    return (input_tokens * endpoint.input_price + output_tokens * endpoint.output_price) / 1e6
