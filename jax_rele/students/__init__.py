"""The two students, cross-encoder and two-tower, and their predictions."""

from jax_rele.students.build import build_student
from jax_rele.students.models import CrossEncoder, TwoTower
from jax_rele.students.prediction import Student, embed, embed_rationales, encode_inputs, label_probs, predict

__all__ = [
    "CrossEncoder",
    "Student",
    "TwoTower",
    "build_student",
    "embed",
    "embed_rationales",
    "encode_inputs",
    "label_probs",
    "predict",
]
