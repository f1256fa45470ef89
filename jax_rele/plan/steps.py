"""The steps of the run that a config describes, as programs over abstract arrays."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jax_rele import losses
from jax_rele.config import AdaptConfig, Config, DistillConfig, FinetuneConfig, PreferConfig, ReinforceConfig
from jax_rele.data.batches.packed_rows import Parts, round_rows, row_length
from jax_rele.distillation import objectives
from jax_rele.distillation.fields import batch_fields
from jax_rele.distillation.packed_inputs import packable
from jax_rele.errors import UserError
from jax_rele.losses.combine import Term
from jax_rele.models import Decoder, build_teacher
from jax_rele.models.bundled import BUNDLED
from jax_rele.models.decoder import CACHE_AXES, init_decoder
from jax_rele.models.partitioning import check_heads, use
from jax_rele.models.quantize import quantize_params
from jax_rele.names import StudentName
from jax_rele.plan.abstract import array, init_abstract, rows, train_state
from jax_rele.plan.flops import flops
from jax_rele.rationale import grammar
from jax_rele.runs.preflight import check_encoder
from jax_rele.runs.questions import kinds_of_answer
from jax_rele.students import InputSpec, build_student
from jax_rele.students.base import StudentModel
from jax_rele.teacher.continuous_batching import STEP_TOKENS
from jax_rele.teacher.decoding import Sampling, decode, new_slots
from jax_rele.teacher.kv_cache import bucket, new_cache, prefill, row_parts
from jax_rele.teacher.label_scores import first_token_probs
from jax_rele.teacher.language_model import MakeObjective, language_objective
from jax_rele.teacher.perspectives import Perspective
from jax_rele.teacher.policy import policy_objective
from jax_rele.teacher.preferences import preference_objective
from jax_rele.teacher.template import LABEL, VERDICT, DecodingTemplate
from jax_rele.training import make_optimizer, make_train_step, shard_step
from jax_rele.training.sharding import batch_shards
from jax_rele.training.state import TrainState
from jax_rele.types import VERDICTS, Params, PyTree

QUERY_DIVISOR = 4
"""Of a prompt's tokens 1/QUERY_DIVISOR are assumed to be instructions and query, the rest the item's texts."""

BYTES_PER_TOKEN = 3
"""Assumed bytes per token of the grammar's fixed text."""

FULL = 1 / 2
"""Of the students' tokens so many are assumed not to be padding, where rows are packed."""

_OWN, _OTHERS = {"tpu": "splash", "gpu": "cudnn"}, {"tpu": "cudnn", "gpu": "splash"}
"""Implementations of attention besides xla, by kind of chip."""

Lower: TypeAlias = Callable[[], jax.stages.Lowered]
"""Lowers a program for the mesh."""


@dataclass(frozen=True)
class Step:
    """One program of the run.

    Attributes:
      name: which step.
      shape: the sizes of its inputs, in words.
      tokens: tokens that it reads, padding included, over all chips.
      resident: the arrays that are in memory before it runs, by kind.
      lower: the program, by implementation of attention; the config's own comes first.
      unseen: bytes per chip that an implementation takes besides those of the lowered program.
      executed: floating-point operations over all chips.
      required: those that it would take without `remat`. Both are counted with xla's attention.
    """

    name: str
    shape: str
    tokens: int
    resident: Params
    lower: Mapping[str, Lower]
    executed: int
    required: int
    unseen: dict[str, int] = dataclasses.field(default_factory=dict)


def steps(
    config: Config, mesh: jax.sharding.Mesh, kind: str, names: Sequence[str]
) -> Iterator[tuple[str, Callable[[], Step]]]:
    """The steps that the config's run takes, of those named: (name, function that makes it).

    Args:
      config: the run.
      mesh: of devices, which may be abstract.
      kind: of chip, `tpu` or `gpu`.
      names: of `names.PLANNED_STEPS`.

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
    # The parameters do not depend on the implementation of attention, and xla can be traced anywhere.
    model = model.clone(config=dataclasses.replace(model.config, attention="xla"))
    makers = {
        "adapt": partial(_adapt, config, model, mesh, kind) if config.adapt.enabled else None,
        "finetune": partial(_finetune, config, model, mesh, kind),
        "prefer": partial(_prefer, config, model, mesh, kind) if config.prefer.enabled else None,
        "reinforce": partial(_reinforce, config, model, mesh, kind) if config.reinforce.enabled else None,
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


# ---- training of the teacher


def _adapt(config: Config, model: Decoder, mesh: jax.sharding.Mesh, kind: str) -> Step:
    # As in `stages.adapt`, trained parameters are float32 whatever the precision of the activations.
    model = model.clone(config=dataclasses.replace(model.config, param_dtype=jnp.float32))
    return _language_step("adapt", config.adapt, config, model, "params", {}, mesh, kind)


def _finetune(config: Config, model: Decoder, mesh: jax.sharding.Mesh, kind: str) -> Step:
    base = {"params": _base(config, model, mesh)}
    return _language_step("finetune", config.finetune, config, model, "lora", base, mesh, kind)


def _prefer(config: Config, model: Decoder, mesh: jax.sharding.Mesh, kind: str) -> Step:
    base, section = {"params": _base(config, model, mesh)}, config.prefer
    texts = 2 * _row_length(config, _kinds(config)[:1])
    length = section.pack_to or texts
    batch = preference_batch(mesh, section.optimization.batch_size, length, max(1, length // texts))
    make = preference_objective(section.loss, section.beta, section.label_smoothing, section.sft_weight)
    return _language_step("prefer", section, config, model, "lora", base, mesh, kind, batch, make)


def _reinforce(config: Config, model: Decoder, mesh: jax.sharding.Mesh, kind: str) -> Step:
    base, section = {"params": _base(config, model, mesh)}, config.reinforce
    length = section.pack_to or _row_length(config, _kinds(config)[:1])
    batch = policy_batch(mesh, section.optimization.batch_size, length)
    make = policy_objective(section.clip, section.kl_weight)
    return _language_step("reinforce", section, config, model, "lora", base, mesh, kind, batch, make)


def _language_step(
    name: str,
    section: AdaptConfig | FinetuneConfig | PreferConfig | ReinforceConfig,
    config: Config,
    model: Decoder,
    trainable: str,
    frozen: Params,
    mesh: jax.sharding.Mesh,
    kind: str,
    batch: dict[str, PyTree] | None = None,
    make_objective: MakeObjective = language_objective,
) -> Step:
    optimization, pack_to = section.optimization, section.pack_to
    tx = make_optimizer(optimization)
    state = train_state(init_decoder(model), trainable, frozen, tx, mesh)
    if batch is None:
        # `finetune` alone trains on all kinds of answer.
        kinds = _kinds(config) if name == "finetune" else _kinds(config)[:1]
        count, length = optimization.batch_size, pack_to or _row_length(config, kinds)
        batch = language_batch(mesh, count, length, packed=bool(pack_to))
    count, length = batch["inputs"]["tokens"].shape
    packed = "segments" in batch["inputs"]
    names = dict.fromkeys((config.teacher.attention, "xla", _OWN[kind]))

    def step_of(**changes) -> Callable:
        objective = make_objective(model.clone(config=dataclasses.replace(model.config, **changes)), mesh)
        return make_train_step(
            objective.apply,
            objective.loss,
            tx,
            micro_batches=optimization.micro_batches,
            extra_metrics=objective.extra_metrics,
        )

    def lower(attention: str) -> jax.stages.Lowered:
        return _lower_train_step(step_of(attention=attention), mesh, state, batch)

    with use(mesh):
        executed = flops(step_of(), state, batch)
        required = flops(step_of(remat="none"), state, batch)
    resident = {"base": state.frozen, "trained": state.trainable, "optimizer": state.opt_state, "batch": batch}
    unseen = {}
    if "cudnn" in names:
        # Splash, which keeps as little, is compiled in place of cuDNN; for packed rows cuDNN also takes a 16-bit mask
        # and returns its gradient.
        names["cudnn"] = "splash"
        mask = 2 * 2 * length**2 * count // optimization.micro_batches // row_parts(mesh)
        unseen["cudnn"] = mask if packed else 0
    lowerings = {name: partial(lower, stand_in or name) for name, stand_in in names.items()}
    parts = f", {optimization.micro_batches} at a time" if optimization.micro_batches > 1 else ""
    shape = f"{count} rows of {length} tokens{parts}"
    return Step(name, shape, count * length, resident, lowerings, executed, required, unseen)


def _lower_train_step(step: Callable, mesh: jax.sharding.Mesh, state: TrainState, batch: PyTree) -> jax.stages.Lowered:
    compiled = shard_step(step, mesh, state).compiled
    with use(mesh):
        return compiled.lower(dataclasses.replace(state, frozen={}), state.frozen, batch)


def language_batch(mesh: jax.sharding.Mesh, count: int, length: int, *, packed: bool) -> dict[str, PyTree]:
    """A batch of the teacher's training, as `stages.finetune` builds it."""
    ids = rows(mesh, count, np.int32, length)
    inputs = {"tokens": ids, **({"positions": ids, "segments": ids} if packed else {})}
    weights = rows(mesh, count, np.float32, length)
    return {"inputs": inputs, "targets": ids, "targets_mask": rows(mesh, count, bool, length), "token_weights": weights}


def preference_batch(mesh: jax.sharding.Mesh, count: int, length: int, preferences: int) -> dict[str, PyTree]:
    """A batch of the teacher's training on preferences, as `stages.prefer` builds it."""
    ids, numbers = rows(mesh, count, np.int32, length), rows(mesh, count, np.int32, preferences)
    inputs = dict.fromkeys(("tokens", "segments", "positions", "targets"), ids)
    log_probs = rows(mesh, count, np.float32, preferences)
    return {
        "inputs": {**inputs, "targets_mask": rows(mesh, count, bool, length), "preferences": numbers},
        "preferences": numbers,
        "preferences_mask": rows(mesh, count, bool, preferences),
        "reference_chosen_log_probs": log_probs,
        "reference_rejected_log_probs": log_probs,
    }


def policy_batch(mesh: jax.sharding.Mesh, count: int, length: int) -> dict[str, PyTree]:
    """A batch of the teacher's training on rewards, as `stages.reinforce` builds it."""
    ids = rows(mesh, count, np.int32, length)
    numbers = dict.fromkeys(
        ("advantages", "old_log_probs", "reference_log_probs"), rows(mesh, count, np.float32, length)
    )
    inputs = dict.fromkeys(("tokens", "segments", "positions"), ids)
    return {"inputs": inputs, "targets": ids, "targets_mask": rows(mesh, count, bool, length), **numbers}


def _row_length(config: Config, kinds: Sequence[Perspective]) -> int:
    """Tokens of the longest example of these answers: prompt and answer with full slots, up to a multiple of 8."""
    longest = max(_prompt_length(config, kind) + _answer_length(config, kind) for kind in kinds)
    return -(-(longest + 1) // 8) * 8


def _kinds(config: Config) -> tuple[Perspective, ...]:
    """The kinds of answer; weights from elsewhere are taken for those of a chat model."""
    teacher = config.teacher
    chat = teacher.chat_template == "auto" and teacher.init != "random" and not teacher.init.startswith(BUNDLED)
    return kinds_of_answer(config, chat)


def _prompt_length(config: Config, kind: Perspective) -> int:
    """Tokens of a prompt with its instructions."""
    return config.teacher.prompt_length + -(-len(kind.instructions.encode()) // BYTES_PER_TOKEN)


def _answer_length(config: Config, kind: Perspective) -> int:
    return sum(_length(config, segment) for segment in grammar.template(kind.lines, kind.order))


def _length(config: Config, segment: grammar.Segment) -> int:
    if segment.kind == "fixed":
        return -(-len(segment.text.encode()) // BYTES_PER_TOKEN)
    return 2 if segment.kind in ("verdict", "label") else config.teacher.value_length


# ---- predictions of the teacher


def _base(config: Config, model: Decoder, mesh: jax.sharding.Mesh) -> PyTree:
    """The base parameters, quantized where the config says so."""
    params = init_abstract(init_decoder(model), mesh)["params"]
    return params if config.teacher.quantize == "none" else quantize_params(params, config.teacher.quantize)


def _score_prefix(config: Config, model: Decoder, mesh: jax.sharding.Mesh) -> Step:
    count, length = config.score.batch_size, bucket(config.teacher.prompt_length // QUERY_DIVISOR)
    variables = _variables(config, model, mesh)
    arguments = variables, _cache(model, mesh, count, 0), *_prefill_inputs(mesh, count, length)
    shape = f"{count} queries of {length} tokens"
    return _inference_step("score_prefix", shape, count * length, prefill, model, mesh, arguments)


def _score(config: Config, model: Decoder, mesh: jax.sharding.Mesh) -> Step:
    count, prompt = config.score.batch_size, config.teacher.prompt_length
    prefix_length = bucket(prompt // QUERY_DIVISOR)
    length = bucket(prompt - prompt // QUERY_DIVISOR)
    variables, cache = _variables(config, model, mesh), _cache(model, mesh, count, prefix_length)
    labels = array(mesh, (len(config.labels.names),), np.int32)
    arguments = variables, cache, *_prefill_inputs(mesh, count, length), rows(mesh, count, np.int32), labels
    shape = f"{count} items of {length} tokens after queries of {prefix_length}"
    return _inference_step("score", shape, count * length, first_token_probs, model, mesh, arguments, cache)


def _generate(config: Config, model: Decoder, mesh: jax.sharding.Mesh, kind: str) -> Step:
    templates = [
        (kind, _decoding_template(config, model, kind)) for kind in _kinds(config) if kind.order != "label_only"
    ]
    lengths = [bucket(_prompt_length(config, kind)) + template.longest for kind, template in templates]
    count, template = config.score.batch_size, templates[lengths.index(max(lengths))][1]
    length = -(-max(lengths) // 16) * 16
    width = min(template.max_pending, max(1, STEP_TOKENS.get(kind, 128) // count))
    variables, cache = _variables(config, model, mesh), _cache(model, mesh, count, length)
    make_slots = partial(inspect.unwrap(new_slots), model, rows=count, length=length, max_pending=template.max_pending)
    with use(mesh):
        slots = jax.eval_shape(make_slots, variables, template)
    # The cache begins with its layers, not with rows.
    slots = jax.tree.map(
        lambda x: rows(mesh, x.shape[0], x.dtype, *x.shape[1:]) if x.shape else array(mesh, (), x.dtype),
        dataclasses.replace(slots, cache={}),
    )
    arguments = variables, template, dataclasses.replace(slots, cache=cache), np.int32(0)
    options = {"width": width, **Sampling().arguments}
    shape = f"{count} rows, {width} tokens each, after up to {length}"
    return _inference_step("generate", shape, count * width, decode, model, mesh, arguments, cache, **options)


def _inference_step(
    name: str,
    shape: str,
    tokens: int,
    function: jax.stages.Wrapped,
    model: Decoder,
    mesh: jax.sharding.Mesh,
    arguments: tuple[PyTree, ...],
    cache: PyTree = None,
    **options: PyTree,
) -> Step:
    """A call of a jitted function of the teacher; the first argument holds its variables."""

    def lower() -> jax.stages.Lowered:
        with use(mesh):
            return function.lower(model, *arguments, **options)

    with use(mesh):
        operations = flops(partial(inspect.unwrap(function), model, **options), *arguments)
    resident = {"base": arguments[0]["params"], "trained": arguments[0]["lora"]}
    resident |= {} if cache is None else {"cache": cache}
    return Step(name, shape, tokens, resident, {"": lower}, operations, operations)


def _decoding_template(config: Config, model: Decoder, kind: Perspective) -> DecodingTemplate:
    """The decoding template of a kind of answer, of the config's sizes."""
    segments = grammar.template(kind.lines, kind.order)
    free = [s for s in segments if s.kind != "label" or kind.order == "rationale_first"]
    sets = max(len(VERDICTS), len(config.labels.names))
    slots = [segment for segment in free if segment.kind != "fixed"]
    longest = max(_length(config, segment) for segment in free if segment.kind == "fixed")
    return DecodingTemplate(
        prefix=(0,) * longest,
        value_length=config.teacher.value_length,
        choice=np.array([{"verdict": VERDICT, "label": LABEL}.get(segment.kind, -1) for segment in slots], np.int32),
        forced_suffixes=np.zeros((len(slots), longest), np.int32),
        suffix_lengths=np.full(len(slots), longest, np.int32),
        verbalizers=np.zeros((2, sets, 2), np.int32),
        verbalizer_lengths=np.full((2, sets), 2, np.int32),
        value_tokens=np.ones(model.config.vocab_size, bool),
    )


def _variables(config: Config, model: Decoder, mesh: jax.sharding.Mesh) -> Params:
    return {"params": _base(config, model, mesh), "lora": init_abstract(init_decoder(model), mesh)["lora"]}


def _cache(model: Decoder, mesh: jax.sharding.Mesh, count: int, length: int) -> PyTree:
    shapes = jax.eval_shape(lambda: new_cache(model, count, length))
    return {name: array(mesh, x.shape, x.dtype, CACHE_AXES[name]) for name, x in shapes.items()}


def _prefill_inputs(mesh: jax.sharding.Mesh, count: int, length: int) -> tuple[PyTree, PyTree, PyTree]:
    """`parents`, `tokens` and `starts` of `teacher.kv_cache.read`."""
    one = rows(mesh, count, np.int32)
    return one, rows(mesh, count, np.int32, length), one


# ---- students


def _distill(config: Config, name: StudentName, mesh: jax.sharding.Mesh) -> Step:
    optimization, student = config.distill.optimization, config.student
    vocab_size = student.random.vocab_size if student.init == "random" else 0
    model = build_student(name, student, vocab_size, len(config.labels.names), len(config.rationale.dimensions))
    spec = InputSpec(config.data.item_fields, student.query_length, student.item_length, student.rationale_length)
    count = max(1, optimization.batch_size // config.distill.group_size) * config.distill.group_size
    recipe = "mkd" if "mkd" in config.distill.recipes else config.distill.recipes[-1]
    terms = objectives.terms(config.distill, config.labels.gains, recipe, model.heads, student.verdict_pooling)
    batch = student_batch(model, spec, mesh, count, terms)
    one = jax.tree.map(lambda x: jnp.zeros((1, *x.shape[1:]), x.dtype), batch["inputs"])
    if packable({name: terms}, [name]):
        batch = {**batch, "inputs": pack_inputs(batch["inputs"], config.distill, mesh)}
    tx = make_optimizer(optimization)
    state = train_state(lambda rng: model.init(rng, **one), "params", {}, tx, mesh)
    step = make_train_step(
        model.apply,
        losses.combine(**terms),
        tx,
        micro_batches=optimization.micro_batches,
        group_size=config.distill.group_size,
    )
    with use(mesh):
        operations = flops(step, state, batch)
    length = sum(array.length for array in model.batch_spec(spec).values() if array.is_token)
    sides = [side for side in model.batch_spec(spec) if side.endswith("valid")]
    inputs = {side: batch["inputs"].get(side.replace("valid", "packing")) for side in sides}
    tokens = sum((packing["source"] if packing else batch["inputs"][side]).size for side, packing in inputs.items())
    resident = {"trained": state.trainable, "optimizer": state.opt_state, "batch": batch}
    shape = f"{count} pairs of {length} tokens, recipe {recipe}"
    shape += f"; packed into {tokens // count} a pair" if any(inputs.values()) else ""
    lower = partial(_lower_train_step, step, mesh, state, batch)
    return Step(name, shape, tokens, resident, {"": lower}, operations, operations)


def student_batch(
    model: StudentModel, spec: InputSpec, mesh: jax.sharding.Mesh, count: int, terms: Mapping[str, Term]
) -> dict[str, PyTree]:
    """A batch of a student's training by these terms, as `stages.distill` builds it."""
    fields = batch_fields(model, spec, [terms])
    batch = jax.tree.map(lambda field: rows(mesh, count, field.dtype, *field.shape), fields)
    ids, mask = rows(mesh, count, np.int32), rows(mesh, count, bool)
    return {**batch, "mask": mask, "segments": ids, "segments_mask": mask}


def pack_inputs(inputs: Params, distill: DistillConfig, mesh: jax.sharding.Mesh) -> Params:
    """The inputs of a batch and how they are packed, as the stage does it where `FULL` of their tokens is text."""
    packed = dict(inputs)
    for name, valid in inputs.items():
        if isinstance(valid, Mapping):
            packed[name] = pack_inputs(valid, distill, mesh)
        elif name.endswith("valid"):
            count, padded = valid.shape
            parts = Parts(batch_shards(mesh), distill.optimization.micro_batches, distill.group_size)
            length = row_length(padded, distill.pack_to)
            tokens = padded * count // parts.count
            n_rows = round_rows(-(-int(tokens * FULL) // length), tokens, length) if distill.pack_to else 0
            if n_rows and parts.fits(count):
                source = rows(mesh, parts.count, np.int32, n_rows, length)
                packing = {"source": source, "target": rows(mesh, count, np.int32, padded)}
                packed[name.replace("valid", "packing")] = packing
    return packed
