"""The presets for accelerators: their tiny twins run, and are twins."""

import json
import re
from pathlib import Path

import pytest

from jax_rele import cli, config
from jax_rele.cli.overrides import read_config
from jax_rele.cli.parser import find_command
from jax_rele.plan.topology import parse_topology

pytestmark = pytest.mark.slow

CONFIGS = Path(config.__file__).resolve().parents[2] / "configs"
TOPOLOGIES = {"qwen3_8b_v5e_4x4": "v5e:4x4", "qwen3_8b_v6e_2x4": "v6e:2x4", "qwen3_8b_gpu_8x80gb": "gpu:8xH100"}

SIZES = {
    "data.candidates.per_query",
    *(f"teacher.{name}" for name in ("init", "attention", "prompt_length", "value_length", "lora.rank", "lora.alpha")),
    "finetune.pack_to",
    "score.batch_size",
    *(f"student.random.{name}" for name in ("vocab_size", "layers", "width", "heads", "mlp_width")),
    *(f"student.{name}_length" for name in ("query", "item")),
    "distill.group_size",
    *(
        f"{stage}.optimization.{name}"
        for stage in ("finetune", "distill")
        for name in ("steps", "batch_size", "checkpoint_every", "log_every")
    ),
}
"""What a twin has smaller; `init` and `attention` are what a CPU without a network can do."""


def test_every_preset_has_a_twin_and_a_topology():
    ours = {
        "demo",
        "demo_from_scratch",
        "attribute_world",
        "esci_minilm",
        "esci_japanese",
        "annotate_two_llms",
        "open_llm",
        "chinese",
    }
    presets = {path.stem for path in CONFIGS.glob("*.yaml") if not path.stem.startswith(("esci_task", "wands"))} - ours
    assert presets == {path.stem for path in (CONFIGS / "tiny").glob("*.yaml")} == set(TOPOLOGIES)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_twin_differs_in_sizes_alone(name):
    preset, twin = (
        config.flatten(config.load(CONFIGS / folder / f"{name}.yaml").model_dump()) for folder in (".", "tiny")
    )
    assert {path for path in preset if preset[path] != twin[path]} <= SIZES
    assert preset["teacher.init"] == "hf:Qwen/Qwen3-8B"


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_the_header_of_a_preset_holds_a_command_that_is_read(name):
    text = (CONFIGS / f"{name}.yaml").read_text("utf-8")
    header = text[: text.index("\nname:")].replace("\\\n#", " ")
    commands = re.findall(r"^# +jax-rele (plan .*)$", header, re.MULTILINE)
    assert commands
    for command in commands:
        selected, words = find_command(command.split())
        parsed, rest = selected.parser().parse_known_args(words)
        topology = parse_topology(parsed.topology)
        assert parsed.topology == TOPOLOGIES[name]
        read = read_config(str(CONFIGS.parent / parsed.config), rest)
        assert (CONFIGS.parent / read.teacher.init / "config.json").is_file()
        sizes = [size for size in (read.mesh.data, read.mesh.fsdp, read.mesh.tensor) if size > 0]
        product = sizes[0] * sizes[1] * (sizes[2] if len(sizes) == 3 else 1)
        assert topology.devices % product == 0


@pytest.fixture(scope="module")
def base(tiny, tmp_path_factory):
    """A small model in the Hugging Face form: another run's teacher, exported."""
    folder = tmp_path_factory.mktemp("base") / "base"
    assert cli.main(["export", str(tiny[1]), "--output", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("name", ["qwen3_8b_v5e_4x4", "qwen3_8b_v6e_2x4"])
def test_a_twin_runs(tiny, base, tmp_path, name):
    options = ["--teacher.init", str(base), "--run_root", str(tmp_path)]
    options += ["--data.path", str(tiny[0].parent / "pairs.jsonl")]
    for stage in ("prepare", "annotate", "adapt", "finetune", "score"):
        assert cli.main([stage, str(CONFIGS / "tiny" / f"{name}.yaml"), *options]) == 0
    counts = json.loads((tmp_path / name / "score" / "manifest.json").read_text("utf-8"))["counts"]
    assert counts["pairs"] > 0
    lines = (tmp_path / name / "finetune" / "metrics.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2]
