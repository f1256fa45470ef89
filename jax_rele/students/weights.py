"""The weights that a student starts from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jax_rele.config import StudentConfig
from jax_rele.models.weights import load_params, weights_folder
from jax_rele.students.base import StudentModel, padded_inputs
from jax_rele.students.prediction import Student
from jax_rele.types import Item, Pair, Params


def load_encoder(student: StudentConfig, model: StudentModel, mesh: jax.sharding.Mesh) -> Params | None:
    """The encoder's parameters at `student.init`, on the mesh; None where it starts at random."""
    return (
        None
        if student.init == "random"
        else load_params(weights_folder(student.init, "student.init"), model.encoder, mesh)
    )


def init_student(student: Student) -> Callable[[jax.Array], Params]:
    """rng -> the student's variables, at random."""
    pair = Pair("", "query", Item("", "title"))
    inputs = padded_inputs(student.model, student.tokenizer, [pair], student.input_spec)
    return lambda rng: student.model.init(rng, **inputs)


def with_encoder(params: Params, encoder: Params | None, path: Sequence[str] = ()) -> Params:
    """Parameters with loaded encoder weights in place of the random ones.

    Args:
      params: the parameters of one student, or of several by name.
      encoder: what `load_encoder` returned. Weights that the student does not use, e.g. a pooler, are dropped;
        parameters without loaded weights stay random.
      path: of the student's parameters in `params`.
    """
    if encoder is None:
        return params
    if path:
        return {**params, path[0]: with_encoder(params[path[0]], encoder, path[1:])}
    # Copied, as training donates a state's buffers, and two towers may start from the same weights.
    return {
        name: {**tree, **{key: jax.tree.map(jnp.copy, encoder[key]) for key in tree if key in encoder}}
        if name == "encoder" or name.endswith("_encoder")
        else tree
        for name, tree in params.items()
    }
