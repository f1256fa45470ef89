"""The teacher at inference: label probabilities, guided decoding of rationales, predictions for pairs."""

from jax_rele.teacher.continuous_batching import GeneratedText, generate
from jax_rele.teacher.decoding import Sampling
from jax_rele.teacher.form import check_lengths
from jax_rele.teacher.judging import Teacher, judge, read_rationales, sample
from jax_rele.teacher.label_scores import score
from jax_rele.teacher.predictions import TeacherPredictions, average
from jax_rele.teacher.template import DecodingTemplate, compile_template
from jax_rele.teacher.verbalizers import Verbalizers, check_verbalizers, make_verbalizers

__all__ = [
    "DecodingTemplate",
    "GeneratedText",
    "Sampling",
    "Teacher",
    "TeacherPredictions",
    "Verbalizers",
    "average",
    "check_lengths",
    "check_verbalizers",
    "compile_template",
    "generate",
    "judge",
    "make_verbalizers",
    "read_rationales",
    "sample",
    "score",
]
