"""What stages leave for one another, and how a run's models are loaded from it.

prepare/   pairs.parquet  unlabelled.parquet  quarantine.parquet  teacher_tokenizer/  student_tokenizer/
annotate/  rationales.parquet  quality.json
adapt/     base/                                   finetune/  lora/
score/     shards/*.parquet  signals.parquet  held_out.parquet (of another teacher)
distill/   STUDENT/RECIPE/variables/
evaluate/  metrics.json  predictions.parquet  rationales.parquet  report.html  table.md
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
from transformers import PreTrainedTokenizerBase

from jax_rele.config import Config
from jax_rele.data import RATIONALES as TABLE
from jax_rele.data import PairTable, read_signals, read_table
from jax_rele.data.tokens.prompts import encode_prompts
from jax_rele.data.tokens.tokenizers import load_tokenizer
from jax_rele.errors import UserError
from jax_rele.models import Decoder, build_teacher
from jax_rele.models.build import build_encoder
from jax_rele.models.partitioning import check_heads
from jax_rele.models.quantize import load_qwix, quantize_params
from jax_rele.models.weights import NEEDED, SIDE_FILES, check_weights, load_params, resolve
from jax_rele.rationale import ParseError, parse
from jax_rele.teacher import Teacher, check_lengths, check_verbalizers
from jax_rele.training import abstract, local_row_indices, make_local_mesh, make_mesh
from jax_rele.training.checkpoint import load_variables
from jax_rele.types import Pair, Rationale, Signals

PAIRS = "prepare/pairs.parquet"
UNLABELLED = "prepare/unlabelled.parquet"
QUARANTINE = "prepare/quarantine.parquet"
TEACHER_TOKENIZER = "prepare/teacher_tokenizer"
STUDENT_TOKENIZER = "prepare/student_tokenizer"
RATIONALES = "annotate/rationales.parquet"
QUALITY = "annotate/quality.json"
DECISIONS = "annotate/decisions.parquet"
BASE = "adapt/base"
LORA = "finetune/lora"
SIGNALS = "score/signals.parquet"
HELD_OUT = "score/held_out.parquet"
DECODER_TOKENS, ENCODER_TOKENS = ("eos",), ("pad", "cls", "sep")
"""The special tokens that each kind of model needs of its tokenizer."""
METRICS = "evaluate/metrics.json"
REPORT = "evaluate/report.html"


def load_pairs(run_dir: Path, split: str) -> list[Pair]:
    """The labelled pairs of a split."""
    return [pair for pair in PairTable(run_dir / PAIRS) if pair.split == split and pair.label is not None]


def load_rationales(run_dir: Path) -> dict[str, Rationale]:
    """The annotator's rationales by `pair_id`."""
    path = run_dir / RATIONALES
    try:
        return {row["pair_id"]: parse(row["text"]) for row in read_table(path, TABLE).to_pylist()}
    except ParseError as error:
        raise UserError(f"{path}: damaged rationale ({error}); delete the folder {path.parent} and run again") from None


def load_held_out(config: Config, run_dir: Path) -> Signals | None:
    """Another teacher's signals for validation and test pairs; None where it gave none."""
    if not (run_dir / HELD_OUT).exists():
        return None
    return read_signals(run_dir / HELD_OUT, config.labels.names, config.rationale.dimensions)


def student_dir(run_dir: Path, student: str, recipe_name: str) -> Path:
    """Where `distill` leaves a student."""
    return run_dir / "distill" / student / recipe_name


# ---- teacher


def teacher_model(config: Config, run_dir: Path) -> tuple[Decoder, PreTrainedTokenizerBase]:
    """The teacher's decoder, without weights, and its tokenizer."""
    tokenizer = load_tokenizer(run_dir / TEACHER_TOKENIZER, DECODER_TOKENS)
    return build_teacher(config.teacher, len(tokenizer)), tokenizer


def preflight(config: Config) -> None:
    """Raises UserError for what would otherwise fail after long work.

    That is: a mesh that does not fit the devices, the models' heads or the rows of a batch; and where the teacher
    starts from weights, a config that is not supported, a folder that is not whole, a tokenizer that is not the
    weights', labels that it cannot tell apart, or prompts and rationales longer than the context. Where
    `score.signals` takes the teacher's place, nothing of the teacher is looked at.
    """
    mesh, teacher = make_mesh(config.mesh), config.teacher
    check_encoder(config, mesh)
    _check_rows(config, mesh)
    if config.score.signals:
        if teacher.init != "random":
            # `prepare` would fetch its weights, and a manifest would name a teacher that has no part in the run.
            raise UserError(f"teacher.init: {teacher.init} is not used where score.signals is given; set it to random")
        return
    if teacher.init == "random":
        return check_heads("teacher", teacher.random.heads, teacher.random.kv_heads, mesh)
    folder = base_folder(config)
    shape = build_teacher(teacher, 0).config
    check_heads("teacher", shape.heads, shape.kv_heads, mesh)
    check_weights(folder, shape)
    if teacher.quantize != "none":
        load_qwix()
    tokenizer = load_tokenizer(folder, DECODER_TOKENS)
    build_teacher(teacher, len(tokenizer))
    check_verbalizers(tokenizer, config.labels.names)
    check_lengths(
        tokenizer,
        config.labels.names,
        config.rationale.dimensions,
        order=teacher.order,
        prompt_length=teacher.prompt_length,
        value_length=teacher.value_length,
        max_length=shape.max_length,
    )
    # Without pairs it looks at the instructions alone.
    encode_prompts(tokenizer, [], config.data.item_fields, teacher.prompt_length, teacher.instructions)


def check_encoder(config: Config, mesh: jax.sharding.Mesh) -> None:
    """Raises UserError where the students' encoder does not fit the mesh, or its weights and tokenizer each other."""
    if config.student.init == "random":
        return check_heads("student", config.student.random.heads, config.student.random.heads, mesh)
    folder = resolve(config.student.init, (*NEEDED, *SIDE_FILES))
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
        "distill": max(distill, config.distill.group_size),
    }
    for stage, batch in batches.items():
        micro_batches = getattr(config, stage).optimization.micro_batches
        rows, parts = batch // micro_batches, mesh.shape["data"] * mesh.shape["fsdp"]
        if rows % parts:
            part = " of a micro-batch" if micro_batches > 1 else ""
            raise UserError(
                f"{stage}.optimization: {rows} rows{part} do not divide over data x fsdp = {parts} devices; change "
                "batch_size or micro_batches, or `mesh`"
            )
    # Several processes divide the groups themselves.
    local_row_indices(mesh, max(1, config.distill.optimization.batch_size // config.distill.group_size))
    local = make_local_mesh(config.mesh)
    parts = local.shape["data"] * local.shape["fsdp"]
    if config.score.batch_size % parts:
        raise UserError(
            f"score.batch_size: {config.score.batch_size} rows do not divide over data x fsdp = {parts} devices; "
            "take a multiple of it, or change `mesh`"
        )


def init_decoder(model: Decoder):
    """rng -> the decoder's variables."""
    return lambda rng: model.init(rng, jnp.zeros((1, 8), jnp.int32))


def base_folder(config: Config) -> Path:
    """The folder of the weights that the teacher starts from; fetched from the hub where it is a name there."""
    return resolve(config.teacher.init, (*NEEDED, *SIDE_FILES))


def load_base(config: Config, model: Decoder, run_dir: Path, mesh: jax.sharding.Mesh) -> dict:
    """The frozen base parameters, on the mesh: what `adapt` trained, or the weights at `teacher.init`."""
    if config.adapt.enabled:
        target = abstract(init_decoder(model), mesh, jax.random.key(0), collection="params")
        return load_variables(run_dir / BASE, target)
    params = load_params(base_folder(config), model.config, mesh)
    if config.teacher.quantize != "none":
        params = quantize_params(params, config.teacher.quantize)
    return {"params": params}


def load_lora(model: Decoder, run_dir: Path, mesh: jax.sharding.Mesh) -> dict:
    """The adapters that `finetune` trained, on the mesh."""
    return load_variables(run_dir / LORA, abstract(init_decoder(model), mesh, jax.random.key(0), collection="lora"))


def load_teacher(config: Config, run_dir: Path) -> Teacher:
    """The fine-tuned teacher, ready to judge on this process's devices. Raises UserError where the run has none."""
    if config.score.signals:
        raise UserError(f"the run has no teacher: its signals are those of score.signals, {config.score.signals}")
    mesh = make_local_mesh(config.mesh)
    model, tokenizer = teacher_model(config, run_dir)
    base = load_base(config, model, run_dir, mesh)
    lora = load_lora(model, run_dir, mesh)
    return Teacher(
        model=model,
        variables={**base, **lora},
        tokenizer=tokenizer,
        schema=config.labels.schema_,
        dimensions=config.rationale.dimensions,
        fields=config.data.item_fields,
        order=config.teacher.order,
        prompt_length=config.teacher.prompt_length,
        value_length=config.teacher.value_length,
        batch_size=config.score.batch_size,
        instructions=config.teacher.instructions,
        mesh=mesh,
    )
