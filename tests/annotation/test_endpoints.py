"""What is sent, what an answer is, what a failed call means, and what is found out before the first real call."""

import asyncio
import json
import logging
import socket
import time
from dataclasses import replace
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from server import Plan, running

from jax_rele.annotation import calls
from jax_rele.annotation.calls import ask, open_client, retry_after
from jax_rele.annotation.completions import (
    MAX_TEXT,
    ErrorInside,
    Malformed,
    answer_key,
    load_completion,
    prompt_hash,
    read_completion,
    request_body,
    sampling_hash,
    worst_cost,
)
from jax_rele.annotation.endpoints import check, likely_base_url
from jax_rele.annotation.types import Endpoint, Task
from jax_rele.errors import UserError

SCHEMA = {"type": "object", "properties": {"label": {"type": "string"}}}
TASK = Task("p", ({"role": "user", "content": "green tea"},), SCHEMA)
SECRET = "sk-very-secret-1234"


def make(url: str, **fields) -> Endpoint:
    return Endpoint(**{"name": "a", "base_url": url, "model": "m", "timeout": 5.0, **fields})


def asked(endpoint: Endpoint, task: Task = TASK, sample: int = 0):
    async def call():
        async with open_client(endpoint) as client:
            return await ask(client, endpoint, task, sample)

    return asyncio.run(call())


def completion(**message):
    return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3}}


# ---- keys and requests


def test_a_key_changes_with_what_shapes_an_answer_and_with_nothing_else():
    endpoint = make("http://x/v1")

    def key(endpoint=endpoint, task=TASK, sample=0):
        return answer_key(prompt_hash(task), sampling_hash(endpoint), sample)

    others = [
        key(sample=1),
        key(task=replace(TASK, messages=({"role": "user", "content": "green  tea"},))),
        key(task=replace(TASK, schema={})),
        *[
            key(replace(endpoint, **change))
            for change in ({"model": "n"}, {"temperature": 0.0}, {"top_p": 0.5}, {"max_tokens": 7}, {"extra": {"k": 1}})
        ],
    ]
    assert len({key(), *others}) == len(others) + 1
    shared = {"name": "b", "base_url": "http://y", "key_variable": "K", "structured": "none", "concurrency": 1}
    assert key(replace(endpoint, **shared, timeout=1.0, samples=9)) == key()
    assert key(task=replace(TASK, pair_id="q")) == key()


def test_extra_fields_replace_and_null_takes_out():
    endpoint = make("http://x", structured="json_object", extra={"seed": None, "temperature": 0.1, "k": [1]})
    assert request_body(endpoint, TASK, 4) == {
        "model": "m",
        "messages": [{"role": "user", "content": "green tea"}],
        "temperature": 0.1,
        "max_tokens": 1024,
        "response_format": {"type": "json_object"},
        "k": [1],
    }


@given(st.text(), st.integers(1, 99), st.floats(0, 9), st.floats(0, 9))
def test_the_worst_cost_is_no_less_than_any(text, most, price_in, price_out):
    endpoint = make("http://x", max_tokens=most, input_price=price_in, output_price=price_out)
    body = request_body(endpoint, replace(TASK, messages=({"role": "user", "content": text},)), 0)
    # A token of a byte-level vocabulary has a byte at least.
    tokens = len(text.encode(errors="replace"))
    assert worst_cost(endpoint, body) >= (tokens * price_in + most * price_out) / 1e6


# ---- answers


@pytest.mark.parametrize(
    ("message", "reason", "text", "failure"),
    [
        ({"content": "<think>so</think>{}"}, "stop", "<think>so</think>{}", ""),
        ({"content": "{}", "reasoning_content": "so"}, "stop", "{}", ""),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "stop", "ab", ""),
        ({"content": None, "refusal": "no"}, "stop", "no", "refusal"),
        ({"content": "x"}, "content_filter", "x", "refusal"),
        ({"content": "half"}, "length", "half", "length"),
        (
            {"content": None, "reasoning_content": "so"},
            "stop",
            "",
            "empty: no content, and no answer in reasoning_content",
        ),
        ({"content": " \n"}, "stop", " \n", "empty"),
        ({"content": "a\ud800b"}, "stop", "a?b", ""),
    ],
)
def test_an_answer_of_each_kind(message, reason, text, failure):
    value = completion(**message)
    value["choices"][0]["finish_reason"] = reason
    answer = read_completion(value, make("http://x", input_price=2e6), TASK, 1, "k", 99.0)
    assert (answer.text, answer.failure, answer.cost, answer.sample) == (text, failure, 6.0, 1)


def test_what_is_too_long_is_cut_and_marked():
    answer = read_completion(completion(content="x" * (MAX_TEXT + 1)), make("http://x"), TASK, 0, "k", 0.0)
    assert (len(answer.text), answer.failure) == (MAX_TEXT, "length")
    answer = read_completion(completion(content="x" * MAX_TEXT), make("http://x"), TASK, 0, "k", 0.0)
    assert (len(answer.text), answer.failure) == (MAX_TEXT, "")


def test_a_response_that_does_not_end_is_not_read_to_its_end(monkeypatch):
    monkeypatch.setattr(calls, "MAX_BODY", 100_000)
    with running(Plan(rates={"enormous": 1.0}, enormous=300_000)) as server:
        answer = asked(make(server.url, input_price=1.0))
    assert (answer.text, answer.failure) == ("", "length")
    assert answer.cost > 0


NAMES = st.sampled_from(["choices", "message", "content", "refusal", "usage", "prompt_tokens", "finish_reason", "text"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)


@given(JSON | st.builds(lambda choice, usage: {"choices": [choice], "usage": usage}, JSON, JSON))
def test_any_json_is_an_answer_or_malformed(value):
    try:
        answer = read_completion(value, make("http://x"), TASK, 0, "k", 0.0)
    except (Malformed, ErrorInside):
        return
    assert answer.failure or answer.text.strip()


def test_counts_of_other_names_are_read():
    value = completion(content="{}") | {"usage": {"input_tokens": "3", "output_tokens": 4.0}}
    answer = read_completion(value, make("http://x", input_price=1e6, output_price=1e6), TASK, 1, "k", 99.0)
    assert (answer.input_tokens, answer.output_tokens, answer.cost) == (3, 4, 7.0)


def test_an_empty_body_is_named():
    with pytest.raises(Malformed, match="an empty body"):
        load_completion(b" \n")


def test_without_a_usage_the_worst_is_charged():
    value = completion(content="x")
    del value["usage"]
    assert read_completion(value, make("http://x"), TASK, 0, "k", 7.0).cost == 7.0


@pytest.mark.parametrize(("value", "seconds"), [("7", 7), ("0.5", 0.5), ("-3", 0), ("inf", 0), ("soon", 0), ("", 0)])
def test_retry_after_in_seconds(value, seconds):
    assert retry_after({"retry-after": value}) == seconds
    assert retry_after({}) == 0


def test_retry_after_as_a_date():
    assert 58 < retry_after({"retry-after": formatdate(time.time() + 60, usegmt=True)}) <= 60
    assert retry_after({"retry-after": formatdate(time.time() - 60, usegmt=True)}) == 0


# ---- before any cost


@pytest.mark.parametrize(
    ("takes", "form"),
    [(("json_schema", "json_object"), "json_schema"), (("json_object",), "json_object"), ((), "none")],
)
def test_auto_finds_the_form(takes, form):
    with running(Plan(structured=takes)) as server:
        (results,) = check([make(server.url)], SCHEMA)
        assert results == replace(make(server.url), structured=form)
        assert server.charged == 1
        assert asked(results).failure == ""


def refused(*endpoints, within=3.0) -> str:
    started = time.monotonic()
    with pytest.raises(UserError) as error:
        check(endpoints, SCHEMA)
    assert time.monotonic() - started < within
    assert "\n" not in str(error.value)
    assert SECRET not in str(error.value)
    return str(error.value)


def test_a_key_that_is_missing_wrong_or_right(monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    with running(Plan(key=SECRET)) as server:
        endpoint = make(server.url, key_variable="A_KEY")
        monkeypatch.delenv("A_KEY", raising=False)
        assert "the variable A_KEY is not set" in refused(endpoint)
        monkeypatch.setenv("A_KEY", "other")
        assert "refuses the key in A_KEY: 401" in refused(endpoint)
        assert "without key_variable" in refused(replace(endpoint, key_variable=""))
        assert server.charged == 0
        monkeypatch.setenv("A_KEY", SECRET)
        assert len(check([endpoint], SCHEMA)) == 1
    assert SECRET not in caplog.text


def test_the_servers_words_are_told_without_the_key(monkeypatch):
    monkeypatch.setenv("A_KEY", SECRET)
    monkeypatch.setattr("server._error", lambda *_: error(401, f"bad\nkey {SECRET}"))
    from server import _response

    def error(status, message):
        return _response(status, {"error": {"message": message}})

    with running(Plan(key="another")) as server:
        assert refused(make(server.url, key_variable="A_KEY")).endswith("401 bad key ***")


@pytest.mark.parametrize("lists_models", [True, False])
def test_an_unknown_model_before_anything_is_charged(lists_models):
    with (
        running(Plan(models=("tea-large", "soup"), lists_models=lists_models)) as server,
        running(Plan(models=("m",))) as other,
    ):
        words = refused(make(server.url, model="tea-larg"), make(other.url, name="b"))
        assert "does not know the model tea-larg" in words
        assert ("it has tea-large" in words) is lists_models
        assert server.charged == 0
        if lists_models:
            assert other.charged == 0
        assert len(check([make(server.url, model="soup")])) == 1


def test_a_wrong_path_names_what_was_called_and_what_is_probably_right():
    with running(Plan(models=("m",))) as server, running(Plan(models=("m",), lists_models=False)) as hidden:
        for url in (server.url, hidden.url):
            root = url.removesuffix("/v1")
            for base in (root, f"{root}/", f"{url}/v1", f"{url}/chat/completions", f"{url}/models", f"{url}/v1/"):
                words = refused(make(base))
                assert f"there is no {base.rstrip('/')}/chat/completions; base_url is probably {url}: 404" in words
                assert "model" not in words.replace("/models", "")
        assert len(check([make(f"{server.url}/")])) == 1


@pytest.mark.parametrize(
    ("base", "likely"),
    [
        ("http://h:1", "http://h:1/v1"),
        ("http://h/v1/v1/", "http://h/v1"),
        ("https://h/openai", "https://h/openai/v1"),
        ("https://h/v1beta/openai/", ""),
        ("https://h/api/v1/chat/completions?a=1", "https://h/api/v1"),
        ("https://h/api/v1", ""),
        ("https://h/v1/", ""),
    ],
)
def test_the_base_url_that_is_probably_right(base, likely):
    assert likely_base_url(base) == likely


def test_an_endpoint_that_is_down():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "nothing answers at" in refused(make(f"http://127.0.0.1:{port}/v1"))


def test_a_form_that_the_server_rejects():
    with running(Plan(structured=())) as server:
        assert "refuses structured: json_schema" in refused(make(server.url, structured="json_schema"))
        assert server.charged == 0


def test_what_needs_no_server():
    endpoint = make("http://127.0.0.1:1/v1")
    assert "two of this name" in refused(endpoint, replace(endpoint, model="n"))
    assert "same model and parameters as a" in refused(endpoint, replace(endpoint, name="b"))
    assert "structured is 'xml'" in refused(replace(endpoint, structured="xml"))
    assert "base_url must be like" in refused(replace(endpoint, base_url="localhost:80"))
    for url in (
        "http://h:abc/v1",
        "http://h:-1/v1",
        "http://[::1/v1",
        "http://h/v1\n",
        "http://h\u200b/v1",
        "http://h:99999/",
    ):
        assert "base_url must be like" in refused(replace(endpoint, base_url=url)), url
    assert "holds a password" in refused(replace(endpoint, base_url=f"http://u:{SECRET}@h/v1"))


def test_a_server_that_is_busy_for_a_moment_passes():
    with running(Plan(rates={"429_after": 1.0}, spared=1)) as server:
        assert check([make(server.url)])[0].structured == "json_schema"
        assert server.calls == 2


def test_the_request_is_one_that_the_server_gets_whole():
    heard = []

    def answer(messages, model, sample):
        heard.append((messages, model, sample))
        return json.dumps({"label": "茶"}, ensure_ascii=False)

    with running(answer=answer) as server:
        answer = asked(make(server.url), sample=5)
    assert json.loads(answer.text) == {"label": "茶"}
    assert heard == [([{"role": "user", "content": "green tea"}], "m", 5)]
    assert (answer.input_tokens, answer.output_tokens) == (server.input_tokens, server.output_tokens)


@pytest.mark.parametrize("key", ["sk-\u201cabc\u201d", "\u0441k-abc", "sk-a\rb"])
def test_a_key_that_no_header_can_hold_is_told_by_its_variable(monkeypatch, key):
    monkeypatch.setenv("A_KEY", key)
    message = refused(make("http://127.0.0.1:1/v1", key_variable="A_KEY"))
    assert "the variable A_KEY holds what no key has" in message
    assert "abc" not in message


def test_the_query_of_an_address_is_not_quoted():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        message = refused(make(f"http://127.0.0.1:{free.getsockname()[1]}/v1?key={SECRET}"))
    assert "nothing answers at http://127.0.0.1" in message
    assert SECRET not in message


def test_a_first_response_without_an_end_is_one_line(monkeypatch, reply):
    monkeypatch.setattr(calls, "MAX_BODY", 64)
    reply({"choices": [{"message": {"content": "x" * 1000}}]})
    with running() as server:
        assert "more than" in refused(make(server.url, structured="none"))
