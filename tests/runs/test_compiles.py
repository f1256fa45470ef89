"""Programs are counted once each, and only while asked."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jax_rele.runs.compiles import count_compiles


def test_a_program_counts_once_for_each_shape():
    function = jax.jit(lambda x: x * 2 + 1)
    inputs = [jnp.zeros(length) for length in (3, 3, 5)]
    with count_compiles() as compiles:
        for x in inputs:
            function(x)
    assert compiles.programs == 2
    assert compiles.seconds > 0
    jax.jit(lambda x: x * 3 + 1)(inputs[0])
    assert compiles.programs == 2


def test_an_error_ends_the_count():
    with pytest.raises(ZeroDivisionError), count_compiles() as compiles:
        raise ZeroDivisionError
    jax.jit(lambda x: x * 5 + 1)(jnp.zeros(3))
    assert compiles.programs == 0
