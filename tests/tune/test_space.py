"""What is searched, what is refused, and the best numbers as keys of a config."""

import pytest
import yaml

from jax_rele import losses
from jax_rele.config import Config, TuneConfig, from_dict
from jax_rele.distillation.objectives import terms
from jax_rele.errors import UserError
from jax_rele.losses.recipes import OUTPUTS
from jax_rele.tune.space import config_fragment, hyperparameters, search_space

GAINS = (1.0, 0.1, 0.01, 0.0)
MINE = {
    "base": "score_kd",
    "terms": {
        "margin": {"weight": 0},
        "list": {"weight": {"start": 0.0, "end": 1.0, "steps": 5}},
        "smooth": {"loss": "cross_entropy", "weight": 0.5, "bind": {"label_smoothing": 0.1}},
    },
}


def space_of(recipe, tune=None, heads=OUTPUTS, **distill):
    config = Config.model_validate({"distill": distill})
    return search_space(
        TuneConfig.model_validate(tune or {}), terms(config.distill, GAINS, recipe, heads), 1e-3, recipe
    )


def test_every_weight_but_the_labels_every_temperature_and_the_rate_are_searched():
    space = space_of("mkd", temperature=3.0)
    assert space.defaults == {
        "weight.score": 1.0,
        "weight.margin": 1.0,
        "weight.list": 16.0,
        "weight.evidence": 0.5,
        "temperature.score": 3.0,
        "temperature.list": 0.25,
        "learning_rate": 1e-3,
    }
    for name, number in space.defaults.items():
        low, high = space.ranges[name]
        assert low < number < high
    assert space.ranges["weight.score"] == (0.01, 10.0)
    assert list(space_of("label_only").ranges) == ["learning_rate"]
    assert "weight.evidence" not in space_of("mkd", heads=OUTPUTS - {"token_logits"}).ranges


def test_the_config_gives_ranges():
    tune = {
        "weights": {"label": {"low": 0.5, "high": 2}, "score": {"low": 1, "high": 1}},
        "temperatures": {"score": {"low": 1, "high": 4}},
        "learning_rate": {"low": "1e-4", "high": 1e-2},
    }
    space = space_of("score_kd", tune)
    assert space.ranges["weight.label"] == (0.5, 2)
    assert space.ranges["weight.score"] == (1, 1)
    assert space.ranges["temperature.score"] == (1, 4)
    assert space.ranges["learning_rate"] == (1e-4, 1e-2)


def test_a_schedule_is_not_searched():
    space = space_of("mine", objectives={"mine": MINE})
    assert space.schedules == ("weight.list",)
    assert set(space.ranges) == {
        *("weight.score", "weight.smooth", "temperature.score", "temperature.list", "learning_rate")
    }


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        (
            {"weights": {"scor": {"low": 1, "high": 2}}},
            "tune.weights.scor: mine has no term of this name with a",
        ),
        ({"temperatures": {"smooth": {"low": 1, "high": 2}}}, "tune.temperatures.smooth: mine has no term"),
        ({"weights": {"list": {"low": 1, "high": 2}}}, "tune.weights.list: it is a schedule"),
        ({"weights": {"score": {"low": 2, "high": 3}}}, "tune.weights.score: 2 to 3 does not hold the number of the "),
        ({"learning_rate": {"low": 2, "high": 3}}, "tune.learning_rate: 2 to 3 does not hold"),
    ],
)
def test_a_range_that_does_not_fit_is_one_line(tune, message):
    with pytest.raises(UserError) as error:
        space_of("mine", tune, objectives={"mine": MINE})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({"learning_rate": {"low": 2, "high": 1}}, "tune.learning_rate: low (2) is above high (1)"),
        ({"weights": {"score": {"low": 0, "high": 1}}}, "tune.weights.score.low"),
        ({"weights": {"score": {"low": 1, "high": ".inf"}}}, "tune.weights.score.high"),
        ({"weights": {"score": [0.1, 1]}}, "tune.weights.score"),
        ({"weight": {}}, "did you mean tune.weights?"),
    ],
)
def test_a_bad_range_names_its_key(tune, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(").replace(")", r"\)").replace("?", r"\?")):
        from_dict({"tune": tune})


@pytest.mark.parametrize("recipe", ["mkd", "mine"])
def test_the_fragment_gives_the_terms_these_numbers(recipe):
    distill = Config.model_validate({"distill": {"objectives": {"mine": MINE}}}).distill
    space = space_of(recipe, objectives={"mine": MINE})
    values = {name: 1.1 * number for name, number in space.defaults.items()}
    fragment = yaml.safe_load(config_fragment(distill, recipe, values))
    fragment["distill"]["recipes"] = [f"{recipe}_tuned"]
    tuned = from_dict(fragment).distill
    assert tuned.optimization.learning_rate == values["learning_rate"]
    before, after = terms(distill, GAINS, recipe, OUTPUTS), terms(tuned, GAINS, f"{recipe}_tuned", OUTPUTS)
    assert list(before) == list(after)
    numbers = hyperparameters(values)
    for name, term in after.items():
        expected = numbers.weights.get(name, before[name].weight)
        assert term.weight == expected or (callable(expected) and term.weight(2) == expected(2))
        assert term.temperature == numbers.temperatures.get(name, before[name].temperature)
        assert term.fn is before[name].fn
    assert losses.needs(before) == losses.needs(after)
