"""What a chat server may answer, with status 200 and others: read where it can be, else quoted and free of charge."""

import json
from dataclasses import replace

import pytest
from server import running

from jax_rele.annotation.answers import read, read_answer
from jax_rele.annotation.calls import fault_of
from jax_rele.annotation.completions import ErrorInside, Malformed, read_completion, words_of_error
from jax_rele.annotation.endpoints import check
from jax_rele.annotation.runner import collect
from jax_rele.annotation.types import Endpoint, Task
from jax_rele.errors import UserError

DIMENSIONS, LABELS = ("category", "color"), ("Exact", "Irrelevant")
SCHEMA = {"type": "object", "required": ["query_attributes", "item_attributes", "verdicts", "label"]}
TASK = Task("p", ({"role": "user", "content": "green tea"},), SCHEMA)
ANSWER = {
    "query_attributes": {"category": ["tea"], "color": ["green"]},
    "item_attributes": {"category": ["tea"], "color": []},
    "verdicts": {"category": "match", "color": "absent"},
    "label": "Exact",
}
TEXT = json.dumps(ANSWER)
USAGE = {"prompt_tokens": 500, "completion_tokens": 100}


def make(url="http://x/v1", **fields):
    fields = {"input_price": 1.0, "output_price": 10.0, "structured": "none", "timeout": 5.0, **fields}
    return Endpoint("a", url, "m", **fields)


def whole(message, reason="stop", usage=USAGE, **more):
    return {"choices": [{"message": message, "finish_reason": reason, **more}], "usage": usage}


def read_message(message, reason="stop", usage=USAGE, worst=7.0):
    return read_completion(whole(message, reason, usage), make(), TASK, 0, "k", worst)


def rationale(answer):
    return read(answer, DIMENSIONS, LABELS)


CHUNK = {"choices": [{"delta": {"content": "x"}}]}
NO_COMPLETIONS = {
    "error": ({"error": {"message": "Provider returned error", "code": 502}}, "Provider returned error"),
    "error as text": ({"error": "model is loading"}, "model is loading"),
    "error in a choice": (
        {"choices": [{"error": {"message": "upstream timed out", "code": 504}}]},
        "upstream timed out",
    ),
    "error beside an empty message": (
        {"error": {"message": "quota gone", "code": 402}, "choices": [{"message": {"content": ""}}]},
        "quota gone",
    ),
    "error beside a message without text": (
        {"error": {"message": "quota gone"}, "choices": [{"message": {"role": "assistant", "content": None}}]},
        "quota gone",
    ),
    "error in a choice with an empty message": (
        {"choices": [{"error": {"message": "upstream died", "code": 502}, "message": {"content": ""}}]},
        "upstream died",
    ),
    "finish_reason error": (
        {"choices": [{"finish_reason": "error", "message": {"content": ""}}]},
        "finish_reason error",
    ),
    "error beside null": ({"choices": None, "error": {"message": "no capacity", "code": 429}}, "no capacity"),
    "error of a provider": (
        {"error": {"message": "Provider error", "metadata": {"raw": "quota of tenant used up"}}},
        "quota of tenant used up",
    ),
    "detail": ({"detail": "Not authenticated"}, "Not authenticated"),
    "errors": ({"errors": [{"message": "quota used up"}]}, "quota used up"),
    "error_msg": ({"error_code": 17, "error_msg": "daily limit reached"}, "daily limit reached"),
    "a page": (b"<html><title>Sign in</title></html>", "<html><title>Sign in"),
    "a page after blanks": (b"\n\n <!DOCTYPE html>", "<!DOCTYPE html>"),
    "a stream": (f"data: {json.dumps(CHUNK)}\n\ndata: [DONE]\n\n".encode(), "the server streams its answer"),
    "lines": (b'{"message": {"content": "a"}, "done": false}\n{"done": true}\n', "not JSON, begins with"),
    "another API": ({"message": {"role": "assistant", "content": TEXT}, "done": True}, '{"message": {"role"'),
    "null choices": ({"id": "x", "choices": None}, "`choices` is empty"),
    "no choices": ({"choices": []}, "`choices` is empty"),
    "no message": ({"choices": [{"text": TEXT}]}, "a completion without a chat message"),
    "a list": ([1, 2], "not a JSON object"),
    "a text": (b"upstream connect error", "upstream connect error"),
    "nothing": (b"", "not JSON"),
    "latin-1": (b"caf\xe9", "caf"),
}


@pytest.mark.parametrize("name", NO_COMPLETIONS)
def test_an_endpoint_that_sends_no_completion_is_refused_with_its_words(reply, name):
    body, words = NO_COMPLETIONS[name]
    reply(body)
    with running() as server, pytest.raises(UserError) as error:
        check([make(server.url)])
    assert words in str(error.value)
    assert "endpoint a" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", NO_COMPLETIONS)
def test_what_is_no_completion_costs_nothing_and_is_quoted(reply, tmp_path, name):
    body, words = NO_COMPLETIONS[name]
    reply(body)
    tasks = [replace(TASK, pair_id=f"p{i}", messages=({"role": "user", "content": str(i)},)) for i in range(3)]
    with running() as server:
        summary = collect(tasks, [make(server.url)], tmp_path, budget=0.03, max_attempts=2)
    assert (summary.cost, summary.stored, summary.pending) == (0.0, 0, 3)
    assert summary.stopped != "budget"
    assert words in f"{summary.by_endpoint['a']['last_fault']} {summary.by_endpoint['a']['down']}"


def test_tokens_that_a_server_counts_for_no_answer_are_charged_as_counted(reply, tmp_path):
    reply({"choices": [], "usage": USAGE})
    with running() as server:
        summary = collect([TASK], [make(server.url)], tmp_path, max_attempts=2)
    assert summary.cost == pytest.approx(2 * (500 + 100 * 10) / 1e6)


def test_an_error_inside_that_is_final_ends_the_endpoint(reply, tmp_path):
    reply({"error": {"message": "no credit", "code": 402}})
    with running() as server:
        summary = collect([TASK], [make(server.url)], tmp_path)
        assert server.calls == 1
    assert summary.by_endpoint["a"]["down"] == "402 no credit"


def test_a_key_in_the_words_of_a_page_is_hidden(reply, monkeypatch):
    monkeypatch.setenv("A_KEY", "sk-secret-99")
    reply(b"<html>Bearer sk-secret-99</html>")
    with running() as server, pytest.raises(UserError) as error:
        check([make(server.url, key_variable="A_KEY")])
    assert "***" in str(error.value)
    assert "sk-secret-99" not in str(error.value)


REFUSALS = [
    (
        {"error": "Input validation error: `top_p` must be > 0.0 and < 1.0", "error_type": "validation"},
        "`top_p` must be",
    ),
    ({"detail": [{"loc": ["body", "seed"], "msg": "extra fields not permitted"}]}, "body.seed: extra fields not"),
    ({"detail": "Method not allowed here"}, "Method not allowed here"),
    ({"message": "unknown field seed"}, "unknown field seed"),
    ({"object": "error", "message": "too long", "code": 40303}, "too long"),
    ({"errors": [{"message": "first"}, {"message": "second"}]}, "first; second"),
    ({"error": {"error": {"message": "nested"}}}, "nested"),
    (b"plain words", "plain words"),
    (b"<html>gateway</html>", "<html>gateway</html>"),
    ({"something": "else"}, '{"something": "else"}'),
]


@pytest.mark.parametrize(("body", "words"), REFUSALS)
def test_the_words_of_a_refusal_are_quoted_whatever_their_form(reply, body, words):
    reply(body, status=422)
    with running() as server:
        with pytest.raises(UserError, match="422") as error:
            check([make(server.url)])
        assert words in str(error.value)


@pytest.mark.parametrize("name", ["seed", "max_tokens", "temperature"])
def test_a_parameter_that_the_server_refuses_is_named_with_the_way_to_leave_it_out(reply, name):
    reply({"error": {"message": f"Unsupported parameter: '{name}'"}}, 400, refused=lambda request: name in request)
    with running() as server:
        with pytest.raises(UserError, match=rf"leave {name} out with extra: {{{name}: null"):
            check([make(server.url)])
        extra = {name: None, **({"max_completion_tokens": 64} if name == "max_tokens" else {})}
        assert check([make(server.url, extra=extra)])


def test_a_server_that_takes_no_top_p_of_one_works(reply):
    reply({"error": "`top_p` must be < 1.0"}, 422, refused=lambda request: not 0 < request.get("top_p", 0.5) < 1)
    with running() as server:
        assert check([make(server.url)])
        with pytest.raises(UserError, match="leave top_p out"):
            check([make(server.url, extra={"top_p": 1.0})])


def test_auto_goes_on_where_an_error_inside_refuses_a_form(reply):
    reply(
        {"error": {"message": "no response_format", "code": 400}}, refused=lambda request: "response_format" in request
    )
    with running() as server:
        assert check([make(server.url, structured="auto")])[0].structured == "none"


@pytest.mark.parametrize(
    "message",
    [
        {"content": None, "reasoning_content": TEXT},
        {"content": "", "reasoning": f"We compare. {TEXT}"},
        {"content": None, "thinking": TEXT},
        {"content": None, "tool_calls": [{"type": "function", "function": {"name": "answer", "arguments": TEXT}}]},
        {"content": None, "tool_calls": [{"function": {"name": "answer", "arguments": ANSWER}}]},
        {"content": "", "function_call": {"name": "answer", "arguments": TEXT}},
        {"content": " ", "tool_calls": [{"function": {"arguments": '{"q": 1}'}}], "reasoning_content": TEXT},
        {"content": ANSWER},
        {"content": json.dumps(TEXT)},
        {"content": None, "parsed": ANSWER},
        {"content": None, "tool_calls": [{"function": {"arguments": json.dumps(TEXT)}}]},
        {"content": [TEXT[:20], {"type": "text", "text": TEXT[20:]}]},
        {"content": [{"type": "thinking", "thinking": [{"text": "hm"}]}, {"type": "text", "text": {"value": TEXT}}]},
        {"content": TEXT, "reasoning_content": json.dumps({**ANSWER, "label": "Irrelevant"})},
    ],
)
def test_the_answer_is_read_where_the_server_puts_it(message):
    answer = read_message({"role": "assistant", **message})
    assert answer.failure == ""
    assert rationale(answer) == read_answer(TEXT, DIMENSIONS, LABELS)
    assert answer.cost == pytest.approx((500 + 1000) / 1e6)


NOWHERE = "empty: no content, and no answer in"


@pytest.mark.parametrize(
    ("message", "reason", "failure"),
    [
        ({"content": None, "reasoning_content": "hm"}, "stop", f"{NOWHERE} reasoning_content"),
        ({"content": None, "tool_calls": [{"function": {"arguments": "{}"}}]}, "stop", f"{NOWHERE} tool_calls"),
        ({"content": "", "reasoning": "thinking"}, "length", "length: reasoning took all of max_tokens"),
        ({"content": None}, "stop", "empty"),
        ({"content": 5, "tool_calls": "x", "function_call": [1]}, "stop", "empty"),
    ],
)  # fmt: skip
def test_an_answer_that_is_nowhere_says_where_there_is_other_text(message, reason, failure):
    answer = read_message(message, reason)
    assert answer.failure == failure
    kind, _, detail = failure.partition(": ")
    read_kind = "truncated" if kind == "length" else kind
    assert (rationale(answer).kind, rationale(answer).detail) == (read_kind, detail)


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": "500", "completion_tokens": 100.0}, (500, 100)),
        ({"prompt_tokens": {"text": 5}, "completion_tokens": 100}, (0, 100)),
        ({"prompt_tokens": -1, "completion_tokens": float("nan")}, (0, 0)),
        ({"prompt_tokens": True, "completion_tokens": float("inf")}, (0, 0)),
        ([1, 2], (0, 0)),
        ("none", (0, 0)),
        (None, (0, 0)),
    ],
)
def test_a_broken_usage_costs_no_answer(usage, tokens):
    answer = read_message({"content": TEXT}, usage=usage)
    assert (answer.text, answer.failure) == (TEXT, "")
    assert (answer.input_tokens, answer.output_tokens) == tokens
    assert answer.cost == (pytest.approx((tokens[0] + 10 * tokens[1]) / 1e6) if any(tokens) else 7.0)


FINAL = "<|start|>assistant<|channel|>final"
OTHER = json.dumps({**ANSWER, "label": "Irrelevant"})


@pytest.mark.parametrize(
    "text",
    [
        f"<|channel|>analysis<|message|>maybe {OTHER}<|end|>{FINAL}<|message|>{TEXT}",
        f"<|channel|>analysis<|message|>{OTHER}<|end|>{FINAL} <|constrain|>json<|message|>{TEXT}<|return|>",
        f"<|channel|>commentary<|message|>{OTHER}<|call|>{FINAL}<|message|>```json\n{TEXT}\n```<|return|>",
        f"analysisWe need {OTHER}assistantfinal{TEXT}",
        f"<think>maybe {OTHER} no</think>{TEXT}",
        f"<thought>{OTHER}</thought>\n{TEXT}",
        f"[THINK]{OTHER}[/THINK]{TEXT}",
        f"<seed:think>{OTHER}</seed:think>{TEXT}",
        f"\u25c1think\u25b7{OTHER}\u25c1/think\u25b7{TEXT}",
        f"<|begin_of_thought|>{OTHER}<|end_of_thought|><|begin_of_solution|>{TEXT}<|end_of_solution|>",
        f"{TEXT}<|im_end|>",
        f"\ufeff{TEXT}",
    ],
)  # fmt: skip
def test_the_final_channel_counts_and_thoughts_do_not(text):
    assert read_answer(text, DIMENSIONS, LABELS) == read_answer(TEXT, DIMENSIONS, LABELS)


def test_an_answer_that_ends_before_its_final_channel_is_truncated():
    failure = read_answer(f"<|channel|>analysis<|message|>maybe {OTHER}", DIMENSIONS, LABELS)
    assert (failure.kind, failure.detail) == ("truncated", "ends in its thoughts")


@pytest.mark.parametrize(
    ("written", "labels", "label"),
    [
        (1, ("0", "1", "3"), "1"),
        (3.0, ("0", "1", "3"), "3"),
        (0, ("0", "1"), "0"),
        (0.5, ("0.5", "1"), "0.5"),
        (True, ("true", "false"), "true"),
        (False, ("True", "False"), "False"),
        ([3], ("0", "3"), "3"),
    ],
)
def test_numbers_and_truth_values_are_labels_where_labels_are_such(written, labels, label):
    assert read_answer(json.dumps({**ANSWER, "label": written}), DIMENSIONS, labels).label == label


@pytest.mark.parametrize("written", [1, True, None, {"a": 1}])
def test_other_values_are_no_labels(written):
    failure = read_answer(json.dumps({**ANSWER, "label": written}), DIMENSIONS, LABELS)
    assert failure.kind in ("unknown_label", "wrong_schema")


def test_words_of_an_error_are_short_and_on_one_line():
    words = words_of_error({"error": {"message": "a\nb " + "x" * 1000}})
    assert words.startswith("a b x")
    assert len(words) <= 200
    assert words_of_error({}) == words_of_error(None) == ""


def test_faults_of_bodies():
    endpoint = make()
    assert fault_of(Malformed("m"), endpoint).charged is False
    assert fault_of(Malformed("m", charged=True), endpoint).cost is None
    fault = fault_of(ErrorInside("busy", 429), endpoint)
    assert (fault.reason, fault.charged, fault.detail, fault.fatal) == ("429", False, "busy", "")


@pytest.mark.parametrize("content", ["", "I will call the tool."])
def test_the_call_that_holds_the_answer_is_read_whatever_stands_beside_it(content):
    calls = [
        {"function": {"name": "search", "arguments": '{"q": "tea"}'}},
        {"function": {"name": "answer", "arguments": TEXT}},
    ]
    answer = read_message({"content": content, "tool_calls": calls})
    assert (answer.text, answer.failure) == (TEXT, "")


def test_an_answer_in_the_content_counts_more_than_a_call():
    calls = [{"function": {"name": "search", "arguments": '{"q": "tea"}'}}]
    assert read_message({"content": TEXT, "tool_calls": calls}).text == TEXT
    assert read_message({"content": "label: Exact", "tool_calls": calls}).text == "label: Exact"


CALL = {"function": {"name": "answer", "arguments": json.dumps({"answer": ANSWER})}}
CHANNEL = "<|channel|>analysis<|message|>Tea.<|end|><|start|>assistant<|channel|>commentary to=functions.answer "


@pytest.mark.parametrize(
    "message",
    [
        {"content": None, "tool_calls": [CALL]},
        {"content": f"{CHANNEL}<|constrain|>json<|message|>{TEXT}<|call|>"},
    ],
)
def test_an_answer_is_read_wherever_a_server_puts_it(message):
    answer = read_message(message)
    assert read(answer, DIMENSIONS, LABELS).label == "Exact"


def test_of_several_choices_the_one_that_answers_counts():
    empty, good = ({"message": {"content": text}, "finish_reason": "stop"} for text in ("", TEXT))
    for choices in ([empty, good], [good, empty]):
        answer = read_completion({"choices": choices, "usage": USAGE}, make(), TASK, 0, "k", 7.0)
        assert (answer.text, answer.failure) == (TEXT, "")


def test_an_error_beside_thoughts_alone_is_an_error(tmp_path):
    message = {"content": None, "reasoning_content": "First I look at the brand"}
    body = {**whole(message, reason=None), "error": {"message": "upstream timeout", "code": 504}}
    with pytest.raises(ErrorInside, match="upstream timeout") as error:
        read_completion(body, make(), TASK, 0, "k", 7.0)
    fault = fault_of(error.value, make())
    assert (fault.reason, fault.charged) == ("504", False)


@pytest.mark.parametrize("message", ["hello", ["hello"], 3, None])
def test_a_message_of_another_form_is_malformed_or_gives_way_to_the_next_choice(message):
    odd, good = {"message": message}, {"message": {"content": TEXT}, "finish_reason": "stop"}
    with pytest.raises(Malformed):
        read_completion({"choices": [odd]}, make(), TASK, 0, "k", 7.0)
    assert read_completion({"choices": [odd, good]}, make(), TASK, 0, "k", 7.0).text == TEXT
