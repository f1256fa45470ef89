"""Relative paths in a config: beside it, else in the working directory; a run's own config means the same anywhere."""

import shutil

import pytest
import yaml

from jax_rele import config
from jax_rele.cli.overrides import read_config
from jax_rele.config import is_input, local_name
from jax_rele.runs import pipeline
from jax_rele.runs.stages import STAGES

FIELDS = [
    *("data.path", "data.manual_dir", "teacher.init", "student.init", "score.signals"),
    *("annotate.teacher_run", "annotate.prompt", "annotate.reviews"),
]


def nested(path, value):
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


def value_of(settings, path):
    for part in path.split("."):
        settings = getattr(settings, part)
    return settings


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A folder of configs, and the working directory."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "configs", tmp_path / "here"


def load(folder, values):
    if "reviews" in (annotate := values.get("annotate", {})):
        annotate |= {"annotator": "teacher", "teacher_run": "/run"}
    (folder / "c.yaml").write_text(yaml.safe_dump(values))
    return config.load(folder / "c.yaml")


@pytest.mark.parametrize("path", FIELDS)
def test_an_input_is_looked_up_beside_the_config_and_then_here(folders, path):
    beside, here = folders
    assert value_of(load(beside, nested(path, "deep/input")), path) == "deep/input"
    for folder in (here, beside):  # the later one is preferred
        (folder / "deep").mkdir()
        (folder / "deep" / "input").mkdir()
        assert value_of(load(beside, nested(path, "deep/input")), path) == str(folder / "deep" / "input")
    assert value_of(load(beside, nested(path, "/deep/input")), path) == "/deep/input"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *(("data.path", name) for name in ("sample", "hf:org/name", "tfds:esci/task1_us", "s3://bucket/a.jsonl")),
        *(("teacher.init", name) for name in ("bundled:decoder", "hf:Org/Model@main")),
        ("student.init", "random"),
        ("annotate.prompt", "zh"),
        ("annotate.prompt", "es"),
    ],
)
def test_names_are_no_paths(folders, path, value):
    beside = folders[0]
    for folder in folders:
        (folder / value).mkdir(parents=True)
    assert value_of(load(beside, nested(path, value)), path) == value
    assert local_name(value) == value


def test_paths_behind_a_prefix_patterns_and_files_of_losses(folders):
    beside, _ = folders
    for name in ("teacher.gguf", "loss.py", "part-1.jsonl"):
        (beside / name).touch()
    (beside / "saved").mkdir()
    values = {
        "teacher": {"init": "gguf:teacher.gguf"},
        "data": {"path": "part-*.jsonl"},
        "distill": {"objectives": {"mine": {"terms": {"a": {"loss": "loss.py:fit", "weight": 1.0}}}}},
    }
    settings = load(beside, values)
    assert settings.teacher.init == f"gguf:{beside}/teacher.gguf"
    assert settings.data.path == f"{beside}/part-*.jsonl"
    assert settings.distill.objectives["mine"].terms["a"].loss == f"{beside}/loss.py:fit"
    assert load(beside, {"data": {"path": "hf:saved"}}).data.path == f"hf:{beside}/saved"
    assert local_name(settings.teacher.init) == "gguf:teacher.gguf"
    assert local_name(settings.distill.objectives["mine"].terms["a"].loss) == "loss.py:fit"
    assert is_input("distill.objectives.mine.terms.a.loss")
    assert not is_input("distill.objectives.mine.terms.a.weight")


@pytest.mark.parametrize("path", ["run_root", "cache_dir", "annotate.store"])
def test_what_is_written_goes_beside_the_config_unless_it_is_here_already(folders, path):
    beside, here = folders
    assert value_of(load(beside, nested(path, "out")), path) == str(beside / "out")
    (here / "out").mkdir()
    assert value_of(load(beside, nested(path, "out")), path) == str(here / "out")
    (beside / "out").mkdir()
    assert value_of(load(beside, nested(path, "out")), path) == str(beside / "out")
    assert config.load(beside / "c.yaml").run_root in ("runs", str(beside / "out"))


def test_the_command_line_means_the_working_directory(folders):
    beside, here = folders
    for folder in folders:
        (folder / "pairs.jsonl").touch()
    load(beside, {"data": {"path": "pairs.jsonl"}})
    assert read_config(beside / "c.yaml", []).data.path == str(beside / "pairs.jsonl")
    assert read_config(beside / "c.yaml", ["--data.path", "pairs.jsonl"]).data.path == str(here / "pairs.jsonl")
    assert read_config(beside / "c.yaml", ["--run_root", "out"]).run_root == "out"
    assert read_config(beside / "c.yaml", ["--seed", "3"]).data.path == str(beside / "pairs.jsonl")


def test_hashes_do_not_depend_on_where_an_input_is(folders):
    beside = folders[0]
    for folder in folders:
        (folder / "model").mkdir()
    typed = config.from_dict({"teacher": {"init": "model"}, "data": {"path": "model"}})
    loaded = load(beside, {"teacher": {"init": "model"}, "data": {"path": "model"}})
    assert loaded.teacher.init == str(beside / "model")
    for stage in STAGES.values():
        assert pipeline.sections(typed, stage) == pipeline.sections(loaded, stage)
    assert pipeline.sections(typed, STAGES["finetune"])["teacher.init"] == "model"


def test_a_runs_config_means_the_same_from_any_folder(folders, monkeypatch, tmp_path):
    here = folders[1]
    shutil.copytree(here, here / "model")
    settings = config.from_dict({"run_root": "out", "teacher": {"init": "model"}, "annotate": {"store": "answers"}})
    (tmp_path / "c.yaml").write_text(pipeline._config_text(settings))
    monkeypatch.chdir("/")
    read = config.load(tmp_path / "c.yaml")
    assert (read.run_root, read.teacher.init) == (str(here / "out"), str(here / "model"))
    assert read.answers == here / "answers"


@pytest.mark.parametrize(("path", "value"), [("data.path", "es"), ("data.path", "random"), ("teacher.init", "ja")])
def test_a_name_of_one_field_is_a_path_in_another(folders, path, value):
    beside = folders[0]
    (beside / value).mkdir()
    assert value_of(load(beside, nested(path, value)), path) == str(beside / value)
