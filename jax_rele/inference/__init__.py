"""The teacher writes and scores; the students predict."""

from jax_rele.inference.encode import Student, encode_inputs, label_probs, predict
from jax_rele.inference.generate import Generated, Program, choice_words, compile_program, generate
from jax_rele.inference.scoring import word_probs
from jax_rele.inference.teacher import Judgements, Teacher, judge

__all__ = [
    "Generated",
    "Judgements",
    "Program",
    "Student",
    "Teacher",
    "choice_words",
    "compile_program",
    "encode_inputs",
    "generate",
    "judge",
    "label_probs",
    "predict",
    "word_probs",
]
