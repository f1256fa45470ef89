"""Batch files: requests for what has no answer, results in any order and state."""

import json
import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from server import Plan, Server, echo, running

from jax_rele.annotation.batch_files import read_results, write_requests
from jax_rele.annotation.runner import collect
from jax_rele.annotation.store import Store
from jax_rele.annotation.types import Endpoint, Task
from jax_rele.errors import UserError

TASKS = [
    Task(f"p{number}", ({"role": "user", "content": f"query {number}"},), {"type": "object"}) for number in range(6)
]
ENDPOINT = Endpoint("a", "http://x/v1", "m", samples=3, structured="json_schema", input_price=1.0, output_price=2.0)


def run_batch(files, rng, rates=()) -> tuple[list[str], list[str]]:
    """(results, errors), as a provider writes them: each in an order of its own."""
    server = Server(Plan(rates=dict(rates)), echo)
    results, errors = [], []
    for file in files:
        for line in file.read_text().splitlines():
            request = json.loads(line)
            assert (request["method"], request["url"]) == ("POST", "/v1/chat/completions")
            body = json.dumps(request["body"]).encode()
            _, response, _ = server.handle("POST /v1/chat/completions HTTP/1.1", {}, body)
            head, _, content = response.partition(b"\r\n\r\n")
            status = int(head.split()[1])
            response = {"status_code": status, "request_id": "r", "body": json.loads(content)}
            row = {"id": "b", "custom_id": request["custom_id"], "response": response, "error": None}
            (results if status == 200 else errors).append(json.dumps(row))
    rng.shuffle(results)
    rng.shuffle(errors)
    return results, errors


def test_a_batch_brings_what_calls_bring(tmp_path):
    with running() as server, Store(tmp_path / "batch") as store:
        direct = replace(ENDPOINT, base_url=server.url)
        heard = {}
        collect(TASKS, [direct], tmp_path / "calls", on_answer=lambda answer: heard.update({answer.key: answer}))
        files = write_requests(TASKS, ENDPOINT, tmp_path / "requests.jsonl", store)
        (tmp_path / "out.jsonl").write_text("\n".join(run_batch(files, random.Random(0))[0]))
        outcome = read_results([tmp_path / "out.jsonl"], TASKS, [ENDPOINT], store)
        assert (outcome.stored, outcome.known, outcome.unknown, outcome.damaged, outcome.failed) == (18, 0, 0, 0, {})
        assert {key: store.get(key) for key in heard} == {key: replace(one, seconds=0.0) for key, one in heard.items()}
        assert write_requests(TASKS, ENDPOINT, tmp_path / "more.jsonl", store) == []


@given(st.integers(1, 20), st.integers(400, 2000))
def test_files_keep_to_their_limits_and_hold_each_request_once(tmp_path_factory, most, size):
    folder = tmp_path_factory.mktemp("batch")
    with Store(folder / "store") as store:
        files = write_requests(
            [*TASKS, TASKS[0]], ENDPOINT, folder / "r.jsonl", store, max_requests=most, max_bytes=size
        )
    lines = [file.read_bytes().splitlines(keepends=True) for file in files]
    assert all(0 < len(part) <= most and len(b"".join(part)) <= size for part in lines)
    # No file could have taken the next one's first line.
    for part, following in pairwise(lines):
        assert len(part) == most or len(b"".join(part)) + len(following[0]) > size
    ids = [json.loads(line)["custom_id"] for part in lines for line in part]
    assert len(ids) == len(set(ids)) == 18


def test_results_of_every_kind_are_counted_and_named(tmp_path):
    with Store(tmp_path / "store") as store:
        files = write_requests(TASKS, ENDPOINT, tmp_path / "r.jsonl", store)
        results, _ = run_batch(files, random.Random(1))
        rows = [json.loads(line) for line in results]
        rows[0]["response"] = {"status_code": 400, "body": {"error": {"message": "too long"}}}
        rows[1]["response"]["status_code"] = 500
        rows[2] |= {
            "response": None,
            "error": {"code": "batch_expired", "message": "This request could not be executed."},
        }
        rows[3]["response"]["body"] = {"choices": []}
        lines = [json.dumps(row) for row in rows]
        lines += [
            json.dumps({**rows[4], "custom_id": "another"}),
            lines[5],
            "",
            '{"custom_id": "tor',
            "[]",
            '"x"',
            "{}",
        ]
        (tmp_path / "out.jsonl").write_text("\n".join(lines))
        outcome = read_results([tmp_path / "out.jsonl"], TASKS, [ENDPOINT], store)
        assert (outcome.stored, outcome.known, outcome.unknown, outcome.damaged) == (15, 1, 1, 5)
        assert outcome.failed == {"500": 1, "batch_expired": 1}
        assert outcome.names["unknown"] == [f"{tmp_path}/out.jsonl:19 another"]
        assert outcome.names["damaged"] == [f"{tmp_path}/out.jsonl:{line}" for line in (4, 22, 23, 24, 25)]
        assert store.get(rows[0]["custom_id"]).failure == "rejected: 400 too long"

        left = write_requests(TASKS, ENDPOINT, tmp_path / "left.jsonl", store)
        ids = {json.loads(line)["custom_id"] for file in left for line in file.read_text().splitlines()}
        assert ids == {rows[number]["custom_id"] for number in (1, 2, 3)}


def test_requests_that_may_have_been_sent_are_not_written_over(tmp_path):
    with Store(tmp_path / "store") as store:
        write_requests(TASKS, ENDPOINT, tmp_path / "r.jsonl", store)
        with pytest.raises(UserError, match=r"r-001\.jsonl: is there already"):
            write_requests(TASKS, ENDPOINT, tmp_path / "r.jsonl", store)
        with pytest.raises(UserError, match="pair p0 is larger"):
            write_requests(TASKS, ENDPOINT, tmp_path / "s.jsonl", store, max_bytes=100)
        with pytest.raises(UserError, match=r"none\.jsonl: cannot be read"):
            read_results([tmp_path / "none.jsonl"], TASKS, [ENDPOINT], store)
