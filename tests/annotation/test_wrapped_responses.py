"""Completions and errors as gateways wrap them in a response of status 200."""

import json

import pytest
from server import running

from jax_rele.annotation.completions import ErrorInside, Malformed, load_completion, read_completion
from jax_rele.annotation.endpoints import check
from jax_rele.annotation.types import Endpoint, Task
from jax_rele.errors import UserError

SCHEMA = {"type": "object", "required": ["label"]}
TASK = Task("p", ({"role": "user", "content": "green tea"},), SCHEMA)
TEXT = json.dumps({"label": "Exact"})


def make(url="http://x/v1"):
    return Endpoint("a", url, "m", structured="none", timeout=5.0)


def whole(message):
    choice = {"message": message, "finish_reason": "stop"}
    return {"choices": [choice], "usage": {"prompt_tokens": 500, "completion_tokens": 100}}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: {"code": 0, "message": "success", "data": inner},
        lambda inner: {"success": True, "errors": [], "result": inner},
        lambda inner: {"code": "200", "msg": "ok", "result": inner},
        lambda inner: {"Response": inner},
        lambda inner: {"output": {"choices": inner["choices"]}, "usage": inner["usage"], "request_id": "1"},
        lambda inner: {"status": "ok", "data": inner, "choices": None},
        lambda inner: {**inner, "base_resp": {"status_code": 0, "status_msg": "success"}},
    ],
)
def test_a_completion_that_a_gateway_wraps_is_read(reply, wrap):
    body = wrap(whole({"role": "assistant", "content": TEXT}))
    answer = read_completion(body, make(), TASK, 0, "k", 7.0)
    assert (answer.text, answer.failure, answer.input_tokens, answer.output_tokens) == (TEXT, "", 500, 100)
    reply(body)
    with running() as server:
        check([make(server.url)], SCHEMA)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            {"base_resp": {"status_code": 1004, "status_msg": "login fail: no key"}, "choices": None},
            "login fail: no key",
        ),
        ({"base_resp": {"status_code": 1008, "status_msg": "no balance"}, "choices": []}, "no balance"),
        ({"base_resp": {"status_code": 2013, "status_msg": "bad"}, "choices": [{"message": {"content": ""}}]}, "bad"),
        ({"code": 401, "message": "token expired"}, "token expired"),
        ({"code": 500, "msg": "too busy", "data": None}, "too busy"),
        ({"error_code": 17, "error_msg": "daily limit reached"}, "daily limit reached"),
        ({"errorCode": 17, "errorMessage": "daily limit"}, "daily limit"),
        ({"errcode": 40001, "errmsg": "invalid credential"}, "invalid credential"),
        ({"status": "error", "message": "quota exceeded"}, "quota exceeded"),
        ({"success": False, "errors": [{"code": 10000, "message": "Authentication error"}], "result": None}, "Authent"),
        ({"Response": {"Error": {"Code": "AuthFailure", "Message": "signature expired"}}}, "signature expired"),
        ({"header": {"code": 10013, "message": "input is refused"}}, "input is refused"),
        ({"fault": {"faultstring": "Invalid ApiKey"}}, "Invalid ApiKey"),
        ({"code": 1, "message": "failed", "data": {"choices": []}}, "failed"),
        ({"error": "model is loading", "choices": []}, "model is loading"),
    ],
)
def test_an_error_inside_a_success_is_quoted(reply, body, words):
    with pytest.raises(ErrorInside, match=words):
        read_completion(body, make(), TASK, 0, "k", 7.0)
    reply(body)
    with running() as server, pytest.raises(UserError, match=words) as error:
        check([make(server.url)], SCHEMA)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "body",
    [
        {"code": 0, "message": "success", "data": None},
        {"code": 0, "msg": "ok", "data": {"text": "hello"}},
        {"data": [{"embedding": [0.1]}], "object": "list"},
        {"model": "m", "message": {"role": "assistant", "content": "hi"}, "done": True},
        {"result": "hi", "id": "1"},
    ],
)
def test_other_shapes_are_no_errors(body):
    with pytest.raises(Malformed, match="no chat completion, begins with"):
        read_completion(body, make(), TASK, 0, "k", 7.0)


def test_the_code_of_an_error_counts_wherever_it_stands():
    for body in ({"code": 401, "message": "no"}, {"header": {"code": "401", "message": "no"}}):
        with pytest.raises(ErrorInside) as error:
            read_completion(body, make(), TASK, 0, "k", 7.0)
        assert error.value.code == 401


@pytest.mark.parametrize(
    ("body", "words", "code"),
    [
        ({"code": 1008, "message": "insufficient balance", **whole({"content": ""})}, "insufficient balance", 0),
        ({"code": 500, "message": "quota exceeded", "data": whole({"content": ""})}, "quota exceeded", 500),
        ({"status": 1, "msg": "no such model", "data": whole({"content": None})}, "no such model", 0),
        ({"success": False, "errors": [{"message": "too long"}], "result": whole({"content": ""})}, "too long", 0),
        ({"status": "failed", "detail": "overloaded", **whole({"content": " "})}, "overloaded", 0),
        ({"code": "9" * 5000, "success": False, "msg": "no", **whole({"content": ""})}, "no", 0),
    ],
)
def test_an_error_beside_an_empty_message_is_the_answer(body, words, code):
    with pytest.raises(ErrorInside, match=words) as error:
        read_completion(body, make(), TASK, 0, "k", 7.0)
    assert error.value.code == code


@pytest.mark.parametrize("fields", [{"code": 0}, {"status": "completed"}, {"code": "200"}, {"success": True}])
def test_an_empty_message_without_an_error_stays_an_empty_answer(fields):
    assert read_completion({**fields, **whole({"content": ""})}, make(), TASK, 0, "k", 7.0).failure == "empty"


def test_half_a_message_of_a_model_that_died_is_no_answer():
    choice = {"error": {"message": "Upstream died", "code": 502}, "finish_reason": "error"}
    body = {"choices": [{**choice, "message": {"content": '{"label": "Exact"'}}]}
    with pytest.raises(ErrorInside, match="Upstream died") as error:
        read_completion(body, make(), TASK, 0, "k", 7.0)
    assert error.value.code == 502


@pytest.mark.parametrize("depth", [400, 800, 2000])
def test_objects_without_an_end_are_malformed(depth):
    body = '{"data":' * depth + "{}" + "}" * depth
    with pytest.raises(Malformed, match="begins with"):
        load_completion(body.encode())
