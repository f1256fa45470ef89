"""The command line: help, overrides and what it says to mistakes in them."""

from pathlib import Path

import pytest

from jax_rele import cli, commands, pipeline
from jax_rele.config import Config, flatten


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
    assert list(cli.STAGES) == list(pipeline.STAGES)


def test_no_command_shows_the_help(capsys):
    assert cli.main([]) == 0
    assert "usage: jax-rele" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["run", "distill"])
def test_the_help_of_a_stage_explains_every_field(capsys, command):
    assert cli.main([command, DEMO, "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    dicts = ("labels.written_as", "labels.gain_maps", "data.fields", "rationale.tag_map", "distill.objectives")
    names = ("definitions", "dimension_definitions", "examples", "endpoints", "label_rules")
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
    assert set(commands.MODELS) == {"teacher", "cross_encoder", "two_tower"}


def test_overrides_are_read_as_yaml():
    options = "--teacher.lora.rank 4 --teacher.remat=full --mesh.data -1 --distill.recipes mkd --name x"
    options += " --data.item_fields title brand --data.fields"
    config = cli._read_config("run", [DEMO, *options.split(), "{item: product}"])
    assert (config.teacher.lora.rank, config.teacher.remat, config.mesh.data) == (4, "full", -1)
    assert config.distill.recipes == ("mkd",)
    assert config.data.item_fields == ("title", "brand")
    assert config.data.fields == {"item": "product"}
    assert config.teacher.random.width == 64


@pytest.mark.parametrize(
    ("arguments", "told"),
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
def test_a_mistake_gives_one_line_and_status_two(capsys, arguments, told):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [["fly"], ["predict", "x"], ["predict", "x", "--model", "none"]])
def test_an_unknown_command_or_option_has_status_two(capsys, arguments):
    assert cli.main(arguments) == 2
    assert "jax-rele" in capsys.readouterr().err
