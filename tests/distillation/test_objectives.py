"""What a config makes of a recipe's terms."""

import pytest

from jax_rele.config import DistillConfig
from jax_rele.distillation.objectives import terms
from jax_rele.losses.recipes import OUTPUTS

GAINS = (1.0, 0.5, 0.0)


@pytest.mark.parametrize("recipe", ["mkd", "cot_kd"])
def test_the_verdict_term_falls_where_verdicts_are_read_from_tokens_alone(recipe):
    """In the attribute world a falling weight makes a pooled cross-encoder worse (docs/studies/attribute_world.md)."""
    distill = DistillConfig(optimization={"steps": 100, "batch_size": 8})
    falling, constant = (
        terms(distill, GAINS, recipe, OUTPUTS, pooling)["verdict"].weight for pooling in ("tokens", "pooled")
    )
    assert [float(falling(step)) for step in (0, 50, 100, 200)] == [10.0, 5.5, 1.0, 1.0]
    assert constant == 1.0
