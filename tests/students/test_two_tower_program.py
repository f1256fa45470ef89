"""The compiled two-tower pools a side's tokens by dimension once, though views and gates both read the result."""

import re

import jax
import jax.numpy as jnp
import pytest

from jax_rele.config import from_dict
from jax_rele.students.build import build_student

SHAPE = {"layers": 1, "width": 32, "mlp_width": 64, "vocab_size": 300}
PRODUCTS = 3
"""Matrix products of a pooling: the tokens' scores, their weighted means, and the kernel of each dimension."""


@pytest.fixture(scope="module")
def student():
    section = from_dict({"student": {"random": SHAPE, "verdict_pooling": "tokens"}}).student
    model = build_student("two_tower", section, 300, 3, 5)
    inputs = {}
    for side, length in (("query", 12), ("item", 20)):
        inputs[f"{side}_tokens"] = jnp.ones((4, length), jnp.int32)
        inputs[f"{side}_valid"] = jnp.ones((4, length), bool)
    return model, model.init(jax.random.key(0), **inputs), inputs


def pooling_products(function, *arguments) -> int:
    """The matrix products of poolings in a compiled program, those of the backward pass apart."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    names = re.findall(r' dot\(.*op_name="([^"]*token_views[^"]*)"', text)
    return sum("transpose(" not in name for name in names)


def test_a_query_is_pooled_once(student):
    model, variables, inputs = student
    query = inputs["query_tokens"], inputs["query_valid"]
    assert pooling_products(lambda v: model.apply(v, *query, 0, method="encode"), variables) == PRODUCTS


def test_each_side_of_a_pair_is_pooled_once(student):
    model, variables, inputs = student
    assert pooling_products(lambda v: model.apply(v, **inputs).logits, variables) == 2 * PRODUCTS


def test_a_training_step_pools_each_side_once(student):
    model, variables, inputs = student

    def loss(variables):
        outputs = model.apply(variables, **inputs)
        return outputs.logits.sum() + outputs.verdict_logits.sum()

    assert pooling_products(jax.grad(loss), variables) == 2 * PRODUCTS
