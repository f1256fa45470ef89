"""The teacher at work: pairs in, rationales and distributions out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from jax_rele.data.encoding import AnswerEncoder, encode_prompts, pad
from jax_rele.inference.generate import CHOICE, VALUE, Program, compile_program, generate
from jax_rele.inference.scoring import word_probs
from jax_rele.models import Decoder
from jax_rele.rationale import ParseFailure, grammar, parse_output
from jax_rele.types import VERDICTS, LabelSchema, Pair, Rationale


@dataclass(frozen=True)
class Teacher:
    """A decoder with what it takes to read pairs and write rationales.

    Attributes:
      model, variables: the decoder and its parameters, `lora` included.
      tokenizer: the decoder's.
      schema: the labels to choose from.
      dimensions: the aspects to compare, in order.
      fields: the item's texts in the prompt.
      order: one of `grammar.ORDERS`.
      prompt_length, value_length: most tokens of a prompt and of a slot of values.
      batch_size: pairs per forward pass.
    """

    model: Decoder
    variables: dict
    tokenizer: PreTrainedTokenizerBase
    schema: LabelSchema
    dimensions: tuple[str, ...]
    fields: tuple[str, ...]
    order: str
    prompt_length: int
    value_length: int
    batch_size: int


@dataclass(frozen=True)
class Judgements:
    """What the teacher says of N pairs.

    Attributes:
      label_probs: [N, C].
      verdict_probs: [N, D, V]; NaN where no rationale was asked for.
      texts: the rationales as written; where none was asked for, the label's line alone.
      rationales: the parsed texts, or why they do not parse.
    """

    label_probs: np.ndarray
    verdict_probs: np.ndarray
    texts: tuple[str, ...]
    rationales: tuple[Rationale | ParseFailure, ...]


def judge(
    teacher: Teacher, pairs: Sequence[Pair], *, write: bool = True, progress: Callable[[int], None] = lambda pairs: None
) -> Judgements:
    """Judges pairs, in order.

    Args:
      teacher: the decoder and its settings.
      pairs: what to judge.
      write: whether to write rationales. Without, orders that put the label first are scored from the prompt alone;
        with `rationale_first` a rationale is written all the same, for the label follows from it.
      progress: called with the number of pairs after each batch.
    """
    order = teacher.order if write or teacher.order == "rationale_first" else "label_only"
    template = grammar.template(teacher.dimensions, order)
    encoder = AnswerEncoder(teacher.tokenizer, order, teacher.value_length)
    labels = [grammar.escape(name) for name in teacher.schema.names]
    program = compile_program(teacher.tokenizer, encoder, template, labels)
    prompts = encode_prompts(teacher.tokenizer, pairs, teacher.fields, teacher.prompt_length)
    results = []
    for start in range(0, len(pairs), teacher.batch_size):
        batch = prompts[start : start + teacher.batch_size]
        count = len(batch)
        # The last batch is filled up with its first prompt, so that every batch has the same shape and one compile.
        batch = batch + [batch[0]] * (teacher.batch_size - count)
        results += _judge_batch(teacher, batch, template, program, labels)[:count]
        progress(count)
    if not results:
        empty = np.zeros((0, len(teacher.dimensions), len(VERDICTS)), np.float32)
        return Judgements(np.zeros((0, len(teacher.schema)), np.float32), empty, (), ())
    label_probs, verdict_probs, texts = zip(*results)
    # Dimensions that nobody judged are not absent, they are not there.
    dimensions = () if order == "label_only" else teacher.dimensions
    parsed = tuple(parse_output(text, dimensions=dimensions, labels=teacher.schema.names) for text in texts)
    return Judgements(np.stack(label_probs), np.stack(verdict_probs), texts, parsed)


def _judge_batch(teacher, prompts, template, program: Program, labels) -> list[tuple[np.ndarray, np.ndarray, str]]:
    """(label distribution, verdict distributions, text) of each prompt of one batch."""
    pad_id = teacher.tokenizer.pad_token_id
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    written = generate(teacher.model, teacher.variables, pad(prompts, teacher.prompt_length, pad_id), lengths, program)
    tokens, instructions, answer_lengths = (
        np.asarray(x) for x in (written.tokens, written.instructions, written.lengths)
    )
    # The program's choices in the order of the template: where each word begins in each row, and what it can be.
    choices = np.flatnonzero(program.op == CHOICE)
    begins = np.argmax(instructions[:, :, None] == choices, axis=1)
    rows = [[*prompt, *answer[:end]] for prompt, answer, end in zip(prompts, tokens.tolist(), answer_lengths)]
    tables = program.argument[choices]
    probs = np.asarray(
        word_probs(
            teacher.model,
            teacher.variables,
            pad(rows, teacher.prompt_length + program.steps, pad_id),
            lengths[:, None] + begins,
            program.words[tables, :, 0],
            program.word_lengths[tables] > 0,
        )
    )
    is_label = tables == 1
    label_probs = probs[:, is_label][:, 0, : len(teacher.schema)]
    verdict_probs = np.full((len(prompts), len(teacher.dimensions), len(VERDICTS)), np.nan, np.float32)
    if (~is_label).any():
        verdict_probs[:] = probs[:, ~is_label][:, :, : len(VERDICTS)]
    texts = [
        _text(teacher.tokenizer, template, program, labels, row, places) for row, places in zip(tokens, instructions)
    ]
    return list(zip(label_probs, verdict_probs, texts))


def _text(tokenizer, template, program: Program, labels, tokens: np.ndarray, instructions: np.ndarray) -> str:
    """The template with its slots filled by what was written."""
    slots = iter(np.flatnonzero((program.op == VALUE) | (program.op == CHOICE)))
    parts = []
    for segment in template:
        if segment.kind == "fixed":
            parts.append(segment.text)
            continue
        slot = next(slots)
        ids = tokens[instructions == slot]
        if program.op[slot] == VALUE:
            parts.append(tokenizer.decode(ids.tolist()))
        else:
            # The tokenizer may fold case; the word that was chosen is known by its first token.
            words = labels if program.argument[slot] == 1 else VERDICTS
            first = program.words[program.argument[slot], : len(words), 0]
            parts.append(" " + words[int(np.flatnonzero(first == ids[0])[0])])
    return "".join(parts)
