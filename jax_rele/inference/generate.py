"""Greedy decoding with a key-value cache along a program: fixed parts are forced, slots are filled by the model.

A program is the token form of the grammar's template. Whatever the model's weights, what comes out is a rationale:
fixed tokens are emitted as they stand, a verdict or label is one of the known words, and a value ends where its slot
does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from transformers import PreTrainedTokenizerBase

from jax_rele.data.encoding import AnswerEncoder
from jax_rele.models import Decoder
from jax_rele.rationale.grammar import VALUE_DELIMITERS, Segment
from jax_rele.types import VERDICTS

FORCE, VALUE, CHOICE, STOP = range(4)

# A semicolon only begins the next value of the same slot.
_BLOCKED = frozenset(VALUE_DELIMITERS + "\\\r") - {";"}


@partial(jax.tree_util.register_dataclass, meta_fields=["steps", "value_length"], data_fields=[
    "op", "argument", "words", "word_lengths", "value_tokens"
])  # fmt: skip
@dataclass(frozen=True)
class Program:
    """Instructions for the decoder, one per row of `op`.

    Attributes:
      op: [S] FORCE a token, fill a VALUE, make a CHOICE, or STOP.
      argument: [S] the token to force; the token that ends the value; the row of `words` to choose from; unused.
      words: [T, K, W] token ids of the words of each choice, 0-padded.
      word_lengths: [T, K] tokens per word, 0 for none.
      value_tokens: [vocabulary] bool, tokens that may stand in a value.
      value_length: most tokens of a value.
      steps: most tokens of the whole.
    """

    op: np.ndarray
    argument: np.ndarray
    words: np.ndarray
    word_lengths: np.ndarray
    value_tokens: np.ndarray
    value_length: int
    steps: int


def choice_words(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[list[int]]:
    """Token ids of the words of a choice, each with its leading space.

    Raises:
      ValueError: two words begin with the same token, so that their first token would not tell them apart.
    """
    ids = [tokenizer.encode(" " + word, add_special_tokens=False) for word in words]
    first: dict[int, str] = {}
    for word, tokens in zip(words, ids):
        if tokens[0] in first:
            raise ValueError(
                f"{first[tokens[0]]!r} and {word!r} begin with the same token "
                f"{tokenizer.decode(tokens[:1])!r}; give names that differ from the start"
            )
        first[tokens[0]] = word
    return ids


def compile_program(
    tokenizer: PreTrainedTokenizerBase, encoder: AnswerEncoder, template: Sequence[Segment], labels: Sequence[str]
) -> Program:
    """The program of a template.

    Args:
      tokenizer: the teacher's.
      encoder: gives the token ids of the fixed parts, as in training.
      template: `grammar.template(dimensions, order)`.
      labels: names of the label schema, escaped as the grammar writes them.

    Raises:
      ValueError: the words of a choice collide, or a value could not be told from the text behind it.
    """
    choices = [choice_words(tokenizer, VERDICTS), choice_words(tokenizer, labels)]
    width = max(len(word) for words in choices for word in words)
    shape = (len(choices), max(len(words) for words in choices))
    words, lengths = np.zeros((*shape, width), np.int32), np.zeros(shape, np.int32)
    for table, ids in enumerate(choices):
        for row, word in enumerate(ids):
            words[table, row, : len(word)], lengths[table, row] = word, len(word)

    vocabulary = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    texts = [tokenizer.convert_tokens_to_string([token]) for token in vocabulary]
    value_tokens = np.array([not _BLOCKED & set(text) for text in texts])
    value_tokens[tokenizer.all_special_ids] = False

    op, argument = [], []
    for place, segment in enumerate(template):
        if segment.kind == "fixed":
            for token in encoder.segment_ids(segment.text, "fixed"):
                op.append(FORCE)
                argument.append(token)
        elif segment.kind in ("verdict", "label"):
            op.append(CHOICE)
            argument.append(0 if segment.kind == "verdict" else 1)
        else:
            end = encoder.segment_ids(template[place + 1].text, "fixed")[0]
            if value_tokens[end]:
                raise ValueError(f"the tokenizer splits {template[place + 1].text!r} so that a value has no clear end")
            op.append(VALUE)
            argument.append(end)
    op += [FORCE, STOP]
    argument += [encoder.end, 0]
    cost = np.array([1, encoder.value_length, width, 0])
    steps = int(cost[np.array(op)].sum())
    return Program(
        np.array(op, np.int32), np.array(argument, np.int32), words, lengths, value_tokens, encoder.value_length, steps
    )


@partial(jax.tree_util.register_dataclass)
@dataclass(frozen=True)
class Generated:
    """What was written.

    Attributes:
      tokens: [B, steps] int32; what stands behind a row's end is 0.
      instructions: [B, steps] int32, the instruction that each token comes from; -1 behind the end.
      lengths: [B] int32.
    """

    tokens: jax.Array
    instructions: jax.Array
    lengths: jax.Array


@partial(jax.jit, static_argnames=("model",))
def generate(model: Decoder, variables: dict, prompts: jax.Array, lengths: jax.Array, program: Program) -> Generated:
    """Writes one answer per prompt, greedily.

    Args:
      model: the decoder.
      variables: `params`, and `lora` where adapters are to be used.
      prompts: [B, P] int, padded on the right.
      lengths: [B] int, tokens of each prompt, at least 1.
      program: what to write.
    """
    batch, prompt_length = prompts.shape
    steps = program.steps
    cached = model.clone(cache_length=prompt_length + steps)
    rows = jnp.arange(batch)
    program = jax.tree.map(jnp.asarray, program)
    words, word_lengths = program.words, program.word_lengths

    out, cache = cached.apply(variables, prompts, mutable=["cache"])
    hidden = out.hidden[rows, lengths - 1]
    never = jnp.finfo(jnp.float32).min

    def best(logits, allowed):
        return jnp.argmax(jnp.where(allowed, logits, never), axis=-1).astype(jnp.int32)

    def write(carry):
        step, cache, hidden, counter, count, choice, tokens, instructions = carry
        op, argument = program.op[counter], program.argument[counter]
        logits = (hidden @ out.output_embedding.T).astype(jnp.float32)

        full = count >= program.value_length
        allowed = program.value_tokens[None, :] & ~full[:, None]
        # A value has at least one token, so its slot may end only from the second on.
        may_end = jax.nn.one_hot(argument, logits.shape[-1], dtype=bool) & (count > 0)[:, None]
        value = best(logits, allowed | may_end)
        ends_value = (value == argument) & (count > 0)

        table = jnp.where(op == CHOICE, argument, 0)
        first = words[table, :, 0]
        scores = jnp.take_along_axis(logits, first, axis=-1)
        choice = jnp.where(count == 0, best(scores, word_lengths[table] > 0), choice)
        word = words[table, choice, jnp.minimum(count, words.shape[-1] - 1)]
        ends_word = count + 1 >= word_lengths[table, choice]

        token = jnp.select([op == FORCE, op == VALUE, op == CHOICE], [argument, value, word], 0)
        done = op == STOP
        tokens = tokens.at[:, step].set(token)
        # The token that ends a value belongs to the fixed text behind it.
        place = counter + ((op == VALUE) & ends_value)
        instructions = instructions.at[:, step].set(jnp.where(done, -1, place))
        advance = jnp.select([op == FORCE, op == VALUE, op == CHOICE], [1, 2 * ends_value, 1 * ends_word], 0)
        counter, count = counter + advance, jnp.where(advance > 0, 0, count + 1)

        # Rows that are done write past the end of the cache, where nothing is kept.
        positions = jnp.where(done, prompt_length + steps, lengths + step)[:, None]
        result, cache = cached.apply({**variables, **cache}, token[:, None], positions, mutable=["cache"])
        return step + 1, cache, result.hidden[:, 0], counter, count, choice, tokens, instructions

    def unfinished(carry):
        step, counter = carry[0], carry[3]
        return (step < steps) & jnp.any(program.op[counter] != STOP)

    zeros = jnp.zeros(batch, jnp.int32)
    blank = jnp.zeros((batch, steps), jnp.int32)
    carry = (0, cache, hidden, zeros, zeros, zeros, blank, blank - 1)
    carry = jax.lax.while_loop(unfinished, write, carry)
    tokens, instructions = carry[-2:]
    return Generated(tokens, instructions, (instructions >= 0).sum(axis=-1, dtype=jnp.int32))
