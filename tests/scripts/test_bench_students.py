"""The benchmark of the students: its inputs, and a run of our side at the tiniest shape."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jax_rele import config
from jax_rele.data import SAMPLE, read_pairs
from jax_rele.data.tokens.tokenizers import load_tokenizer
from jax_rele.training import make_mesh

pytestmark = pytest.mark.slow

BENCH = Path(__file__).parents[2] / "scripts" / "bench"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(BENCH))
    import students_inputs
    import students_work

    sys.path.remove(str(BENCH))
    return students_work, students_inputs


@pytest.fixture(scope="module")
def inputs(bench, tmp_path_factory):
    """The folder of the tiny shape, its sizes and its encoder's folder."""
    work, folder = bench[0].WORKS["tiny"], tmp_path_factory.mktemp("inputs")
    weights, descriptions = bench[1].make(folder, work, "")
    assert all("padding" in descriptions[name] for name in bench[0].STUDENTS)
    return folder, work, weights


def test_pairs_beyond_the_sample_are_recombined_and_differ(bench):
    size = len(read_pairs(SAMPLE, label_names=bench[1].NAMES)[0])
    pairs = bench[1].sample_pairs(2 * size + 200)
    texts = [(pair.query, pair.item.title) for pair in pairs]
    assert len(set(texts)) > len(texts) - 20
    assert set(texts[size:]).isdisjoint(texts[:size])
    assert sorted(text for text, _ in texts[:size]) == sorted(text for text, _ in texts[size : 2 * size])


@pytest.mark.parametrize("name", ["cross_encoder", "two_tower"])
def test_batches_hold_the_texts_of_all_pairs_whole(bench, inputs, name):
    (folder, work, weights), (work_module, _) = inputs, bench
    tokenizer = load_tokenizer(weights, ("pad", "cls", "sep"))
    pairs = work_module.read_pairs(folder)
    expected = [tokenizer(*pair)["input_ids"] for pair in pairs]
    if name == "two_tower":
        expected = [tokenizer(pair[side])["input_ids"] for side in range(2) for pair in pairs]
    for kind in ("bucketed", "padded"):
        batches = work_module.read_batches(folder, f"{name}.{kind}")
        indices = np.concatenate([batch["indices"] + work.pairs * batch["side"] for batch in batches])
        rows = [row[valid].tolist() for batch in batches for row, valid in zip(batch["tokens"], batch["valid"])]
        assert [rows[index] for index in np.argsort(indices)] == expected
        assert {len(batch["tokens"]) for batch in batches} == {work.batch}
    bucketed, padded = (
        sum(batch["tokens"].size for batch in work_module.read_batches(folder, f"{name}.{kind}"))
        for kind in ("bucketed", "padded")
    )
    assert sum(map(len, expected)) < bucketed < padded


def test_training_batches_of_both_orders_are_the_same_pairs(bench, inputs):
    folder, work, _ = inputs
    rows = []
    for kind in ("steps_bucketed", "steps_padded", "steps_longest"):
        batches = bench[0].read_batches(folder, f"cross_encoder.{kind}")
        assert len(batches) == work.train_steps
        rows.append(
            sorted(
                (tokens[valid].tolist(), types[valid].tolist(), int(label))
                for batch in batches
                for tokens, types, valid, label in zip(
                    batch["tokens0"], batch["token_types0"], batch["valid0"], batch["labels"]
                )
            )
        )
    assert rows[0] == rows[1] == rows[2]
    assert len(rows[0]) == work.train_batch * work.train_steps


@pytest.fixture(scope="module")
def ours(bench):
    sys.path.insert(0, str(BENCH))
    import students_ours

    sys.path.remove(str(BENCH))
    return students_ours


def test_our_side_learns_from_its_batches(ours, inputs):
    folder, work, weights = inputs
    with ours.train(work, str(folder), weights, "cross_encoder", "step", 0.0, 3) as run:
        losses = run() + run()
    assert len(losses) == 6
    assert all(np.diff(losses) < 0)


@pytest.mark.parametrize("name", ["cross_encoder", "two_tower"])
def test_packed_batches_are_smaller_and_train_as_padded_ones(ours, bench, inputs, name, monkeypatch):
    folder, work, weights = inputs
    # As in the benchmark: of eight devices each would have one row, and nothing to pack.
    mesh = make_mesh(config.MeshConfig(), jax.devices()[:1])
    monkeypatch.setattr(ours, "make_mesh", lambda sizes: mesh)
    batches = [ours.arguments(name, batch) for batch in bench[0].read_batches(folder, f"{name}.steps_padded")]
    ours.pack(batches, mesh)
    sides = {key for batch in batches for key in batch["inputs"] if key.endswith("packing")}
    assert sides
    for batch in batches:
        for key in sides & set(batch["inputs"]):
            assert batch["inputs"][key]["source"].size < batch["inputs"][key.replace("packing", "valid")].size
    losses = []
    for kind in ("steps_packed", "steps_longest"):
        with ours.train(work, str(folder), weights, name, kind, 0.0, 1) as run:
            losses.append(run())
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_our_side_runs_and_every_row_is_there(tmp_path):
    command = [sys.executable, BENCH / "students.py", "--device", "cpu", "--shape", "tiny", "--sides", "ours"]
    out = tmp_path / "out.json"
    command += ["--parts", "infer", "--json", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line[:2] == "| "]
    padded = "batches by length over all padded to full length"
    assert [row[0] for row in rows] == [
        "case",
        "cross-encoder, from texts to logits",
        "cross-encoder, model alone, batches by length",
        "two-tower, from texts to embeddings",
        "two-tower, model alone, batches by length",
        "cross-encoder, model alone, all padded to full length",
        "two-tower, model alone, all padded to full length",
        f"cross-encoder, model alone, {padded}",
        f"two-tower, model alone, {padded}",
        "peak memory of the process, inference",
    ]
    assert all(len(row) == 6 for row in rows)
    assert all("pairs/s" in row[1] or "texts/s" in row[1] for row in rows[1:7])
    results = json.loads(out.read_text())
    assert all(seconds > 0 for case in results["cases"] for seconds in case["seconds"]["ours"])
    assert all(peak["ours"] > 1 << 20 for peak in results["memory"].values())
