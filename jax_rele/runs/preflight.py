"""Checks of a config that would otherwise fail after long work."""

from __future__ import annotations

import resource
from collections.abc import Collection

import jax

from jax_rele import losses
from jax_rele.annotation import extra
from jax_rele.config import Config, StudentConfig
from jax_rele.data.tokens.tokenizers import DECODER_TOKENS, ENCODER_TOKENS, load_tokenizer
from jax_rele.distillation.fields import AUGMENTED
from jax_rele.distillation.objectives import student_terms
from jax_rele.errors import UserError, named
from jax_rele.models import build_teacher
from jax_rele.models.build import build_encoder
from jax_rele.models.files import is_local
from jax_rele.models.partitioning import check_heads
from jax_rele.models.quantize import load_qwix
from jax_rele.models.weights import check_weights, weights_folder
from jax_rele.runs.questions import is_chat, kinds_of_answer
from jax_rele.students import build_student
from jax_rele.teacher import check_lengths, check_verbalizers
from jax_rele.training import check_rows, local_row_indices, make_local_mesh, make_mesh

FILES = 256
"""Files that a process must be allowed to have open: checkpoints are written by many threads."""


def preflight(config: Config, stages: Collection[str]) -> None:
    """Raises UserError for what would otherwise fail after long work of these stages.

    That is: a limit of open files that is too low; packages that annotators need; a mesh that does not fit the devices,
    the models' heads or the rows of a batch; recipes that do not fit a student, or losses that cannot be found; and
    where the teacher starts from weights, a config that is not supported, an incomplete folder, a tokenizer of another
    model, labels that it cannot distinguish, or prompts and rationales longer than the context. With `score.signals`
    the teacher is not read, and `prepare` alone downloads no weights. Says where grades are not written best first.
    """
    _allow_files()
    gains = list(config.labels.gains)
    if "prepare" in stages and gains != sorted(gains, reverse=True):
        print(
            "warning: labels.names stand best first, but labels.gains rise: of labels that conflict the later name is "
            "taken for the lower grade; write the best grade first"
        )
    mesh, teacher = make_mesh(config.mesh), config.teacher
    if "annotate" in stages and config.annotate.annotator == "llm" and not config.score.signals:
        extra.require(*extra.PACKAGES)
    _check_rows(config, mesh)
    downloads = not {"prepare"}.issuperset(stages)
    if downloads or is_local(config.student.init):
        check_encoder(config, mesh)
        _check_objectives(config)
    if config.score.signals or not (downloads or is_local(teacher.init)):
        return
    if teacher.init == "random":
        return check_heads("teacher", teacher.random.heads, teacher.random.kv_heads, mesh)
    folder = weights_folder(teacher.init, "teacher.init")
    with named("teacher.init", teacher.init, folder):
        shape = build_teacher(teacher, 0).config
        check_heads("teacher", shape.heads, shape.kv_heads, mesh)
        check_weights(folder, shape)
        tokenizer = load_tokenizer(folder, DECODER_TOKENS)
        build_teacher(teacher, len(tokenizer))
    if teacher.quantize != "none":
        load_qwix()
    check_verbalizers(tokenizer, config.labels.names)
    chat = is_chat(config, tokenizer)
    for perspective in kinds_of_answer(config, chat):
        check_lengths(
            tokenizer,
            config.labels.names,
            perspective.lines,
            order=perspective.order,
            prompt_length=teacher.prompt_length,
            value_length=teacher.value_length,
            max_length=shape.max_length,
            instructions=perspective.instructions,
            chat=chat,
        )


def _check_objectives(config: Config) -> None:
    """Raises UserError for a recipe that does not fit a student, or a loss that cannot be found."""
    distill, section, labels = config.distill, config.student, config.labels
    vocab_size = section.random.vocab_size if section.init == "random" else 0
    for name in distill.students:
        model = build_student(name, section, vocab_size, len(labels.names), len(config.rationale.dimensions))
        for recipe in distill.recipes:
            terms = student_terms(distill, labels.gains, recipe, name, model.heads, section.verdict_pooling)
            _check_rationale_length(section, recipe, *losses.needs(terms), positions=model.encoder.max_length)


def _check_rationale_length(
    student: StudentConfig, recipe: str, outputs: Collection[str], fields: Collection[str], positions: int
) -> None:
    """Raises UserError where what a recipe reads of a rationale is longer than the encoder; 0 positions is no limit."""
    pair = student.query_length + student.item_length if AUGMENTED.intersection(outputs) else 0
    reads = bool(pair) or "rationale_embedding" in fields
    if reads and 0 < positions < pair + student.rationale_length:
        before = "student.query_length + student.item_length + " if pair else ""
        raise UserError(
            f"distill.recipes: {recipe} reads {before}student.rationale_length = {pair + student.rationale_length} "
            f"tokens, but the encoder {student.init} has {positions} positions; lower student.rationale_length"
        )


def check_encoder(config: Config, mesh: jax.sharding.Mesh) -> None:
    """Raises UserError where the students' encoder does not fit the mesh, or its weights and tokenizer each other."""
    if config.student.init == "random":
        return check_heads("student", config.student.random.heads, config.student.random.heads, mesh)
    folder = weights_folder(config.student.init, "student.init")
    with named("student.init", config.student.init, folder):
        shape = build_encoder(config.student, len(load_tokenizer(folder, ENCODER_TOKENS)))
        check_heads("student", shape.heads, shape.heads, mesh)
        check_weights(folder, shape)


def _check_rows(config: Config, mesh: jax.sharding.Mesh) -> None:
    """Raises UserError where the rows that are computed at a time do not divide over the devices."""
    distill = config.distill.optimization.batch_size // config.distill.group_size * config.distill.group_size
    own = not config.score.signals
    batches = {
        "adapt": config.adapt.optimization.batch_size if own and config.adapt.enabled else 0,
        "finetune": config.finetune.optimization.batch_size if own else 0,
        "prefer": config.prefer.optimization.batch_size if own and config.prefer.enabled else 0,
        "reinforce": config.reinforce.optimization.batch_size if own and config.reinforce.enabled else 0,
        "distill": max(distill, config.distill.group_size),
    }
    for stage, batch in batches.items():
        micro_batches = getattr(config, stage).optimization.micro_batches
        check_rows(
            batch // micro_batches,
            mesh,
            f"{stage}.optimization",
            "change batch_size or micro_batches, or `mesh`",
            what="rows of a micro-batch" if micro_batches > 1 else "rows",
        )
    # Several processes divide the groups themselves.
    local_row_indices(mesh, max(1, config.distill.optimization.batch_size // config.distill.group_size))
    local = make_local_mesh(config.mesh)
    check_rows(config.score.batch_size, local, "score.batch_size", "take a multiple of it, or change `mesh`")


def _allow_files() -> None:
    """Raises the limit of open files where it is too low, or UserError where that is not allowed.

    Where files run out, Orbax may wait for ever.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < FILES:
        if 0 <= hard < FILES:
            raise UserError(
                f"a process may open {hard} files at once, {FILES} are needed; allow more: `ulimit -n 4096`"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))
