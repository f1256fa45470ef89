"""The teacher and the stages that train and run it."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from jax_rele.config.base import Name, NonNegative, Positive, Section
from jax_rele.config.optimization import OptimizationConfig
from jax_rele.names import Order

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoraConfig(Section):
    """Low-rank adapters of the teacher (Hu et al., arXiv 2106.09685)."""

    rank: Positive = 8
    """Rank of each adapter."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """Adapters are scaled by alpha / rank."""
    rank_stabilized: bool = False
    """rsLoRA (arXiv 2312.03732): adapters are scaled by alpha / sqrt(rank)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapters' input while training."""
    targets: str = ".*_proj"
    """A regular expression; the projections whose whole name it matches get an adapter, e.g. (q|v)_proj."""

    @model_validator(mode="after")
    def _check(self):
        try:
            matched = [name for name in PROJECTIONS if re.fullmatch(self.targets, name)]
        except re.error as error:
            raise ValueError(f"targets is not a regular expression: {error}") from None
        if not matched:
            raise ValueError(f"targets ({self.targets!r}) matches none of {', '.join(PROJECTIONS)}")
        return self


class RandomDecoderConfig(Section):
    """Shape of a randomly initialised decoder; loaded weights have their own."""

    vocab_size: Annotated[int, Field(ge=300)] = 2048
    """Size of the byte-level BPE vocabulary trained on the training split."""
    layers: Positive = 2
    """Transformer blocks."""
    width: Positive = 64
    """Width of the residual stream."""
    heads: Positive = 4
    """Query heads."""
    kv_heads: Positive = 2
    """Key and value heads (grouped-query attention)."""
    head_dim: Annotated[int, Field(gt=0, multiple_of=2)] = 16
    """Width of one head."""
    mlp_width: Positive = 192
    """Inner width of the SwiGLU block."""
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    """Base of the rotary position frequencies."""

    @model_validator(mode="after")
    def _check(self):
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        return self


class PerspectiveConfig(Section):
    """A further kind of answer of the teacher: what it compares before it gives the label."""

    dimensions: tuple[str, ...] | None = None
    """The dimensions that the answer compares, in order. null: all."""
    rules: bool = False
    """Whether the answer says of each of `rules` that has a condition whether it applies."""
    order: Order | None = None
    """What the answer has first. null: as `teacher.order`."""


class TeacherConfig(Section):
    """The decoder language model that scores and explains pairs (ELLM-rele)."""

    init: Annotated[str, Field(min_length=1)] = "random"
    """Initial weights of the base: `random`; `bundled:decoder`, shipped with the package; `hf:ORG/NAME` on the Hugging
    Face hub; `gguf:FILE`, a GGUF file of the Llama or Qwen families; or a folder in the Hugging Face format."""
    random: RandomDecoderConfig = RandomDecoderConfig()
    """The shape where `init` is `random`."""
    chat_template: Literal["auto", "none"] = "auto"
    """Whether prompts are chats: `auto` where the tokenizer has a chat template, as those of instruct models; or never.
    """
    instructions: str = ""
    """Text before the query of every prompt, e.g. the task and its guidelines; in a chat it is the system's turn. Where
    it is empty, a chat has the task with `annotate.definitions` and `annotate.dimension_definitions`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations and of the frozen base; adapters, softmax and norms are in float32."""
    quantize: Literal["none", "int8", "nf4"] = "none"
    """Quantization of the frozen base's projections (QLoRA, arXiv 2305.14314)."""
    attention: Literal["xla", "cudnn", "splash"] = "xla"
    """Implementation of attention: anywhere, on NVIDIA GPUs, on TPUs."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass recomputes: nothing, all but the results of matrix products, or each block."""
    prompt_length: Annotated[int, Field(ge=16)] = 72
    """Tokens of the prompt besides instructions and chat template; longer ones are truncated at the end of the item's
    texts."""
    value_length: Positive = 8
    """Tokens of the query's, and of the item's, values of one dimension in a rationale; longer ones are truncated."""
    order: Order = "label_first"
    """What the teacher writes first. Which order scores better depends on the data: measure both."""
    perspectives: dict[Name, PerspectiveConfig] = Field(default_factory=dict)
    """Further kinds of answer that `finetune` teaches beside the one over all dimensions, e.g. {intent: {dimensions:
    [category]}, label: {order: label_only}}; P(label) is the mean over all of them (docs/teacher.md)."""
    lora: LoraConfig = LoraConfig()
    """Adapters trained by `finetune`."""


class AdaptConfig(Section):
    """Continued pre-training of the base on catalogue text and rule rationales of crossed pairs."""

    enabled: bool = True
    """Whether this stage trains; otherwise the base is that of `teacher.init`."""
    crossed_per_query: NonNegative = 40
    """Pairs of a training query with other items, annotated by rules, per query."""
    recombined_pairs: NonNegative = 0
    """Pairs with texts recombined from training texts, annotated by rules: a small catalogue overfits soon."""
    text_weight: Annotated[float, Field(ge=0)] = 0.1
    """Loss weight of a prompt token (catalogue text); that of a rationale token is 1."""
    verdict_weight: Annotated[float, Field(ge=0)] = 1.0
    """Loss weight of a verdict token."""
    pack_to: NonNegative = 0
    """Tokens of a packed row of several examples; 0 for one example a row."""
    optimization: OptimizationConfig = OptimizationConfig()


class SelectionConfig(Section):
    """Hard and clean pairs (LREF, arXiv 2503.09223). Each file holds another model's predictions: JSONL or Parquet with
    `pair_id` and `label_probs` or `label` (docs/signals.md). Empty: no such condition."""

    wrong_by: str = ""
    """Predictions that must be wrong, so that a pair is hard."""
    right_by: str = ""
    """Predictions that must be right, so that a pair can be learnt."""
    undisputed_by: str = ""
    """Predictions that must not contradict the human label, so that it is clean."""
    dispute: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The least probability of another label in `undisputed_by` that contradicts."""


class FinetuneConfig(Section):
    """LoRA fine-tuning on the rationales of the labelled pairs; the loss is on the completion only."""

    label_weight: Annotated[float, Field(gt=0)] = 1.0
    """Loss weight of a label token; that of the other tokens of the completion, of which there are many, is 1."""
    pack_to: NonNegative = 0
    """Tokens of a packed row of several examples; 0 for one example a row."""
    evaluate_every: NonNegative = 0
    """Steps between two evaluations of loss and label accuracy on the validation split; 0 for none."""
    selection: SelectionConfig = SelectionConfig()
    """Which labelled training pairs the teacher learns from; by default all."""
    optimization: OptimizationConfig = OptimizationConfig()

    @model_validator(mode="after")
    def _check(self):
        if self.evaluate_every % self.optimization.log_every:
            raise ValueError(
                f"evaluate_every ({self.evaluate_every}) must be a multiple of optimization.log_every "
                f"({self.optimization.log_every})"
            )
        return self


class ScoreConfig(Section):
    """Where the signals come from, and how the teacher judges."""

    batch_size: Positive = 64
    """Pairs per forward pass."""
    samples: Positive = 1
    """Rationales that the teacher draws per pair; distributions are the means over them (self-consistency). With 1 it
    decodes greedily."""
    rationale: Literal["written", "annotated"] = "written"
    """Whose rationales the teacher judges over: those that it writes token by token; or annotated ones, which it reads
    in one pass without decoding: the chat models' of `annotate` for the training pairs that they explained, and the
    rule annotator's for all others, those of validation and test included (docs/teacher.md)."""
    temperature: Annotated[float, Field(gt=0)] = 0.7
    """Sampling temperature where `samples` is above 1."""
    signals: str = ""
    """A file of another teacher's signals, or the folder of a run that has finished `score` (docs/signals.md): no
    teacher is trained or loaded, and the sections `teacher`, `adapt`, `finetune` and `annotate` are not read."""
    allow_missing: bool = False
    """Whether pairs without signals there are left out of distillation; otherwise they are an error."""
