"""The students: what may and may not change their answers, and items encoded offline."""

from functools import partial

import flax
import jax
import numpy as np
import pytest
from flax import linen as nn

from jax_rele.models import EncoderConfig
from jax_rele.students import CrossEncoder, TwoTower
from jax_rele.students.dimension_pooling import DimensionPooling
from jax_rele.students.two_tower import late_interaction

CONFIG = EncoderConfig(vocab_size=40, max_length=20, layers=2, width=32, heads=4, mlp_width=48)
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(3, 40, (4, 12)).astype(np.int32)
VALID = np.arange(12) < np.array([12, 7, 9, 10])[:, None]
TYPES = (np.arange(12) >= 5).astype(np.int32)[None].repeat(4, 0)
QUERY, QUERY_VALID = TOKENS[:, :6], VALID[:, :6]


def ready(model, *inputs):
    """A compiled apply over fixed random variables."""
    variables = jax.jit(lambda rng: nn.unbox(model.init(rng, *inputs)))(jax.random.key(0))
    return jax.jit(partial(model.apply, variables), static_argnames=("method", "deterministic", "side"))


@pytest.fixture(scope="module")
def cross():
    return ready(CrossEncoder(CONFIG, labels=4, dimensions=3), TOKENS, TYPES, VALID)


@pytest.fixture(scope="module")
def towers():
    model = TwoTower(CONFIG, labels=4, dimensions=3, embedding_width=16, view_width=8)
    return ready(model, QUERY, QUERY_VALID, TOKENS, VALID)


def test_shapes_of_the_heads(cross, towers):
    out = cross(TOKENS, TYPES, VALID)
    assert (out.logits.shape, out.verdict_logits.shape, out.token_logits.shape) == ((4, 4), (4, 3, 3), (4, 12, 4))
    out = towers(QUERY, QUERY_VALID, TOKENS, VALID)
    assert (out.logits.shape, out.verdict_logits.shape, out.query_embedding.shape) == (
        (4, 4),
        (4, 3, 3),
        (4, 16 + 3 * 8),
    )
    assert out.token_logits is None


def test_padding_does_not_matter(cross, towers):
    other = np.where(VALID, TOKENS, 1)
    a, b = (cross(tokens, TYPES, VALID) for tokens in (TOKENS, other))
    np.testing.assert_allclose(a.logits, b.logits, atol=1e-6)
    np.testing.assert_allclose(np.where(VALID[..., None], a.token_logits - b.token_logits, 0), 0, atol=1e-6)
    longer = np.pad(TOKENS, ((0, 0), (0, 5))), np.pad(VALID, ((0, 0), (0, 5)))
    a = towers(QUERY, QUERY_VALID, TOKENS, VALID)
    b = towers(QUERY, QUERY_VALID, *longer)
    np.testing.assert_allclose(a.logits, b.logits, atol=1e-6)


def test_rows_do_not_see_each_other(cross):
    order = np.array([2, 0, 3, 1])
    a = cross(TOKENS, TYPES, VALID).logits[order]
    b = cross(TOKENS[order], TYPES[order], VALID[order]).logits
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_items_encoded_offline_give_the_same_answers(towers):
    whole = towers(QUERY, QUERY_VALID, TOKENS, VALID)
    items = towers(TOKENS, VALID, side=1, method="encode")
    queries = towers(QUERY, QUERY_VALID, side=0, method="encode")
    apart = towers(queries, items, method="compare")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole, apart)
    np.testing.assert_allclose(np.linalg.norm(items, axis=-1), (1 + 3) ** 0.5, atol=1e-5)


def test_an_embedding_holds_a_text_vector_and_gated_views(towers):
    whole = towers(QUERY, QUERY_VALID, TOKENS, VALID)
    for side, gated in (("query", True), ("item", False)):
        embedding, views = (np.asarray(getattr(whole, f"{side}_{part}")) for part in ("embedding", "views"))
        np.testing.assert_allclose(np.linalg.norm(embedding[:, :16], axis=-1), 1, atol=1e-5)
        parts = embedding[:, 16:].reshape(4, 3, 8)
        gates = np.linalg.norm(parts, axis=-1)
        assert ((gates > 0) & (gates < 1)).all() if gated else np.allclose(gates, 1, atol=1e-5)
        np.testing.assert_allclose(parts / gates[..., None], views, atol=1e-5)


def test_the_score_trains_text_vectors_and_gates_but_not_the_views():
    model, variables = towers_of()

    def gradient(output):
        def total(params):
            out = getattr(model.apply({"params": params}, QUERY, QUERY_VALID, TOKENS, VALID), output)
            return (out * np.arange(out.size).reshape(out.shape)).sum()

        return jax.grad(total)(variables["params"])

    of_score, of_verdicts = gradient("logits"), gradient("verdict_logits")
    kernel = np.asarray(of_score["token_views"]["kernel"])  # [dimensions, width, views and gate]
    largest = np.abs(kernel[..., -1]).max()
    assert largest > 1e-3
    np.testing.assert_allclose(kernel[..., :-1], 0.0, atol=1e-5 * largest)
    assert np.abs(of_score["projection"]["kernel"]).max() > 1e-3
    assert np.abs(np.asarray(of_verdicts["token_views"]["kernel"])[..., :-1]).max() > 1e-3


@pytest.mark.parametrize(
    "options", [{}, {"verdict_pooling": "pooled"}, {"head": "maxsim"}, {"head": "maxsim", "verdict_pooling": "pooled"}]
)
def test_what_verdicts_teach_the_encoder_is_limited_by_what_the_score_does(options):
    model = TwoTower(CONFIG, **{"labels": 4, "dimensions": 3, "embedding_width": 16, "view_width": 8, **options})
    params = nn.unbox(model.init(jax.random.key(0), QUERY, QUERY_VALID, TOKENS, VALID))["params"]

    @jax.jit
    def gradient(weight):
        def loss(params):
            out = model.apply({"params": params}, QUERY, QUERY_VALID, TOKENS, VALID)
            return -nn.log_softmax(out.logits)[:, 0].sum() - weight * nn.log_softmax(out.verdict_logits)[..., 0].sum()

        return jax.grad(loss)(params)

    strong, stronger = gradient(100.0), gradient(1000.0)
    once, tenfold = (np.concatenate([*map(np.ravel, jax.tree.leaves(each["encoder"]))]) for each in (strong, stronger))
    np.testing.assert_allclose(tenfold, once, atol=0.01 * np.abs(once).max())
    # The heads learn as much as they are asked to.
    np.testing.assert_allclose(stronger["verdict_kernel"], 10 * strong["verdict_kernel"], rtol=1e-3, atol=1e-3)


def test_a_fresh_two_tower_ranks_by_inner_product(towers):
    rng = np.random.default_rng(1)
    u, v = rng.normal(size=(2, 64, 16 + 3 * 8)) / 4
    views = v[:, 16:].reshape(64, 3, 8)  # an item's are unit vectors
    v[:, 16:] = (views / np.linalg.norm(views, axis=-1, keepdims=True)).reshape(64, -1)
    logits = np.asarray(towers(u, v, method="compare").logits)
    best = np.exp(logits[:, 0]) / np.exp(logits).sum(-1)
    np.testing.assert_array_equal(np.argsort(best), np.argsort((u * v).sum(-1)))


def test_dropout_needs_its_rng_and_changes_the_answer(cross):
    noisy = cross(TOKENS, TYPES, VALID, deterministic=False, rngs={"dropout": jax.random.key(0)})
    assert np.abs(noisy.logits - cross(TOKENS, TYPES, VALID).logits).max() > 1e-3
    with pytest.raises(flax.errors.InvalidRngError):
        cross(TOKENS, TYPES, VALID, deterministic=False)


def towers_of(**options):
    model = TwoTower(CONFIG, **{"labels": 4, "dimensions": 3, "embedding_width": 16, "view_width": 8, **options})
    variables = jax.jit(lambda rng: nn.unbox(model.init(rng, QUERY, QUERY_VALID, TOKENS, VALID)))(jax.random.key(0))
    return model, variables


@pytest.mark.parametrize(
    "options",
    [
        {"head": "mlp"},
        {"head": "maxsim"},
        {"towers": "separate"},
        {"pooling": "first", "normalize": False},
        {"embedding_width": 0, "distinguish_sides": False},
        {"verdict_pooling": "pooled"},
        {"verdict_pooling": "pooled", "head": "maxsim"},
    ],
    ids=str,
)
def test_every_form_of_the_two_tower_judges_from_what_it_encodes_apart(options):
    model, variables = towers_of(**options)
    whole = model.apply(variables, QUERY, QUERY_VALID, TOKENS, VALID)
    longer = np.pad(TOKENS, ((0, 0), (0, 5))), np.pad(VALID, ((0, 0), (0, 5)))
    queries = model.apply(variables, QUERY, QUERY_VALID, side=0, method="encode")
    items = model.apply(variables, *longer, side=1, method="encode")
    apart = model.apply(variables, queries, items, method="compare")
    for name in ("logits", "verdict_logits", "query_views", "item_views"):
        np.testing.assert_allclose(getattr(whole, name), getattr(apart, name), rtol=1e-6, atol=2e-6, err_msg=name)
    np.testing.assert_allclose(np.linalg.norm(whole.item_views, axis=-1), 1, atol=1e-5)


def test_separate_towers_have_weights_of_their_own_and_shared_ones_do_not():
    shared, separate = (set(towers_of(towers=kind)[1]["params"]) for kind in ("shared", "separate"))
    assert "encoder" in shared
    assert not {"query_encoder", "item_encoder"} & shared
    assert {"query_encoder", "item_encoder"} <= separate
    assert "encoder" not in separate


def test_sides_that_are_not_told_apart_read_alike():
    model, variables = towers_of(distinguish_sides=False)
    sides = [model.apply(variables, TOKENS, VALID, side=side, method="encode") for side in (0, 1)]
    # All but the gates, which only queries have.
    np.testing.assert_array_equal(*(side[:, :16] for side in sides))
    np.testing.assert_allclose(*(_unit(side[:, 16:].reshape(4, 3, 8)) for side in sides), atol=1e-5)
    model, variables = towers_of()
    sides = [model.apply(variables, TOKENS, VALID, side=side, method="encode") for side in (0, 1)]
    assert np.abs(sides[0] - sides[1]).max() > 1e-3


def _unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_dimension_pooling_is_a_weighted_mean_of_the_tokens_for_each_dimension():
    model, x = DimensionPooling(dimensions=3, features=5), RNG.normal(size=(4, 12, 8)).astype(np.float32)
    params = nn.unbox(model.init(jax.random.key(0), x, VALID))["params"]
    scores = np.float64(x @ params["scores"]["kernel"] + params["scores"]["bias"])
    weights = np.where(VALID[..., None], np.exp(scores), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    expected = np.einsum("bld,blw,dwf->bdf", weights, x, params["kernel"])
    np.testing.assert_allclose(model.apply({"params": params}, x, VALID), expected, atol=1e-5)
    gradient = jax.grad(lambda p: model.apply({"params": p}, x, np.zeros_like(VALID)).sum())(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_the_cross_encoder_reads_verdicts_from_the_tokens_where_it_is_asked_to():
    outputs = {}
    for pooling in ("tokens", "pooled"):
        model = CrossEncoder(CONFIG, labels=4, dimensions=3, verdict_pooling=pooling)
        variables = nn.unbox(model.init(jax.random.key(0), TOKENS, TYPES, VALID))
        assert ("verdict_tokens" in variables["params"]) == (pooling == "tokens")
        outputs[pooling] = model.apply(variables, TOKENS, TYPES, VALID)
    np.testing.assert_array_equal(outputs["tokens"].representation, outputs["pooled"].representation)
    assert np.abs(outputs["tokens"].verdict_logits - outputs["pooled"].verdict_logits).max() > 1e-3


def test_late_interaction_is_the_mean_of_the_best_matches():
    query, item = RNG.normal(size=(2, 3, 5)), RNG.normal(size=(2, 4, 5))
    query, item = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (query, item))
    item[0, 2:] = 0  # padding, which beats no negative cosine
    query[1, 2] = 0
    item[0, :2] = -query[0, :2]
    expected = []
    for q, i in zip(query, item):
        q, i = q[np.any(q != 0, -1)], i[np.any(i != 0, -1)]
        expected.append(np.mean([max(a @ b for b in i) for a in q]))
    np.testing.assert_allclose(late_interaction(np.float32(query), np.float32(item)), expected, atol=1e-6)


def test_the_latent_is_read_by_the_heads_and_the_rationale_by_the_augmented_ones():
    model = CrossEncoder(CONFIG, labels=4, dimensions=3, latent_width=8)
    augmented = {"tokens": TOKENS, "token_types": TYPES, "valid": VALID}
    variables = jax.jit(lambda rng: nn.unbox(model.init(rng, TOKENS, TYPES, VALID)))(jax.random.key(0))
    out = model.apply(variables, TOKENS, TYPES, VALID, augmented=augmented)
    assert (out.latent.shape, out.representation.shape) == ((4, 8), (4, 32))
    np.testing.assert_allclose(out.augmented_logits, out.logits, atol=1e-6)
    np.testing.assert_allclose(out.augmented_representation, out.representation, atol=1e-6)
    fused = variables["params"]["latent_fusion"]
    without = {"params": {**variables["params"], "latent_fusion": jax.tree.map(np.zeros_like, fused)}}
    assert np.abs(model.apply(without, TOKENS, TYPES, VALID).logits - out.logits).max() > 1e-3
    other = {**augmented, "tokens": TOKENS[::-1].copy()}
    out = model.apply(variables, TOKENS, TYPES, VALID, augmented=other)
    assert np.abs(out.augmented_logits - out.logits).max() > 1e-3


def test_attention_is_a_distribution_over_the_tokens(cross):
    attention = np.asarray(cross(TOKENS, TYPES, VALID).attention)
    np.testing.assert_allclose(attention.sum(-1), 1, atol=1e-5)
    assert (attention[~VALID] == 0).all()
    assert (attention[VALID] > 0).all()


def test_too_long_a_text_is_refused(cross):
    long = np.ones((1, 21), np.int32)
    with pytest.raises(ValueError, match="21 tokens, but the encoder has 20 positions"):
        cross(long, long, long > 0)
