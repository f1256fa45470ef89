"""The teacher writes and scores; the students predict."""

from jax_rele.inference.encode import Student, embed, embed_rationales, encode_inputs, label_probs, predict
from jax_rele.inference.engine import Written, generate
from jax_rele.inference.generate import Sampling
from jax_rele.inference.program import Program, compile_program
from jax_rele.inference.scoring import score
from jax_rele.inference.teacher import Judgements, Teacher, check_lengths, judge, sample
from jax_rele.inference.words import Words, check_words, label_words

__all__ = [
    "Judgements",
    "Program",
    "Sampling",
    "Student",
    "Teacher",
    "Words",
    "Written",
    "check_lengths",
    "check_words",
    "compile_program",
    "embed",
    "embed_rationales",
    "encode_inputs",
    "generate",
    "judge",
    "label_probs",
    "label_words",
    "predict",
    "sample",
    "score",
]
