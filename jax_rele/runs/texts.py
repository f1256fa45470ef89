"""The limits of `data.text_loss`, for the teacher and the students of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jax_rele.config import Config
from jax_rele.data.tokens.prompts import encode_prompts
from jax_rele.data.tokens.text_loss import TextLoss, check_text_loss, summarize
from jax_rele.data.tokens.tokenizers import DECODER_TOKENS, load_tokenizer
from jax_rele.runs import layout
from jax_rele.runs.questions import teacher_question
from jax_rele.types import Pair


def teacher_text_loss(config: Config, run_dir: Path, pairs: Sequence[Pair]) -> TextLoss:
    """What of the pairs is not in the teacher's prompts."""
    tokenizer = load_tokenizer(run_dir / layout.TEACHER_TOKENIZER, DECODER_TOKENS)
    losses: list[np.ndarray] = []
    question = teacher_question(config, tokenizer)
    encode_prompts(tokenizer, pairs, config.data.item_fields, config.teacher.prompt_length, *question, losses)
    return summarize(losses)


def check_teacher_texts(config: Config, where: str, loss: TextLoss) -> None:
    """Warns of what the teacher does not read. Raises UserError where it is more than `data.text_loss` allows."""
    remedies = (
        "start it from weights whose tokenizer knows the language (teacher.init)",
        f"raise teacher.prompt_length ({config.teacher.prompt_length})",
    )
    check_text_loss(f"{where}: teacher", loss, config.data.text_loss, remedies=remedies)


def check_student_texts(config: Config, where: str, loss: TextLoss) -> None:
    """Warns of what a student does not read. Raises UserError where it is more than `data.text_loss` allows."""
    student = config.student
    remedies = (
        "start it from weights whose tokenizer knows the language (student.init)",
        f"raise student.query_length ({student.query_length}) or student.item_length ({student.item_length})",
    )
    check_text_loss(where, loss, config.data.text_loss, remedies=remedies)
