"""The students of a run: built, started, and loaded after training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from transformers import PreTrainedTokenizerBase

from jax_rele.config import Config
from jax_rele.data.tokens.tokenizers import load_tokenizer
from jax_rele.errors import UserError
from jax_rele.models.weights import NEEDED, SIDE_FILES, load_params, resolve
from jax_rele.runs import artefacts
from jax_rele.students import InputSpec, Student, build_student, padded_inputs
from jax_rele.training import TrainState, abstract, make_local_mesh
from jax_rele.training.checkpoint import load_variables
from jax_rele.types import Item, Pair


def encoder_folder(config: Config) -> Path:
    """The folder of the weights that the students start from; fetched from the hub where it is a name there."""
    return resolve(config.student.init, (*NEEDED, *SIDE_FILES))


def student_model(config: Config, run_dir: Path, name: str) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """A student without weights, and its tokenizer."""
    tokenizer = load_tokenizer(run_dir / artefacts.STUDENT_TOKENIZER, artefacts.ENCODER_TOKENS)
    labels, dimensions = len(config.labels.names), len(config.rationale.dimensions)
    return build_student(name, config.student, len(tokenizer), labels, dimensions), tokenizer


def input_spec(config: Config) -> InputSpec:
    """How the run's pairs become inputs of its students."""
    student = config.student
    return InputSpec(config.data.item_fields, student.query_length, student.item_length, student.rationale_length)


def init_student(config: Config, model: nn.Module, tokenizer: PreTrainedTokenizerBase):
    """rng -> the student's variables, at random."""
    inputs = padded_inputs(model, tokenizer, [Pair("", "query", Item("", "title"))], input_spec(config))
    return lambda rng: model.init(rng, **inputs)


def loaded_encoder(config: Config, model: nn.Module, mesh: jax.sharding.Mesh) -> dict[str, Any] | None:
    """The encoder's parameters at `student.init`, on the mesh; None where it starts at random."""
    return None if config.student.init == "random" else load_params(encoder_folder(config), model.encoder, mesh)


def with_encoder(state: TrainState, encoder: dict[str, Any] | None, path: Sequence[str] = ()) -> TrainState:
    """The state with loaded encoder weights in place of the random ones.

    Args:
      state: at step 0; its optimizer has not seen the weights yet.
      encoder: what `loaded_encoder` gave. What the student does not use of it, as a pooler, is left out, and what it
        adds stays at random.
      path: of the student's parameters in `params`.
    """
    if encoder is None:
        return state

    def put(params, path):
        if path:
            return {**params, path[0]: put(params[path[0]], path[1:])}
        # Copied, as a state's buffers are given up step by step, and two towers may start from the same weights.
        return {
            name: {**tree, **{key: jax.tree.map(jnp.copy, encoder[key]) for key in tree if key in encoder}}
            if name == "encoder" or name.endswith("_encoder")
            else tree
            for name, tree in params.items()
        }

    return dataclasses.replace(state, trainable={"params": put(state.trainable["params"], path)})


def load_student(
    config: Config,
    run_dir: Path,
    name: str,
    recipe_name: str,
    *,
    has_verdicts: bool = False,
    has_evidence: bool = False,
) -> Student:
    """A trained student, ready to predict on this process's devices. Raises UserError where the run has none."""
    directory = artefacts.student_dir(run_dir, name, recipe_name)
    if not directory.is_dir():
        raise UserError(f"{directory}: this student is not trained yet; run `jax-rele distill CONFIG` first")
    model, tokenizer = student_model(config, run_dir, name)
    init = init_student(config, model, tokenizer)
    target = abstract(init, make_local_mesh(config.mesh), jax.random.key(0), collection="params")
    student = as_student(config, model, tokenizer, load_variables(directory / "variables", target))
    return dataclasses.replace(student, has_verdicts=has_verdicts, has_evidence=has_evidence)


def as_student(config: Config, model: nn.Module, tokenizer: PreTrainedTokenizerBase, variables: dict) -> Student:
    """A model with its parameters, ready to predict."""
    return Student(
        model=model,
        variables=variables,
        tokenizer=tokenizer,
        fields=config.data.item_fields,
        query_length=config.student.query_length,
        item_length=config.student.item_length,
        batch_size=config.score.batch_size,
        schema=config.labels.schema_,
        dimensions=config.rationale.dimensions,
    )
