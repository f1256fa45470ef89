"""One call to an OpenAI-compatible server: what is sent, what an answer is, what a failed call means."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2
import openai

from jax_rele.annotation.types import Answer, Endpoint, Task

MAX_TEXT = 1 << 18
"""Characters of an answer; a longer one is cut there and has the failure `length`."""

MAX_BODY = 1 << 25
"""Bytes of a response; the reading of a longer one ends there, its text is empty and its failure `length`."""

CONNECT_SECONDS = 5.0


# ---- what is asked


def prompt_hash(task: Task) -> bytes:
    """Of messages and schema."""
    return _digest([[dict(message) for message in task.messages], task.schema])


def sampling_hash(endpoint: Endpoint) -> bytes:
    """Of model and sampling parameters.

    How the form of an answer is asked for is not part of it, so that no call is repeated when `auto` finds another than
    it did. Neither are name and address.
    """
    return _digest([endpoint.model, endpoint.temperature, endpoint.top_p, endpoint.max_tokens, dict(endpoint.extra)])


def answer_key(prompt: bytes, sampling: bytes, sample: int) -> str:
    """Key of an answer: 32 hexadecimal digits."""
    return hashlib.sha256(prompt + sampling + sample.to_bytes(4)).hexdigest()[:32]


def sample_keys(prompts: Iterable[bytes], endpoint: Endpoint) -> Iterator[tuple[int, int, str]]:
    """(number of the prompt, sample, key) of all that an endpoint is asked.

    The samples of a prompt come one after another, which servers that cache prompts like.
    """
    sampling = sampling_hash(endpoint)
    for number, prompt in enumerate(prompts):
        for sample in range(endpoint.samples):
            yield number, sample, answer_key(prompt, sampling, sample)


def _digest(value: Any) -> bytes:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()


def request_body(endpoint: Endpoint, task: Task, sample: int) -> dict[str, Any]:
    """Body of a request to /chat/completions.

    The sample's number is its `seed`. Fields of `extra` replace others; null takes a field out, e.g. `{"max_tokens":
    null, "max_completion_tokens": 2048}` or `{"seed": null}` for a server that does not know it.
    """
    body: dict[str, Any] = {
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
    """What a call can cost at most: a token is a byte at least, and no more are written than the request allows.

    A server that writes more than `max_tokens`, or adds a prompt of its own, can charge more.
    """
    if not endpoint.input_price and not endpoint.output_price:
        return 0.0
    written = body.get("max_tokens", body.get("max_completion_tokens", endpoint.max_tokens))
    return _cost(endpoint, len(json.dumps(body, ensure_ascii=False).encode(errors="replace")), written)


def _cost(endpoint: Endpoint, input_tokens: int, output_tokens: int) -> float:
    return (input_tokens * endpoint.input_price + output_tokens * endpoint.output_price) / 1e6


# ---- one call


class Malformed(Exception):
    """A response of status 200 that is no chat completion."""


class _TooLarge(Exception):
    """A response of more than MAX_BODY bytes."""


class _Capped(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self.stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self.stream:
            size += len(chunk)
            if size > MAX_BODY:
                raise _TooLarge
            yield chunk

    async def aclose(self) -> None:
        await self.stream.aclose()


async def _cap(response: httpx2.Response) -> None:
    response.stream = _Capped(response.stream)


def open_client(endpoint: Endpoint) -> openai.AsyncOpenAI:
    """A client that never retries: waiting, accounting and giving up are the runner's. Use as a context manager.

    Every endpoint has connections of its own, as many as it may have calls in flight: to find a free one takes the
    library time in proportion to their number.
    """
    limits = httpx2.Limits(max_connections=endpoint.concurrency, max_keepalive_connections=endpoint.concurrency)
    timeout = httpx2.Timeout(None, connect=CONNECT_SECONDS)
    http = openai.DefaultAsyncHttpxClient(limits=limits, timeout=timeout, event_hooks={"response": [_cap]})
    # The library insists on a key.
    key = key_of(endpoint) or "none"
    return openai.AsyncOpenAI(api_key=key, base_url=endpoint.base_url, max_retries=0, http_client=http, timeout=timeout)


def key_of(endpoint: Endpoint) -> str:
    """From the environment; empty where there is none."""
    return os.environ.get(endpoint.key_variable, "").strip() if endpoint.key_variable else ""


async def ask(client: openai.AsyncOpenAI, endpoint: Endpoint, task: Task, sample: int, key: str = "") -> Answer:
    """Makes one call.

    Args:
      key: of the answer, where it is known.

    Raises:
      Exception: what `fault_of` explains; among others errors of `openai` and TimeoutError.
    """
    body = request_body(endpoint, task, sample)
    key = key or answer_key(prompt_hash(task), sampling_hash(endpoint), sample)
    started = time.perf_counter()
    try:
        async with asyncio.timeout(endpoint.timeout):
            # Of the library's ways to call, the one that builds no models of request and response.
            response = await client.post("/chat/completions", cast_to=httpx2.Response, body=body)
    except openai.APIStatusError as error:
        if not refuses_request(error):
            raise
        asked = Answer(task.pair_id, endpoint.name, sample, task.round, key, "")
        return replace(
            asked, failure=f"rejected: {describe_error(error, endpoint)}", seconds=time.perf_counter() - started
        )
    except _TooLarge:
        completion: Any = {"choices": [{"finish_reason": "length", "message": {}}]}
    else:
        try:
            completion = json.loads(response.content)
        except ValueError:
            raise Malformed("not JSON") from None
    seconds = time.perf_counter() - started
    return read_completion(completion, endpoint, task, sample, key, worst_cost(endpoint, body), seconds)


def read_completion(
    completion: Any, endpoint: Endpoint, task: Task, sample: int, key: str, worst: float, seconds: float = 0.0
) -> Answer:
    """Answer of a chat completion, as a server sends it or a batch file holds it.

    The text is kept whole, with a think-block where the model wrote one into it; fields of reasoning beside it are not.
    With a refusal the text is what the model said, with `length` as much as came.

    Args:
      worst: the cost where the server does not say what it counted.

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
        # A lone surrogate, which JSON can carry, is no text.
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
    return Answer(
        task.pair_id, endpoint.name, sample, task.round, key, text[:MAX_TEXT], failure, *tokens, cost, seconds
    )


# ---- what a failed call means


@dataclass(frozen=True)
class Fault:
    """A call without an answer.

    Attributes:
      reason: `429`, `500`, `timeout`, `connection`, `malformed`, ...
      charged: whether the server may charge for it.
      wait: seconds that the server asks to wait; 0 where it does not say.
      fatal: empty, or why no other call to the endpoint can do better.
    """

    reason: str
    charged: bool = False
    wait: float = 0.0
    fatal: str = ""


def fault_of(error: Exception, endpoint: Endpoint) -> Fault:
    """What an error of `ask` means; raises the error again where it is none of a call."""
    match error:
        case openai.APIStatusError():
            wait = retry_after(error.response.headers)
            fatal = ""
            # 404 is the model's or the route's, not the request's.
            if error.status_code in (401, 402, 403, 404) or error.code == "insufficient_quota":
                fatal = describe_error(error, endpoint)
            return Fault(str(error.status_code), wait=wait, fatal=fatal)
        case openai.APIConnectionError():
            cause = error.__cause__
            unsent = isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)
            timed_out = isinstance(error, openai.APITimeoutError)
            return Fault("timeout" if timed_out else "connection", charged=not unsent)
        case TimeoutError():
            return Fault("timeout", charged=True)
        case Malformed():
            return Fault("malformed", charged=True)
    raise error


def refuses_request(error: openai.APIStatusError) -> bool:
    """Whether the server will never take this request, and may take others."""
    return error.status_code in (400, 413, 415, 422) and error.code != "insufficient_quota"


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the header asks to wait, given as seconds or as a date; 0 without one."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return max(0.0, seconds) if seconds < float("inf") else 0.0


def describe_error(error: openai.APIStatusError, endpoint: Endpoint) -> str:
    """Status and the server's words, on one line, without the key."""
    body = error.body
    text = body.get("message") if isinstance(body, Mapping) else None
    text = " ".join(str(text or error.message).split())
    if key := key_of(endpoint):
        text = text.replace(key, "***")
    return f"{error.status_code} {text[:200]}"
