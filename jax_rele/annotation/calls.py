"""One call to an OpenAI-compatible server, and what a failed call means."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import httpx2
import openai

from jax_rele.annotation.completions import (
    REFUSED_FOR_GOOD,
    ErrorInside,
    Malformed,
    answer_key,
    load_completion,
    prompt_hash,
    read_completion,
    reported_cost,
    request_body,
    sampling_hash,
    words_of_error,
    worst_cost,
)
from jax_rele.annotation.types import Endpoint, ModelAnswer, Task

MAX_BODY = 1 << 25
"""Bytes of a response; of a longer one the text is empty and the failure `length`."""

CONNECT_SECONDS = 5.0


class TooLarge(Exception):
    """A response of more than MAX_BODY bytes."""


class _Capped(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self.stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self.stream:
            size += len(chunk)
            if size > MAX_BODY:
                raise TooLarge
            yield chunk

    async def aclose(self) -> None:
        await self.stream.aclose()


async def _cap(response: httpx2.Response) -> None:
    assert isinstance(response.stream, httpx2.AsyncByteStream)  # the client is asynchronous
    response.stream = _Capped(response.stream)


def key_of(endpoint: Endpoint) -> str:
    """The API key from the environment; empty where there is none."""
    return os.environ.get(endpoint.key_variable, "").strip() if endpoint.key_variable else ""


def open_client(endpoint: Endpoint) -> openai.AsyncOpenAI:
    """A client, to be used as a context manager; it never retries, since the runner decides on retries and costs.

    Each endpoint has its own pool of as many connections as it may have calls in flight: the time in which the library
    finds a free connection is proportional to the size of the pool.
    """
    limits = httpx2.Limits(max_connections=endpoint.concurrency, max_keepalive_connections=endpoint.concurrency)
    timeout = httpx2.Timeout(None, connect=CONNECT_SECONDS)
    http = openai.DefaultAsyncHttpxClient(limits=limits, timeout=timeout, event_hooks={"response": [_cap]})
    key = key_of(endpoint) or "none"  # the library requires a key
    return openai.AsyncOpenAI(api_key=key, base_url=endpoint.base_url, max_retries=0, http_client=http, timeout=timeout)


async def ask(client: openai.AsyncOpenAI, endpoint: Endpoint, task: Task, sample: int, key: str = "") -> ModelAnswer:
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
            # This way of calling builds no models of request and response, which is the fastest.
            response = await client.post("/chat/completions", cast_to=httpx2.Response, body=body)
    except openai.APIStatusError as error:
        if not refuses_request(error):
            raise
        identity = task.pair_id, endpoint.name, sample, task.round, key
        failure = f"rejected: {describe_error(error, endpoint)}"
        return ModelAnswer(*identity, "", failure, seconds=time.perf_counter() - started)
    except TooLarge:
        completion: object = {"choices": [{"finish_reason": "length", "message": {}}]}
    else:
        completion = load_completion(response.content)
    seconds = time.perf_counter() - started
    return read_completion(completion, endpoint, task, sample, key, worst_cost(endpoint, body), seconds)


@dataclass(frozen=True)
class Fault:
    """A call without an answer.

    Attributes:
      reason: `429`, `500`, `timeout`, `connection`, `malformed`, `error` (in a response of status 200), ...
      charged: whether the server may charge for it.
      cost: what it charges, by its own count; None where that is not known.
      detail: what the server says, or its answer's first words.
      wait: seconds that the server asks to wait; 0 where it does not say.
      fatal: empty, or why every further call to the endpoint would fail too.
    """

    reason: str
    charged: bool = False
    cost: float | None = None
    detail: str = ""
    wait: float = 0.0
    fatal: str = ""


def fault_of(error: Exception, endpoint: Endpoint) -> Fault:
    """What an error of `ask` means; raises the error again where it did not come from a call."""
    match error:
        case openai.APIStatusError():
            # 404 means an unknown model or route, so that other requests fail too.
            fatal = error.status_code in (401, 402, 403, 404) or error.code == "insufficient_quota"
            reason = describe_error(error, endpoint) if fatal else ""
            wait, detail = retry_after(error.response.headers), _words(error, endpoint)
            return Fault(str(error.status_code), detail=detail, wait=wait, fatal=reason)
        case openai.APIConnectionError():
            unsent = isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)
            timed_out = isinstance(error, openai.APITimeoutError)
            return Fault("timeout" if timed_out else "connection", charged=not unsent)
        case TimeoutError():
            return Fault("timeout", charged=True)
        case Malformed():
            cost = reported_cost(endpoint, error.tokens) if any(error.tokens) else None
            return Fault("malformed", error.charged or cost is not None, cost, _without_key(str(error), endpoint))
        case ErrorInside():
            detail = _without_key(str(error), endpoint)
            final = error.code in (401, 402, 403, 404)
            return Fault(str(error.code or "error"), detail=detail, fatal=f"{error.code} {detail}" if final else "")
    raise error


def refuses_request(error: openai.APIStatusError) -> bool:
    """Whether the server will never take this request, and may take others."""
    return error.status_code in REFUSED_FOR_GOOD and error.code != "insufficient_quota"


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
    """Status and the server's message, on one line, without the key."""
    return f"{error.status_code} {_words(error, endpoint)}"


def _words(error: openai.APIStatusError, endpoint: Endpoint) -> str:
    words = words_of_error(error.body) or words_of_error(error.response.text) or str(error.message)
    return _without_key(words, endpoint)[:200]


def _without_key(text: str, endpoint: Endpoint) -> str:
    key = key_of(endpoint)
    return text.replace(key, "***") if key else text
