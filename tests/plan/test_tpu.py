"""Plans compiled for TPU slices that are not here. Collected where the TPU compiler is installed."""

import json
import re
from pathlib import Path

import pytest

from jax_rele import cli

DEMO = str(Path(__file__).resolve().parent.parent.parent / "configs" / "demo_from_scratch.yaml")
TEACHER = {"layers": 2, "width": 256, "heads": 4, "kv_heads": 2, "head_dim": 128, "mlp_width": 512}


def plan(tmp_path, topology, *arguments):
    sizes = [text for name, size in TEACHER.items() for text in (f"--teacher.random.{name}", str(size))]
    path = tmp_path / "plan.json"
    options = ["--topology", topology, "--json", str(path), "--teacher.dtype", "bfloat16", *sizes, *arguments]
    assert cli.main(["plan", DEMO, *options]) == 0
    return json.loads(path.read_text("utf-8"))


def test_a_step_is_compiled_for_a_slice(tmp_path, capfd):
    mesh = ["--mesh.data", "1", "--mesh.fsdp", "2", "--mesh.tensor", "2"]
    recipe = ["--teacher.attention", "splash", "--finetune.pack_to", "1024", "--finetune.optimization.batch_size", "16"]
    result = plan(tmp_path, "v5e:2x2", "--steps", "finetune", *mesh, *recipe)
    out, err = capfd.readouterr()
    assert err == ""
    assert "Compiled for this topology; nothing was run or allocated." in out
    (step,) = result["steps"]
    assert step["fits"]
    # Of 16 rows of 1024 tokens each chip has 8 rows and 2 heads; xla holds the scores of a block of them, splash none.
    attention = step["bytes_per_chip_by_attention"]
    assert list(attention) == ["splash", "xla"]
    assert attention["xla"] - attention["splash"] > 8 * 2 * 1024 * 512 * 4
    # Weights are gathered over fsdp in each of the two layers, and the products over tensor are added up.
    kinds = {x["kind"] for x in step["collectives"]}
    assert "all-reduce" in kinds
    assert kinds & {"all-gather", "collective-permute"}
    assert all(x["group"] <= 4 for x in step["collectives"])
    for name in ("compute", "memory", "links"):
        assert step["seconds"][name] > 0


@pytest.mark.parametrize("topology", ["v6e:2x4", "v5p:2x2x2"])
def test_other_slices_are_known_to_the_compiler(tmp_path, topology):
    result = plan(tmp_path, topology, "--steps", "score", "--mesh.data", "4", "--mesh.tensor", "2")
    assert result["devices"] == 8
    assert result["steps"][0]["fits"]


def test_a_step_that_is_too_big_says_so(tmp_path, capfd):
    rows = ["--score.batch_size", "4096", "--teacher.prompt_length", "32768"]
    result = plan(tmp_path, "v5e:2x2", "--steps", "score", *rows)
    (step,) = result["steps"]
    assert not step["fits"]
    assert step["step_seconds"] is None
    assert re.search(r"score .* no\b", capfd.readouterr().out)


def test_a_shape_that_the_compiler_refuses_gives_one_line(capfd):
    assert cli.main(["plan", DEMO, "--topology", "v5e:3x4"]) == 2
    err = capfd.readouterr().err
    assert err.startswith("jax-rele: --topology v5e:3x4: the TPU compiler does not know it")
    assert err.count("\n") == 1
