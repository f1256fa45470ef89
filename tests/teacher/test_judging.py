"""A teacher of random weights: its rationales parse, and its scores equal those of an uncached pass."""

import copy
import dataclasses

import jax
import numpy as np
import pytest

from jax_rele.config import MeshConfig
from jax_rele.data.tokens.prompts import encode_prompts, max_prompt_length
from jax_rele.errors import UserError
from jax_rele.models.partitioning import shardings
from jax_rele.names import ORDERS
from jax_rele.rationale import ParseFailure, grammar, parse, render
from jax_rele.teacher import Sampling, judge, sample
from jax_rele.teacher import judging as teacher_module
from jax_rele.teacher.decoding import decode
from jax_rele.teacher.label_scores import first_token_probs
from jax_rele.training import make_mesh
from jax_rele.types import VERDICTS, LabelSchema

INSTRUCTIONS = "Say whether the item is what the query asks for.\nCompare their brands and colors."
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SCHEMA = LabelSchema(("Exact", "Substitute", "Irrelevant"), (1.0, 0.1, 0.0), ("Exact",))
COLLIDING = LabelSchema(("Exact", "Exact match", "Irrelevant"), (1.0, 0.5, 0.0), ("Exact",))


@pytest.fixture(scope="module")
def judged(teacher, pairs):
    """Order -> predictions; their progress counts every pair once."""
    results = {}
    for order in ORDERS:
        done = []
        results[order] = judge(dataclasses.replace(teacher, order=order), pairs, progress=done.append)
        assert sum(done) == len(pairs)
    return results


@pytest.mark.parametrize("order", ["label_first", "rationale_first"])
def test_any_weights_write_rationales_that_parse(teacher, judged, order):
    for text, rationale in zip(judged[order].texts, judged[order].rationales):
        assert not isinstance(rationale, ParseFailure), (text, rationale)
        assert [comparison.dimension for comparison in rationale.comparisons] == list(teacher.dimensions)
        assert parse(render(rationale, order)) == rationale
    np.testing.assert_allclose(judged[order].label_probs.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(judged[order].verdict_probs.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("order", ["label_first", "rationale_first"])
def test_the_text_has_the_most_likely_label_and_verdicts(teacher, judged, order):
    for row, rationale in enumerate(judged[order].rationales):
        assert teacher.schema.names[judged[order].label_probs[row].argmax()] == rationale.label
        chosen = [VERDICTS[index] for index in judged[order].verdict_probs[row].argmax(-1)]
        assert chosen == [comparison.verdict for comparison in rationale.comparisons]


def test_the_label_score_is_the_softmax_at_the_label_position(teacher, pairs, judged, naive):
    """Against logits over the whole vocabulary, computed without the package's inference code."""
    prompts = encode_prompts(teacher.tokenizer, pairs, teacher.fields, teacher.prompt_length)
    for row, prompt in enumerate(prompts):
        ids = [*prompt, *teacher.tokenizer.encode("label:", add_special_tokens=False)]
        logits = naive.logits(teacher.model, teacher.variables, ids)[-1]
        expected = naive.softmax(logits[[teacher.tokenizer.encode(" " + name)[0] for name in teacher.schema.names]])
        np.testing.assert_allclose(judged["label_first"].label_probs[row], expected, atol=1e-4)
        np.testing.assert_allclose(judged["label_only"].label_probs[row], expected, atol=1e-4)


def test_with_label_first_the_rationale_is_conditioned_on_the_label(teacher, pairs, judged, monkeypatch):
    before = []
    generate = teacher_module.generate
    monkeypatch.setattr(
        teacher_module, "generate", lambda *args, **more: before.extend(args[4]) or generate(*args, **more)
    )
    predictions = judge(teacher, pairs)
    for (prefix,), rationale in zip(before, predictions.rationales):
        assert teacher.tokenizer.decode(prefix) == f"label: {rationale.label.lower()}\ncategory:"
    assert predictions.texts == judged["label_first"].texts


def test_with_rationale_first_the_label_is_conditioned_on_the_rationale(teacher, pairs, naive, monkeypatch):
    """The label's distribution is that after exactly the generated tokens, of which it is the last decision."""
    written, generate = [], teacher_module.generate

    def record(*args, **more):
        texts = generate(*args, **more)
        written.extend((args[2], one.slots) for (one,) in texts[0])
        return texts

    monkeypatch.setattr(teacher_module, "generate", record)
    predictions = judge(dataclasses.replace(teacher, order="rationale_first"), pairs)
    prompts = encode_prompts(teacher.tokenizer, pairs, teacher.fields, teacher.prompt_length)
    for prompt, (template, slots), text, probs in zip(prompts, written, predictions.texts, predictions.label_probs):
        assert template.decides_label
        row = [*prompt, *template.tokens(slots[:-1])]
        rationale = teacher.tokenizer.decode(row[len(prompt) :]).replace(" ", "")
        assert rationale == text.rpartition(" ")[0].replace(" ", "")
        logits = naive.logits(teacher.model, teacher.variables, row)[-1]
        chosen = logits[[teacher.tokenizer.encode(" " + name)[0] for name in teacher.schema.names]]
        np.testing.assert_allclose(probs, naive.softmax(chosen), atol=1e-4)


def test_scores_do_not_depend_on_the_batch(teacher, pairs, judged):
    parts = [judge(teacher, part) for part in (pairs[3:], pairs[:3])]
    whole = judged["label_first"]
    assert whole.texts == parts[1].texts + parts[0].texts
    label_probs = np.concatenate([parts[1].label_probs, parts[0].label_probs])
    np.testing.assert_allclose(whole.label_probs, label_probs, atol=1e-5)


def test_without_writing_the_label_is_scored_all_the_same(teacher, pairs, judged):
    scored = judge(teacher, pairs, write=False)
    np.testing.assert_allclose(judged["label_first"].label_probs, scored.label_probs, atol=1e-5)
    assert np.isnan(scored.verdict_probs).all()
    assert scored.texts == tuple(f"label: {rationale.label}" for rationale in judged["label_first"].rationales)
    last = judge(dataclasses.replace(teacher, order="rationale_first"), pairs, write=False)
    assert last.texts == judged["rationale_first"].texts


def test_decoded_and_emitted_tokens_are_counted_separately(teacher, judged):
    """Seven fixed parts of a line are emitted and not decoded."""
    first, last, alone = (judged[order] for order in ("label_first", "rationale_first", "label_only"))
    for result in (first, last):
        assert 0 < result.tokens_decoded < result.tokens_emitted
        assert result.label_scoring == "first_token"
    label = len(teacher.tokenizer.encode("label:")) + 2
    assert (alone.tokens_decoded, alone.tokens_emitted) == (0, label * len(alone.texts))


def test_no_pairs_give_no_predictions(teacher):
    for order in ORDERS:
        predictions = judge(dataclasses.replace(teacher, order=order), [])
        assert predictions.label_probs.shape == (0, 3)
        assert predictions.verdict_probs.shape == (0, 3, 3)
        assert predictions.texts == ()


# ---- samples


@pytest.mark.parametrize("order", ["label_first", "rationale_first"])
def test_samples_differ_and_do_not_depend_on_the_other_pairs(teacher, pairs, order):
    teacher = dataclasses.replace(teacher, order=order)
    sampling = Sampling(temperature=3.0, seed=1)
    drawn = sample(teacher, pairs, 4, sampling)
    assert len(drawn) == 4
    assert all(len({one.texts[row] for one in drawn}) > 1 for row in range(len(pairs)))
    assert len({rationale.label for one in drawn for rationale in one.rationales}) > 1
    assert not any(isinstance(rationale, ParseFailure) for one in drawn for rationale in one.rationales)
    again = sample(teacher, pairs[::-1], 4, sampling)
    assert [one.texts[::-1] for one in again] == [one.texts for one in drawn]


def test_a_greedy_sample_equals_the_prediction(teacher, pairs, judged):
    (one,) = sample(teacher, pairs, 1, Sampling())
    assert one.texts == judged["label_first"].texts


# ---- prompts


def test_instructions_precede_the_query_and_change_the_score(teacher, pairs, judged, naive):
    instructed = dataclasses.replace(teacher, instructions=INSTRUCTIONS, prompt_length=90)
    prompts = encode_prompts(instructed.tokenizer, pairs, instructed.fields, 90, INSTRUCTIONS)
    text = instructed.tokenizer.decode(prompts[0][1:])
    assert text.startswith(INSTRUCTIONS.lower() + "\nquery: red shoes\n")
    label_probs = judge(instructed, pairs, write=False).label_probs
    assert np.abs(label_probs - judged["label_first"].label_probs).max() > 1e-3
    for prompt, probs in zip(prompts, label_probs):
        ids = [*prompt, *instructed.tokenizer.encode("label:", add_special_tokens=False)]
        logits = naive.logits(instructed.model, instructed.variables, ids)[-1]
        expected = naive.softmax(
            logits[[instructed.tokenizer.encode(" " + name)[0] for name in instructed.schema.names]]
        )
        np.testing.assert_allclose(probs, expected, atol=1e-4)


def test_instructions_take_nothing_from_the_pair(teacher, pairs):
    tokenizer, fields = teacher.tokenizer, teacher.fields
    plain, instructed = (encode_prompts(tokenizer, pairs, fields, 40, text) for text in ("", INSTRUCTIONS))
    before = tokenizer.encode(INSTRUCTIONS + "\n", add_special_tokens=False)
    assert instructed == [[prompt[0], *before, *prompt[1:]] for prompt in plain]
    assert max(map(len, instructed)) == max_prompt_length(tokenizer, 40, INSTRUCTIONS)


@pytest.mark.parametrize("order", ["label_first", "rationale_first"])
def test_chats_are_judged_by_shared_prefixes_as_without(tokenizers_by_kind, teacher, pairs, naive, order):
    tokenizer = copy.deepcopy(tokenizers_by_kind["byte_level"])
    tokenizer.chat_template = CHATML
    chat = dataclasses.replace(teacher, tokenizer=tokenizer, order=order, instructions=INSTRUCTIONS, chat=True)
    predictions = judge(chat, pairs)
    assert not any(isinstance(one, ParseFailure) for one in predictions.rationales)
    if order == "rationale_first":
        return
    first = [tokenizer.encode(" " + name, add_special_tokens=False) for name in SCHEMA.names]
    prompts = encode_prompts(tokenizer, pairs, chat.fields, chat.prompt_length, INSTRUCTIONS, True)
    same = next(n for n, tokens in enumerate(zip(*first)) if len(set(tokens)) > 1)
    for prompt, probs in zip(prompts, predictions.label_probs):
        ids = [*prompt, *tokenizer.encode("label:", add_special_tokens=False), *first[0][:same]]
        logits = naive.logits(chat.model, chat.variables, ids)[-1]
        np.testing.assert_allclose(probs, naive.softmax(logits[[ids[same] for ids in first]]), atol=1e-4)


@pytest.mark.parametrize("kind", ["own", "byte_level", "sentencepiece"])
def test_a_seller_cannot_write_special_tokens_or_lines(tokenizers_by_kind, pairs, kind):
    tokenizer = tokenizers_by_kind[kind]
    for pair in (pairs[0], pairs[3]):
        prompt = encode_prompts(tokenizer, [pair], ("title",), 200)[0]
        if tokenizer.bos_token_id is not None:
            assert prompt.pop(0) == tokenizer.bos_token_id
        assert set(prompt).isdisjoint(tokenizer.all_special_ids)
        lines = grammar.prompt(pair, ("title",)).splitlines()
        assert [line.partition(":")[0] for line in lines] == ["query", "title", "judge"]


def test_a_long_prompt_keeps_its_query_and_its_end(tokenizer, pairs):
    short = encode_prompts(tokenizer, pairs[2:3], ("title",), 50)[0]
    assert len(short) == 50
    text = tokenizer.decode(short[1:])
    assert text.startswith("query: a much longer query")
    assert text.endswith("judge:\n")


# ---- tokenizers and labels of other kinds


@pytest.mark.parametrize(("kind", "order"), [("byte_level", "rationale_first"), ("sentencepiece", "label_first")])
def test_tokenizers_of_open_models_work(tokenizers_by_kind, teacher, pairs, kind, order):
    predictions = judge(dataclasses.replace(teacher, tokenizer=tokenizers_by_kind[kind], order=order), pairs)
    assert not any(isinstance(one, ParseFailure) for one in predictions.rationales)
    assert predictions.label_scoring == "first_token"
    assert [text.count("\n") for text in predictions.texts] == [3] * len(pairs)


@pytest.mark.parametrize("order", ["label_first", "rationale_first"])
def test_labels_that_begin_alike_are_scored_in_full(teacher, pairs, naive, order):
    """The token after the label, as in training, distinguishes `Exact` from the beginning of `Exact match`."""
    predictions = judge(dataclasses.replace(teacher, schema=COLLIDING, order=order), pairs)
    assert predictions.label_scoring == "full"
    np.testing.assert_allclose(predictions.label_probs.sum(-1), 1, atol=1e-5)
    assert [COLLIDING.names[row.argmax()] for row in predictions.label_probs] == [
        one.label for one in predictions.rationales
    ]
    if order == "rationale_first":
        return
    tokenizer = teacher.tokenizer
    follow = tokenizer.encode("\ncategory:", add_special_tokens=False)[0]
    prompts = encode_prompts(tokenizer, pairs, teacher.fields, teacher.prompt_length)
    for prompt, probs in zip(prompts, predictions.label_probs):
        expected = []
        for name in COLLIDING.names:
            before = [*prompt, *tokenizer.encode("label:", add_special_tokens=False)]
            ids = [*before, *tokenizer.encode(" " + name, add_special_tokens=False), follow]
            log_probs = np.log(naive.softmax(naive.logits(teacher.model, teacher.variables, ids)))
            expected.append(sum(log_probs[index - 1, ids[index]] for index in range(len(before), len(ids))))
        np.testing.assert_allclose(probs, naive.softmax(np.array(expected)), atol=1e-4)


# ---- refused before any work


def test_a_context_that_is_too_short_is_refused(teacher, pairs):
    model = teacher.model.clone(config=dataclasses.replace(teacher.model.config, max_length=80))
    with pytest.raises(
        UserError, match=r"40 tokens of a prompt and up to \d+ of a rationale exceed the model's context"
    ):
        judge(dataclasses.replace(teacher, model=model), pairs)
    long = model.clone(config=dataclasses.replace(model.config, max_length=200))
    assert judge(dataclasses.replace(teacher, model=long), pairs[:0]).texts == ()


def test_labels_of_the_same_tokens_are_refused(teacher, pairs):
    schema = LabelSchema(("Exact", "exact"), (1.0, 0.0), ("Exact",))
    with pytest.raises(UserError, match="are the same tokens"):
        judge(dataclasses.replace(teacher, schema=schema), pairs)


# ---- devices


def on_mesh(teacher, **sizes):
    mesh = make_mesh(MeshConfig(**sizes))
    boxed = jax.eval_shape(lambda: teacher.model.init(jax.random.key(0), np.zeros((1, 4), np.int32)))
    variables = jax.device_put(teacher.variables, shardings(boxed, mesh))
    return dataclasses.replace(teacher, variables=variables, mesh=mesh, batch_size=8)


def test_eight_devices_judge_as_one(teacher, pairs, judged):
    spread = on_mesh(teacher, data=2, fsdp=2, tensor=2)
    predictions = judge(spread, pairs)
    assert predictions.texts == judged["label_first"].texts
    np.testing.assert_allclose(predictions.label_probs, judged["label_first"].label_probs, atol=1e-4)
    np.testing.assert_allclose(predictions.verdict_probs, judged["label_first"].verdict_probs, atol=1e-4)
    sizes = decode._cache_size(), first_token_probs._cache_size()
    judge(spread, pairs[::-1])
    assert (decode._cache_size(), first_token_probs._cache_size()) == sizes


def test_a_batch_that_does_not_divide_is_refused(teacher, pairs):
    spread = dataclasses.replace(on_mesh(teacher, data=8), batch_size=12)
    with pytest.raises(UserError, match=r"score\.batch_size: 12 rows do not divide over data x fsdp = 8 devices"):
        judge(spread, pairs)
