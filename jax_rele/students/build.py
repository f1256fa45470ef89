"""A student from the config."""

from __future__ import annotations

from jax_rele import config
from jax_rele.models.build import build_encoder
from jax_rele.names import StudentName
from jax_rele.students.base import StudentModel
from jax_rele.students.cross_encoder import CrossEncoder
from jax_rele.students.two_tower import TwoTower


def build_student(
    name: StudentName, student: config.StudentConfig, vocab_size: int, labels: int, dimensions: int
) -> StudentModel:
    """The student called `name`, without weights.

    Args:
      name: which student.
      student: what it is to be; the encoder's shape is that of `student.random`, or of the weights at `student.init`.
      vocab_size: tokens of its tokenizer.
      labels, dimensions: how many there are.

    Raises:
      UserError: the weights' config is missing, not supported, or has fewer tokens or positions than are needed.
    """
    encoder, pooling = build_encoder(student, vocab_size), student.verdict_pooling
    if name == "cross_encoder":
        return CrossEncoder(encoder, labels, dimensions, student.cross_encoder.latent_width, pooling)
    return TwoTower(
        encoder,
        labels,
        dimensions,
        **student.two_tower.model_dump(),
        distinguish_sides=student.init == "random",
        verdict_pooling=pooling,
    )
