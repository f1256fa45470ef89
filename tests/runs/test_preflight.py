"""What is refused before any work: here, rationales that are longer than the students' encoder."""

from pathlib import Path

import pytest
import yaml

from jax_rele import config
from jax_rele.errors import UserError
from jax_rele.runs import preflight as preflight_module
from jax_rele.runs.preflight import preflight

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


@pytest.mark.parametrize(
    ("recipe", "students", "length", "message"),
    [
        ("crsd", ["cross_encoder"], 500, r"reads student.query_length \+ student.item_length \+ "),
        ("lrkd", ["cross_encoder"], 600, "reads student.rationale_length = 600 tokens"),
        ("mkd", ["cross_encoder", "two_tower"], 600, None),
    ],
)
def test_a_rationale_longer_than_the_encoder_is_refused_where_it_is_read(recipe, students, length, message):
    values = yaml.safe_load(DEMO.read_text("utf-8"))
    values["distill"] |= {"recipes": [recipe], "students": students, "group_size": 1}
    values["student"] |= {"rationale_length": length, "cross_encoder": {"latent_width": 8}}
    values["distill"]["optimization"] |= {"batch_size": 32}
    checked = config.from_dict(values)
    if message is None:
        return preflight(checked, ["distill"])
    with pytest.raises(UserError, match=f"^distill.recipes: {recipe} {message}.* lower student.rationale_length$"):
        preflight(checked, ["distill"])


@pytest.mark.parametrize(("limits", "raised"), [((64, 4096), 256), ((1024, 4096), None), ((64, 64), None)])
def test_a_low_limit_of_open_files_is_raised_or_refused(monkeypatch, limits, raised):
    calls = []
    monkeypatch.setattr(preflight_module.resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(preflight_module.resource, "setrlimit", lambda _, values: calls.append(values))
    if limits[1] < 256:
        with pytest.raises(UserError, match="64 files at once, 256 are needed"):
            preflight_module._allow_files()
    else:
        preflight_module._allow_files()
    assert calls == ([(raised, limits[1])] if raised else [])


def test_grades_that_are_not_written_best_first_are_said(capsys):
    for gains, warnings in (([1.0, 0.0], 0), ([0.0, 1.0], 1)):
        labels = {"names": ["A", "B"], "gains": gains, "positive": ["A"]}
        preflight(config.from_dict({"labels": labels}), ["prepare"])
        assert capsys.readouterr().out.count("warning: labels.names stand best first") == warnings
