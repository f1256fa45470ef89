"""What every public loss promises, over the table of cases."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jax_rele import losses

from .cases import CASES, NOT_NEGATIVE, SHARED, TEACHERS, VOCABULARY, B, Case

every_loss = pytest.mark.parametrize("case", CASES, ids=str)
every_loss_alone = pytest.mark.parametrize("case", [case for case in CASES if case.alone], ids=str)
close = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)
ALL = np.ones(B, bool)
INDICES = {"labels", "evidence_tags", "targets"}
STUDENTS = {
    "logits",
    "verdict_logits",
    "token_logits",
    "hidden",
    "latent",
    "representation",
    "augmented_representation",
    "query_views",
    "item_views",
    "chosen_log_probs",
    "rejected_log_probs",
    "log_probs",
}


def some(seed=1):
    """A mask with as many valid rows whatever the seed, so that a slice is compiled once."""
    return np.random.default_rng(seed).permutation(B) < 10


def is_number(value):
    return jnp.issubdtype(value.dtype, jnp.floating)


def eager(case: Case, inputs, **kwargs):
    return case.fn(**inputs, **case.options, **kwargs)


def where_of(case: Case, inputs, rows):
    """The mask [B] at the rank of the elements."""
    rank = jax.eval_shape(partial(eager, case), inputs).ndim
    return np.expand_dims(rows, tuple(range(1, rank)))


def elements_and_gradients(case: Case, inputs, where):
    """The elements, and the gradients of their sum by every input that is no index: by teachers too, as networks may
    teach each other."""
    numbers = {name: value for name, value in inputs.items() if is_number(value)}
    elements, pull = jax.vjp(lambda numbers: eager(case, {**inputs, **numbers}, where=where), numbers)
    return elements, pull(jnp.ones_like(elements))[0]


compiled = partial(jax.jit, static_argnums=0)(elements_and_gradients)
values = partial(jax.jit, static_argnums=0)(eager)


def run(case: Case, inputs, rows=ALL):
    """Elements and gradients, compiled once for all tests."""
    return jax.device_get(compiled(case, inputs, where_of(case, inputs, rows)))


def of_rows(inputs, rows):
    return {name: value if name in SHARED else value[rows] for name, value in inputs.items()}


def assert_close(actual, expected):
    jax.tree.map(close, actual, expected)


def test_table_holds_every_public_loss():
    masked = {name for name in losses.__all__ if "where" in inspect.signature(getattr(losses, name)).parameters}
    assert {case.fn.__name__ for case in CASES} == masked - {"in_list", "term"}


def in_float64(inputs):
    return {name: value.astype(np.float64) if is_number(value) else value for name, value in inputs.items()}


@every_loss
@pytest.mark.parametrize("seed", range(2))
def test_equals_oracle(case, seed):
    inputs = case.make(seed)
    options = {name: value for name, value in case.options.items() if name != "chunk_size"}
    close(run(case, inputs)[0], case.oracle(**in_float64(inputs), **options))


@every_loss
def test_gradient_equals_finite_differences_of_oracle(case):
    """In directions that leave a probability of zero at zero."""
    inputs = case.make()
    options = {name: value for name, value in case.options.items() if name != "chunk_size"}
    _, gradients = run(case, inputs)
    double, rng = in_float64(inputs), np.random.default_rng(2)
    for name, gradient in gradients.items():
        if name in case.fixed:
            assert not gradient.any()
            continue
        for _ in range(2):
            direction = rng.normal(size=gradient.shape) * (double[name] if name in NOT_NEGATIVE else 1.0)
            sides = [
                case.oracle(**double | {name: double[name] + step * direction}, **options).sum()
                for step in (1e-6, -1e-6)
            ]
            slope = (sides[0] - sides[1]) / 2e-6
            scale = np.abs(gradient * direction).sum()
            np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-5 * scale + 1e-7)


@every_loss
def test_mask_equals_slice(case):
    inputs, mask = case.make(), some()
    elements, _ = run(case, inputs, mask)
    assert elements.shape == run(case, inputs)[0].shape
    close(elements[mask], values(case, of_rows(inputs, mask)))
    assert not elements[~mask].any()


@every_loss_alone
def test_mask_of_elements(case):
    inputs = case.make()
    full, _ = run(case, inputs)
    mask = np.random.default_rng(1).random(full.shape) < 0.6
    close(compiled(case, inputs, mask)[0], np.where(mask, full, 0.0))


@every_loss
def test_eager_without_mask_equals_jit(case):
    inputs = case.make()
    close(eager(case, inputs), run(case, inputs)[0])
    if case.options:  # what is not given has the default of the oracle
        close(case.fn(**inputs), case.oracle(**in_float64(inputs)))


@every_loss
def test_permutation_equivariant(case):
    inputs = case.make()
    order = np.random.default_rng(1).permutation(B)
    elements, gradients = run(case, inputs)
    assert_close(run(case, of_rows(inputs, order)), (elements[order], of_rows(gradients, order)))


@pytest.mark.parametrize(
    ("case", "size"),
    [(case, size) for case in CASES for size in ([1e4, 1e30] if case.linear else [1e4])],
    ids=lambda value: f"{value:g}" if isinstance(value, float) else str(value),
)
def test_extreme_students_give_finite_values_and_gradients(case, size):
    inputs = case.make()
    rng = np.random.default_rng(1)
    for name in STUDENTS & set(inputs):
        inputs[name] = rng.choice(np.float32([-size, size]), size=inputs[name].shape)
    if "attention" in inputs:
        inputs["attention"] = rng.choice(np.float32([0.0, 1e-40, 2e-38, 1.0]), size=inputs["attention"].shape)
    elements, gradients = run(case, inputs)
    assert np.isfinite(elements).all()
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


@every_loss
@pytest.mark.parametrize("poison", [np.nan, -np.inf])
def test_masked_poison_contributes_nothing(case, poison):
    inputs, mask = case.make(), some()
    poisoned = {name: value.copy() for name, value in inputs.items()}
    for name in set(inputs) - set(SHARED):
        if inputs[name].dtype != bool:
            poisoned[name][~mask] = poison if is_number(inputs[name]) else -100
    (elements, gradients), (clean, clean_gradients) = run(case, poisoned, mask), run(case, inputs, mask)
    np.testing.assert_array_equal(elements, clean)
    assert_close(gradients, clean_gradients)
    assert not any(gradient[~mask].any() for name, gradient in gradients.items() if name not in SHARED)


@every_loss
def test_bfloat16_is_computed_in_float32(case):
    inputs = {k: jnp.asarray(v, jnp.bfloat16) if is_number(v) else v for k, v in case.make().items()}
    widened = {k: v.astype(jnp.float32) if is_number(v) else v for k, v in inputs.items()}
    elements = values(case, inputs)
    assert elements.dtype == jnp.float32
    close(elements, run(case, widened)[0])


@every_loss
def test_vmap_over_batches_equals_loop(case):
    batches = [case.make(seed) for seed in range(2)]
    shared = {name: value for name, value in batches[0].items() if name in SHARED}
    axes = {name: None if name in SHARED else 0 for name in batches[0]}
    stacked = {name: np.stack([batch[name] for batch in batches]) for name in axes if name not in SHARED} | shared
    mapped = jax.jit(jax.vmap(partial(eager, case), in_axes=(axes,)))(stacked)
    for elements, batch in zip(mapped, batches, strict=True):
        close(elements, run(case, batch | shared)[0])


@every_loss
def test_sharded_batch_equals_one_device(case):
    inputs = case.make()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    where = jax.device_put(where_of(case, inputs, ALL), rows)
    sharded = {k: jax.device_put(v, everywhere if k in SHARED else rows) for k, v in inputs.items()}
    program = jax.jit(partial(elements_and_gradients, case)).lower(sharded, where).compile()
    elements, gradients = program(sharded, where)
    assert len(elements.sharding.device_set) == 8
    assert_close((elements, gradients), run(case, inputs))
    if case.alone and not set(SHARED) & set(inputs):  # every device works on its own rows
        assert not any(op in program.as_text() for op in ("all-gather", "all-reduce", "all-to-all", "permute"))


@every_loss
def test_best_student_reaches_the_minimum(case):
    inputs = case.make()
    student, least, *free = case.best(inputs)
    best = inputs | {name: value.astype(np.float32) for name, value in student.items()}
    elements, gradients = run(case, best)
    np.testing.assert_allclose(elements, least, atol=1e-5)
    for name in student:
        np.testing.assert_allclose(gradients[name] * (free[0] if free else 1.0), 0.0, atol=1e-5)
    assert run(case, inputs)[0].sum() > least.sum() + 1e-3


@every_loss
def test_disagreeing_shapes_are_named(case):
    inputs = case.make()

    def call(**changed):
        jax.eval_shape(partial(eager, case), inputs | changed)

    for name in set(inputs) - set(SHARED):
        with pytest.raises(AssertionError, match=case.fn.__name__):
            call(**{name: inputs[name][1:]})
        with pytest.raises(AssertionError, match=rf"{case.fn.__name__}: {name} must be \[B"):
            call(**{name: inputs[name][0]})
    for name in set(inputs) & set(SHARED):
        with pytest.raises(AssertionError, match=rf"{case.fn.__name__}: {name} must be \["):
            call(**{name: inputs[name][..., 1:]})


@every_loss
def test_indices_must_be_integers_and_masks_booleans(case):
    inputs = case.make()
    call = partial(jax.eval_shape, partial(eager, case))
    for name, value in inputs.items():
        if not is_number(value):
            message = f"{name} must be {'a mask of booleans' if value.dtype == bool else 'integers'}"
            with pytest.raises(AssertionError, match=message):
                call(inputs | {name: value.astype(np.float32)})
    with pytest.raises(AssertionError, match="where must be a mask of booleans"):
        call(inputs, where=np.ones(call(inputs).shape, np.int32))


@pytest.mark.parametrize("case", [case for case in CASES if case.fn is not losses.attention_to_evidence], ids=str)
@pytest.mark.parametrize("stray", [-1, VOCABULARY])
def test_stray_index_is_nan(case, stray):
    """Silence would train on a wrong label: -1 is the last row to numpy's indexing."""
    inputs = case.make()
    for name in INDICES & set(inputs):
        inputs[name][3] = stray
        elements, _ = run(case, inputs)
        assert np.isnan(elements[3]).all()
        assert not case.alone or np.isfinite(np.delete(elements, 3, axis=0)).all()


@every_loss
def test_unmasked_nan_teacher_is_seen(case):
    inputs = case.make()
    for name in set(TEACHERS) & set(inputs):
        inputs[name][:] = np.nan
        elements, _ = run(case, inputs)
        if case.fn in (losses.margin_mse, losses.ranknet):  # without partners there is nothing to compare
            elements = elements[np.asarray(losses.in_list(inputs["segments"]))]
        assert np.isnan(elements).all()
