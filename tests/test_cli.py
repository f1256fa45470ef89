"""The command line: help, overrides and what it says to mistakes in them."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from jax_rele import cli
from jax_rele.cli import student_commands
from jax_rele.cli.completion import completion_script
from jax_rele.cli.overrides import read_config
from jax_rele.config import Config, flatten
from jax_rele.runs import pipeline
from jax_rele.types import ITEM_FIELDS


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A mistake that is not noticed must not start a run in the repository."""
    monkeypatch.chdir(tmp_path)


DEMO = str(Path(__file__).resolve().parent.parent / "configs" / "demo_from_scratch.yaml")


def test_the_help_names_every_command(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for name in ("run", "predict", "explain", *pipeline.STAGES):
        assert f"    {name} " in out


def test_the_help_of_items_names_every_text_of_an_item():
    assert student_commands._ITEM_TEXTS == ITEM_FIELDS


@pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    code = f"import sys; from jax_rele import cli; cli.main({arguments!r}); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"jax", "transformers", "pydantic", "numpy", "datasets"}.isdisjoint(done.stderr.split())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_knows_commands_and_options(capsys, shell):
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("predict", "compare", "recipe", "show-prompt"):
        assert word in script


def test_bash_takes_the_completion():
    script = completion_script("bash")
    script += '\nCOMP_WORDS=(jax-rele predict --rec) COMP_CWORD=2\n_jax_rele\necho "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["--recipe"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prdict"], "there is no command 'prdict'; did you mean predict?"),
        (["predict", "x", "--modle", "teacher"], "did you mean --model?"),
        (["predict", "x", "--model", "two_towr"], "did you mean two_tower?"),
        (["run", DEMO, "--teacher.promt_length", "3"], "did you mean teacher.prompt_length?"),
    ],
)
def test_a_misspelt_word_names_the_nearest(capsys, arguments, message):
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_no_command_shows_the_help(capsys):
    assert cli.main([]) == 0
    assert "usage: jax-rele" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["run", "distill"])
def test_the_help_of_a_stage_explains_every_field(capsys, command):
    assert cli.main([command, DEMO, "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    dicts = ("labels.aliases", "labels.gain_maps", "data.fields", "rationale.tag_map", "distill.objectives")
    names = ("definitions", "dimension_definitions", "examples", "endpoints")
    dicts += tuple(f"annotate.{name}" for name in names)
    for path in [path for path in flatten(Config().model_dump()) if not path.startswith(dicts)] + list(dicts):
        assert f"--{path} " in out


def test_every_field_of_the_config_is_described():
    def check(section, prefix=""):
        for name, field in section.model_fields.items():
            if hasattr(field.annotation, "model_fields"):
                check(field.annotation, f"{prefix}{name}.")
            else:
                assert field.description, f"{prefix}{name} has no description"

    check(Config)


@pytest.mark.parametrize("command", ["predict", "explain"])
def test_the_help_of_a_command_explains_its_options(capsys, command):
    assert cli.main([command, "--help"]) == 0
    assert "RUN" in capsys.readouterr().out
    assert set(student_commands.MODELS) == {"teacher", "cross_encoder", "two_tower"}


def test_overrides_are_read_as_yaml():
    options = "--teacher.lora.rank 4 --teacher.remat=full --mesh.data -1 --distill.recipes mkd --name x"
    options += " --data.item_fields title brand --data.fields"
    config = read_config(DEMO, [*options.split(), "{item: product}"])
    assert (config.teacher.lora.rank, config.teacher.remat, config.mesh.data) == (4, "full", -1)
    assert config.distill.recipes == ("mkd",)
    assert config.data.item_fields == ("title", "brand")
    assert config.data.fields == {"item": "product"}
    assert config.teacher.random.width == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "run needs a config file"),
        (["run", "none.yaml"], "none.yaml: no such config file"),
        (["run", DEMO, "--teacher.hads", "3"], "--teacher.hads: unknown key; teacher has"),
        (["run", DEMO, "--seed.x", "3"], "seed has no fields of its own"),
        (["run", DEMO, "--student.random.heads", "3"], "command line: student.random: width (64) must be a multiple"),
        (["run", DEMO, "--seed"], "--seed needs a value"),
        (["run", DEMO, "loose"], "'loose' stands without an option"),
        (["run", DEMO, "--name", "{a: "], "is not a YAML value"),
        (["run", DEMO, "--teacher", "3"], "command line: teacher: "),
    ],
)
def test_a_mistake_gives_one_line_and_status_two(capsys, arguments, message):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [["fly"], ["predict", "x"], ["predict", "x", "--model", "none"]])
def test_an_unknown_command_or_option_has_status_two(capsys, arguments):
    assert cli.main(arguments) == 2
    assert "jax-rele" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict"], "the following arguments are required: RUN, --input; `jax-rele predict"),
        (["predict", "runs/x", "--modle", "teacher"], "--modle: did you mean --model?"),
        (["predict", "r", "--model", "cross_encodr", "--input", "a", "--output", "b"], "did you mean cross_encoder?"),
        (["compare", DEMO, "--recpes", "mkd"], "there is no option --recpes; --recpes: did you mean --recipes?"),
        (["compare", DEMO, "--seeds", "0"], "argument --seeds: '0' is not a whole number above 0"),
        (["annotate", "show-prmpt", "C"], "no command or file 'show-prmpt'; there are annotate show-prompt"),
        (
            ["annotate", "batch", "foo"],
            "no command or file 'batch'; there are annotate batch write, annotate batch read",
        ),
        (["zzz"], "there is no command 'zzz'; `jax-rele --help` lists them"),
        (["run", DEMO, "--distil.recipes", "mkd"], "unknown key; did you mean distill.recipes?"),
        (["prepare", DEMO, "--distill.recipes", "lrkd"], "lrkd needs the head 'latent', which cross_encoder lacks"),
        (["prepare", DEMO, "--teacher.init", "embedded:decoder"], "embedded:decoder: is called bundled:decoder"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line(capsys, arguments, message):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("word", ["--version", "-V", "version"])
def test_the_version(capsys, word):
    assert cli.main([word]) == 0
    assert capsys.readouterr().out == f"jax-rele {metadata.version('jax_rele')}\n"


def test_the_package_is_a_program():
    done = subprocess.run([sys.executable, "-m", "jax_rele", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("jax-rele ")


def test_the_usage_of_run_has_one_positional(capsys):
    assert cli.main(["run", "--help"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "usage: jax-rele run CONFIG.yaml [--path.to.field VALUE ...]"


def test_the_config_of_a_run_that_was_moved_is_refused_with_what_goes_on_there(tmp_path, capsys):
    folder = tmp_path / "new" / "tiny"
    (folder / "prepare").mkdir(parents=True)
    (folder / "prepare" / "manifest.json").write_text("{}")
    (folder / "config.yaml").write_text(f"name: tiny\nrun_root: {tmp_path / 'old'}\n")
    assert cli.main(["prepare", str(folder / "config.yaml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"to go on where it is add --run_root {tmp_path / 'new'} --name tiny")
    assert not (tmp_path / "old").exists()
