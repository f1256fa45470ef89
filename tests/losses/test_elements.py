"""What every public loss promises, over one table of cases."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import sklearn.metrics
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jax_rele import losses

B, C, D, V, L, E, VOCABULARY = 16, 4, 3, 3, 6, 8, 12
GAINS = np.array([1.0, 0.6, 0.1, 0.0])
SHARED = ("gains", "output_embedding")
"""Arguments without a batch axis."""
ALL = np.ones(B, bool)


def distributions(rng, *shape):
    """Distributions, the first of them one-hot: parsed and saturated teachers give zeros."""
    probs = rng.dirichlet(np.ones(shape[-1]), shape[:-1])
    probs[0] = np.eye(shape[-1])[rng.integers(shape[-1], size=shape[1:-1])]
    return probs


def score_inputs(rng):
    return {"logits": rng.normal(size=(B, C)) * 2, "label_probs": distributions(rng, B, C)}


def label_inputs(rng):
    return {"logits": rng.normal(size=(B, C)) * 2, "labels": rng.integers(C, size=B)}


def ranking_inputs(rng):
    return score_inputs(rng) | {"gains": GAINS, "segments": rng.integers(B // 3, size=B)}


def verdict_inputs(rng):
    return {"verdict_logits": rng.normal(size=(B, D, V)) * 2, "verdict_probs": distributions(rng, B, D, V)}


def evidence_inputs(rng):
    return {"token_logits": rng.normal(size=(B, L, 1 + D)) * 2, "evidence_tags": rng.integers(1 + D, size=(B, L))}


def language_inputs(rng):
    rows = rng.normal(size=(VOCABULARY, E))
    return {
        "hidden": rng.normal(size=(B, L, E)),
        # Unit rows: no other token's row suits a hidden state along a row as well.
        "output_embedding": rows / np.linalg.norm(rows, axis=-1, keepdims=True),
        "targets": rng.integers(VOCABULARY, size=(B, L)),
    }


# Oracles: float64, by loops and by other libraries.


def log_loss(logits, labels):
    probs = scipy.special.softmax(logits, axis=-1)
    classes = np.arange(probs.shape[-1])
    return np.vectorize(lambda p, y: sklearn.metrics.log_loss([y], [p], labels=classes), signature="(c),()->()")(
        probs, labels
    )


def smoothed_log_loss(logits, labels, label_smoothing):
    uniform = np.mean([log_loss(logits, np.full(len(labels), c)) for c in range(C)], axis=0)
    return (1 - label_smoothing) * log_loss(logits, labels) + label_smoothing * uniform


def softened_kl(logits, label_probs, temperature=1.0):
    teacher = label_probs ** (1 / temperature)
    teacher /= teacher.sum(-1, keepdims=True)
    student = scipy.special.softmax(logits / temperature, axis=-1)
    return temperature**2 * scipy.special.rel_entr(teacher, student).sum(-1)


def margins_by_loops(logits, label_probs, gains, segments):
    student, teacher = scipy.special.softmax(logits, axis=-1) @ gains, label_probs @ gains
    elements = np.zeros(len(segments))
    for i in range(len(segments)):
        others = [j for j in range(len(segments)) if j != i and segments[j] == segments[i]]
        errors = [((student[i] - student[j]) - (teacher[i] - teacher[j])) ** 2 for j in others]
        elements[i] = np.mean(errors) if errors else 0.0
    return elements


def lists_by_loops(logits, label_probs, gains, segments, temperature=1.0):
    student, teacher = scipy.special.softmax(logits, axis=-1) @ gains, label_probs @ gains
    elements = np.zeros(len(segments))
    for segment in set(segments.tolist()):
        (members,) = np.nonzero(segments == segment)
        p, q = (scipy.special.softmax(scores[members] / temperature) for scores in (teacher, student))
        elements[members] = temperature**2 * p * np.log(p / q)
    return elements


def soft_log_loss(verdict_logits, verdict_probs):
    return -(verdict_probs * scipy.special.log_softmax(verdict_logits, axis=-1)).sum(-1)


def tag_log_loss(token_logits, evidence_tags):
    return log_loss(token_logits, evidence_tags)


def naive_next_token(hidden, output_embedding, targets):
    return log_loss(hidden @ output_embedding.T, targets)


# Students that cannot do better, and their elements.


def log(probs):
    return np.log(np.maximum(probs, 1e-30))


def sure_of(labels, size):
    return 1e4 * np.eye(size)[labels]


def best_label(inputs):
    return {"logits": sure_of(inputs["labels"], C)}, np.zeros(B)


def best_smoothed(inputs):
    targets = np.asarray(optax.smooth_labels(jnp.eye(C)[inputs["labels"]], 0.2))
    return {"logits": log(targets) + 3.0}, scipy.special.entr(targets).sum(-1)


def best_score(inputs):
    return {"logits": log(inputs["label_probs"]) + 3.0}, np.zeros(B)


def best_verdict(inputs):
    probs = inputs["verdict_probs"]
    return {"verdict_logits": log(probs) + 3.0}, scipy.special.entr(probs).sum(-1)


def best_tags(inputs):
    return {"token_logits": sure_of(inputs["evidence_tags"], 1 + D)}, np.zeros((B, L))


def best_language(inputs):
    return {"hidden": 1e2 * inputs["output_embedding"][inputs["targets"]]}, np.zeros((B, L))


@dataclass(frozen=True, eq=False)  # JAX hashes what it compiles
class Case:
    """A public loss: how to call it, what it must equal, and which student cannot do better."""

    fn: Callable
    inputs: Callable
    oracle: Callable
    best: Callable
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self):
        return " ".join([self.fn.__name__, *self.options])

    @property
    def pointwise(self):
        """Whether an example's elements depend on that example alone."""
        return self.fn not in (losses.margin_mse, losses.listwise_kl)

    def eager(self, inputs, **kwargs):
        return self.fn(**inputs, **self.options, **kwargs)

    @partial(jax.jit, static_argnums=0)  # compiled once for all tests
    def __call__(self, inputs, **kwargs):
        return self.eager(inputs, **kwargs)

    def make(self, seed=0):
        """Float32 and int32 inputs."""
        inputs = self.inputs(np.random.default_rng(seed))
        return {k: v.astype(np.float32 if v.dtype == float else np.int32) for k, v in inputs.items()}


CASES = [
    Case(losses.cross_entropy, label_inputs, log_loss, best_label),
    Case(losses.cross_entropy, label_inputs, smoothed_log_loss, best_smoothed, {"label_smoothing": 0.2}),
    Case(losses.score_kl, score_inputs, softened_kl, best_score),
    Case(losses.score_kl, score_inputs, softened_kl, best_score, {"temperature": 2.5}),
    Case(losses.margin_mse, ranking_inputs, margins_by_loops, best_score),
    Case(losses.listwise_kl, ranking_inputs, lists_by_loops, best_score),
    Case(losses.listwise_kl, ranking_inputs, lists_by_loops, best_score, {"temperature": 0.2}),
    Case(losses.verdict_cross_entropy, verdict_inputs, soft_log_loss, best_verdict),
    Case(losses.evidence_tagging, evidence_inputs, tag_log_loss, best_tags),
    Case(losses.next_token_cross_entropy, language_inputs, naive_next_token, best_language, {"chunk_size": 2 * B}),
]

every_loss = pytest.mark.parametrize("case", CASES, ids=str)
every_pointwise_loss = pytest.mark.parametrize("case", [case for case in CASES if case.pointwise], ids=str)
close = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)


def of_rows(inputs, rows):
    return {name: value if name in SHARED else value[rows] for name, value in inputs.items()}


def mask_of_rows(inputs, rows):
    """The mask [B] at the rank of the elements."""
    per_element = any(name in inputs for name in ("verdict_probs", "evidence_tags", "targets"))
    return rows[:, None] if per_element else rows


@partial(jax.jit, static_argnums=0)
def gradients(case, inputs, rows):
    """Of the sum of the elements by every input that is no index: by teachers too, as networks may teach each other."""
    numbers = {name: jnp.asarray(value) for name, value in inputs.items() if value.dtype != np.int32}
    where = mask_of_rows(inputs, rows)
    return jax.grad(lambda numbers: case.eager(inputs | numbers, where=where).sum())(numbers)


def test_table_holds_every_public_loss():
    masked = {name for name in losses.__all__ if "where" in inspect.signature(getattr(losses, name)).parameters}
    assert {case.fn.__name__ for case in CASES} == masked - {"in_list", "term"}


@every_loss
@pytest.mark.parametrize("seed", range(3))
def test_equals_oracle(case, seed):
    inputs = case.make(seed)
    double = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in inputs.items()}
    options = {k: v for k, v in case.options.items() if k != "chunk_size"}
    close(case(inputs), case.oracle(**double, **options))


@every_loss
def test_mask_equals_slice(case):
    inputs = case.make()
    mask = np.random.default_rng(1).random(B) < 0.6
    full = case(inputs)
    masked = case(inputs, where=mask_of_rows(inputs, mask))
    assert masked.shape == full.shape
    close(masked[mask], case(of_rows(inputs, mask)))
    assert not masked[~mask].any()


@every_pointwise_loss
def test_mask_of_elements(case):
    inputs = case.make()
    full = case(inputs)
    mask = np.random.default_rng(1).random(full.shape) < 0.6
    close(case(inputs, where=mask), np.where(mask, full, 0.0))


@every_loss
def test_permutation_equivariant(case):
    inputs = case.make()
    order = np.random.default_rng(1).permutation(B)
    close(case(of_rows(inputs, order)), case(inputs)[order])


@every_loss
def test_extreme_students_give_finite_values_and_gradients(case):
    inputs = case.make()
    rng = np.random.default_rng(1)
    for name in {"logits", "verdict_logits", "token_logits", "hidden"} & set(inputs):
        inputs[name] = rng.choice(np.float32([-1e4, 1e4]), size=inputs[name].shape)
    assert np.isfinite(case(inputs)).all()
    assert all(np.isfinite(gradient).all() for gradient in gradients(case, inputs, ALL).values())


@every_loss
@pytest.mark.parametrize("poison", [np.nan, -np.inf])
def test_masked_poison_contributes_nothing(case, poison):
    inputs = case.make()
    mask = np.random.default_rng(1).random(B) < 0.6
    where = mask_of_rows(inputs, mask)
    poisoned = {name: value if name in SHARED else value.copy() for name, value in inputs.items()}
    for name in set(inputs) - set(SHARED):
        poisoned[name][~mask] = -100 if inputs[name].dtype == np.int32 else poison
    np.testing.assert_array_equal(case(poisoned, where=where), case(inputs, where=where))
    clean = gradients(case, inputs, mask)
    for name, gradient in gradients(case, poisoned, mask).items():
        close(gradient, clean[name])
        if name not in SHARED:
            assert not gradient[~mask].any()


@every_loss
def test_bfloat16_is_computed_in_float32(case):
    inputs = {k: jnp.asarray(v, jnp.bfloat16 if v.dtype == np.float32 else v.dtype) for k, v in case.make().items()}
    widened = {k: v.astype(jnp.float32) if v.dtype == jnp.bfloat16 else v for k, v in inputs.items()}
    elements = case(inputs)
    assert elements.dtype == jnp.float32
    close(elements, case(widened))


@every_loss
def test_jit_equals_eager(case):
    inputs = case.make()
    where = mask_of_rows(inputs, np.random.default_rng(1).random(B) < 0.6)
    close(case(inputs, where=where), case.eager(inputs, where=where))


@every_loss
def test_vmap_over_batches(case):
    batches = [case.make(seed) for seed in range(3)]
    axes = {name: None if name in SHARED else 0 for name in batches[0]}
    stacked = {n: batches[0][n] if n in SHARED else np.stack([batch[n] for batch in batches]) for n in axes}
    mapped = jax.vmap(case.eager, in_axes=(axes,))(stacked)
    shared = {name: batches[0][name] for name in SHARED if name in axes}
    close(mapped, np.stack([case(batch | shared) for batch in batches]))


@every_loss
def test_sharded_batch_equals_one_device(case):
    inputs = case.make()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    sharded = {k: jax.device_put(v, everywhere if k in SHARED else rows) for k, v in inputs.items()}
    compiled = jax.jit(case.eager).lower(sharded).compile()
    elements = compiled(sharded)
    assert len(elements.sharding.device_set) == 8
    close(elements, case(inputs))
    sharded_gradients = gradients(case, sharded, ALL)
    for name, gradient in gradients(case, inputs, ALL).items():
        close(sharded_gradients[name], gradient)
    if case.pointwise:  # every device works on its own rows
        assert not any(op in compiled.as_text() for op in ("all-gather", "all-reduce", "all-to-all", "permute"))


@every_loss
def test_best_student_reaches_the_minimum(case):
    inputs = case.make()
    student, least = case.best(inputs)
    best = inputs | {name: value.astype(np.float32) for name, value in student.items()}
    np.testing.assert_allclose(case(best), least, atol=1e-5)
    for gradient in (gradients(case, best, ALL)[name] for name in student):
        np.testing.assert_allclose(gradient, 0.0, atol=1e-5)
    assert case(inputs).sum() > least.sum() + 1e-3


@every_loss
def test_disagreeing_shapes_are_named(case):
    inputs = case.make()
    for name in set(inputs) - {"gains", "output_embedding"}:
        with pytest.raises(AssertionError, match=case.fn.__name__):
            case(inputs | {name: inputs[name][1:]})
        with pytest.raises(AssertionError, match=rf"{case.fn.__name__}: {name} must be \[B"):
            case(inputs | {name: inputs[name][0]})
    for name in set(inputs) & set(SHARED):
        with pytest.raises(AssertionError, match=rf"{case.fn.__name__}: {name} must be \["):
            case(inputs | {name: inputs[name][..., 1:]})


@every_loss
def test_indices_must_be_integers_and_masks_booleans(case):
    inputs = case.make()
    for name in (name for name, value in inputs.items() if value.dtype == np.int32):
        with pytest.raises(AssertionError, match=f"{name} must be integers"):
            case(inputs | {name: inputs[name].astype(np.float32)})
    with pytest.raises(AssertionError, match="where must be a mask of booleans"):
        case(inputs, where=np.ones(case(inputs).shape, np.int32))


@every_pointwise_loss
@pytest.mark.parametrize("stray", [-1, VOCABULARY])
def test_stray_index_is_nan(case, stray):
    """Silence would train on a wrong label: -1 is the last row to numpy's indexing."""
    inputs = case.make()
    for name in {"labels", "evidence_tags", "targets"} & set(inputs):
        inputs[name][3] = stray
        elements = np.asarray(case(inputs))
        assert np.isnan(elements[3]).all()
        assert np.isfinite(np.delete(elements, 3, axis=0)).all()


@every_loss
def test_unmasked_nan_teacher_is_seen(case):
    inputs = case.make()
    for name in {"label_probs", "verdict_probs"} & set(inputs):
        inputs[name][:] = np.nan
        elements = np.asarray(case(inputs))
        if case.fn is losses.margin_mse:  # without partners there is nothing to compare
            elements = elements[np.asarray(losses.in_list(inputs["segments"]))]
        assert np.isnan(elements).all()
