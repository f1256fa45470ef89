"""What the teacher of a config is asked."""

from __future__ import annotations

from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from jax_rele.annotation import definitions
from jax_rele.config import Config
from jax_rele.names import Order
from jax_rele.teacher.instructions import default_instructions


class Question(NamedTuple):
    """What surrounds the pair in a teacher's prompt: the instructions, and whether it is a chat."""

    instructions: str
    chat: bool


def teacher_question(config: Config, tokenizer: PreTrainedTokenizerBase, order: Order | None = None) -> Question:
    """What the teacher of a config is asked, for answers in `teacher.order` or in another order."""
    if config.teacher.chat_template == "none" or not tokenizer.chat_template:
        return Question(config.teacher.instructions, False)
    return Question(chat_instructions(config, order or config.teacher.order), True)


def chat_instructions(config: Config, order: Order) -> str:
    """The instructions of a config in a chat: its own, or the default ones."""
    if config.teacher.instructions.strip():
        return config.teacher.instructions
    annotate = config.annotate
    labels = {name: annotate.definitions.get(name, "") for name in config.labels.names}
    dimensions = {name: annotate.dimension_definitions.get(name, "") for name in config.rationale.dimensions}
    return default_instructions(
        definitions.describe(labels, definitions.LABELS["en"]),
        definitions.describe(dimensions, definitions.DIMENSIONS["en"]),
        order,
        # Without text a rule speaks of verdicts, which an answer of the label alone has none of.
        [str(rule) for rule in config.rules_ if rule.text or order != "label_only"],
    )
