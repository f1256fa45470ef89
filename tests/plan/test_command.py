"""`jax-rele plan` as a user runs it, on GPUs by analysis."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jax_rele import cli
from jax_rele.plan import command

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"
DEMO = str(CONFIGS / "demo_from_scratch.yaml")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_plan_is_printed_and_written(capfd, tmp_path):
    arguments = ["plan", DEMO, "--topology", "gpu:4xH100", "--steps", "score", "--mesh.data", "2", "--mesh.tensor", "1"]
    arguments += ["--mesh.fsdp", "2", "--score.batch_size", "8", "--json", "plan.json"]
    assert cli.main(arguments) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert f"{DEMO} on gpu:4xH100: 4 chips, mesh data 2, fsdp 2, tensor 1" in out
    assert "score: 8 items of 64 tokens after queries of 32" in out
    assert re.search(r"score .* yes", out)
    assert "By analysis, not compiled for GPUs." in out
    plan = json.loads((tmp_path / "plan.json").read_text("utf-8"))
    (step,) = plan["steps"]
    sizes = step["bytes_per_chip"]
    assert sizes["total"] == sizes["base"] + sizes["trained"] + sizes["cache"] + sizes["made"]
    assert step["fits"] is True
    assert step["step_seconds"] == max(step["seconds"].values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "v5e"], "--topology v5e: v5e has 2 axes"),
        (["--topology", "gpu:8xH100", "--json", "no/such/plan.json"], "no such folder to write to"),
        (["--topology", "gpu:8xH100", "--mesh.rows", "3"], "--mesh.rows: unknown key"),
        (["--topology", "gpu:1xH100", "--steps", "generate", "--teacher.order", "label_only"], "has no step generate"),
        (["--topology", "gpu:1xH100", "--teacher.init", "no_such_folder"], "no_such_folder"),
    ],
)
def test_a_mistake_gives_one_line(capfd, arguments, message):
    assert cli.main(["plan", DEMO, *arguments]) == 2
    out, err = capfd.readouterr()
    assert message in err
    assert err.startswith("jax-rele: ")
    assert err.count("\n") == 1
    assert out == ""


@pytest.mark.parametrize("arguments", [[], ["--topology", "gpu:1xH100", "--steps", "fly"], ["--topo", "gpu:1xH100"]])
def test_a_wrong_option_has_status_two(arguments):
    assert cli.main(["plan", DEMO, *arguments]) == 2


def test_without_the_tpu_compiler_the_extra_is_named(capfd, monkeypatch):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["plan", DEMO, "--topology", "v5e:4x4"]) == 2
    err = capfd.readouterr().err
    assert err == "jax-rele: --topology v5e:4x4 needs the TPU compiler: pip install 'jax_rele[tpu]'\n"


def test_what_a_failing_process_said_is_shown(capfd, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    Path("sitecustomize.py").write_text("import sys\nif 'jax_rele.plan' in sys.orig_argv: sys.exit('no memory left')\n")
    assert cli.main(["plan", DEMO, "--topology", "gpu:1xH100"]) == 2
    err = capfd.readouterr().err
    assert "no memory left" in err
    assert "planning for gpu:1xH100 ended with status 1" in err


def test_the_command_itself_starts_no_devices():
    code = (
        "import sys; from jax_rele import cli\n"
        f"status = cli.main(['plan', {DEMO!r}, '--topology', 'gpu:8xH100', '--mesh.data', '3'])\n"
        "from jax._src import xla_bridge; sys.exit(3 if xla_bridge._backends else status)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (
        done.stderr == "jax-rele: mesh: data 3, fsdp 1, tensor 1 does not make 8 devices; change `mesh` in the config\n"
    )
    assert done.returncode == 2
