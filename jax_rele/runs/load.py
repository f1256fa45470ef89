"""The one way to the models of a run: `load_student` and `load_teacher`."""

from __future__ import annotations

import dataclasses
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, cast

import jax
from flax import linen as nn
from transformers import PreTrainedTokenizerBase

from jax_rele.config import Config, MeshConfig, TwoTowerConfig, local_name
from jax_rele.data.tokens.tokenizers import DECODER_TOKENS, ENCODER_TOKENS, load_tokenizer
from jax_rele.distillation.objectives import learns_evidence, learns_verdicts, source_hash
from jax_rele.errors import UserError
from jax_rele.models import Decoder, build_teacher
from jax_rele.models.decoder import init_decoder
from jax_rele.models.quantize import quantize_params
from jax_rele.models.weights import load_params, weights_folder, weights_hash
from jax_rele.names import Order, StudentName
from jax_rele.runs import layout, pipeline
from jax_rele.runs.questions import kinds_of_answer, teacher_question
from jax_rele.runs.rationale_source import rationale_source
from jax_rele.students import Student, build_student
from jax_rele.students.weights import init_student, load_encoder, with_encoder
from jax_rele.teacher import Sampling, Teacher
from jax_rele.training import abstract, make_local_mesh
from jax_rele.training.checkpoint import load_variables


def read_run(run_dir: str | Path) -> Config:
    """The config of a run's folder, with the devices that are here: a run may have been trained on others.

    Raises:
      UserError: the folder is not a run's, is of another version, or its config was edited.
    """
    config = pipeline.read_config(Path(run_dir))
    # A run may have moved, or be read from another working directory.
    root = {"run_root": str(Path(run_dir).parent)} if Path(run_dir).name == config.name else {}
    return config.model_copy(update={"mesh": MeshConfig(), **root})


def load_student(
    run_dir: str | Path,
    name: str,
    *,
    recipe: str | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
    config: Config | None = None,
) -> Student:
    """A trained student of a run, ready to judge on this process's devices.

    Args:
      run_dir: the run's folder, e.g. `runs/demo`.
      name: `cross_encoder` or `two_tower`.
      recipe: which of the run's recipes; by default `mkd`, or the last one that the run trained.
      dtype: of activations; by default as in training.
      config: the run's config, for a caller that has it; by default it is read from the folder.

    Raises:
      UserError: the folder is not a run's, or the run has no such student or recipe; it names those that it has.
    """
    config, run_dir = config or read_run(run_dir), Path(run_dir)
    recipe = recipe or main_recipe(config)
    _check_known(run_dir, "student", name, config.distill.students)
    _check_known(run_dir, "recipe", recipe, config.distill.recipes)
    if dtype not in (None, "float32", "bfloat16"):
        raise UserError(f"load_student: dtype must be float32 or bfloat16, got {dtype!r}")
    if dtype is not None:
        config = config.model_copy(update={"student": config.student.model_copy(update={"dtype": dtype})})
    directory = layout.student_dir(run_dir, name, recipe)
    if not directory.is_dir():
        raise UserError(f"{directory}: this student is not trained yet; run `jax-rele distill CONFIG` first")
    student = new_student(config, run_dir / layout.STUDENT_TOKENIZER, cast(StudentName, name))
    target = abstract(init_student(student), make_local_mesh(config.mesh), jax.random.key(0), collection="params")
    gains = config.labels.gains
    return dataclasses.replace(
        student,
        variables=load_variables(directory / "variables", target),
        batch_size=config.score.batch_size,
        has_verdicts=learns_verdicts(config.distill, gains, recipe),
        has_evidence=learns_evidence(config.distill, gains, recipe),
    )


def new_student(config: Config, tokenizer_folder: Path, name: StudentName) -> Student:
    """A student before it is trained: without parameters."""
    section, dimensions = config.student, config.rationale.dimensions
    tokenizer = load_tokenizer(tokenizer_folder, ENCODER_TOKENS)
    return Student(
        model=build_student(name, section, len(tokenizer), len(config.labels.names), len(dimensions)),
        variables={},
        tokenizer=tokenizer,
        fields=config.data.item_fields,
        query_length=section.query_length,
        item_length=section.item_length,
        rationale_length=section.rationale_length,
        schema=config.labels.schema_,
        dimensions=dimensions,
    )


def untrained_embedder(config: Config) -> Student:
    """The weights at `student.init` as they are: a two-tower whose embeddings are means of token vectors."""
    tokenizer = load_tokenizer(weights_folder(config.student.init, "student.init"), ENCODER_TOKENS)
    towers = TwoTowerConfig(embedding_width=0, pooling="mean", head="cosine", normalize=True, towers="shared")
    section = config.student.model_copy(update={"two_tower": towers, "verdict_pooling": "pooled", "dtype": "float32"})
    model = build_student("two_tower", section, len(tokenizer), len(config.labels.names), 1)
    student = Student(
        model=model,
        variables={},
        tokenizer=tokenizer,
        fields=config.data.item_fields,
        query_length=section.query_length,
        item_length=section.item_length,
        batch_size=config.score.batch_size,
    )
    params = nn.unbox(jax.jit(init_student(student))(jax.random.key(0)))["params"]
    encoder = load_encoder(section, model, make_local_mesh(config.mesh))
    return dataclasses.replace(student, variables={"params": with_encoder(params, encoder)})


def load_teacher(run_dir: str | Path, *, config: Config | None = None) -> Teacher:
    """The fine-tuned teacher of a run, ready to judge on this process's devices.

    Args:
      run_dir: the run's folder, e.g. `runs/demo`.
      config: the run's config, for a caller that has it; by default it is read from the folder.

    Raises:
      UserError: the folder is not a run's, or the run has no teacher of its own.
    """
    config, run_dir = config or read_run(run_dir), Path(run_dir)
    if config.score.signals:
        raise UserError(f"the run has no teacher: its signals are those of score.signals, {config.score.signals}")
    mesh = make_local_mesh(config.mesh)
    model, tokenizer = teacher_model(config, run_dir)
    base = load_base(config, model, run_dir, mesh)
    lora = load_lora(config, model, run_dir, mesh)
    teacher = _teacher(config, model, {**base, **lora}, tokenizer, config.teacher.order, mesh)
    return dataclasses.replace(
        teacher, annotator=rationale_source(config, run_dir), perspectives=kinds_of_answer(config, teacher.chat)[1:]
    )


def load_zero_shot_teacher(run_dir: str | Path, *, config: Config) -> Teacher:
    """The weights at `teacher.init` before any training, asked for the label alone."""
    mesh = make_local_mesh(config.mesh)
    model, tokenizer = teacher_model(config, Path(run_dir))
    model = model.clone(config=dataclasses.replace(model.config, lora=None))
    return _teacher(config, model, _init_weights(config, model, mesh), tokenizer, "label_only", mesh)


def _teacher(
    config: Config,
    model: Decoder,
    variables: dict,
    tokenizer: PreTrainedTokenizerBase,
    order: Order,
    mesh: jax.sharding.Mesh,
) -> Teacher:
    question = teacher_question(config, tokenizer, order)
    return Teacher(
        model=model,
        variables=variables,
        tokenizer=tokenizer,
        schema=config.labels.schema_,
        dimensions=config.rationale.dimensions,
        fields=config.data.item_fields,
        order=order,
        prompt_length=config.teacher.prompt_length,
        value_length=config.teacher.value_length,
        batch_size=config.score.batch_size,
        instructions=question.instructions,
        chat=question.chat,
        samples=config.score.samples,
        sampling=Sampling(temperature=config.score.temperature, seed=config.seed),
        mesh=mesh,
    )


def teacher_model(config: Config, run_dir: Path) -> tuple[Decoder, PreTrainedTokenizerBase]:
    """The teacher's decoder, without weights, and its tokenizer."""
    tokenizer = load_tokenizer(run_dir / layout.TEACHER_TOKENIZER, DECODER_TOKENS)
    return build_teacher(config.teacher, len(tokenizer)), tokenizer


def load_base(config: Config, model: Decoder, run_dir: Path, mesh: jax.sharding.Mesh) -> dict:
    """The frozen base parameters, on the mesh: what `adapt` trained, or the weights at `teacher.init`."""
    if config.adapt.enabled:
        target = abstract(init_decoder(model), mesh, jax.random.key(0), collection="params")
        return load_variables(run_dir / layout.BASE, target)
    return _init_weights(config, model, mesh)


def _init_weights(config: Config, model: Decoder, mesh: jax.sharding.Mesh) -> dict:
    """The weights at `teacher.init`, quantized where the config says so."""
    params = load_params(weights_folder(config.teacher.init, "teacher.init"), model.config, mesh)
    if config.teacher.quantize != "none":
        params = quantize_params(params, config.teacher.quantize)
    return {"params": params}


def load_lora(config: Config, model: Decoder, run_dir: Path, mesh: jax.sharding.Mesh) -> dict:
    """The teacher's adapters, on the mesh."""
    target = abstract(init_decoder(model), mesh, jax.random.key(0), collection="lora")
    return load_variables(run_dir / layout.lora(config), target)


def teacher_inputs(config: Config) -> dict[str, str]:
    """A hash of the weights that the teacher starts from, where it does."""
    init = config.teacher.init
    return {} if init == "random" else {f"teacher.init {local_name(init)}": weights_hash(init)}


def student_inputs(config: Config) -> dict[str, str]:
    """Hashes of the weights that the students start from, and of the files of custom losses."""
    terms = [term for objective in config.distill.objectives.values() for term in objective.terms.values()]
    hashes = {f"loss {local_name(term.loss)}": source_hash(term.loss) for term in terms if ":" in term.loss}
    inputs, init = {name: value for name, value in hashes.items() if value}, config.student.init
    return inputs if init == "random" else {**inputs, f"student.init {local_name(init)}": weights_hash(init)}


def main_recipe(config: Config) -> str:
    """The recipe of the students that are used by default: `mkd`, or the last one that the run trained."""
    recipes = config.distill.recipes
    return "mkd" if "mkd" in recipes else recipes[-1]


def _check_known(run_dir: Path, kind: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        nearest = get_close_matches(name, known, 1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise UserError(f"{run_dir}: the run has no {kind} {name!r}; it has {', '.join(known)}{hint}")
