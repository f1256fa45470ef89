"""Real pairs, and made-up models of known quality on them."""

import json
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest

from jax_rele.evaluation import BASELINES, build_metrics
from jax_rele.types import Item, LabelSchema, Pair

GAIN_MAPS = {"paper": [1.0, 0.1, 0.01, 0.0], "esci_data": [1.0, 0.01, 0.1, 0.0]}
SKILLS = {"teacher": 4.0, "cross_encoder:mkd": 2.0, "cross_encoder:label_only": 0.5, "two_tower:mkd": 0.0}


def lean(labels, skill, seed):
    """[N, 4] distributions that lean towards the true label the more, the greater the skill."""
    logits = np.random.default_rng(seed).normal(size=(len(labels), 4))
    logits[np.arange(len(labels)), labels] += skill
    weights = np.exp(logits)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.fixture(scope="session")
def schema():
    return LabelSchema(("Exact", "Substitute", "Complement", "Irrelevant"), (1.0, 0.1, 0.01, 0.0), ("Exact",))


@pytest.fixture(scope="session")
def gain_maps():
    return GAIN_MAPS


@pytest.fixture(scope="session")
def made_up():
    """A function (labels, skill, seed) -> [N, 4] label distributions."""
    return lean


@pytest.fixture(scope="session")
def pairs(schema):
    """The first rows of the bundled sample, whose labels are nearly balanced."""
    names = {name[0]: name for name in schema.names}
    rows = [json.loads(line) for line in (files("jax_rele.data.sample") / "esci_tiny_us.jsonl").open(encoding="utf-8")]
    return [Pair(row["pair_id"], row["query"], Item(**row["product"]), names[row["label"]], "us") for row in rows[:477]]


@pytest.fixture(scope="session")
def splits(pairs):
    order = np.random.default_rng(0).permutation(len(pairs))
    shuffled = [pairs[index] for index in order]
    return shuffled[:240], shuffled[240:330], shuffled[330:]


@pytest.fixture(scope="session")
def judged(splits):
    """The test pairs, every three of them under one query, so that queries have several items."""
    test = splits[2]
    return [replace(pair, query=test[index - index % 3].query) for index, pair in enumerate(test)]


@pytest.fixture(scope="session")
def predictions(splits, schema):
    """What `build_metrics` takes: distributions of baselines and models on validation and test."""
    train, validation, test = splits
    provided = {
        "baselines": {name: predict(train, validation, test, schema) for name, predict in BASELINES.items()},
        "validation_baselines": {
            name: predict(train, validation, validation, schema) for name, predict in BASELINES.items()
        },
    }
    for key, group, seed in (("models", test, 1), ("validation_models", validation, 100)):
        labels = np.array([schema.index(pair.label) for pair in group])
        provided[key] = {name: lean(labels, skill, seed + index) for index, (name, skill) in enumerate(SKILLS.items())}
    return provided


@pytest.fixture(scope="session")
def document(judged, splits, predictions, schema):
    """The metrics document of the made-up models on `judged`."""
    return build_metrics(
        "test",
        judged,
        splits[1],
        schema=schema,
        gain_maps=GAIN_MAPS,
        long_tail=np.arange(len(judged)) % 3 == 0,
        n_bootstrap=200,
        **predictions,
    )
