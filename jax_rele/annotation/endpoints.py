"""Checks of endpoints before the first real call."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from difflib import get_close_matches
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

import httpx2
import openai

from jax_rele.annotation.calls import MAX_BODY, Fault, TooLarge, describe_error, fault_of, key_of, open_client
from jax_rele.annotation.completions import ErrorInside, Malformed, load_completion, request_body, sampling_hash
from jax_rele.annotation.types import Endpoint, Task
from jax_rele.errors import UserError

FORMS = ("json_schema", "json_object", "none")

CHECK_TOKENS = 16
CHECK_SECONDS = 10.0
CHECK_ATTEMPTS = 3

T = TypeVar("T")

_CHECK_TASK = Task("check", ({"role": "user", "content": 'Write the JSON {"ok": true}.'},), {})


def check(endpoints: Sequence[Endpoint], schema: Mapping[str, object] | None = None) -> list[Endpoint]:
    """Tries every endpoint within seconds and settles `structured` where it is `auto`.

    What is free comes first, for all endpoints: names, keys, and the server's list of models where it has one. Then
    each gets one small call with the run's sampling parameters and at most 16 tokens to generate, first those whose
    model is not listed; what it answers must be a chat completion. A failed call is free; a successful one costs the
    schema's tokens and a few more, which no accounting includes. Thus a refused schema, parameter or key is known
    before thousands of calls are made. Where `structured` is `auto`, `json_schema`, `json_object` and `none` are tried
    in turn.

    Args:
      schema: of the answers; a small one by default.

    Returns:
      The endpoints, none with `auto`.

    Raises:
      UserError: an endpoint cannot be used; names it and says why.
    """
    _check_settings(endpoints)
    return asyncio.run(_check(endpoints, schema or {"type": "object", "properties": {"ok": {"type": "boolean"}}}))


def _check_settings(endpoints: Sequence[Endpoint]) -> None:
    names: set[str] = set()
    by_sampling: dict[bytes, str] = {}
    for endpoint in endpoints:
        where = f"endpoint {endpoint.name}"
        if endpoint.name in names:
            raise UserError(f"{where}: there are two of this name; rename one")
        names.add(endpoint.name)
        same = by_sampling.setdefault(sampling_hash(endpoint), endpoint.name)
        if same != endpoint.name:
            raise UserError(f"{where}: same model and parameters as {same}; keep one of them, with more samples")
        if endpoint.structured not in (*FORMS, "auto"):
            raise UserError(f"{where}: structured is {endpoint.structured!r}; choose auto, {', '.join(FORMS)}")
        try:
            parts = urlsplit(endpoint.base_url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
            httpx2.URL(endpoint.base_url)
        except (ValueError, httpx2.InvalidURL):
            valid = False
        if not valid or not endpoint.base_url.isprintable():
            raise UserError(f"{where}: base_url must be like http://localhost:8000/v1")
        if parts.username or parts.password:
            raise UserError(f"{where}: base_url holds a password; put it into a variable and name that in key_variable")
        if endpoint.key_variable and not key_of(endpoint):
            raise UserError(f"{where}: the variable {endpoint.key_variable} is not set; export the key under that name")
        if not (key_of(endpoint).isascii() and key_of(endpoint).isprintable()):
            raise UserError(
                f"{where}: the variable {endpoint.key_variable} holds what no key has, characters beyond ASCII or line "
                "ends; export the key anew"
            )


async def _check(endpoints: Sequence[Endpoint], schema: Mapping[str, object]) -> list[Endpoint]:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(open_client(endpoint)) for endpoint in endpoints]
        lists = await _gather(_models(client, endpoint) for client, endpoint in zip(clients, endpoints))
        settled: dict[str, Endpoint] = {}
        # Unlisted names may be aliases, or wrong: they are tried before anything is charged elsewhere.
        for listed in (False, True):
            calls = [
                _settle(client, endpoint, schema, models)
                for endpoint, client, models in zip(endpoints, clients, lists)
                if _is_listed(endpoint, models) is listed
            ]
            settled |= {endpoint.name: endpoint for endpoint in await _gather(calls)}
        return [settled[endpoint.name] for endpoint in endpoints]


def _is_listed(endpoint: Endpoint, models: Sequence[str]) -> bool:
    return not models or endpoint.model in models or f"models/{endpoint.model}" in models


async def _gather(calls: Iterable[Awaitable[T]]) -> list[T]:
    """The results of all calls; the first error is raised after all have ended."""
    results = []
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
        results.append(result)
    return results


async def _models(client: openai.AsyncOpenAI, endpoint: Endpoint) -> list[str]:
    """Names that the server lists; none where it has no list."""
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            response = await client.get("/models", cast_to=httpx2.Response)
        return [str(model["id"]) for model in json.loads(response.content)["data"]]
    except openai.APIStatusError as error:
        if error.status_code in (401, 403):
            raise _refused(error, endpoint) from None
    except (openai.APIConnectionError, TimeoutError):
        raise _silent(endpoint) from None
    except (KeyError, TypeError, ValueError, RecursionError, TooLarge):
        pass
    return []


async def _settle(
    client: openai.AsyncOpenAI, endpoint: Endpoint, schema: Mapping[str, object], models: Sequence[str]
) -> Endpoint:
    task = replace(_CHECK_TASK, schema=schema)
    forms = FORMS if endpoint.structured == "auto" else (endpoint.structured,)
    for form in forms:
        candidate = replace(endpoint, structured=form)
        body = request_body(candidate, task, 0)
        for name in ("max_tokens", "max_completion_tokens"):
            if isinstance(limit := body.get(name), int | float):
                body[name] = min(limit, CHECK_TOKENS)
        try:
            await _small_call(client, endpoint, body)
        except openai.APIStatusError as error:
            # A model that reasons before it answers takes the request, and needs more than 16 tokens.
            if error.status_code == 400 and "output limit was reached" in str(error.message):
                return candidate
            if form != forms[-1] and error.status_code in (400, 415, 422, 500, 501):
                continue
            raise _refused(error, candidate, models) from None
        except ErrorInside as error:
            if form != forms[-1] and error.code in (0, 400, 415, 422, 500, 501):
                continue
            raise _unreadable(fault_of(error, candidate), candidate) from None
        except Malformed as error:
            raise _unreadable(fault_of(error, candidate), candidate) from None
        return candidate
    raise AssertionError


async def _small_call(client: openai.AsyncOpenAI, endpoint: Endpoint, body: Mapping[str, object]) -> None:
    for attempt in range(1, CHECK_ATTEMPTS + 1):
        try:
            async with asyncio.timeout(endpoint.timeout):
                response = await client.post("/chat/completions", cast_to=httpx2.Response, body=body)
            load_completion(response.content)
            return
        except TooLarge:
            raise Malformed(f"more than {MAX_BODY >> 20} MB") from None
        except ErrorInside as error:
            transient = error.code in (0, 408, 409, 429, 502, 503, 504)
            if not transient or attempt == CHECK_ATTEMPTS:
                raise
            await asyncio.sleep(0.5)
        except openai.APIStatusError as error:
            fault = fault_of(error, endpoint)
            transient = error.status_code in (408, 409, 429, 502, 503, 504) and not fault.fatal
            if not transient or fault.wait > CHECK_SECONDS or attempt == CHECK_ATTEMPTS:
                raise
            await asyncio.sleep(max(fault.wait, 0.5))
        except (openai.APIConnectionError, TimeoutError):
            if attempt == CHECK_ATTEMPTS:
                raise _silent(endpoint) from None


def _unreadable(fault: Fault, endpoint: Endpoint) -> UserError:
    what = "is no chat completion" if fault.reason == "malformed" else f"holds an error ({fault.reason})"
    return UserError(
        f"endpoint {endpoint.name}: the answer to a small call at {chat_url(endpoint)} {what}: {fault.detail}; "
        + (_right_base_url(endpoint) if likely_base_url(endpoint.base_url) else "correct base_url, model or extra")
    )


def chat_url(endpoint: Endpoint) -> str:
    """What a call asks, without the query and what else may hold a key."""
    parts = urlsplit(endpoint.base_url)
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}/chat/completions"


def likely_base_url(base_url: str) -> str:
    """What a base_url whose path has no chat completions was probably to be; empty where it looks right."""
    parts = urlsplit(base_url)
    path = parts.path.rstrip("/")
    for ending in ("/chat/completions", "/completions", "/chat", "/models", "/responses", "/embeddings"):
        path = path.removesuffix(ending)
    names = [name for name in path.split("/") if name]
    while len(names) > 1 and names[-1] == names[-2]:
        names.pop()
    if not any(re.fullmatch(r"v\d+\w*", name) for name in names):
        names.append("v1")
    likely = "/" + "/".join(names)
    return "" if likely == parts.path.rstrip("/") else urlunsplit((parts.scheme, parts.netloc, likely, "", ""))


def _right_base_url(endpoint: Endpoint) -> str:
    guess = likely_base_url(endpoint.base_url)
    return f"base_url is probably {guess}" if guess else "correct base_url, to which /chat/completions is added"


def _silent(endpoint: Endpoint) -> UserError:
    return UserError(
        f"endpoint {endpoint.name}: nothing answers at {chat_url(endpoint)} for {endpoint.model}; "
        "start the server, or correct base_url"
    )


def _refused(error: openai.APIStatusError, endpoint: Endpoint, models: Sequence[str] = ()) -> UserError:
    message, where = describe_error(error, endpoint), f"endpoint {endpoint.name}"
    if error.status_code in (401, 403):
        source = f"the key in {endpoint.key_variable}" if endpoint.key_variable else "a call without key_variable"
        return UserError(f"{where}: the server refuses {source}: {message}")
    unlisted = models and endpoint.model not in models
    names_model = endpoint.model in message or "model" in message.lower()
    if error.status_code in (404, 405) and not (names_model and (unlisted or not models)):
        fix = _right_base_url(endpoint)
        if endpoint.model in models and not likely_base_url(endpoint.base_url):
            fix = f"the server lists {endpoint.model}, serve it for chat"
        return UserError(f"{where}: there is no {chat_url(endpoint)}; {fix}: {message}")
    if error.status_code == 404 or (unlisted and "model" in message.lower()):
        near = get_close_matches(endpoint.model, models, 3, 0.4) or list(models)[:5]
        known = f"; it has {', '.join(near)}" if near else ""
        return UserError(f"{where}: the server does not know the model {endpoint.model}{known}: {message}")
    forms = ("response_format", "json_schema", "json_object", "schema", "grammar", "guided")
    if endpoint.structured != "none" and error.status_code in (400, 422) and any(form in message for form in forms):
        return UserError(f"{where}: the server refuses structured: {endpoint.structured}; choose auto: {message}")
    fix = "correct the endpoint"
    sent = [name for name in request_body(endpoint, _CHECK_TASK, 0) if name not in ("model", "messages")]
    if name := next((name for name in sent if re.search(rf"\b{name}\b", message)), ""):
        instead = f", max_completion_tokens: {endpoint.max_tokens}" if name == "max_tokens" else ""
        fix = f"leave {name} out with extra: {{{name}: null{instead}}}, or change it"
    return UserError(f"{where}: the server refuses a small call; {fix}: {message}")
