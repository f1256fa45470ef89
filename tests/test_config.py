"""The config tree: what it accepts, and what it says about what it does not."""

from datetime import date
from pathlib import Path
from typing import get_args

import pytest
import yaml

from jax_rele import config
from jax_rele.config.load import RENAMED
from jax_rele.errors import UserError
from jax_rele.names import ORDERS, SPLITS
from jax_rele.runs import pipeline
from jax_rele.runs.stages import STAGES

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_the_configs_load(path):
    assert config.load(path).name


def test_a_config_survives_yaml():
    original = config.load(CONFIGS / "demo.yaml")
    assert config.from_dict(yaml.safe_load(yaml.safe_dump(original.model_dump(mode="json")))) == original


def test_a_fold_survives_yaml_and_none_leaves_no_trace_in_hashes():
    folded = config.from_dict({"data": {"splits": {"fold": [2, 5]}}})
    assert folded.data.splits.fold == (2, 5)
    assert config.from_dict(yaml.safe_load(yaml.safe_dump(folded.model_dump(mode="json")))) == folded
    assert "fold" not in config.from_dict({}).model_dump(mode="json")["data"]["splits"]


ENDPOINT = {"name": "a", "base_url": "http://h/v1", "model": "m"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"teachr": {}}, "teachr: unknown key; did you mean teacher?"),
        ({"teacher": {"prompt-length": 3}}, "teacher.prompt-length: unknown key; did you mean teacher.prompt_length?"),
        ({"labels": {"gain_maps": {"a-b": ["x"] * 4}}}, "labels.gain_maps.a-b.0: .*valid number.*'x'"),
        ({"teacher": {"lora": {"rnk": 3}}}, "teacher.lora.rnk: unknown key; did you mean teacher.lora.rank?"),
        ({"distill": {"labelled_share": 0.5}}, "distill.labelled_share: .* is called distill.labelled_fraction"),
        ({"labels": {"written_as": {}}}, "labels.written_as: unknown key; labels.written_as is called labels.aliases"),
        ({"teacher": {"random": {"width": "wide"}}}, "teacher.random.width: .*valid integer.*'wide'"),
        ({"teacher": {"random": {"heads": 3}}}, r"teacher.random: heads \(3\) must be a multiple of kv_heads \(2\)"),
        ({"student": {"random": {"heads": 3}}}, r"student.random: width \(64\) must be a multiple of heads \(3\)"),
        ({"labels": {"positive": ["Exat"]}}, "labels: positive must name some but not all of"),
        ({"labels": {"aliases": {"E": "Exat"}}}, "labels: aliases maps 'E' to 'Exat'"),
        ({"labels": {"gain_maps": {"a": [1.0]}}}, "labels: gain_maps.a must hold 4 numbers, got 1"),
        ({"data": {"splits": {"train": 0.9}}}, r"data.splits: train \+ validation \+ test must be 1, got 1.3"),
        ({"data": {"splits": {"fold": [3, 2]}}}, r"data.splits: fold: .k, K. needs K of 2 or more .* got \[3, 2\]"),
        ({"data": {"splits": {"fold": [0, 2]}}}, r"data.splits: fold: .k, K. needs K of 2 or more .* got \[0, 2\]"),
        ({"data": {"splits": {"fold": [1, 1]}}}, r"data.splits: fold: .k, K. needs K of 2 or more .* got \[1, 1\]"),
        ({"rationale": {"dimensions": ["a", "a"]}}, "rationale: dimensions must be distinct"),
        ({"rationale": {"dimensions": ["category"]}}, "rationale: tag_map maps to names that are not in dimensions"),
        ({"distill": {"recipes": ["mdk"]}}, "distill: recipes: there is no recipe 'mdk'; there are label_only"),
        (
            {"rules": [{"when": {"brnd": "match"}, "labels": ["Exact"]}]},
            r"rules.0.when: 'brnd' is not one of \['category'",
        ),
        (
            {"rules": [{"text": "x"}, {"when": {"brand": "match"}, "labels": ["E"]}]},
            r"rules.1.labels: 'E' is not one of",
        ),
        (
            {"rules": [{"when": {"brand": "matches"}, "labels": ["Exact"]}]},
            "rules.0.when.brand.0: .*'match'.*'matches'",
        ),
        ({"rules": [{"when": {"brand": []}, "labels": ["Exact"]}]}, "rules.0: when.brand must have at least 1 verdict"),
        (
            {"rules": [{"when": {"brand": ["match"] * 2}, "labels": ["Exact"]}]},
            "rules.0: when.brand must have one or two",
        ),
        ({"rules": [{"when": {"brand": "match"}, "labels": ["Exact"] * 2}]}, "rules.0: labels must be different"),
        ({"rules": [{"when": {"brand": "match"}}]}, "rules.0: when and labels go together"),
        ({"rules": [{}]}, "rules.0: a rule needs text, or when and labels"),
        (
            {"rules": [{"when": {"brand": "match"}, "labels": ["Exact", "Substitute", "Complement", "Irrelevant"]}]},
            "rules.0.labels: all labels are allowed",
        ),
        (
            {"annotate": {"reuse_labelled": True}},
            "annotate: reuse_labelled leaves the unlabelled pairs to annotator: tea",
        ),
        ({"annotate": {"label_rules": []}}, "annotate.label_rules: unknown key; it is replaced by `rules`"),
        ({"distill": {"recipes": []}}, "distill: students and recipes must each name at least one"),
        ({"mesh": {"data": -1, "fsdp": -1}}, "mesh: axes must be positive, and at most one -1"),
        (
            {"labels": {"names": ["a", "score"], "gains": [1, 0], "positive": ["a"]}},
            "labels: names must not be .*'score'",
        ),
        ({"data": {"item_fields": []}}, "data.item_fields: .*at least 1"),
        ({"teacher": {"lora": {"targets": "q_prj"}}}, "teacher.lora: targets .'q_prj'. matches none of q_proj"),
        ({"teacher": {"lora": {"targets": "(q"}}}, "teacher.lora: targets is not a regular expression"),
        ({"adapt": {"enabled": False}}, "adapt.enabled: false leaves a base of random weights"),
        ({"student": {"query_length": 1}}, "student.query_length: .*greater than or equal to 4"),
        ({"name": "../up"}, "name: .*pattern"),
        ({"seed": 2**63}, "seed: .*less than"),
        ({"labels": {"gains": [1.0, 1.0, 1.0, 1.0]}}, "labels: gains are all 1, so that no grade"),
        ({"labels": {"aliases": {"Exact": "Irrelevant"}}}, "labels: aliases maps 'Exact', itself a grade"),
        ({"annotate": {"reviews": "r.csv"}}, "annotate: reviews decide on the answers of annotator llm or teacher"),
        ({"distill": {"labelled_fraction": 0}}, "distill.labelled_fraction: .*greater than 0"),
        ({"annotate": {"endpoints": [ENDPOINT | {"temperature": float("nan")}]}}, "annotate.endpoints.0.temperature: "),
        ({"annotate": {"endpoints": [ENDPOINT | {"input_price": float("inf")}]}}, "annotate.endpoints.0.input_price: "),
        (
            {"annotate": {"endpoints": [ENDPOINT | {"extra": {"d": float("inf")}}]}},
            "annotate.endpoints.0.extra: .*JSON",
        ),
        (
            {"annotate": {"endpoints": [ENDPOINT | {"extra": {"d": date(2024, 1, 1)}}]}},
            "annotate.endpoints.0.extra: .*JSON",
        ),
        (
            {"annotate": {"endpoints": [ENDPOINT | {"extra": {"max_tokens": "many"}}]}},
            "annotate.endpoints.0.extra: .*whole",
        ),
        (
            {"adapt": {"optimization": {"log_every": 7}}},
            "adapt.optimization: checkpoint_every .* multiple",
        ),
        ({"distill": {"optimization": {"learning_rate": -1}}}, "distill.optimization.learning_rate: .*greater than 0"),
    ],
)
def test_a_mistake_is_named_with_its_path_in_one_line(values, message):
    with pytest.raises(UserError, match=rf"^my.yaml: {message}") as error:
        config.from_dict(values, "my.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: [", "not valid YAML"),
        (b"name: " + b"[" * 5000, "not valid YAML: nested too deeply"),
        (b"seed: " + b"9" * 5000, "not valid YAML"),
        (b"name: 2024-13-45", "not valid YAML"),
        (b"- 1", "must hold a mapping"),
        (b"name: \xff", "cannot be read as UTF-8"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path, content, message):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        config.load(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no such config file"):
        config.load(tmp_path / "none.yaml")


def test_an_empty_file_is_the_default(tmp_path):
    (tmp_path / "c.yaml").write_text("")
    assert config.load(tmp_path / "c.yaml") == config.Config()


def test_the_config_and_the_code_have_the_same_names():
    assert get_args(config.TeacherConfig.model_fields["order"].annotation) == ORDERS
    assert tuple(config.SplitsConfig.model_fields)[:3] == SPLITS


def test_renamed_keys_lead_to_keys_that_exist():
    paths = config.flatten(config.Config().model_dump())
    for old, current in RENAMED.items():
        assert old not in paths
        assert any(path == current or path.startswith(f"{current}.") for path in paths), current


def load_text(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text, "utf-8")
    return config.load(tmp_path / "c.yaml")


def test_truths_are_labels_and_yes_is_a_text(tmp_path):
    aliases = "{true: yes, False: no, off: on}"
    labels = load_text(
        tmp_path, f"labels: {{names: [yes, no, on], gains: [1, 0.5, 0], positive: [yes], aliases: {aliases}}}"
    ).labels
    assert labels.names == ("yes", "no", "on")
    assert labels.aliases == {"true": "yes", "false": "no", "off": "on"}
    labels = load_text(tmp_path, "labels: {names: [true, false], gains: [1, 0], positive: [true]}").labels
    assert (labels.names, labels.positive) == (("true", "false"), ("true",))
    assert load_text(tmp_path, "annotate: {reasoning: yes}").annotate.reasoning is True


def test_a_key_that_stands_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match="not valid YAML: the key 'seed' stands twice"):
        load_text(tmp_path, "seed: 1\nname: x\nseed: 2\n")
    with pytest.raises(UserError, match="the key 'path' stands twice"):
        load_text(tmp_path, "data: {path: a, path: b}")
    base = load_text(tmp_path, "x: &x {path: a}\n".replace("x: &x", "data: &x"))
    assert base.data.path == "a"


@pytest.mark.parametrize(("written", "read"), [("';'", ";"), ("tab", "\t"), ("'\\t'", "\t"), ("'|'", "|")])
def test_delimiters(tmp_path, written, read):
    data = load_text(tmp_path, f"data: {{delimiter: {written}}}").data
    assert data.delimiter == read
    assert data.model_dump()["delimiter"] == read


@pytest.mark.parametrize("delimiter", ["::", '"', "\n"])
def test_what_is_no_delimiter(delimiter):
    with pytest.raises(UserError, match=r"data\.delimiter: must be one character"):
        config.from_dict({"data": {"delimiter": delimiter}})


def test_how_files_are_written_leaves_no_trace_in_hashes_where_it_is_not_set():
    names = {"delimiter", "quoting", "html"}
    assert not names & set(config.Config().model_dump()["data"])
    stage = STAGES["prepare"]
    plain = pipeline.sections(config.Config(), stage)
    assert not {f"data.{name}" for name in names} & set(plain)
    settings = config.from_dict({"data": {"html": "text"}})
    assert pipeline.sections(settings, stage) == {**plain, "data.html": "text"}
    assert config.from_dict(settings.model_dump(mode="json")) == settings
