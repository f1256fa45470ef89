"""Answers on disk: whole, found again, the same whoever wrote them, and shared by workers."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_rele.annotation.budget import WorkerBudget
from jax_rele.annotation.store import Store
from jax_rele.annotation.types import ModelAnswer
from jax_rele.errors import UserError

TEXTS = st.text(max_size=20)


def answer(key: int = 0, text: str = "t", **fields) -> ModelAnswer:
    return ModelAnswer("p", "a", 0, 0, f"{key:032x}", text, **fields)


ANSWERS = st.builds(answer, st.integers(0, 4), TEXTS, failure=st.sampled_from(["", "length"]), cost=st.integers(0, 9))


@given(st.lists(ANSWERS))
def test_what_is_added_is_found_by_any_store(tmp_path_factory, answers):
    folder = tmp_path_factory.mktemp("store")
    with Store(folder) as store, Store(folder) as beside:
        for one in answers:
            store.add(one)
        beside.refresh()
        with Store(folder) as after:
            for reader in (store, beside, after):
                assert len(reader) == len({one.key for one in answers})
                for one in answers:
                    same = [other for other in answers if other.key == one.key]
                    first = min(same, key=lambda other: (other.failure, other.text))
                    assert reader.get(one.key) == replace(first, cost=sum(other.cost for other in same))


@settings(max_examples=30)
@given(st.lists(ANSWERS, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_which_of_two_answers_counts_does_not_depend_on_who_wrote_when(tmp_path_factory, answers, rng):
    stored_answers = []
    for _ in range(2):
        folder = tmp_path_factory.mktemp("store")
        for one in rng.sample(answers, len(answers)):
            with Store(folder) as store:
                store.add(one)
        with Store(folder) as store:
            stored_answers.append({one.key: store.get(one.key) for one in answers})
    assert stored_answers[0] == stored_answers[1]


@given(st.lists(TEXTS, min_size=1, max_size=5), st.data())
def test_a_torn_end_loses_only_itself(tmp_path_factory, texts, data):
    folder = tmp_path_factory.mktemp("store")
    with Store(folder) as store:
        for key, text in enumerate(texts):
            store.add(answer(key, text))
    (segment,) = (folder / "segments").iterdir()
    whole = segment.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    segment.write_bytes(whole[:cut])
    remaining = whole[:cut].count(b"\n")
    with Store(folder) as store:
        assert [f"{key:032x}" in store for key in range(len(texts))] == [key < remaining for key in range(len(texts))]
        assert store.damaged == (not whole[:cut].endswith(b"\n") and cut > 0)
        store.add(answer(99))
    with Store(folder) as store:
        assert len(store) == remaining + 1


@given(st.data())
def test_a_damaged_line_is_left_out(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("store")
    with Store(folder) as store:
        for key in range(3):
            store.add(answer(key, "text"))
    (segment,) = (folder / "segments").iterdir()
    lines = segment.read_bytes().splitlines(keepends=True)
    entry = data.draw(st.integers(0, len(lines[1]) - 2))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value not in (lines[1][entry], 10)))
    lines[1] = lines[1][:entry] + bytes([byte]) + lines[1][entry + 1 :]
    segment.write_bytes(b"".join(lines))
    with Store(folder) as store:
        assert (len(store), store.damaged) == (2, 1)


def test_lines_are_json_and_hold_no_request(tmp_path):
    with Store(tmp_path) as store:
        store.add(answer(text="茶\n\u2028"))
        (segment,) = (tmp_path / "segments").iterdir()
        (line,) = segment.read_text("utf-8").split("\n")[:-1]
    assert set(json.loads(line)) == {"check", *ModelAnswer.__dataclass_fields__}


def test_a_full_disk_is_told_in_a_line(tmp_path, monkeypatch):
    with Store(tmp_path) as store:
        store.add(answer(0))
        write = os.write
        monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:9]))
        with pytest.raises(UserError, match="make room"):
            store.add(answer(1))
        monkeypatch.undo()
        store.add(answer(2))
    with Store(tmp_path) as store:
        assert (len(store), store.damaged) == (2, 0)


OTHER = """
import sys
from jax_rele.annotation.budget import WorkerBudget
from jax_rele.annotation.store import Store
from jax_rele.annotation.types import ModelAnswer
store = Store(sys.argv[1])
worker_budget = WorkerBudget(store, 100.0)
for line in sys.stdin:
    word, key, *cost = line.split()
    if word == "claim":
        print(store.claim(key), flush=True)
    elif word == "release":
        print(store.release(key), flush=True)
    elif word == "reserve":
        print(worker_budget.reserve(float(key)), flush=True)
    else:
        print(store.add(ModelAnswer("p", "a", 0, 0, key, "t", cost=float(cost[0]))), flush=True)
"""


class Other:
    """Another worker's process."""

    def __init__(self, folder, head):
        command = [sys.executable, "-c", head + OTHER, str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, *words) -> str:
        print(*words, file=self.process.stdin, flush=True)
        return self.process.stdout.readline().strip()

    def kill(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def other(tmp_path, bare_package):
    worker = Other(tmp_path, bare_package)
    yield worker
    worker.kill()


def test_a_claim_is_one_workers_until_it_releases_or_dies(tmp_path, other):
    keys = [f"{number:032x}" for number in range(1 << 100, (1 << 100) + 4)]
    keys = [key[::-1] for key in keys]
    with Store(tmp_path) as store:
        assert [other("claim", key) for key in keys] == ["True"] * 4
        assert [store.claim(key) for key in keys] == [False] * 4
        other("release", keys[0])
        assert store.claim(keys[0])
        assert not store.claim(keys[0])
        assert other("claim", keys[0]) == "False"
        # An answer ends the question for all, whether its claim was released or not.
        other("add", keys[1], 0)
        other("release", keys[1])
        assert not store.claim(keys[1])
        assert keys[1] in store
        other.kill()
        assert store.claim(keys[2])
        assert store.claim(keys[3])


def test_a_budget_is_shared_by_those_who_live(tmp_path, other):
    with Store(tmp_path) as store:
        worker_budget = WorkerBudget(store, 100.0)
        assert other("reserve", 3) == "True"
        # It took money for 16 calls more.
        assert worker_budget.reserve(100.0 - 3 - 48)
        assert not worker_budget.reserve(1.0)
        other("add", f"{1:032x}", 30.0)
        other.kill()
        assert store.others() == 30.0
        assert worker_budget.reserve(21.0)
        assert not worker_budget.reserve(0.5)
        store.add(answer(2, cost=20.0))
        worker_budget.settle(21.0)
        assert worker_budget.reserve(1.0)
        assert not worker_budget.reserve(0.5)


def test_what_stands_for_a_segment_is_named_before_its_answers_are_paid_for_again(tmp_path):
    with Store(tmp_path) as store:
        store.add(answer())
    (segment,) = (tmp_path / "segments").iterdir()
    segment.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 134\n")
    with pytest.raises(UserError, match=rf"{segment.name}: is a Git LFS pointer"):
        Store(tmp_path)
