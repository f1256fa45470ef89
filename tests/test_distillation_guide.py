"""What docs/distillation.md shows runs as it stands."""

import re
from pathlib import Path

import numpy as np

from jax_rele import losses
from jax_rele.config import from_dict
from jax_rele.names import RECIPES

GUIDE = (Path(__file__).parent.parent / "docs" / "distillation.md").read_text("utf-8")


def test_the_examples_run():
    for code in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL):
        names: dict = {}
        exec(compile(code, "distillation.md", "exec"), names)
        if "brier" in names:
            elements = names["brier"](np.zeros((2, 4), np.float32), np.full((2, 4), 0.25, np.float32))
            np.testing.assert_allclose(elements, 0)


def test_every_recipe_and_loss_that_is_named_exists():
    table = GUIDE.partition("## Recipes")[2].partition("##")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(RECIPES)
    choices = GUIDE.partition("## Which terms")[2].partition("##")[0]
    for name in re.findall(r"`(?:losses\.)?([a-z_]+)`", choices):
        if name not in ("label_smoothing",):
            assert name in losses.__all__, name


def test_the_objective_of_the_config_is_valid():
    import yaml

    text = GUIDE.partition("    distill:\n")[2].partition("\n```")[0]
    distill = yaml.safe_load("distill:\n" + text)
    config = from_dict(distill, "guide")
    assert config.distill.objectives["mine"].terms["brier"].weight.end == 0.5
