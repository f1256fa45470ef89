"""Grades that people give are pairs that a run reads."""

import json

import pytest

from jax_rele.data import read_pairs
from jax_rele.errors import UserError
from jax_rele.serving.grades import GradeFile
from jax_rele.serving.refusals import BadRequest

LABELS = ("Exact", "Substitute", "Irrelevant")
ITEM = {"id": "i1", "title": "Läufer <b>rot</b>\u2028", "brand": "Acme", "attributes": {"size": "9"}}


def test_every_row_is_a_pair_of_a_run(serving):
    client, service = serving()
    judged = [("ann", "red shoes", "red-0", "Exact"), ("bob", "red shoes", "red-0", "Irrelevant")]
    judged += [("ann", "red shoes", "blue-1", "Substitute"), ("cy", "garden hose", "red-2", "Exact")]
    items = {item["id"]: item for item in client.post("/compare", json={"query": "red", "k": 100}).json()["items"]}
    for judge, query, key, label in judged:
        body = {"judge": judge, "query": query, "item": items[key], "label": label}
        assert client.post("/judgements", json=body).status_code == 200
    path = service.grades.path
    pairs, bad = read_pairs(str(path), label_names=LABELS)
    assert not bad
    assert [(pair.query, pair.item.id, pair.label) for pair in pairs] == [row[1:] for row in judged]
    assert [pair.item.title for pair in pairs] == [items[row[2]]["title"] for row in judged]
    assert len({pair.pair_id for pair in pairs}) == len(pairs)
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [row["judge"] for row in rows] == [row[0] for row in judged]
    assert client.get("/judgements", params={"judge": "ann"}).json() == [rows[0], rows[2]]
    assert client.get("/judgements").json() == rows


def test_a_second_grade_replaces_and_none_takes_back(tmp_path):
    path = tmp_path / "grades.jsonl"
    grades = GradeFile(path, LABELS)
    assert not path.exists()
    for label in ("Exact", "Irrelevant"):
        grades.add("ann", "q", ITEM, label)
    grades.add("bob", "q", ITEM, "Exact")
    assert [(row["judge"], row["label"]) for row in grades.rows()] == [("ann", "Irrelevant"), ("bob", "Exact")]
    grades.add("ann", "q", ITEM, None)
    grades.add("ann", "other", ITEM, None)
    grades.close()
    again = GradeFile(path, LABELS)
    assert [(row["judge"], row["item"]) for row in again.rows()] == [("bob", ITEM)]
    assert read_pairs(str(path), label_names=LABELS)[0][0].item.title == ITEM["title"].strip()
    with pytest.raises(BadRequest, match="Exact, Substitute"):
        again.add("ann", "q", ITEM, "Good")
    again.close()


def test_one_service_at_a_time_and_no_other_file(tmp_path):
    path = tmp_path / "grades.jsonl"
    first = GradeFile(path, LABELS)
    with pytest.raises(UserError, match="another service"):
        GradeFile(path, LABELS)
    first.close()
    for content in (
        '{"a": 1}\n',
        "[]\n",
        '{"pair_id": "p", "query": "q", "item": {"title": "t"}, "label": "Good"}\n',
        "{",
    ):
        path.write_text(content)
        with pytest.raises(UserError, match="row 1"):
            GradeFile(path, LABELS)
        assert path.read_text() == content
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match="UTF-8"):
        GradeFile(path, LABELS)


def test_without_a_file_grades_are_refused(serving):
    client, service = serving()
    service.grades = None
    answer = client.post("/judgements", json={"judge": "ann", "query": "a", "item": {"title": "b"}, "label": "Exact"})
    assert (answer.status_code, answer.json()["error_type"]) == (404, "no_judgements")
    assert client.get("/judgements").json() == []
    assert client.get("/page").json()["keeps_grades"] is False
