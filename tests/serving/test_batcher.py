"""Rows of many callers share batches, and each caller gets what it would get alone."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_rele.deployment.scorer import ROUND
from jax_rele.serving.batcher import Batcher, Closed, Overloaded, padded


def sums(graph, rows, types):
    """A graph that can be checked by hand: the sum of a row, and each of its tokens doubled, padded."""
    longest = max(map(len, rows))
    tokens = np.zeros((len(rows), longest))
    for target, row in zip(tokens, rows):
        target[: len(row)] = row
    sign = -1 if graph == "minus" else 1
    weights = [sum(kinds) for kinds in types] if types else [0] * len(rows)
    return {"total": sign * tokens.sum(1) + 1000 * np.array(weights), "token_embeddings": 2 * tokens[:, :, None]}


class Gate:
    """A graph that waits until it is let through, and notes its batches."""

    def __init__(self):
        self.opened, self.entered, self.batches = threading.Event(), threading.Event(), []

    def __call__(self, graph, rows, types):
        self.entered.set()
        assert self.opened.wait(10)
        self.batches.append((graph, [list(row) for row in rows]))
        return sums(graph, rows, types)


@pytest.fixture
def gate():
    return Gate()


def blocked(gate, **options):
    """A batcher whose first batch, of one row, is held at the gate."""
    batcher = Batcher(gate, **({"batch_tokens": 64, "queue_rows": 100} | options))
    first = batcher.submit("plus", [[1]])
    assert gate.entered.wait(10)
    return batcher, first


@given(
    st.lists(
        st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=30), min_size=1, max_size=9), min_size=1, max_size=9
    )
)
def test_every_request_gets_its_own_rows_in_order(requests):
    batcher = Batcher(sums, batch_tokens=64, queue_rows=1000)
    try:
        futures = [batcher.submit(("plus", "minus")[n % 2], rows) for n, rows in enumerate(requests)]
        for n, (rows, future) in enumerate(zip(requests, futures)):
            outputs = future.result(10).outputs
            assert outputs["total"].tolist() == [(-1) ** n * sum(row) for row in rows]
            assert outputs["token_embeddings"].shape == (len(rows), max(map(len, rows)), 1)
            for row, values in zip(rows, outputs["token_embeddings"][:, :, 0]):
                assert values.tolist() == [2 * token for token in row] + [0] * (len(values) - len(row))
    finally:
        batcher.close()


def test_batches_hold_what_fits_and_rows_of_several_requests(gate):
    seen = []
    batcher, first = blocked(gate, on_batch=lambda *batch: seen.append(batch))
    long = [[5] * 16 for _ in range(3)]
    futures = [
        batcher.submit("plus", [[2] * 4]),
        batcher.submit("plus", long),
        batcher.submit("plus", [[3] * 3, [4] * 8]),
    ]
    gate.opened.set()
    assert [future.result(10).outputs["total"].tolist() for future in [first, *futures]] == [
        [1], [8], [80, 80, 80], [9, 32],
    ]  # fmt: skip
    batcher.close()
    assert gate.batches[0] == ("plus", [[1]])
    # The oldest row, then those nearest in length: the short ones of another request come before the long ones.
    assert gate.batches[1][1] == [[2] * 4, [3] * 3, [4] * 8, long[0]]
    assert gate.batches[2][1] == long[1:]
    for (_, rows), (n_rows, tokens, _) in zip(gate.batches, seen):
        assert (n_rows, tokens) == (len(rows), len(rows) * padded(max(map(len, rows))))
        assert tokens <= 64


def test_a_long_request_is_split_and_an_old_row_is_never_passed_over(gate):
    batcher, _ = blocked(gate)
    odd = batcher.submit("minus", [[7] * 40])
    many = [batcher.submit("plus", [[1] * 8] * 20) for _ in range(3)]
    gate.opened.set()
    assert all(future.result(10).outputs["total"].tolist() == [8] * 20 for future in many)
    assert odd.result(10).outputs["total"].tolist() == [-280]
    batcher.close()
    assert gate.batches[1] == ("minus", [[7] * 40])
    assert [len(rows) for _, rows in gate.batches[2:]] == [8] * 7 + [4]


def test_a_row_that_is_longer_than_a_batch_runs_alone():
    batcher = Batcher(sums, batch_tokens=8, queue_rows=9)
    assert batcher.submit("plus", [[1] * 50, [1]]).result(10).outputs["total"].tolist() == [50, 1]
    batcher.close()


def test_types_reach_the_graph_also_beside_requests_without():
    batcher = Batcher(sums, batch_tokens=64, queue_rows=9)
    assert batcher.submit("plus", [[1, 2], [3]], [[0, 1], [0]]).result(10).outputs["total"].tolist() == [1003, 3]
    batcher.close()


def test_beyond_the_queue_rows_are_refused_and_cancelled_ones_do_not_count(gate):
    batcher, _ = blocked(gate, queue_rows=10)
    waiting = batcher.submit("plus", [[1]] * 8)
    with pytest.raises(Overloaded):
        batcher.submit("plus", [[1]] * 3)
    assert batcher.waiting == 8
    fits = batcher.submit("plus", [[1]] * 2)
    waiting.cancel()
    again = batcher.submit("plus", [[2]] * 8)
    gate.opened.set()
    assert fits.result(10).outputs["total"].tolist() == [1, 1]
    assert again.result(10).outputs["total"].tolist() == [2] * 8
    batcher.close()
    assert sum(len(rows) for _, rows in gate.batches) == 1 + 2 + 8


def test_closing_finishes_what_was_taken_and_takes_no_more(gate):
    batcher, first = blocked(gate)
    later = [batcher.submit("plus", [[n]] * 30) for n in (1, 2)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while not batcher._closed:
        time.sleep(0.01)
    with pytest.raises(Closed):
        batcher.submit("plus", [[1]])
    assert not first.done()
    gate.opened.set()
    closing.join(10)
    assert [future.result(0).outputs["total"].sum() for future in later] == [30, 60]
    assert not batcher._thread.is_alive()


def test_a_failure_reaches_its_callers_alone():
    def run(graph, rows, types):
        if graph == "minus":
            raise RuntimeError("no memory")
        return sums(graph, rows, types)

    batcher = Batcher(run, batch_tokens=64, queue_rows=9)
    failed, fine = batcher.submit("minus", [[1]]), batcher.submit("plus", [[1]])
    with pytest.raises(RuntimeError, match="no memory"):
        failed.result(10)
    assert fine.result(10).outputs["total"].tolist() == [1]
    batcher.close()


def test_requests_without_rows_or_tokens_are_refused():
    batcher = Batcher(sums, batch_tokens=64, queue_rows=9)
    for rows in ([], [[1], []]):
        with pytest.raises(ValueError, match="at least one"):
            batcher.submit("plus", rows)
    batcher.close()


def test_many_threads_get_what_a_direct_prediction_gives(scorers):
    scorer = scorers["cross_encoder"]
    words = ["red", "blue", "running", "shoes", "shirt", "charger", "garden", "hose", "green", "cotton"]
    rng = np.random.default_rng(0)
    requests = [
        [(" ".join(rng.choice(words, 3)), " ".join(rng.choice(words, rng.integers(1, 12)))) for _ in range(n % 5 + 1)]
        for n in range(40)
    ]
    expected = [scorer.predict(pairs) for pairs in requests]
    batcher = Batcher(scorer.run, batch_tokens=256, queue_rows=1000)

    def ask(pairs):
        from jax_rele.data.rows import as_pair

        judged = [as_pair(pair) for pair in pairs]
        rows, types = scorer.pair_rows(judged)
        return scorer.decode(batcher.submit("model.onnx", rows, types).result(30).outputs, judged)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, requests))
    batcher.close()
    for one, other in zip(answers, expected):
        np.testing.assert_allclose(one.label_probs, other.label_probs, atol=1e-5)
        np.testing.assert_allclose(one.verdict_probs, other.verdict_probs, atol=1e-5)
        assert one.evidence == other.evidence
    assert padded(1) == ROUND
