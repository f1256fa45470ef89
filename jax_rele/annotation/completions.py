"""Chat completions: the body of a request, the key and the cost of an answer, and the answer in a completion."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from jax_rele.annotation.types import Endpoint, ModelAnswer, Task

MAX_TEXT = 1 << 18
"""Characters of an answer; a longer one is cut there and has the failure `length`."""

_ERROR_NAMES = (
    *("message", "detail", "msg", "errors", "errormsg", "errormessage", "errmsg"),
    *("errordescription", "statusmsg", "statusmessage", "faultstring", "exception"),
)
"""Fields in which servers write what went wrong, in lower case and without underscores."""
_HOLDERS = ("baseresp", "header", "fault", "response", "result", "data", "output")
"""Objects in which gateways put an error or a completion."""
_CODES = ("code", "status", "statuscode", "errorcode", "errcode")
_SUCCESS = ("success", "ok", "succeeded", "successful")
_FAILURES = {"error", "fail", "failed", "failure"}
_CALLED = ("parsed", "tool_calls", "function_call")
_MAX_OBJECTS = 64  # each attempt to read one may scan the whole text

REFUSED_FOR_GOOD = (400, 413, 415, 422)
"""Statuses with which a server says that it will never take this request, and may take others."""


class Malformed(Exception):
    """A response of status 200 that is no chat completion.

    Attributes:
      charged: whether it may have been one, cut off, so that its tokens may be charged.
      tokens: of the prompt and the answer, where the server counts them all the same.
    """

    def __init__(self, detail: str, *, charged: bool = False, tokens: tuple[int, int] = (0, 0)):
        super().__init__(detail)
        self.charged, self.tokens = charged, tokens


class ErrorInside(Exception):
    """An error in a response of status 200.

    Attributes:
      code: the status that it stands for, or 0.
    """

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


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
        # Some servers take only what lies below 1, which is everybody's default.
        "top_p": None if endpoint.top_p == 1 else endpoint.top_p,
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


def load_completion(content: bytes) -> dict[str, Any]:
    """The JSON object of a response of status 200.

    Raises:
      Malformed, ErrorInside: it is none, or an error, or no chat completion; with its first words.
    """
    try:
        completion = json.loads(content)
    except (ValueError, RecursionError):
        text = content.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
        if not text:
            raise Malformed("not JSON: an empty body") from None
        if text.startswith(("data:", "event:", ":")):
            raise Malformed(f"the server streams its answer, begins with {first_words(text)}") from None
        if text.startswith("<"):
            raise Malformed(f"a web page, begins with {first_words(text)}") from None
        raise Malformed(f"not JSON, begins with {first_words(text)}", charged='"choices"' in text[:200]) from None
    try:
        return checked_completion(completion)
    except RecursionError:
        begin = first_words(content[:80].decode(errors="replace"))
        raise Malformed(f"nested too deeply, begins with {begin}") from None


def checked_completion(completion: Any) -> dict[str, Any]:
    """A JSON value that has a choice with a message, as a chat completion has, without what a gateway puts around it.

    Raises:
      Malformed, ErrorInside: it has none.
    """
    whole, completion = completion, _unwrapped(completion)
    if not isinstance(completion, dict):
        raise Malformed(f"not a JSON object, begins with {first_words(json.dumps(completion))}")
    choices = completion.get("choices")
    choice = _choice(choices) if isinstance(choices, list) and choices else None
    for holder in (completion, choice):
        # Of an error beside an answer the answer counts; a message that says nothing is none.
        if isinstance(holder, dict) and holder.get("error") and not _says_something(choice):
            raise ErrorInside(words_of_error(holder), _code(holder["error"]))
    state = _fields(completion).get("baseresp")
    if isinstance(state, dict) and str(state.get("status_code", 0)) != "0" and not _says_something(choice):
        raise ErrorInside(words_of_error(state), _code(state))
    if isinstance(choice, dict) and choice.get("finish_reason") == "error":  # what it has said by then is cut off
        if choice.get("error"):
            raise ErrorInside(words_of_error(choice), _code(choice["error"]))
        raise ErrorInside(f"finish_reason error: {first_words(json.dumps(choice, ensure_ascii=False))}", 0)
    if isinstance(whole, dict) and _failed(whole) and not _says_something(choice):
        message = _error_message(whole) or f"begins with {first_words(json.dumps(whole, ensure_ascii=False))}"
        raise ErrorInside(message, _code(whole))
    if not _has_message(choice):
        if not choices and (message := _error_message(completion)):
            raise ErrorInside(message, _code(completion))
        what = "`choices` is empty" if "choices" in completion and not choices else "no chat completion"
        if isinstance(choice, dict) and isinstance(choice.get("text"), str):
            what = "a completion without a chat message"
        raise Malformed(
            f"{what}, begins with {first_words(json.dumps(completion, ensure_ascii=False))}", tokens=_tokens(completion)
        )
    return completion


def _unwrapped(completion: Any) -> Any:
    """The completion in an object of a gateway, as `{"code": 0, "data": {"choices": ...}}`."""
    if isinstance(completion, dict) and not completion.get("choices"):
        for inner in (value for name, value in _fields(completion).items() if name in _HOLDERS):
            if isinstance(inner, dict) and inner.get("choices"):
                return {**{name: completion[name] for name in ("usage",) if name in completion}, **inner}
    return completion


def _fields(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an object by their names in lower case and without underscores."""
    return {str(name).replace("_", "").casefold(): value for name, value in body.items()}


def _error_message(body: Mapping[str, Any]) -> str:
    """What an object says of an error, itself or in an object of a gateway; empty where it says nothing."""
    fields = _fields(body)
    for name in ("error", *_ERROR_NAMES):
        value = fields.get(name)
        if isinstance(value, list) or (isinstance(value, str) and value.strip().casefold() not in _SUCCESS):
            if message := words_of_error(value):
                return message
        elif isinstance(value, dict) and name == "error":
            return words_of_error(value)
    inner = (fields.get(name) for name in _HOLDERS)
    return next(filter(None, (_error_message(each) for each in inner if isinstance(each, dict))), "")


def _failed(body: Mapping[str, Any]) -> bool:
    """Whether an object says by a code, a status or a truth value that something went wrong."""
    fields = _fields(body)
    if any(fields.get(name) is False for name in _SUCCESS):
        return True
    values = [fields.get(name) for name in _CODES]
    words = {value.casefold() for value in values if isinstance(value, str)}
    numbers = [number for number in map(_whole_number, values) if number is not None]
    return not _FAILURES.isdisjoint(words) or any(number != 0 and not 200 <= number < 300 for number in numbers)


def _whole_number(value: object) -> int | None:
    """A code as a number; None for what is none, or has more digits than a code."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    text = str(value)
    return int(text) if len(text) < 10 and text.removeprefix("-").isdecimal() else None


def _choice(choices: Sequence[object]) -> object:
    """The first choice; where it holds no text at all, the first one that answers, if any."""
    first = choices[0]
    if _says_something(first) or (_has_message(first) and _other_texts(first["message"])):  # type: ignore[index]
        return first
    return next(filter(_says_something, choices), first)


def _has_message(choice: object) -> bool:
    return isinstance(choice, dict) and isinstance(choice.get("message"), dict)


def _says_something(choice: object) -> bool:
    """Whether a choice answers; thoughts alone, which an error may have cut off, are no answer."""
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        return False
    called = any(name.startswith(_CALLED) for name in _other_texts(message))
    return called or bool(_text(message.get("content")).strip() or _text(message.get("refusal")))


def _code(error: object) -> int:
    if not isinstance(error, Mapping):
        return 0
    fields = _fields(error)
    for number in (_whole_number(fields.get(name)) for name in _CODES):
        if number is not None and 400 <= number < 600:
            return number
    return next(filter(None, (_code(fields.get(name)) for name in ("error", *_HOLDERS))), 0)


def first_words(text: str, most: int = 80) -> str:
    """The beginning of a text for a message, on one line."""
    return ascii_line(text[: 4 * most])[:most]


def ascii_line(text: str) -> str:
    """A text on one line and without half characters."""
    return " ".join(text.encode(errors="replace").decode().split())


def words_of_error(body: object) -> str:
    """What a server says in an error, on one line: the text in its `error`, `message`, `detail` or the like."""
    match body:
        case str() | bytes():
            text = body if isinstance(body, str) else body.decode("utf-8", "replace")
            return ascii_line(text)[:200]
        case list():
            return "; ".join(filter(None, map(words_of_error, body[:3])))[:200]
        case Mapping():
            location = body.get("loc")
            where = ".".join(map(str, location)) + ": " if isinstance(location, list) and location else ""
            fields = _fields(body)
            for name in ("error", *_ERROR_NAMES, "reason", "title", *_HOLDERS):
                if words := words_of_error(fields.get(name)):
                    more = _metadata(fields.get(name))
                    return f"{where}{words}{more}"[:200]
            return first_words(json.dumps(body, ensure_ascii=False, default=str), 200) if body else ""
        case _:
            return ""


def _metadata(error: object) -> str:
    """What a gateway quotes of the provider behind it."""
    metadata = error.get("metadata") if isinstance(error, Mapping) else None
    raw = metadata.get("raw") if isinstance(metadata, Mapping) else None
    return f" ({ascii_line(str(raw))})" if raw else ""


def read_completion(
    completion: Any, endpoint: Endpoint, task: Task, sample: int, key: str, worst: float, seconds: float = 0.0
) -> ModelAnswer:
    """The answer in a chat completion, as a server sends it or a batch file holds it.

    The text is kept whole, with a think block where the model wrote one into it. Where it is empty, the arguments of a
    tool call, or a separate field of reasoning, count if they hold an object with the fields of the task's schema.
    After a refusal the text is what the model said, after `length` as much as came.

    Args:
      worst: the cost where the server reports no token counts.

    Raises:
      Malformed, ErrorInside: it is no chat completion.
    """
    completion = checked_completion(completion)
    choice: Any = _choice(completion["choices"])
    message = choice["message"]
    text, refusal, reason = _text(message.get("content")), _text(message.get("refusal")), choice.get("finish_reason")
    tokens, others = _tokens(completion), _other_texts(message)
    if not text.strip() and not refusal:
        text = next((other for other in others.values() if _holds_answer(other, task.schema)), text)
    elif not refusal and not _holds_answer(text, task.schema):
        # What was called with the answer counts more than the prose beside the call.
        called = (other for name, other in others.items() if name.startswith(_CALLED))
        text = next((other for other in called if _holds_answer(other, task.schema)), text)
    # A lone surrogate, which JSON can carry, has no UTF-8 form.
    text, refusal = (part.encode(errors="replace").decode() for part in (text, refusal))
    if refusal or reason == "content_filter":
        failure, text = "refusal", text or refusal
    elif reason == "length" or len(text) > MAX_TEXT:
        failure = "length" if text.strip() or not others else "length: reasoning took all of max_tokens"
    elif text.strip():
        failure = ""
    else:
        failure = f"empty: no content, and no answer in {', '.join(others)}" if others else "empty"
    cost = _cost(endpoint, *tokens) if any(tokens) else worst
    identity = task.pair_id, endpoint.name, sample, task.round, key
    return ModelAnswer(*identity, text[:MAX_TEXT], failure, *tokens, cost, seconds)


def _text(content: object) -> str:
    """The text of a message's content: a text, parts of one, or an object that a server has parsed already."""
    match content:
        case str():
            return content
        case list():
            return "".join(part if isinstance(part, str) else _part(part) for part in content)
        case dict():
            return _part(content) or json.dumps(content, ensure_ascii=False)
        case _:
            return ""


def _part(part: object) -> str:
    text = part.get("text") if isinstance(part, dict) else None
    text = text.get("value") if isinstance(text, dict) else text
    return text if isinstance(text, str) else ""


def _other_texts(message: Mapping[str, Any]) -> dict[str, str]:
    """Texts of a message beside its content, by where they are, the likeliest to be the answer first."""
    texts = {"parsed": parsed} if (parsed := _text(message.get("parsed"))) else {}
    calls = message.get("tool_calls")
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    for name, function in (
        *(("tool_calls", each) for each in functions),
        ("function_call", message.get("function_call")),
    ):
        if isinstance(function, dict) and (arguments := _text(function.get("arguments"))):
            texts[f"{name} {len(texts) + 1}" if name in texts else name] = arguments
    for name in ("reasoning_content", "reasoning", "reasoning_details", "thinking"):
        if (reasoning := _text(message.get(name))).strip():
            texts[name] = reasoning
    return texts


def _holds_answer(text: str, schema: Mapping[str, object]) -> bool:
    """Whether a text holds a JSON object with the fields that a schema asks for."""
    properties = schema.get("required") or schema.get("properties") or ()
    names = {str(name) for name in properties} if isinstance(properties, Mapping | list | tuple) else set()
    if text.lstrip().startswith('"'):  # an object that was written as a JSON text
        text = text.replace("\\", "")
    decoder, start = json.JSONDecoder(), text.find("{")
    for _ in range(_MAX_OBJECTS):
        if start < 0:
            return False
        try:
            value, end = decoder.raw_decode(text, start)
            while len(value) == 1 and isinstance(inner := next(iter(value.values())), dict):
                value = inner  # as {"answer": {...}}
            if names and names <= value.keys():
                return True
        except (ValueError, RecursionError):
            end = start + 1
        start = text.find("{", end)
    return False


def _tokens(completion: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens of the prompt and the answer; 0 for a count that is none."""
    usage = completion.get("usage")
    if not isinstance(usage, dict):
        return 0, 0
    prompt, generated = (
        next((count for name in names if (count := _count(usage.get(name)))), 0)
        for names in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"))
    )
    return prompt, generated


def _count(value: object) -> int:
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else 0.0
        return int(number) if 0 <= number < 2**53 else 0
    except (ValueError, OverflowError):
        return 0


def reported_cost(endpoint: Endpoint, tokens: tuple[int, int]) -> float:
    """What an endpoint charges for tokens of a prompt and an answer."""
    return _cost(endpoint, *tokens)


def _digest(value: object) -> bytes:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()


def _cost(endpoint: Endpoint, input_tokens: int, output_tokens: int) -> float:
    return (input_tokens * endpoint.input_price + output_tokens * endpoint.output_price) / 1e6
