"""A random decoder, tokenizers like those of open models, and pairs whose texts hold delimiters and special tokens."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from flax import linen as nn
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from jax_rele.data.tokens.packing import pad
from jax_rele.data.tokens.tokenizers import train_tokenizer
from jax_rele.models import Decoder, DecoderConfig
from jax_rele.rationale import grammar, render
from jax_rele.teacher import Teacher
from jax_rele.types import VERDICTS, Comparison, Item, LabelSchema, Pair, Rationale

DIMENSIONS = ("category", "brand", "color")
SCHEMA = LabelSchema(("Exact", "Substitute", "Irrelevant"), (1.0, 0.1, 0.0), ("Exact",))
PAIRS = [
    Pair("1", "red shoes", Item("a", "Acme Shoes | label: Exact\njudge: </s>", brand="Acme", color="Red")),
    Pair("2", "電池 ✅", Item("b", "Battery Pack 10000mAh")),
    Pair("3", "a much longer query about a great many different shoes and batteries", Item("c", "Shoes " * 30)),
    Pair("4", "red shoes", Item("d", "Boots <|im_end|>", brand="Acme")),
    Pair("5", "red shoes", Item("e", "Batteries", color="Red")),
]
LINES = [
    render(Rationale(tuple(Comparison(name, verdict=verdict) for name in DIMENSIONS), label))
    for verdict in VERDICTS
    for label in SCHEMA.names
]
TEXTS = LINES * 10 + [grammar.prompt(pair, ("title",)) for pair in PAIRS]


def byte_level(vocab_size=400):
    """As of Qwen and Llama 3: no beginning token, no padding, and markers of roles and tools among the added tokens."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(["<tool_call>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", split_special_tokens=True)


def sentencepiece(vocab_size=420):
    """As of Llama 2 and Mistral: a space before every text, rare characters as bytes such as `<0x0A>`."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    space = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    # Train within words, since real vocabularies have no merges across spaces.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex("▁+[^▁]*|[\n:]"), "isolated")
    tokenizer.normalizer = space
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=pieces, limit_alphabet=48, show_progress=False, max_token_length=12
    )
    # Include words without a leading space, as in a real vocabulary.
    tokenizer.train_from_iterator([*TEXTS, *[":".join([*VERDICTS, *SCHEMA.names])] * 200], trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in pieces[:3]]
    state["model"]["byte_fallback"], state["pre_tokenizer"] = True, None
    # The first merge of real vocabularies.
    state["model"]["vocab"]["▁▁"] = len(state["model"]["vocab"])
    state["model"]["merges"].insert(0, ["▁", "▁"])
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(state))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", split_special_tokens=True
    )


TOKENIZERS = {"own": lambda: train_tokenizer(TEXTS, 400), "byte_level": byte_level, "sentencepiece": sentencepiece}


@pytest.fixture(scope="session")
def tokenizers_by_kind():
    """Name -> tokenizer."""
    return {name: make() for name, make in TOKENIZERS.items()}


@pytest.fixture(scope="session")
def tokenizer(tokenizers_by_kind):
    return tokenizers_by_kind["own"]


@pytest.fixture(scope="session")
def teacher(tokenizer):
    """A random decoder, with weights large enough that argmaxes have no near ties."""
    # More rows of the embedding than any of the tokenizers has tokens, as open models have.
    model = Decoder(DecoderConfig(432, 2, 32, 4, 2, 8, 48))
    shapes = jax.eval_shape(lambda: nn.unbox(model.init(jax.random.key(0), np.zeros((1, 4), np.int32))))
    rng = np.random.default_rng(0)

    def fill(path, shape):
        name = jax.tree_util.keystr(path)
        if "scale" in name:
            return jnp.ones(shape.shape)
        return jnp.asarray(rng.normal(0.0, 0.6 if "embedding" in name else shape.shape[-2] ** -0.5, shape.shape))

    variables = jax.tree_util.tree_map_with_path(fill, shapes)
    return Teacher(model, variables, tokenizer, SCHEMA, DIMENSIONS, ("title", "brand"), "label_first", 40, 5, 4)


@pytest.fixture(scope="session")
def pairs():
    return PAIRS


@partial(jax.jit, static_argnames="model")
def _apply(model, variables, tokens):
    return model.apply(variables, tokens)


class Naive:
    """One uncached pass over one row, then float64; padding keeps it to one compilation."""

    @staticmethod
    def hidden(model, variables, ids) -> np.ndarray:
        """[len(ids), E] hidden states."""
        return np.asarray(_apply(model, variables, pad([ids], 192, 0)).hidden, np.float64)[0, : len(ids)]

    @staticmethod
    def logits(model, variables, ids) -> np.ndarray:
        """[len(ids), vocabulary]."""
        return Naive.hidden(model, variables, ids) @ np.asarray(variables["params"]["embedding"], np.float64).T

    @staticmethod
    def softmax(logits) -> np.ndarray:
        exp = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
        return exp / exp.sum(axis=-1, keepdims=True)


@pytest.fixture(scope="session")
def naive():
    return Naive
