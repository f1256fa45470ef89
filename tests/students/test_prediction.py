"""Students at work: order, lengths and duplicates of what is asked do not change an answer."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import linen as nn

from jax_rele.data.tokens.tokenizers import train_tokenizer
from jax_rele.models import Encoder, EncoderConfig
from jax_rele.students import (
    CrossEncoder,
    InputSpec,
    Student,
    TwoTower,
    embed,
    embed_rationales,
    padded_inputs,
    predict,
)
from jax_rele.students import prediction as encode
from jax_rele.students.prediction import LENGTHS, _apply, padded_length
from jax_rele.types import VERDICTS, Item, LabelSchema, Pair

WORDS = ["red", "shoes", "blue", "running", "shirt", "battery", "charger", "small", "large", "cotton", "leather"]
RNG = np.random.default_rng(0)
CONFIG = EncoderConfig(vocab_size=400, max_length=64, layers=1, width=32, heads=2, mlp_width=32)
MODELS = {
    "cross": CrossEncoder(CONFIG, labels=4, dimensions=3),
    "cosine": TwoTower(CONFIG, labels=4, dimensions=3, embedding_width=16, view_width=8),
    "maxsim": TwoTower(CONFIG, labels=4, dimensions=3, embedding_width=16, view_width=8, head="maxsim"),
}


def text(words):
    return " ".join(RNG.choice(WORDS, words))


PAIRS = [Pair(f"p{n}", text(1 + n % 5), Item(f"i{n}", text(1 + 3 * n % 17))) for n in range(21)]
TOKENIZER = train_tokenizer([pair.query + " " + pair.item.title for pair in PAIRS], 400)
SPEC = InputSpec(("title",), 16, 40)


@pytest.fixture(scope="module", params=MODELS)
def student(request):
    model = MODELS[request.param]
    inputs = padded_inputs(model, TOKENIZER, PAIRS[:1], SPEC)
    variables = jax.jit(lambda rng: nn.unbox(model.init(rng, **inputs)))(jax.random.key(0))
    return Student(model, variables, TOKENIZER, ("title",), 16, 40, batch_size=4)


def test_answers_are_those_of_one_padded_batch_in_input_order(student):
    inputs = padded_inputs(student.model, TOKENIZER, PAIRS, SPEC)
    whole = student.model.apply(student.variables, **inputs)
    progress = []
    result = predict(student, PAIRS, progress=progress.append)
    assert sum(progress) == len(PAIRS)
    np.testing.assert_allclose(result.logits, whole.logits, atol=2e-6)
    np.testing.assert_allclose(result.verdict_logits, whole.verdict_logits, atol=2e-6)
    if result.token_logits is not None:
        valid = inputs["valid"][:, : result.token_logits.shape[1]]
        whole = np.asarray(whole.token_logits)[:, : valid.shape[1]]
        np.testing.assert_allclose(np.where(valid[..., None], result.token_logits - whole, 0), 0, atol=2e-6)


def test_texts_and_arrays_are_taken_too(student):
    result = predict(student, PAIRS).logits
    texts = predict(student, [(pair.query, pair.item.title) for pair in PAIRS]).logits
    arrays = predict(student, padded_inputs(student.model, TOKENIZER, PAIRS, SPEC)).logits
    np.testing.assert_array_equal(result, texts)
    np.testing.assert_array_equal(result, arrays)


def test_embeddings_are_those_of_the_pairs(student):
    if isinstance(student.model, CrossEncoder):
        with pytest.raises(ValueError, match="a cross-encoder has no embeddings"):
            embed(student, ["red"], "query")
        return
    result = predict(student, PAIRS)
    queries = embed(student, [pair.query for pair in PAIRS], "query")
    items = embed(student, [pair.item for pair in PAIRS[:7]], "item")
    width = queries.shape[1]
    np.testing.assert_allclose(
        queries, result.query_embedding[:, :width] if queries.ndim == 3 else result.query_embedding
    )
    width = items.shape[1]
    expected = result.item_embedding[:7]
    np.testing.assert_allclose(items, expected[:, :width] if items.ndim == 3 else expected, atol=1e-6)
    with pytest.raises(ValueError, match="side must be query or item, got 'title'"):
        embed(student, ["red"], "title")


def test_what_is_no_list_of_pairs_is_refused(student):
    for wrong in ([], "red shoes"):
        with pytest.raises(ValueError, match="predict needs a list of at least one pair"):
            predict(student, wrong)
    for wrong in (["red shoes"], [("red", None)]):
        with pytest.raises(TypeError, match=r"is a Pair or|is an Item or"):
            predict(student, wrong)


def test_few_lengths_are_compiled_and_little_is_padding():
    assert [padded_length(n) for n in (1, 8, 9, 65, 512, 513)] == [8, 8, 16, 80, 512, 1024]
    assert {padded_length(n) for n in range(1, 513)} == set(LENGTHS)
    assert len(LENGTHS) <= 20
    assert all(padded_length(n) - n < max(8, n / 4) for n in range(1, 513))


def test_few_batches_share_a_length(student, monkeypatch):
    """Batches of ten pairs of ten lengths: another compilation would cost more than the padding."""
    lengths = []

    def apply(model, variables, *inputs, **named):
        if named["method"] != "compare":
            lengths.append((named["side"], inputs[0].shape[1]))
        return _apply(model, variables, *inputs, **named)

    monkeypatch.setattr(encode, "_apply", apply)
    pairs = [("shoes", " ".join(["shoes"] * count)) for count in range(3, 33, 3)]
    predict(dataclasses.replace(student, batch_size=2), pairs)
    items = [length for side, length in lengths if side != 0]
    assert len(items) == 5
    assert len(set(items)) <= 2


def test_a_few_pairs_do_not_fill_a_batch(student, monkeypatch):
    shapes = []

    def apply(model, variables, *inputs, **named):
        shapes.append(inputs[0].shape)
        return _apply(model, variables, *inputs, **named)

    monkeypatch.setattr(encode, "_apply", apply)
    many = predict(student, PAIRS).logits
    assert {shape[0] for shape in shapes} == {4}
    shapes.clear()
    few = predict(student, PAIRS[:1]).logits
    assert {shape[0] for shape in shapes} == {1}
    np.testing.assert_allclose(few, many[:1], atol=2e-6)


def test_a_batch_is_given_to_the_device_before_the_last_is_fetched(student, monkeypatch):
    events = []

    def apply(*inputs, **named):
        events.append("run")
        return _apply(*inputs, **named)

    monkeypatch.setattr(encode, "_apply", apply)
    predict(student, PAIRS[:12], progress=lambda rows: events.append(rows))
    # A two-tower's last three batches are comparisons; what is embedded before is not told.
    assert events[-6:] == ["run", "run", 4, "run", 4, 4]


def test_a_rationale_embedding_is_the_mean_of_its_tokens():
    model, texts = Encoder(CONFIG), ["red shoes", "", "small battery charger"]
    ids = np.zeros((1, 4), np.int32)
    params = jax.jit(lambda rng: nn.unbox(model.init(rng, ids, ids, ids == 0)))(jax.random.key(0))["params"]
    result = embed_rationales(CONFIG, params, TOKENIZER, texts, 32)
    assert np.isnan(result[1]).all()
    row = np.array(
        [[TOKENIZER.cls_token_id, *TOKENIZER(texts[2], add_special_tokens=False)["input_ids"], TOKENIZER.sep_token_id]]
    )
    hidden = model.apply({"params": params}, row, np.zeros_like(row), np.ones_like(row, bool))
    np.testing.assert_allclose(result[2], hidden[0].mean(axis=0), atol=1e-5)


def test_a_student_gives_scores_verdicts_and_evidence(student):
    gains, names = (1.0, 0.5, 0.1, 0.0), ("category", "brand", "color")
    schema = LabelSchema(("Exact", "Substitute", "Complement", "Irrelevant"), gains, ("Exact",))
    ready = dataclasses.replace(student, schema=schema, dimensions=names, has_verdicts=True, has_evidence=True)
    predictions = ready.predict(PAIRS)
    np.testing.assert_allclose(predictions.scores, predictions.label_probs @ np.array(gains))
    np.testing.assert_allclose(predictions.label_probs.sum(axis=1), 1.0)
    assert predictions.verdict_probs.shape == (len(PAIRS), len(names), len(VERDICTS))
    assert all(set(row) <= set(VERDICTS) for row in predictions.verdicts)
    if predictions.outputs.token_logits is None:
        assert predictions.evidence is None
    else:
        texts = [{"query": pair.query, **dict(pair.item.texts(("title",)))} for pair in PAIRS]
        for spans, sources in zip(predictions.evidence, texts):
            assert all(0 <= span.start < span.end <= len(sources[span.source]) for span in spans)
    untrained = dataclasses.replace(ready, has_verdicts=False, has_evidence=False).predict(PAIRS)
    assert (untrained.verdicts, untrained.evidence) == (None, None)
