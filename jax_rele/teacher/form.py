"""The form of the teacher's answers as tokens, and whether they fit into its context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from jax_rele.data.tokens.prompts import AnswerEncoder, max_prompt_length
from jax_rele.errors import UserError
from jax_rele.rationale import grammar
from jax_rele.teacher.template import DecodingTemplate, compile_template
from jax_rele.teacher.verbalizers import Verbalizers, make_verbalizers


@dataclass(frozen=True)
class AnswerForm:
    """The fixed and free parts of an answer as tokens.

    Attributes:
      verbalizers: the tokens of the labels.
      before_label: the fixed tokens just before the label.
      follow: the token after the label.
      template: the template of the decoded part, which decides the label too where that comes last and the first tokens
        of the labels differ; None for a label alone.
      end: the token after the answer.
    """

    verbalizers: Verbalizers
    before_label: tuple[int, ...]
    follow: int
    template: DecodingTemplate | None
    end: int

    @property
    def longest(self) -> int:
        """Maximum tokens of an answer."""
        if self.template is not None and self.template.decides_label:
            return self.template.longest + 1
        label = len(self.before_label) + len(self.verbalizers.common) + max(map(len, self.verbalizers.rests))
        return label + (self.template.longest if self.template else 0) + 1


def make_form(
    tokenizer: PreTrainedTokenizerBase,
    label_names: Sequence[str],
    dimensions: Sequence[str],
    order: str,
    value_length: int,
    vocab_size: int,
    chat: bool,
) -> AnswerForm:
    """The form of answers; arguments as the fields of `judging.Teacher`."""
    encoder = AnswerEncoder(tokenizer, order, value_length, chat=chat)
    segments = grammar.template(dimensions, order)
    label = next(index for index, segment in enumerate(segments) if segment.kind == "label")
    before, after = segments[: label - 1], segments[label + 1 :]
    verbalizers = make_verbalizers(tokenizer, label_names)
    decides = bool(before) and verbalizers.scoring == "first_token"
    free = segments[: label + 1] if decides else before or after
    return AnswerForm(
        verbalizers=verbalizers,
        before_label=encoder.segment_ids(segments[label - 1].text, "fixed"),
        follow=encoder.segment_ids(after[0].text, "fixed")[0] if after else encoder.end,
        template=compile_template(tokenizer, encoder, free, vocab_size, verbalizers if decides else None)
        if free
        else None,
        end=encoder.end,
    )


def drawn_answer(
    form: AnswerForm, order: str, slots: Sequence[Sequence[int]], label: int
) -> tuple[list[int], list[bool]]:
    """An answer as it was drawn, and what of it the model had a choice in.

    Forced are the template's fixed parts, the end of a value that is as long as it may be, and the tokens of a verdict
    or label after the one by which it was chosen.

    Args:
      form: of the answers.
      order: one of `names.ORDERS`.
      slots: the tokens of each slot of the template; a last one of the label is not read.
      label: the index of the label.

    Returns:
      The token ids with the end token, and for each whether the model decided it.
    """
    template, verbalizers = form.template, form.verbalizers
    rest = verbalizers.rests[label]
    by_first = verbalizers.scoring == "first_token"
    tokens: list[tuple[int, bool]] = []
    if template is not None:
        filled = [*slots[:-1], rest] if template.decides_label else slots
        tokens += [(token, False) for token in template.prefix]
        for choice, slot, suffix, length in zip(
            template.choice.tolist(), filled, template.forced_suffixes, template.suffix_lengths
        ):
            is_value = choice < 0
            tokens += [(token, is_value or number == 0) for number, token in enumerate(slot)]
            ended = is_value and len(slot) < template.value_length
            tokens += [(token, ended and number == 0) for number, token in enumerate(suffix[:length].tolist())]
    if template is None or not template.decides_label:
        of_label = [(token, False) for token in (*form.before_label, *verbalizers.common)]
        of_label += [(token, not by_first or number == 0) for number, token in enumerate(rest)]
        tokens = tokens + of_label if order == "rationale_first" else of_label + tokens
    tokens.append((form.end, False))
    return [token for token, _ in tokens], [decided for _, decided in tokens]


def check_lengths(
    tokenizer: PreTrainedTokenizerBase,
    label_names: Sequence[str],
    dimensions: Sequence[str],
    *,
    order: str,
    prompt_length: int,
    value_length: int,
    max_length: int,
    instructions: str = "",
    chat: bool = False,
) -> None:
    """Raises UserError where the longest prompt and answer exceed a context of `max_length`; 0 is no limit."""
    form = make_form(tokenizer, label_names, dimensions, order, value_length, len(tokenizer), chat)
    longest = max_prompt_length(tokenizer, prompt_length, instructions, chat)
    if 0 < max_length < longest + form.longest:
        fixed = longest - prompt_length
        more = f", {fixed} of them instructions and chat template," if fixed else ""
        raise UserError(
            f"teacher.prompt_length: {longest} tokens of a prompt{more} and up to {form.longest} of a rationale exceed "
            f"the model's context of {max_length}; lower prompt_length or value_length, or compare fewer dimensions"
        )
