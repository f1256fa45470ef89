"""What the teacher of a config is asked, and the kinds of answer that it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from jax_rele.annotation import definitions
from jax_rele.config import Config
from jax_rele.names import Order
from jax_rele.teacher.instructions import answer_form, answer_lines, default_instructions
from jax_rele.teacher.perspectives import MAIN, Perspective, rule_lines


class Question(NamedTuple):
    """What surrounds the pair in a teacher's prompt: the instructions, and whether it is a chat."""

    instructions: str
    chat: bool


def teacher_question(config: Config, tokenizer: PreTrainedTokenizerBase, order: Order | None = None) -> Question:
    """What the teacher of a config is asked, for answers in `teacher.order` or in another order."""
    if not is_chat(config, tokenizer):
        return Question(config.teacher.instructions, False)
    return Question(chat_instructions(config, order or config.teacher.order), True)


def is_chat(config: Config, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the teacher's prompts are chats."""
    return config.teacher.chat_template != "none" and bool(tokenizer.chat_template)


def chat_instructions(config: Config, order: Order) -> str:
    """The instructions of a config in a chat: its own, or the default ones."""
    if config.teacher.instructions.strip():
        return config.teacher.instructions
    return _default_instructions(config, order, config.rationale.dimensions, {})


def kinds_of_answer(config: Config, chat: bool) -> tuple[Perspective, ...]:
    """The answer over all dimensions, and those of `teacher.perspectives`.

    The instructions of the latter name the lines of the answer.

    Args:
      config: of the run.
      chat: whether prompts are chats.
    """
    main_order = config.teacher.order
    text = chat_instructions(config, main_order) if chat else config.teacher.instructions
    kinds = [Perspective(MAIN, main_order, config.rationale.dimensions, instructions=text)]
    for name, each in config.teacher.perspectives.items():
        order = each.order or config.teacher.order
        rules = tuple(rule for rule in config.rules_ if rule.conditions) if each.rules else ()
        dimensions = config.rationale.dimensions if each.dimensions is None else each.dimensions
        perspective = Perspective(name, order, () if order == "label_only" else dimensions, rules)
        kinds.append(replace(perspective, instructions=_instructions(config, chat, perspective)))
    return tuple(kinds)


def _instructions(config: Config, chat: bool, perspective: Perspective) -> str:
    own, order = config.teacher.instructions.rstrip(), perspective.order
    if chat and not own:
        asked = dict(zip(rule_lines(perspective.rules), map(str, perspective.rules)))
        return _default_instructions(config, order, perspective.dimensions, asked)
    if chat:
        return own + answer_form(answer_lines(perspective.lines, order))
    lines = {
        "label_only": ["label"],
        "label_first": ["label", *perspective.lines],
        "rationale_first": [*perspective.lines, "label"],
    }[order]
    return "\n".join([*([own] if own else []), f"answer: {', '.join(lines)}"])


def _default_instructions(config: Config, order: Order, dimensions: Sequence[str], asked: Mapping[str, str]) -> str:
    annotate = config.annotate
    labels = {name: annotate.definitions.get(name, "") for name in config.labels.names}
    meanings = {name: annotate.dimension_definitions.get(name, "") for name in dimensions}
    return default_instructions(
        definitions.describe(labels, definitions.LABELS["en"]),
        definitions.describe(meanings, definitions.DIMENSIONS["en"]),
        order,
        # Without text a rule speaks of verdicts, which an answer of the label alone has none of.
        [str(rule) for rule in config.rules_ if rule.text or order != "label_only"],
        asked,
    )
