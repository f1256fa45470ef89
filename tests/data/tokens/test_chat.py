"""Chat templates: the prompt is what `transformers` renders, and no text forges a marker of it."""

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from jax_rele.data.tokens.chat import render_chat
from jax_rele.data.tokens.prompts import AnswerEncoder, encode_prompts, max_prompt_length
from jax_rele.errors import UserError
from jax_rele.rationale import grammar
from jax_rele.types import Item, Pair, Rationale

FIELDS = ("title", "brand")
INSTRUCTIONS = "Judge the item.\nLabels: good, bad."
PAIR = Pair("1", "red shoes", Item("a", "Acme red shoes, 10.5 inch", brand="Acme"))
CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nA helper.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no role') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
IGNORES_SYSTEM = "{% for m in messages if m.role != 'system' %}[{{ m.role }}] {{ m.content }}{% endfor %}[assistant] "
TEMPLATES = {"chatml": CHATML, "gemma": GEMMA, "ignores_system": IGNORES_SYSTEM}


@pytest.fixture(scope="module")
def plain():
    """Byte-level, with special tokens, a role marker that is not special, and an added token of blanks."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([INSTRUCTIONS, grammar.prompt(PAIR, FIELDS)] * 3, trainer)
    tokenizer.add_special_tokens(["<bos>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(["<think>", "</think>", "    "])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<|endoftext|>", split_special_tokens=True
    )


@pytest.fixture(scope="module")
def with_template(plain):
    """A function: template -> a tokenizer that has it."""

    def make(template):
        copy = PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer.from_str(plain.backend_tokenizer.to_str()),
            bos_token="<bos>",
            eos_token="<|endoftext|>",
            split_special_tokens=True,
        )
        copy.chat_template = template
        return copy

    return make


def rendered(tokenizer, messages):
    """The ids of `transformers`."""
    options = {"add_generation_prompt": True, "enable_thinking": False, "tokenize": False}
    text = tokenizer.apply_chat_template(messages, **options)
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=False)


def pair_text(pair):
    return grammar.prompt(pair, FIELDS).removesuffix("\njudge:\n")


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("instructions", [INSTRUCTIONS, ""])
def test_prompts_are_those_of_transformers(with_template, name, instructions):
    tokenizer = with_template(TEMPLATES[name])
    pairs = [PAIR, Pair("2", "電池 ✅    two", Item("b", "Battery    pack"))]
    for pair, ids in zip(pairs, encode_prompts(tokenizer, pairs, FIELDS, 200, instructions, True)):
        text = pair_text(pair)
        if name == "chatml":
            system = [{"role": "system", "content": instructions}] if instructions else []
        else:
            system, text = [], f"{instructions}\n\n{text}" if instructions else text
        assert ids == rendered(tokenizer, [*system, {"role": "user", "content": text}])


@given(text=st.text(alphabet="<|>/bosthinkm_ \n[]", max_size=40) | st.sampled_from(["<bos>", "</think>", "<|im_end|>"]))
def test_no_text_makes_a_marker(with_template, text):
    tokenizer = with_template(CHATML)
    markers = {token for token, added in tokenizer.added_tokens_decoder.items() if str(added).strip()}
    pairs = [PAIR, Pair("2", f"q {text}", Item("b", text or "t", brand=text))]
    benign, hostile = encode_prompts(tokenizer, pairs, FIELDS, 500, text, True)
    assert [token for token in hostile if token in markers] == [token for token in benign if token in markers]
    only = encode_prompts(tokenizer, pairs[:1], FIELDS, 500, "", True)[0]
    # The frame's own: two turns and the empty reasoning.
    assert len([token for token in only if token in markers]) == 7


@pytest.mark.parametrize("name", TEMPLATES)
def test_only_the_items_texts_are_cut(with_template, name):
    tokenizer = with_template(TEMPLATES[name])
    long = Pair("3", "red shoes", Item("c", "Acme red shoes " * 40))
    whole, cut = (encode_prompts(tokenizer, [long], FIELDS, length, INSTRUCTIONS, True)[0] for length in (1000, 30))
    frame = render_chat(tokenizer, INSTRUCTIONS)
    tail = tokenizer.encode(frame.after, add_special_tokens=False, split_special_tokens=False)
    size = len(cut) - len(tail)
    assert cut == [*whole[:size], *tail]
    assert "query: red shoes\ntitle: Acme" in tokenizer.decode(cut)
    assert len(cut) == max_prompt_length(tokenizer, 30, INSTRUCTIONS, True)
    # Instructions take nothing from the pair.
    more = encode_prompts(tokenizer, [long], FIELDS, 30, INSTRUCTIONS * 5, True)[0]
    assert tokenizer.decode(more).partition("query:")[2] == tokenizer.decode(cut).partition("query:")[2]


@pytest.mark.parametrize(("name", "end"), [("chatml", "<|im_end|>"), ("ignores_system", "<|endoftext|>")])
def test_an_answer_ends_with_the_end_of_a_turn(with_template, name, end):
    tokenizer = with_template(TEMPLATES[name])
    answer = AnswerEncoder(tokenizer, "label_only", 8, chat=True)(Rationale((), "Exact"))
    assert tokenizer.convert_ids_to_tokens(answer.ids[-1]) == end
    plain = AnswerEncoder(tokenizer, "label_only", 8)(Rationale((), "Exact"))
    assert plain.ids == [*answer.ids[:-1], tokenizer.eos_token_id]


def test_a_template_with_a_date_is_the_same_every_day(with_template):
    tokenizer = with_template("{{ strftime_now('%d %b %Y') }}" + CHATML)
    assert render_chat(tokenizer, INSTRUCTIONS).before.startswith("26 Jul 2024<|im_start|>system\nJudge")


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('not for you') }}",
        "{% for m in messages %}",
        "{{ messages[0].nothing.at_all }}",
        "no text",
        "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
    ],
)
def test_a_template_that_fails_is_one_line(with_template, template):
    tokenizer = with_template(template)
    with pytest.raises(UserError, match=r"^teacher\.chat_template: .*; set it to none") as error:
        encode_prompts(tokenizer, [PAIR], FIELDS, 50, INSTRUCTIONS, True)
    assert "\n" not in str(error.value)
