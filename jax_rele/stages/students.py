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
from jax_rele.stages import artefacts
from jax_rele.students import CrossEncoder, Student, build_student, encode_inputs
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


def student_inputs(config: Config, model: nn.Module, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> dict:
    """The student's keyword arguments for these pairs, at full length."""
    lengths = config.student.query_length, config.student.item_length
    return encode_inputs(model, tokenizer, pairs, config.data.item_fields, *lengths)


def init_student(config: Config, model: nn.Module, tokenizer: PreTrainedTokenizerBase):
    """rng -> the student's variables, at random."""
    inputs = student_inputs(config, model, tokenizer, [Pair("", "query", Item("", "title"))])
    return lambda rng: model.init(rng, **inputs)


def heads_of(model: nn.Module) -> set[str]:
    """The fields of `StudentOutputs` that the student can fill in training."""
    ids, valid = jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool)
    if isinstance(model, CrossEncoder):
        inputs = {"tokens": ids, "token_types": ids, "valid": valid}
        inputs["augmented"] = dict(inputs)
    else:
        inputs = {"query_tokens": ids, "query_valid": valid, "item_tokens": ids, "item_valid": valid}
    outputs = jax.eval_shape(lambda rng: model.init_with_output(rng, **inputs)[0], jax.random.key(0))
    return {field.name for field in dataclasses.fields(outputs) if getattr(outputs, field.name) is not None}


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


def load_student(config: Config, run_dir: Path, name: str, recipe_name: str) -> Student:
    """A trained student, ready to predict on this process's devices.

    Raises UserError where the run has none of that name and recipe.
    """
    directory = artefacts.student_dir(run_dir, name, recipe_name)
    if not directory.is_dir():
        raise UserError(
            f"{directory}: no such student; `distill.students` and `distill.recipes` say which a run trains"
        )
    model, tokenizer = student_model(config, run_dir, name)
    target = abstract(
        init_student(config, model, tokenizer), make_local_mesh(config.mesh), jax.random.key(0), collection="params"
    )
    return as_student(config, model, tokenizer, load_variables(directory / "variables", target))


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
    )
