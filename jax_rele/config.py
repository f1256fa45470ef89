"""One tree of frozen, validated config classes: YAML in, unknown keys refused with their path."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import Field, model_validator

from jax_rele import types
from jax_rele.errors import UserError

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
ItemField = Literal["title", "brand", "color", "category", "bullets", "description"]
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
StudentName = Literal["cross_encoder", "two_tower"]
RECIPES = ("label_only", "score_kd", "cot_kd", "mkd", "margin_mse", "lrkd", "crsd", "rationale_guided")
"""The objectives of `jax_rele.losses.recipes`."""

RESERVED = ("pair_id", "score", "query_embedding", "item_embedding")
"""Columns of predictions beside the labels' own."""


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, coerce_numbers_to_str=True
    )


class Labels(_Section):
    """The label schema and how a user's labels are written."""

    names: tuple[str, ...] = ("Exact", "Substitute", "Complement", "Irrelevant")
    """The relevance grades, best first."""
    gains: tuple[float, ...] = (1.0, 0.1, 0.01, 0.0)
    """The worth of each grade in [0, 1]; a pair's score is its expected gain."""
    positive: tuple[str, ...] = ("Exact",)
    """The grades that count as relevant in the binary view."""
    written_as: dict[str, str] = Field(default_factory=dict)
    """What the data file writes -> the grade's name, e.g. {E: Exact}; the names themselves are always accepted."""
    gain_maps: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    """Named gains for nDCG, one number per grade; each gives a metric `ndcg_<name>`. Empty: one map, `gains`."""

    @model_validator(mode="after")
    def _check(self):
        schema = self.schema_
        for name in schema.names:
            if name != name.strip() or name in RESERVED:
                raise ValueError(f"names must not be {', '.join(RESERVED)} or have blanks at an end, got {name!r}")
        for written, name in self.written_as.items():
            if name not in schema.names:
                raise ValueError(f"written_as maps {written!r} to {name!r}, which is not one of {list(schema.names)}")
        for key, gains in self.gain_maps.items():
            if len(gains) != len(schema):
                raise ValueError(f"gain_maps.{key} must hold {len(schema)} numbers, got {len(gains)}")
        return self

    @property
    def schema_(self) -> types.LabelSchema:
        return types.LabelSchema(self.names, self.gains, self.positive)

    @property
    def gain_maps_(self) -> dict[str, tuple[float, ...]]:
        return self.gain_maps or {"gains": self.gains}


class Splits(_Section):
    """Shares of the queries; a query is never in two splits."""

    train: Share = 0.6
    """Share of the queries to train on."""
    validation: Share = 0.2
    """Share of the queries on which thresholds and temperatures are chosen."""
    test: Share = 0.2
    """Share of the queries that the reported figures come from."""
    given: Literal["keep", "ignore"] = "keep"
    """Whether rows that bring a `split` keep it. Where they bring train but no validation (or no test), its share is
    taken out of their train."""
    leakage: Literal["refuse", "drop"] = "refuse"
    """What happens where the rows of one query bring two splits: an error, or the rows of the split that learns more
    are set aside (train before validation before test)."""

    @model_validator(mode="after")
    def _check(self):
        total = self.train + self.validation + self.test
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"train + validation + test must be 1, got {total:g}")
        return self


class Candidates(_Section):
    """Unlabelled pairs made of training queries and other items, for the teacher to judge."""

    per_query: NonNegative = 3
    """Pairs per training query."""
    bm25: Share = 0.5
    """Share of them whose item BM25 finds for the query."""
    same_category: Share = 0.0
    """Share whose item has the category of an item that was judged for the query."""
    same_brand: Share = 0.0
    """Share whose item has the brand of an item that was judged for the query. The rest is drawn at random."""

    @model_validator(mode="after")
    def _check(self):
        total = self.bm25 + self.same_category + self.same_brand
        if total > 1.0 + 1e-6:
            raise ValueError(f"bm25 + same_category + same_brand must be at most 1, got {total:g}")
        return self


class HuggingFace(_Section):
    """How a Hugging Face data set is read."""

    subset: str = ""
    """Name of its configuration, where it has several."""
    revision: str = ""
    """Branch, tag or commit on the hub; empty for the newest."""
    streaming: bool = False
    """Whether rows are read as they arrive, without a copy of the data set on disk."""


class Data(_Section):
    """Where the pairs come from and how they are read (docs/data.md)."""

    path: str = "sample"
    """`sample` (the bundled ESCI pairs); a JSONL, CSV, TSV or Parquet file, a folder of those, or a glob, also at
    gs:// or s3://; `hf:NAME`, a data set on the Hugging Face hub or a saved folder; `tfds:NAME`."""
    manual_dir: str = ""
    """Folder of the official files that a benchmark (tfds:esci, tfds:wands) is built from; empty: they are fetched."""
    hugging_face: HuggingFace = HuggingFace()
    fields: dict[str, str] = Field(default_factory=dict)
    """Documented field -> its name in the file, e.g. {item: product}; the documented names are always accepted."""
    item_fields: Annotated[tuple[ItemField, ...], Field(min_length=1)] = ("brand", "color", "title")
    """The item's texts that models and baselines read, in this order: what is too long loses the end of the last."""
    encoding: str = "utf-8"
    """Encoding of text files; a row that is not in it is set aside."""
    max_characters: Positive = 100_000
    """A row with a longer text is set aside."""
    conflicts: Literal["majority", "first", "last", "drop"] = "majority"
    """Which label a query and item get that were judged differently: the most frequent (of equals the lower grade),
    the first, the last, or none: all their rows are set aside."""
    splits: Splits = Splits()
    max_bad_share: Share = 0.1
    """More bad rows than this share stop the run; fewer are written to the quarantine table and counted."""
    candidates: Candidates = Candidates()
    tail_max_frequency: NonNegative = 1
    """A query is long-tail when its frequency, or that of its rarest word in the training split, is at most this."""


class Rationale(_Section):
    """What the chain of thought is about."""

    dimensions: tuple[str, ...] = ("category", "brand", "model", "color", "material", "size", "audience")
    """The aspects on which query and item are compared, in the order of the reasoning."""
    tag_map: dict[str, str] = Field(
        default_factory=lambda: {
            "core_product_type": "category",
            "creator": "brand",
            "product_name": "model",
            "product_number": "model",
            "color": "color",
            "material": "material",
            "UoM": "size",
            "quantity": "size",
            "shape": "size",
            "department": "audience",
        }
    )
    """Type of a human query tag -> dimension; other types are not used."""

    @model_validator(mode="after")
    def _check(self):
        if not self.dimensions or len(set(self.dimensions)) != len(self.dimensions) or "" in self.dimensions:
            raise ValueError(f"dimensions must be distinct non-empty names, got {list(self.dimensions)}")
        if any(name != name.strip() for name in self.dimensions):
            raise ValueError(f"dimensions must not have blanks at an end, got {list(self.dimensions)}")
        unknown = {kind: name for kind, name in self.tag_map.items() if name not in self.dimensions}
        if unknown:
            raise ValueError(f"tag_map points at names that are not in dimensions: {unknown}")
        return self


class ChatEndpoint(_Section):
    """A model behind an OpenAI-compatible server: vLLM, SGLang, TGI, Ollama, a cloud API."""

    name: Name
    """What the run calls it."""
    base_url: str
    """E.g. http://localhost:8000/v1."""
    model: Annotated[str, Field(min_length=1)]
    """The server's name of the model."""
    key_variable: str = ""
    """The environment variable that holds the key; empty for a server that asks for none."""
    samples: Positive = 3
    """Answers per pair (self-consistency)."""
    temperature: Annotated[float, Field(ge=0)] = 0.7
    """Sampling temperature."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus of the sampling."""
    max_tokens: Positive = 1024
    """Most tokens of an answer, a model's thinking included."""
    structured: Literal["auto", "json_schema", "json_object", "none"] = "auto"
    """How the form of an answer is asked for; `auto` tries the three in this order."""
    concurrency: Positive = 16
    """Calls in flight."""
    timeout: Annotated[float, Field(gt=0)] = 60.0
    """Seconds of one call."""
    input_price: Annotated[float, Field(ge=0)] = 0.0
    """Of a million tokens, in the budget's currency."""
    output_price: Annotated[float, Field(ge=0)] = 0.0
    """Likewise."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """More fields of the request, e.g. {chat_template_kwargs: {enable_thinking: false}}."""


class Annotate(_Section):
    """Who writes the rationales that the teacher learns from, and which of them count (docs/annotation.md)."""

    annotator: Literal["rules", "llm", "teacher"] = "rules"
    """Rules; chat models behind `endpoints`; or the fine-tuned teacher of another run, `teacher_run`."""
    unlabelled: bool = False
    """Whether unlabelled pairs are explained and labelled, too, for `finetune` to learn from."""
    teacher_run: str = ""
    """The folder of the run whose teacher writes."""
    prompt: str = "en"
    """`en`, `zh`, or a Jinja file of your own."""
    definitions: dict[str, str] = Field(default_factory=dict)
    """Label -> what it means; ESCI's are known."""
    dimension_definitions: dict[str, str] = Field(default_factory=dict)
    """Dimension -> what it means; the default ones are known."""
    examples: tuple[dict[str, Any], ...] = ()
    """Pairs with answers that a prompt shows: [{query, item: {title, ...}, answer: {...}}, ...]."""
    fields: tuple[str, ...] = ("title", "brand", "color", "category", "bullets")
    """What of an item a prompt shows: its fields, and `attributes`."""
    reasoning: bool = False
    """Whether a sentence or two are asked for before the label."""
    endpoints: tuple[ChatEndpoint, ...] = ()
    """The models that are asked."""
    answers: str = ""
    """Folder of all answers, which are paid for once whatever asks for them again. Empty: `<run_root>/answers`."""
    budget: Annotated[float, Field(ge=0)] = 0.0
    """Most that the answers in that folder may cost; 0 for no limit."""
    max_attempts: Positive = 6
    """Calls for an answer before it is given up for this time."""
    allow_pending: bool = False
    """Whether pairs that have not all of their answers are left out; otherwise they stop the run."""
    weights: Literal["gold", "equal"] = "gold"
    """Whether votes count by how well each model agrees with gold labels (Dawid-Skene), or alike."""
    min_share: Share = 0.5
    """Least share of the vote for a label that is accepted."""
    gold_filter: Literal["keep", "drop", "ask_again"] = "ask_again"
    """What happens to a pair whose vote is not its gold label."""
    label_rules: tuple[dict[str, Any], ...] = ()
    """What labels do not go with what verdicts: [{label: Exact, never: {category: mismatch}}, ...]."""
    reviews: str = ""
    """A review table that a person has edited."""
    injection_pairs: NonNegative = 0
    """Pairs of which adversarial copies are asked about, to measure what they do to the models; 19 copies a pair."""

    @model_validator(mode="after")
    def _check(self):
        if self.annotator == "llm" and not self.endpoints:
            raise ValueError("annotator: llm needs endpoints")
        if self.annotator == "teacher" and not self.teacher_run:
            raise ValueError("annotator: teacher needs teacher_run, the folder of a finished run")
        names = [endpoint.name for endpoint in self.endpoints]
        if len(set(names)) != len(names):
            raise ValueError(f"endpoints must not repeat a name, got {names}")
        return self


class Optimization(_Section):
    """AdamW with linear warm-up and a schedule, and how the loop runs."""

    steps: Positive = 100
    """Optimizer steps."""
    batch_size: Positive = 32
    """Rows per step over all devices."""
    micro_batches: Positive = 1
    """Parts that a batch is computed in, one after the other, to save memory; the result is that of the whole batch."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """After the warm-up: down to a tenth of the peak along a cosine or a line, or no change."""
    warmup_share: Share = 0.1
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay; not applied to norms and biases."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this global norm."""
    checkpoint_every: Positive = 100
    """Steps between checkpoints."""
    log_every: Positive = 20
    """Steps between two lines of the metric logs; divides `checkpoint_every`."""

    @model_validator(mode="after")
    def _check(self):
        # A resumed run starts at a checkpoint: its log windows must start there too to repeat an unbroken run's.
        if self.checkpoint_every % self.log_every:
            raise ValueError(
                f"checkpoint_every ({self.checkpoint_every}) must be a multiple of log_every ({self.log_every})"
            )
        if self.batch_size % self.micro_batches:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of micro_batches ({self.micro_batches})"
            )
        return self


class Lora(_Section):
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


class RandomDecoder(_Section):
    """Shape of a decoder that starts from random weights; weights that are loaded bring their own."""

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


class Teacher(_Section):
    """The decoder language model that judges and explains (ELLM-rele)."""

    init: Annotated[str, Field(min_length=1)] = "random"
    """Where the base comes from: `random`; `bundled:decoder`, the package's own; `hf:ORG/NAME` on the Hugging Face
    hub; or a folder in its form."""
    random: RandomDecoder = RandomDecoder()
    """The shape where `init` is `random`."""
    instructions: str = ""
    """Text before every prompt's query, e.g. what to judge and how."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations and of the frozen base; adapters, softmax and norms are in float32."""
    quantize: Literal["none", "int8", "nf4"] = "none"
    """How the frozen base's projections are stored under the adapters (QLoRA, arXiv 2305.14314)."""
    attention: Literal["xla", "cudnn", "splash"] = "xla"
    """Implementation of attention: anywhere, on NVIDIA GPUs, on TPUs."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass recomputes: nothing, all but the results of matrix products, or each block."""
    prompt_length: Annotated[int, Field(ge=16)] = 72
    """Tokens of the prompt; longer ones lose the end of their item's texts."""
    value_length: Positive = 8
    """Tokens of one dimension's values of one side in a rationale; longer ones are cut."""
    order: Literal["rationale_first", "label_first", "label_only"] = "label_first"
    """What the teacher writes first. Which order judges better is a question to measure, not to assume."""
    lora: Lora = Lora()
    """Adapters trained by `finetune`."""


class Adapt(_Section):
    """Training of the base on catalogue text and rule rationales of crossed pairs."""

    enabled: bool = True
    """Whether this stage trains; without, the base is used as `teacher.init` gives it."""
    crossed_per_query: NonNegative = 40
    """Crossed pairs per training query that the rule annotator explains for this stage."""
    recombined_pairs: NonNegative = 0
    """Pairs of texts recombined from training texts, explained likewise: a small catalogue is soon known by heart."""
    text_weight: Annotated[float, Field(ge=0)] = 0.1
    """Weight of a prompt token's loss (catalogue text) beside that of a rationale token."""
    verdict_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of a verdict token's loss."""
    pack_to: NonNegative = 0
    """Tokens of a row that holds several examples; 0 for one example a row."""
    optimization: Optimization = Optimization()


class Finetune(_Section):
    """LoRA fine-tuning on the rationales of the labelled pairs; the loss is on the completion only."""

    label_weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of the label's loss beside that of another token of the completion, of which there are many."""
    pack_to: NonNegative = 0
    """Tokens of a row that holds several examples; 0 for one example a row."""
    evaluate_every: NonNegative = 0
    """Steps between two measurements of loss and label accuracy on the validation split; 0 for none."""
    optimization: Optimization = Optimization()

    @model_validator(mode="after")
    def _check(self):
        if self.evaluate_every % self.optimization.log_every:
            raise ValueError(
                f"evaluate_every ({self.evaluate_every}) must be a multiple of optimization.log_every "
                f"({self.optimization.log_every})"
            )
        return self


class Score(_Section):
    """Where the signals come from, and how models are run over pairs."""

    batch_size: Positive = 64
    """Pairs per forward pass."""
    signals: str = ""
    """A file of another teacher's signals (docs/signals.md), in place of ours: no teacher is trained or loaded."""
    allow_missing: bool = False
    """Whether pairs that `signals` says nothing of are left out of distillation; otherwise they are an error."""


class RandomEncoder(_Section):
    """Shape of an encoder that starts from random weights; weights that are loaded bring their own."""

    vocab_size: Annotated[int, Field(ge=300)] = 2048
    """Size of the byte-level BPE vocabulary trained on the training split."""
    layers: Positive = 2
    """Transformer blocks."""
    width: Positive = 64
    """Width of the residual stream."""
    heads: Positive = 4
    """Attention heads."""
    mlp_width: Positive = 256
    """Inner width of the feed-forward block."""

    @model_validator(mode="after")
    def _check(self):
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        return self


class CrossEncoder(_Section):
    """The student that reads query and item together."""

    latent_width: NonNegative = 0
    """Width of the latent-reasoning extractor, which is kept when the student is served; 0 for none."""


class TwoTower(_Section):
    """The student that reads query and item apart."""

    embedding_width: NonNegative = 64
    """Width of the embeddings; 0: no projection, they are as wide as the encoder."""
    view_width: Positive = 16
    """Width of the view of an embedding on one dimension."""
    towers: Literal["shared", "separate"] = "shared"
    """Whether both sides are read with the same weights."""
    pooling: Literal["mean", "first"] = "mean"
    """Which token vectors make an embedding."""
    normalize: bool = True
    """Whether embeddings have unit length."""
    head: Literal["cosine", "mlp", "maxsim"] = "cosine"
    """How two embeddings become label logits: cosine can be indexed; maxsim keeps a vector per token."""


class Student(_Section):
    """The encoder of both students and their heads."""

    init: Annotated[str, Field(min_length=1)] = "random"
    """Where the encoder comes from: `random`; `bundled:encoder`, the package's own; `hf:ORG/NAME` on the Hugging Face
    hub; or a folder in its form."""
    random: RandomEncoder = RandomEncoder()
    """The shape where `init` is `random`."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout while training."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations; parameters, softmax and norms are in float32."""
    query_length: Annotated[int, Field(ge=4)] = 24
    """Tokens of a query; longer ones are cut."""
    item_length: Annotated[int, Field(ge=4)] = 72
    """Tokens of an item; longer ones are cut."""
    rationale_length: Annotated[int, Field(ge=4)] = 96
    """Tokens of a rationale where a recipe has it read beside the pair; longer ones are cut."""
    cross_encoder: CrossEncoder = CrossEncoder()
    two_tower: TwoTower = TwoTower()


class Schedule(_Section):
    """A number that changes over the steps: from one value to another along a line, then constant."""

    start: float
    """Value at step 0."""
    end: float
    """Value from step `steps` on."""
    steps: Positive
    """Steps between the two."""


class Term(_Section):
    """One term of an objective."""

    loss: str = ""
    """A loss of jax_rele.losses, or your own: `package.module:function` or `file.py:function`. Empty: the base's."""
    weight: float | Schedule | None = None
    """A number or a schedule; 0 takes the term out. Null: as in the base, 1 for a term that it does not have."""
    temperature: float | Schedule | None = None
    """Likewise, for a loss that has one."""
    confidence: str = ""
    """A field of weights per example, e.g. confidence: how sure the teacher is."""
    where: str = ""
    """A bool field; only the pairs where it holds count."""
    bind: dict[str, Any] = Field(default_factory=dict)
    """For a parameter of the loss: the name of the field to read instead, or a constant."""


class Objective(_Section):
    """An objective of your own: a recipe, changed term by term."""

    base: str = "label_only"
    """The recipe that it starts from."""
    terms: dict[str, Term] = Field(default_factory=dict)
    """Terms that are added, or that replace those of the same name."""


class Distill(_Section):
    """Which students are trained by which recipes."""

    students: tuple[StudentName, ...] = ("cross_encoder", "two_tower")
    """The architectures."""
    recipes: tuple[str, ...] = ("label_only", "mkd")
    """The objectives, by name (docs/distillation.md), or of `objectives`; each is trained from the same start."""
    objectives: dict[Name, Objective] = Field(default_factory=dict)
    """Objectives of your own, by name."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Temperature of the score distributions in the KL terms."""
    group_size: Positive = 4
    """Pairs of one query that a batch holds together: one labelled, the rest scored by the teacher."""
    labelled_share: Annotated[float, Field(gt=0, le=1)] | Schedule = 0.5
    """Share of a batch's groups that hold labelled pairs; the rest are the teacher's alone, where there are such. A
    number or a schedule."""
    length_buckets: Positive = 1
    """Lengths that batches are padded to: pairs of like length come together, and each length is one more compile."""
    together: bool = False
    """Whether the students of a recipe are trained in one pass over the signals, side by side in each step."""
    term_gradients: bool = False
    """Whether the log also has the norm of each term's gradient, for diagnosis: a backward pass more a term."""
    optimization: Optimization = Optimization()

    @model_validator(mode="after")
    def _check(self):
        if not self.students or not self.recipes:
            raise ValueError("students and recipes must each name at least one")
        if len(set(self.students)) != len(self.students) or len(set(self.recipes)) != len(self.recipes):
            raise ValueError("students and recipes must not repeat a name")
        known = (*RECIPES, *self.objectives)
        for path, name in (
            *(("recipes", name) for name in self.recipes),
            *((f"objectives.{name}.base", objective.base) for name, objective in self.objectives.items()),
        ):
            if name not in (known if path == "recipes" else RECIPES):
                raise ValueError(f"{path}: there is no recipe {name!r}; there are {', '.join(known)}")
        if clash := set(self.objectives) & set(RECIPES):
            raise ValueError(f"objectives: {sorted(clash)[0]} is the name of a recipe; choose another")
        if isinstance(share := self.labelled_share, Schedule) and not (0 < share.start <= 1 and 0 < share.end <= 1):
            raise ValueError(f"labelled_share must go from and to shares in (0, 1], got {share.start} and {share.end}")
        if self.term_gradients and self.optimization.micro_batches > 1:
            raise ValueError("term_gradients needs optimization.micro_batches 1")
        return self


class Evaluate(_Section):
    """Figures and report."""

    split: Literal["validation", "test"] = "test"
    """The split that the figures come from; biases and temperatures always come from validation."""
    bootstrap_samples: Positive = 1000
    """Resamples of the queries behind each interval."""
    report_pairs: Positive = 24
    """Pairs that the report explains one by one: the first of the split."""


class Mesh(_Section):
    """Devices per mesh axis; one axis may be -1, meaning all that are left."""

    data: int = -1
    """Batch rows."""
    fsdp: int = 1
    """Batch rows, with parameters and optimizer state sharded too."""
    tensor: int = 1
    """Heads, inner widths and vocabulary."""

    @model_validator(mode="after")
    def _check(self):
        sizes = (self.data, self.fsdp, self.tensor)
        if any(size == 0 or size < -1 for size in sizes) or sizes.count(-1) > 1:
            raise ValueError(f"axes must be positive, and at most one -1, got {sizes}")
        return self


class Config(_Section):
    """A run: what is read, trained and reported. Artefacts go to `<run_root>/<name>/`."""

    name: Name = "run"
    """Name of the run and of its folder."""
    run_root: str = "runs"
    """Folder that holds the runs."""
    cache_dir: str = ""
    """Folder of what can be made again: token ids, converted benchmarks. Empty: `<run_root>/.cache`."""
    seed: NonNegative = 0
    """Seed of every random choice."""
    labels: Labels = Labels()
    data: Data = Data()
    rationale: Rationale = Rationale()
    mesh: Mesh = Mesh()
    annotate: Annotate = Annotate()
    teacher: Teacher = Teacher()
    adapt: Adapt = Adapt()
    finetune: Finetune = Finetune()
    score: Score = Score()
    student: Student = Student()
    distill: Distill = Distill()
    evaluate: Evaluate = Evaluate()

    @property
    def answers(self) -> Path:
        return Path(self.annotate.answers) if self.annotate.answers else Path(self.run_root) / "answers"

    @model_validator(mode="after")
    def _check(self):
        for path, names in (("definitions", self.labels.names), ("dimension_definitions", self.rationale.dimensions)):
            if unknown := sorted(set(getattr(self.annotate, path)) - set(names)):
                raise ValueError(f"annotate.{path}: {unknown[0]!r} is not one of {list(names)}")
        if self.teacher.init == "bundled:encoder":
            raise ValueError("teacher.init: bundled:encoder is for students; set it to bundled:decoder")
        if self.student.init == "bundled:decoder":
            raise ValueError("student.init: bundled:decoder is for the teacher; set it to bundled:encoder")
        if self.teacher.init == "random":
            if not self.adapt.enabled:
                raise ValueError("adapt.enabled: false leaves a base of random weights; enable it or set teacher.init")
            if self.teacher.quantize != "none":
                raise ValueError("teacher.quantize: a base that starts at random is trained; set it to none")
        elif self.adapt.enabled and self.teacher.quantize != "none":
            raise ValueError(
                "teacher.quantize: a base that `adapt` trains cannot be quantized; set adapt.enabled: false"
            )
        return self

    @property
    def run_dir(self) -> Path:
        return Path(self.run_root) / self.name

    @property
    def cache(self) -> Path:
        return Path(self.cache_dir) if self.cache_dir else Path(self.run_root) / ".cache"


def describe(error: pydantic.ValidationError, source: str) -> str:
    """The first problem of a validation error in one line: source, config path, reason."""
    first = error.errors(include_url=False)[0]
    # What concerns several sections names their paths itself.
    path = "".join(f"{part}." for part in first["loc"])[:-1] + ": " if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        reason = "unknown key; remove it or correct its spelling"
    else:
        reason = first["msg"].removeprefix("Value error, ")
        if "input" in first and not isinstance(first["input"], (dict, pydantic.BaseModel)):
            reason += f", got {first['input']!r}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{source}: {path}{reason}{more}"


def from_dict(values: dict[str, Any], source: str = "config") -> Config:
    """Validates a nested dict. Raises UserError naming `source` and the path of the first problem."""
    try:
        return Config.model_validate(values)
    except pydantic.ValidationError as error:
        raise UserError(describe(error, source)) from None


def load(path: str | Path) -> Config:
    """Reads a YAML file. Raises UserError for a missing or malformed file, an unknown key or a bad value."""
    try:
        values = yaml.safe_load(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold a mapping of config keys at the top level")
    return from_dict(values, str(path))


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts -> {dotted path: value}."""
    if isinstance(values, dict) and values:
        return {
            path: leaf
            for key, value in values.items()
            for path, leaf in flatten(value, f"{prefix}.{key}" if prefix else str(key)).items()
        }
    return {prefix: values}


def digest(values: Any) -> str:
    """A hash of plain data (dicts, lists, numbers, strings) that does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]
