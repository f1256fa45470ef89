"""The limits of `data.text_loss`, for the teacher and the students of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from jax_rele.config import Config
from jax_rele.data import PairTable
from jax_rele.data.tokens.prompts import encode_prompts
from jax_rele.data.tokens.student_inputs import tower_rows
from jax_rele.data.tokens.text_loss import TextLoss, check_text_loss, summarize
from jax_rele.data.tokens.tokenizers import DECODER_TOKENS, ENCODER_TOKENS, load_tokenizer
from jax_rele.models.files import is_local
from jax_rele.models.weights import weights_folder
from jax_rele.runs import layout
from jax_rele.runs.questions import teacher_question
from jax_rele.types import Pair

SAMPLE = 2000
"""Pairs that are read to see whether a tokenizer knows the language."""

_LANGUAGE = "start from weights whose tokenizer knows the language, or from `random`, which trains one on the pairs"


def teacher_text_loss(config: Config, run_dir: Path, pairs: Sequence[Pair]) -> TextLoss:
    """What of the pairs is not in the teacher's prompts."""
    tokenizer = load_tokenizer(run_dir / layout.TEACHER_TOKENIZER, DECODER_TOKENS)
    losses: list[np.ndarray] = []
    question = teacher_question(config, tokenizer)
    encode_prompts(tokenizer, pairs, config.data.item_fields, config.teacher.prompt_length, *question, losses)
    return summarize(losses)


def check_student_tokenizer(config: Config, run_dir: Path) -> None:
    """Raises UserError where the students' tokenizer does not know the prepared pairs, before a teacher reads them.

    A sample is read. Random students train a tokenizer that knows every text; weights that would have to be downloaded
    are not tried.
    """
    init = config.student.init
    if init == "random" or not is_local(init):
        return
    tokenizer, losses = load_tokenizer(weights_folder(init, "student.init"), ENCODER_TOKENS), list[np.ndarray]()
    lengths = config.student.query_length, config.student.item_length
    tower_rows(tokenizer, _sample(run_dir), config.data.item_fields, *lengths, losses)
    _check_unknown(config, "student.init", init, summarize(losses))


def check_teacher_tokenizer(config: Config, run_dir: Path) -> None:
    """As `check_student_tokenizer`, for the teacher's tokenizer."""
    init = config.teacher.init
    if init == "random" or config.score.signals or not is_local(init):
        return
    tokenizer, losses = load_tokenizer(weights_folder(init, "teacher.init"), DECODER_TOKENS), list[np.ndarray]()
    question = teacher_question(config, tokenizer)
    fields, length = config.data.item_fields, config.teacher.prompt_length
    encode_prompts(tokenizer, _sample(run_dir), fields, length, *question, losses)
    _check_unknown(config, "teacher.init", init, summarize(losses))


def _sample(run_dir: Path) -> list[Pair]:
    """Prepared pairs, evenly spaced."""
    table = PairTable(run_dir / layout.PAIRS)
    count = min(len(table), SAMPLE)
    return list(table.select(np.arange(count) * len(table) // count))


def _check_unknown(config: Config, where: str, init: str, loss: TextLoss) -> None:
    """Says or refuses what a tokenizer does not know; cut texts are counted by the stages that read all of them."""
    limits = config.data.text_loss.model_copy(update={"warn_cut": 1.0, "max_cut": 1.0})
    check_text_loss(where, replace(loss, merged_pairs=0), limits, remedies=(f"{init}: {_LANGUAGE}", ""))


def check_teacher_texts(config: Config, where: str, loss: TextLoss) -> None:
    """Warns of what the teacher does not read. Raises UserError where it is more than `data.text_loss` allows."""
    remedies = (
        f"teacher.init: {_LANGUAGE}",
        f"raise teacher.prompt_length ({config.teacher.prompt_length})",
    )
    check_text_loss(f"{where}: teacher", loss, config.data.text_loss, remedies=remedies)


def check_student_texts(config: Config, where: str, loss: TextLoss) -> None:
    """Warns of what a student does not read. Raises UserError where it is more than `data.text_loss` allows."""
    student = config.student
    remedies = (
        f"student.init: {_LANGUAGE}",
        f"raise student.query_length ({student.query_length}) or student.item_length ({student.item_length})",
    )
    check_text_loss(where, loss, config.data.text_loss, remedies=remedies)
