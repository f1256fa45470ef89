"""The steps of the run that a config describes, as programs over abstract arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_rele import losses
from jax_rele.config import AdaptConfig, Config, FinetuneConfig
from jax_rele.distillation import objectives
from jax_rele.distillation.fields import batch_fields
from jax_rele.errors import UserError
from jax_rele.losses.combine import Term
from jax_rele.models import Decoder, build_teacher
from jax_rele.models.decoder import init_decoder
from jax_rele.models.partitioning import check_heads, use
from jax_rele.models.quantize import quantize_params
from jax_rele.plan.abstract import array, init_abstract, rows, train_state
from jax_rele.plan.flops import flops
from jax_rele.rationale import grammar
from jax_rele.runs.preflight import check_encoder
from jax_rele.students import InputSpec, build_student
from jax_rele.students.base import StudentModel
from jax_rele.teacher.continuous_batching import STEP_TOKENS
from jax_rele.teacher.decoding import Sampling, decode, new_slots
from jax_rele.teacher.kv_cache import bucket, new_cache, prefill, row_parts
from jax_rele.teacher.label_scores import first_token_probs
from jax_rele.teacher.language_model import language_loss
from jax_rele.teacher.template import DecodingTemplate
from jax_rele.training import make_optimizer, make_train_step, shard_step
from jax_rele.types import VERDICTS

QUERY_SHARE = 4
"""Instructions and query are taken to be one part in so many of a prompt; the rest are the item's texts."""

BYTES_PER_TOKEN = 3
"""Bytes of the grammar's fixed text that are taken to make a token."""

_OWN, _OTHERS = {"tpu": "splash", "gpu": "cudnn"}, {"tpu": "cudnn", "gpu": "splash"}
"""Implementations of attention beside xla, by kind of chip."""

Lower = Callable[[], jax.stages.Lowered]
"""Makes a program for the mesh."""


@dataclass(frozen=True)
class Step:
    """One program of the run.

    Attributes:
      name: which step.
      shape: what it works on, in words.
      tokens: tokens that it reads, padding included, over all chips.
      resident: the arrays that are in memory before it runs, by kind.
      lower: the program, by implementation of attention; the config's own comes first.
      unseen: bytes per chip that an implementation takes beside what the lowered program shows.
      executed: floating-point operations over all chips.
      required: those that it would take without `remat`. Both are counted with xla's attention.
    """

    name: str
    shape: str
    tokens: int
    resident: dict[str, Any]
    lower: dict[str, Lower]
    executed: int
    required: int
    unseen: dict[str, int] = dataclasses.field(default_factory=dict)


def steps(
    config: Config, mesh: jax.sharding.Mesh, kind: str, names: Sequence[str]
) -> Iterator[tuple[str, Callable[[], Step]]]:
    """The steps that the config's run takes, of those named: (name, what makes it).

    Args:
      config: the run.
      mesh: of devices, which may be those of a topology that nobody has.
      kind: of chip, `tpu` or `gpu`.
      names: of `cli.PLANNED`.

    Raises:
      UserError: the mesh does not fit the models, or `teacher.init` cannot be read.
    """
    if config.teacher.attention == _OTHERS[kind]:
        raise UserError(
            f"teacher.attention: {config.teacher.attention} is not for {kind.upper()}s; set it to xla or {_OWN[kind]}"
        )
    random = config.teacher.init == "random"
    model = build_teacher(config.teacher, config.teacher.random.vocab_size if random else 0)
    check_heads("teacher", model.config.heads, model.config.kv_heads, mesh)
    # Its parameters are the same whatever computes attention, and xla can be traced anywhere.
    model = model.clone(config=dataclasses.replace(model.config, attention="xla"))
    makers = {
        "adapt": partial(_adapt, config, model, mesh, kind) if config.adapt.enabled else None,
        "finetune": partial(_finetune, config, model, mesh, kind),
        "score_prefix": partial(_score_prefix, config, model, mesh),
        "score": partial(_score, config, model, mesh),
        "generate": partial(_generate, config, model, mesh, kind) if config.teacher.order != "label_only" else None,
    }
    for name, maker in makers.items():
        if name in names and maker is not None:
            yield name, maker
    if "distill" in names:
        check_encoder(config, mesh)
        for student in config.distill.students:
            yield student, partial(_distill, config, student, mesh)


# ---- the teacher learns


def _adapt(config: Config, model: Decoder, mesh: jax.sharding.Mesh, kind: str) -> Step:
    # As in `stages.adapt`: what learns is float32, whatever the precision of the activations.
    model = model.clone(config=dataclasses.replace(model.config, param_dtype=jnp.float32))
    return _language_step("adapt", config.adapt, config, model, "params", {}, mesh, kind)


def _finetune(config: Config, model: Decoder, mesh: jax.sharding.Mesh, kind: str) -> Step:
    base = {"params": _base(config, model, mesh)}
    return _language_step("finetune", config.finetune, config, model, "lora", base, mesh, kind)


def _language_step(
    name: str,
    section: AdaptConfig | FinetuneConfig,
    config: Config,
    model: Decoder,
    trainable: str,
    frozen: dict[str, Any],
    mesh: jax.sharding.Mesh,
    kind: str,
) -> Step:
    optimization, pack_to = section.optimization, section.pack_to
    tx = make_optimizer(optimization)
    state = train_state(init_decoder(model), trainable, frozen, tx, mesh)
    count, length = optimization.batch_size, pack_to or _row_length(config)
    batch = language_batch(mesh, count, length, packed=bool(pack_to))
    names = dict.fromkeys((config.teacher.attention, "xla", _OWN[kind]))

    def step_of(**changes):
        changed = model.clone(config=dataclasses.replace(model.config, **changes))
        return make_train_step(changed.apply, language_loss(mesh), tx, micro_batches=optimization.micro_batches)

    def lower(attention):
        compiled = shard_step(step_of(attention=attention), mesh, state).compiled
        with use(mesh):
            return compiled.lower(dataclasses.replace(state, frozen={}), state.frozen, batch)

    with use(mesh):
        executed = flops(step_of(), state, batch)
        required = flops(step_of(remat="none"), state, batch)
    resident = {"base": state.frozen, "trained": state.trainable, "optimizer": state.opt_state, "batch": batch}
    unseen = {}
    if "cudnn" in names:
        # Splash stands in for cuDNN, which keeps as little; where rows hold segments cuDNN also takes a 16-bit mask and
        # gives its gradient.
        names["cudnn"] = "splash"
        mask = 2 * 2 * length**2 * count // optimization.micro_batches // row_parts(mesh)
        unseen["cudnn"] = mask if pack_to else 0
    lowerings = {name: partial(lower, stand_in or name) for name, stand_in in names.items()}
    parts = f", {optimization.micro_batches} at a time" if optimization.micro_batches > 1 else ""
    shape = f"{count} rows of {length} tokens{parts}"
    return Step(name, shape, count * length, resident, lowerings, executed, required, unseen)


def language_batch(mesh: jax.sharding.Mesh, count: int, length: int, *, packed: bool) -> dict[str, Any]:
    """A batch of the teacher's training, as `stages.finetune` feeds it."""
    ids = rows(mesh, count, np.int32, length)
    inputs = {"tokens": ids, **({"positions": ids, "segments": ids} if packed else {})}
    weights = rows(mesh, count, np.float32, length)
    return {"inputs": inputs, "targets": ids, "targets_mask": rows(mesh, count, bool, length), "token_weights": weights}


def _row_length(config: Config) -> int:
    """Tokens of one example: the prompt and an answer with full slots, rounded up to a multiple of 8."""
    answer = sum(
        _length(config, segment) for segment in grammar.template(config.rationale.dimensions, config.teacher.order)
    )
    return -(-(config.teacher.prompt_length + answer + 1) // 8) * 8


def _length(config: Config, segment: grammar.Segment) -> int:
    if segment.kind == "fixed":
        return -(-len(segment.text.encode()) // BYTES_PER_TOKEN)
    return 2 if segment.kind in ("verdict", "label") else config.teacher.value_length


# ---- the teacher judges


def _base(config: Config, model: Decoder, mesh: jax.sharding.Mesh) -> Any:
    """The base parameters as they are frozen."""
    params = init_abstract(init_decoder(model), mesh)["params"]
    return params if config.teacher.quantize == "none" else quantize_params(params, config.teacher.quantize)


def _score_prefix(config: Config, model: Decoder, mesh: jax.sharding.Mesh) -> Step:
    count, length = config.score.batch_size, bucket(config.teacher.prompt_length // QUERY_SHARE)
    variables = _variables(config, model, mesh)
    empty = _cache(model, mesh, count, 0)
    arguments = variables, empty, *_reading(mesh, count, length)

    def lower():
        with use(mesh):
            return prefill.lower(model, *arguments)

    with use(mesh):
        operations = flops(partial(prefill.__wrapped__, model), *arguments)
    shape = f"{count} queries of {length} tokens"
    return Step("score_prefix", shape, count * length, _teacher_arrays(variables), {"": lower}, operations, operations)


def _score(config: Config, model: Decoder, mesh: jax.sharding.Mesh) -> Step:
    count, prompt = config.score.batch_size, config.teacher.prompt_length
    prefix_length = bucket(prompt // QUERY_SHARE)
    length = bucket(prompt - prompt // QUERY_SHARE)
    variables = _variables(config, model, mesh)
    cache = _cache(model, mesh, count, prefix_length)
    labels = array(mesh, (len(config.labels.names),), np.int32)
    arguments = variables, cache, *_reading(mesh, count, length), rows(mesh, count, np.int32), labels

    def lower():
        with use(mesh):
            return first_token_probs.lower(model, *arguments)

    with use(mesh):
        operations = flops(partial(first_token_probs.__wrapped__, model), *arguments)
    resident = {**_teacher_arrays(variables), "cache": cache}
    shape = f"{count} items of {length} tokens behind queries of {prefix_length}"
    return Step("score", shape, count * length, resident, {"": lower}, operations, operations)


def _generate(config: Config, model: Decoder, mesh: jax.sharding.Mesh, kind: str) -> Step:
    count, template = config.score.batch_size, _decoding_template(config, model)
    length = -(-(bucket(config.teacher.prompt_length) + template.longest) // 16) * 16
    width = min(template.max_pending, max(1, STEP_TOKENS.get(kind, 128) // count))
    variables = _variables(config, model, mesh)
    with use(mesh):
        slots = jax.eval_shape(
            partial(new_slots.__wrapped__, model, rows=count, length=length, max_pending=template.max_pending),
            variables,
            template,
        )
    slots = dataclasses.replace(
        jax.tree.map(
            lambda x: rows(mesh, x.shape[0], x.dtype, *x.shape[1:]) if x.shape else array(mesh, (), x.dtype), slots
        ),
        cache=_cache(model, mesh, count, length),
    )
    arguments, options = (variables, template, slots, np.int32(0)), {"width": width, **Sampling().arguments}

    def lower():
        with use(mesh):
            return decode.lower(model, *arguments, **options)

    with use(mesh):
        operations = flops(partial(decode.__wrapped__, model, **options), *arguments)
    resident = {**_teacher_arrays(variables), "cache": slots.cache}
    shape = f"{count} rows, {width} tokens each, behind up to {length}"
    return Step("generate", shape, count * width, resident, {"": lower}, operations, operations)


def _decoding_template(config: Config, model: Decoder) -> DecodingTemplate:
    """A decoding template of the size of the config's."""
    free = [s for s in grammar.template(config.rationale.dimensions, config.teacher.order) if s.kind != "label"]
    slots = [segment for segment in free if segment.kind != "fixed"]
    longest = max(_length(config, segment) for segment in free if segment.kind == "fixed")
    return DecodingTemplate(
        prefix=(0,) * longest,
        value_length=config.teacher.value_length,
        is_choice=np.array([segment.kind == "verdict" for segment in slots]),
        forced_suffixes=np.zeros((len(slots), longest), np.int32),
        suffix_lengths=np.full(len(slots), longest, np.int32),
        verbalizers=np.zeros((len(VERDICTS), 2), np.int32),
        verbalizer_lengths=np.full(len(VERDICTS), 2, np.int32),
        value_tokens=np.ones(model.config.vocab_size, bool),
    )


def _variables(config: Config, model: Decoder, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    return {"params": _base(config, model, mesh), "lora": init_abstract(init_decoder(model), mesh)["lora"]}


def _teacher_arrays(variables: dict[str, Any]) -> dict[str, Any]:
    return {"base": variables["params"], "trained": variables["lora"]}


def _cache(model: Decoder, mesh: jax.sharding.Mesh, count: int, length: int) -> Any:
    axes = ("layers", "batch", "length", "kv_heads", "head_dim")
    shapes = jax.eval_shape(lambda: new_cache(model, count, length))
    return jax.tree.map(lambda x: array(mesh, x.shape, x.dtype, axes), shapes)


def _reading(mesh: jax.sharding.Mesh, count: int, length: int) -> tuple[Any, Any, Any]:
    """`parents`, `tokens` and `starts` of `inference.cache.read`."""
    one = rows(mesh, count, np.int32)
    return one, rows(mesh, count, np.int32, length), one


# ---- students


def _distill(config: Config, name: str, mesh: jax.sharding.Mesh) -> Step:
    optimization, student = config.distill.optimization, config.student
    vocab_size = student.random.vocab_size if student.init == "random" else 0
    model = build_student(name, student, vocab_size, len(config.labels.names), len(config.rationale.dimensions))
    spec = InputSpec(config.data.item_fields, student.query_length, student.item_length, student.rationale_length)
    count = max(1, optimization.batch_size // config.distill.group_size) * config.distill.group_size
    recipe = "mkd" if "mkd" in config.distill.recipes else config.distill.recipes[-1]
    terms = objectives.terms(config.distill, config.labels.gains, recipe, model.heads)
    batch = student_batch(model, spec, mesh, count, terms)
    one = jax.tree.map(lambda x: jnp.zeros((1, *x.shape[1:]), x.dtype), batch["inputs"])
    tx = make_optimizer(optimization)
    state = train_state(lambda rng: model.init(rng, **one), "params", {}, tx, mesh)
    step = make_train_step(
        model.apply,
        losses.combine(**terms),
        tx,
        micro_batches=optimization.micro_batches,
        group_size=config.distill.group_size,
    )

    def lower():
        compiled = shard_step(step, mesh, state).compiled
        with use(mesh):
            return compiled.lower(dataclasses.replace(state, frozen={}), state.frozen, batch)

    with use(mesh):
        operations = flops(step, state, batch)
    length = sum(array.length for array in model.batch_spec(spec).values() if array.is_token)
    resident = {"trained": state.trainable, "optimizer": state.opt_state, "batch": batch}
    shape = f"{count} pairs of {length} tokens, recipe {recipe}"
    return Step(name, shape, count * length, resident, {"": lower}, operations, operations)


def student_batch(
    model: StudentModel, spec: InputSpec, mesh: jax.sharding.Mesh, count: int, terms: Mapping[str, Term]
) -> dict[str, Any]:
    """A batch of a student's training by these terms, as `stages.distill` feeds it."""
    fields = batch_fields(model, spec, [terms])
    batch = jax.tree.map(lambda field: rows(mesh, count, field.dtype, *field.shape), fields)
    ids, mask = rows(mesh, count, np.int32), rows(mesh, count, bool)
    return {**batch, "mask": mask, "segments": ids, "segments_mask": mask}
