"""The two students, cross-encoder and two-tower, and their predictions."""

from jax_rele.students.base import InputSpec, padded_inputs
from jax_rele.students.build import build_student
from jax_rele.students.cross_encoder import CrossEncoder
from jax_rele.students.prediction import Predictions, Student, embed, embed_rationales, label_probs, predict
from jax_rele.students.two_tower import TwoTower

__all__ = [
    "CrossEncoder",
    "InputSpec",
    "Predictions",
    "Student",
    "TwoTower",
    "build_student",
    "embed",
    "embed_rationales",
    "label_probs",
    "padded_inputs",
    "predict",
]
