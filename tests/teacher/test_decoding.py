"""Guided decoding: equal to decoding without a cache, independent of the slots, with the stated distribution."""

import re
from itertools import chain

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from jax_rele.data.tokens.prompts import AnswerEncoder
from jax_rele.models.decoder import cache_shapes
from jax_rele.rationale import grammar
from jax_rele.rationale.grammar import Segment
from jax_rele.teacher import Sampling, compile_template, generate
from jax_rele.teacher import continuous_batching as engine
from jax_rele.teacher.decoding import cache_reads, decode, draw, in_nucleus, insert, new_slots
from jax_rele.teacher.template import VERDICT

GREEDY = Sampling()
WARM = Sampling(temperature=1.0, top_p=0.9, seed=3)
DIMENSIONS = ("category", "brand")
PROMPTS = [
    [int(token) for token in np.random.default_rng(length).integers(40, 200, length)]
    for length in (3, 9, 31, 12, 30, 7, 5, 22)
]


@pytest.fixture(scope="module")
def template(teacher):
    encoder = AnswerEncoder(teacher.tokenizer, "rationale_first", 4)
    segments = grammar.template(DIMENSIONS, "rationale_first")[:-2]
    return compile_template(teacher.tokenizer, encoder, segments, teacher.model.config.vocab_size)


@pytest.fixture(scope="module")
def write(teacher, template):
    """(prompts, samples) -> the generated texts, and the forward passes."""

    def run(prompts, samples=1, sampling=GREEDY, batch_size=4, template=template, **options):
        prefixes = [[template.prefix] * samples for _ in prompts]
        return generate(
            teacher.model,
            teacher.variables,
            template,
            prompts,
            prefixes,
            batch_size=batch_size,
            sampling=sampling,
            **options,
        )

    return run


def slots_of(written):
    return [[one.slots for one in several] for several in written]


def test_greedy_decoding_equals_decoding_without_a_cache(teacher, template, write, naive):
    """Each token is the argmax of a full uncached pass among the allowed tokens; probabilities likewise."""
    written, _ = write(PROMPTS)
    values = np.flatnonzero(template.value_tokens)
    first = template.verbalizers[VERDICT, :, 0]
    for prompt, (one,) in zip(PROMPTS, written):
        logits = naive.logits(teacher.model, teacher.variables, [*prompt, *template.tokens(one.slots)])
        position = len(prompt) + len(template.prefix)
        decided = 0
        for decision, (ids, is_choice) in enumerate(zip(one.slots, template.is_choice)):
            end = template.forced_suffixes[decision, 0]
            if is_choice:
                scores = logits[position - 1, first]
                assert one.choices[decision] == scores.argmax()
                np.testing.assert_allclose(one.probs[decision], naive.softmax(scores), atol=1e-5)
                decided += 1
            else:
                assert 1 <= len(ids) <= 4
                for number, token in enumerate(ids):
                    allowed = values if number == 0 else np.append(values, end)
                    assert token == allowed[logits[position + number - 1, allowed].argmax()]
                if len(ids) < 4:
                    allowed = np.append(values, end)
                    assert end == allowed[logits[position + len(ids) - 1, allowed].argmax()]
                decided += len(ids) + (len(ids) < 4)
            position += len(ids) + template.suffix_lengths[decision]
        assert one.decided == decided


def test_samples_do_not_depend_on_the_other_prompts(write):
    batched = slots_of(write(PROMPTS, 2, WARM)[0])
    order = np.random.default_rng(0).permutation(len(PROMPTS))
    shuffled = slots_of(write([PROMPTS[row] for row in order], 2, WARM)[0])
    assert shuffled == [batched[row] for row in order]
    assert slots_of(write(PROMPTS, 2, WARM, batch_size=16)[0]) == batched
    assert slots_of(write(PROMPTS[2:3], 4, WARM)[0])[0][:2] == batched[2]


def test_the_step_width_does_not_change_the_text(write, template, monkeypatch):
    written, passes = zip(*(_with_width(write, monkeypatch, width) for width in (1, 2, template.max_pending)))
    assert slots_of(written[0]) == slots_of(written[1]) == slots_of(written[2])
    assert passes[0] > passes[1] > passes[2]


def _with_width(write, monkeypatch, width):
    monkeypatch.setattr(engine, "step_width", lambda template, rows: width)
    return write(PROMPTS[:4])


def test_forced_text_needs_no_pass_and_decoding_stops_after_the_last_decision(write, template, monkeypatch):
    """With steps as wide as all pending tokens, each pass makes one decision in every row."""
    monkeypatch.setattr(engine, "step_width", lambda template, rows: template.max_pending)
    assert len(template.prefix) <= template.max_pending
    written, passes = write(PROMPTS[:4], batch_size=16)
    assert passes == max(one.decided for (one,) in written)
    assert all(one.decided < len(template.tokens(one.slots)) for (one,) in written)


def test_a_waiting_row_takes_over_the_slot_of_a_finished_one(teacher, template, monkeypatch):
    """The passes stay within Graham's bound for list scheduling: no slot idles until the last row begins."""
    width = template.max_pending
    monkeypatch.setattr(engine, "step_width", lambda template, rows: width)
    # One sample in three has a long prefix.
    prefixes = [[(7,) * 30 * width + template.prefix, template.prefix, template.prefix]] * len(PROMPTS)
    done = []
    written, passes = generate(
        teacher.model,
        teacher.variables,
        template,
        PROMPTS,
        prefixes,
        batch_size=4,
        sampling=GREEDY,
        progress=done.append,
    )
    works = [
        one.decided - 1 + -(-len(prefix) // width)
        for several, own in zip(written, prefixes)
        for one, prefix in zip(several, own)
    ]
    assert sum(works) / 4 <= passes <= sum(works) / 4 + max(works)
    in_turns = sum(max(works[start : start + 4]) for start in range(0, len(works), 4))
    assert sum(works) / 4 + max(works) < in_turns
    assert sum(done) == len(works)


def test_samples_share_the_prefill_of_their_prompt(write, monkeypatch):
    rows = []
    prefill = engine.prefill
    monkeypatch.setattr(engine, "prefill", lambda *args: rows.append(np.asarray(args[4])) or prefill(*args))
    written, _ = write(PROMPTS, 6, WARM)
    read = [tuple(row[row > 0].tolist()) for tokens in rows for row in tokens if row.any()]
    assert sorted(read) == sorted(map(tuple, PROMPTS))
    assert all(len({one.slots for one in several}) > 1 for several in written)


def test_fewer_samples_are_the_first_of_more(write):
    more, fewer = slots_of(write(PROMPTS[:3], 5, WARM)[0]), slots_of(write(PROMPTS[:3], 2, WARM)[0])
    assert [several[:2] for several in more] == fewer


def test_another_seed_draws_other_samples(write):
    assert slots_of(write(PROMPTS, 1, WARM)[0]) != slots_of(write(PROMPTS, 1, Sampling(1.0, 0.9, 4))[0])


def test_prefixes_of_samples_may_differ(teacher, template, write, naive):
    """For example, the label before the comparisons is drawn for each sample."""
    prefixes = [[(7, 8, *template.prefix), (11, *template.prefix)]]
    assert len(prefixes[0][0]) <= template.max_pending
    (several,), _ = generate(
        teacher.model, teacher.variables, template, PROMPTS[2:3], prefixes, batch_size=4, sampling=GREEDY
    )
    values = np.flatnonzero(template.value_tokens)
    for one, prefix in zip(several, prefixes[0]):
        scores = naive.logits(teacher.model, teacher.variables, [*PROMPTS[2], *prefix])[-1]
        assert one.slots[0][0] == values[scores[values].argmax()]


def test_the_common_prefix_of_prompts_is_read_once(teacher, template, write, naive, monkeypatch):
    begin = list(range(10, 34))
    prompts = [begin + prompt[:8] for prompt in PROMPTS]
    read = []
    base_cache = engine.base_cache
    monkeypatch.setattr(engine, "base_cache", lambda *args: read.append(args[2]) or base_cache(*args))
    written, _ = write(prompts)
    assert read == [tuple(begin)]
    values = np.flatnonzero(template.value_tokens)
    for prompt, (one,) in zip(prompts, written):
        scores = naive.logits(teacher.model, teacher.variables, [*prompt, *template.prefix])[-1]
        assert one.slots[0][0] == values[scores[values].argmax()]


def test_one_compile_for_decoding_and_one_per_length_of_prompts(write):
    write(PROMPTS)
    write(PROMPTS, sampling=WARM)
    decoded, inserted = decode._cache_size(), insert._cache_size()
    batched = slots_of(write(PROMPTS, batch_size=8)[0])
    assert batched == slots_of(write(PROMPTS)[0])
    assert decode._cache_size() == decoded + 1
    assert insert._cache_size() == inserted + 1
    write(PROMPTS[::-1], batch_size=8)
    write(PROMPTS)
    for seed in (1, 2):
        write(PROMPTS, sampling=Sampling(0.5 + seed, 0.5 / seed, seed))
    assert (decode._cache_size(), insert._cache_size()) == (decoded + 1, inserted + 1)


def test_no_prompts_give_no_texts(write):
    assert write([]) == ([], 0)


def test_a_verdict_is_drawn_as_often_as_it_is_likely(teacher, write):
    """600 samples of one verdict against the distribution that decoding records."""
    encoder = AnswerEncoder(teacher.tokenizer, "rationale_first", 4)
    segments = [Segment("fixed", "brand:"), Segment("verdict", "")]
    verdict = compile_template(teacher.tokenizer, encoder, segments, teacher.model.config.vocab_size)
    ((*several,),), _ = write(PROMPTS[2:3], 600, Sampling(temperature=8.0, seed=5), batch_size=64, template=verdict)
    logits = np.log(several[0].probs[0].astype(np.float64)) / 8.0
    expected = np.exp(logits) / np.exp(logits).sum()
    counts = np.bincount([one.choices[0] for one in several], minlength=3)
    assert expected.min() > 0.05
    assert chisquare(counts, 600 * expected).pvalue > 0.01


nucleus = jax.jit(in_nucleus)
LOGITS = st.lists(st.integers(-20, 20).map(lambda quarters: quarters / 4), min_size=1, max_size=12)


@given(LOGITS, st.floats(0.01, 1.0))
def test_the_nucleus_is_the_smallest_set_of_likely_tokens(logits, top_p):
    """Against a loop over the tokens in order of probability."""
    probs = np.exp(np.array(logits, np.float64)) / np.exp(np.array(logits, np.float64)).sum()
    expected, total = set(), 0.0
    for token in np.argsort(-np.array(logits), kind="stable"):
        if total >= top_p - 1e-6 and expected:
            break
        expected.add(int(token))
        total += probs[token]
    padded = np.full(12, -1e30, np.float32)
    padded[: len(logits)] = logits
    selected = set(np.flatnonzero(np.asarray(nucleus(padded, top_p))).tolist())
    # Sums in float32 may fall on either side of top_p where they are equal to it.
    assert selected == expected or abs(sum(probs[list(selected & expected)]) - top_p) < 1e-5


def test_draws_follow_temperature_and_nucleus():
    logits = np.array([2.0, 1.0, 0.5, 0.0, -1.0], np.float32)
    rows = 4000
    drawn = draw(
        np.tile(logits, (rows, 1)),
        # If one of the three numbers were ignored, draws would repeat and deviate from the expected counts.
        np.stack([np.arange(rows) // 256, np.arange(rows) // 16 % 16], axis=1).astype(np.uint32),
        (np.arange(rows) % 16).astype(np.int32),
        **Sampling(temperature=2.0, top_p=0.8, seed=1).arguments,
    )
    probs = np.exp(logits.astype(np.float64) / 2.0)
    probs /= probs.sum()
    assert probs[:3].sum() < 0.8 < probs[:4].sum()
    expected = probs[:4] / probs[:4].sum()
    counts = np.bincount(np.asarray(drawn), minlength=5)
    assert counts[4] == 0
    assert chisquare(counts[:4], rows * expected).pvalue > 0.01


def test_prompts_of_equal_length_have_different_keys():
    assert len({engine.row_key(prompt, 0) for prompt in ([1, 2], [2, 1], [1, 3])}) == 3


def test_a_draw_depends_on_its_own_row_alone():
    rng = np.random.default_rng(0)
    logits, key = rng.normal(size=(20, 6)).astype(np.float32), rng.integers(0, 9, (20, 2)).astype(np.uint32)
    decision, order = np.arange(20, dtype=np.int32), rng.permutation(20)
    drawn = np.asarray(draw(logits, key, decision, **WARM.arguments))
    again = draw(logits[order], key[order], decision[order], **WARM.arguments)
    np.testing.assert_array_equal(again, drawn[order])


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_impossible_sampling_is_refused(wrong):
    with pytest.raises(ValueError, match="temperature must not be negative"):
        Sampling(**wrong)


def test_no_pass_copies_or_transposes_the_cache(teacher, template):
    """In the compiled loop the whole cache is only written in place, and a layer of it never changes its layout."""
    rows, length = 8, 64
    slots = new_slots(teacher.model, teacher.variables, template, rows, length, template.max_pending)
    arguments = GREEDY.arguments
    compiled = decode.lower(
        teacher.model, teacher.variables, template, slots, np.int32(0), width=1, **arguments
    ).compile()
    config = teacher.model.config
    whole = {f"[{','.join(map(str, shape))}]" for shape in cache_shapes(config, rows, length).values()}
    assert len(whole) == 2
    moved = re.compile(r"= f32(\[[0-9,]*\])\S* (copy|transpose)\(")
    sizes = [(match[1], match[2]) for match in moved.finditer(compiled.as_text())]
    of_a_layer = rows * config.kv_heads * length * config.head_dim
    elements = {shape: int(np.prod([int(n) for n in shape.strip("[]").split(",") if n])) for shape, _ in sizes}
    assert all(shape in compiled.as_text() for shape in whole)
    assert [each for each in sizes if each[1] == "transpose" and elements[each[0]] >= of_a_layer] == []
    # What enters the loop may be copied once, nothing within it.
    assert sum(shape in whole for shape, _ in sizes) <= 2


def test_a_pass_reads_no_more_of_the_cache_than_eighths_of_it_beyond_what_is_in_use(teacher, template, monkeypatch):
    """How much is read changes no text; the branches that read the whole cache alone give the same."""
    assert cache_reads(336) == (48, 96, 144, 192, 240, 288, 336)
    assert cache_reads(16) == (16,)
    assert all(length == cache_reads(length)[-1] and len(cache_reads(length)) <= 8 for length in range(16, 3000, 16))
    prompts = [prompt * 4 for prompt in PROMPTS[:5]]

    def write(sampling):
        prefixes = [[template.prefix] * 2 for _ in prompts]
        arguments = (teacher.model, teacher.variables, template, prompts, prefixes)
        return generate(*arguments, batch_size=4, sampling=sampling)[0]

    parts = [write(sampling) for sampling in (GREEDY, WARM)]
    decode.clear_cache()
    monkeypatch.setattr("jax_rele.teacher.decoding.cache_reads", lambda length: (length,))
    for sampling, few in zip((GREEDY, WARM), parts):
        whole = write(sampling)
        assert slots_of(few) == slots_of(whole)
        for one, other in zip(chain(*few), chain(*whole)):
            np.testing.assert_allclose(one.probs[template.is_choice], other.probs[template.is_choice], atol=1e-5)
    decode.clear_cache()
