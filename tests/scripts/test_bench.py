"""The benchmark of the teacher: its counts against the model's own, and a run of our side at the tiniest shape."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_rele.models import Decoder, DecoderConfig, LoraSpec

pytestmark = pytest.mark.slow

BENCH = Path(__file__).parents[2] / "scripts" / "bench"


@pytest.fixture(scope="module")
def shapes():
    sys.path.insert(0, str(BENCH))
    import shapes

    sys.path.remove(str(BENCH))
    return shapes


@pytest.mark.parametrize("name", ["tiny", "small", "135m", "8b"])
def test_weights_are_counted_as_the_model_has_them(shapes, name):
    shape = shapes.SHAPES[name]
    fields = ["vocab_size", "layers", "width", "heads", "kv_heads", "head_dim", "mlp_width", "tied"]
    sizes = {field: getattr(shape, field) for field in fields}
    model = Decoder(DecoderConfig(**sizes, lora=LoraSpec(shape.rank, 1.0)))
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    kernels = [
        leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]) if "kernel" in str(path)
    ]
    assert shape.projections == sum(kernels)
    assert shape.adapters == sum(leaf.size for leaf in jax.tree.leaves(variables["lora"]))


def test_packed_rows_are_texts_with_a_loss_on_their_ends(shapes):
    shape = shapes.SHAPES["small"]
    batch = shapes.packed(shape)
    segments, index = batch["segments"], np.arange(shape.row_length)
    same = segments[:, :, None] == segments[:, None, :]
    assert shapes.seen_packed(batch) == (same & (index[:, None] >= index[None, :])).sum()
    # A target is the token behind its place, of the same text.
    rows, columns = np.nonzero(batch["targets_mask"])
    assert (segments[rows, columns] == segments[rows, columns + 1]).all()
    assert (batch["targets"][rows, columns] == batch["tokens"][rows, columns + 1]).all()
    assert 0.3 < batch["targets_mask"].mean() < 0.34


def test_prompts_of_a_query_share_their_prefix_and_no_others(shapes):
    shape = shapes.SHAPES["tiny"]
    rows, queries = shapes.score_rows(shape, 10)
    prefixes = {(query, tuple(row[: shape.prefix_length])) for row, query in zip(rows, queries)}
    assert len(rows) == shape.pairs
    assert len(prefixes) == len({prefix for _, prefix in prefixes}) == shape.pairs // 10
    assert shapes.seen_causal(4, 3) == 4 + 5 + 6 + 7


def test_our_side_runs_and_every_row_is_there(tmp_path):
    command = [sys.executable, BENCH / "teacher.py", "--device", "cpu", "--shape", "tiny", "--sides", "ours"]
    out = tmp_path / "out.json"
    done = subprocess.run([*command, "--repeats", "1", "--json", out], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| ")]
    assert [row[0].strip() for row in rows] == [
        "case",
        "matrix product, 128², float32",
        "array scaled in place, bytes read and written",
        "LoRA SFT step, remat none",
        "label scoring, every prompt whole",
        "label scoring, shared prefix, 1 item a query",
        "label scoring, shared prefix, 10 items a query",
        "label scoring, shared prefix, 100 items a query",
        "greedy decoding, 2 rows",
        "guided rationales, 2 slots",
        "shared prefix over whole prompts, 1 item a query",
        "shared prefix over whole prompts, 10 items a query",
        "shared prefix over whole prompts, 100 items a query",
    ]
    assert all(len(row) == 8 for row in rows)
    assert all("tokens/s" in row[1] or "pairs/s" in row[1] for row in rows[3:10])
    cases = json.loads(out.read_text())["cases"]
    assert all(seconds > 0 for case in cases for seconds in case["seconds"]["ours"])
    emitted, decided, passes = (int(text.split()[0]) for text in cases[-1]["checked"].split(", "))
    assert emitted > decided > 0
    assert passes > 0
