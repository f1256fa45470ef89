"""Who writes the rationales that the teacher is trained on."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from jax_rele.config.base import Fraction, Name, NonNegative, Positive, Section


class ChatEndpointConfig(Section):
    """A model behind an OpenAI-compatible server: vLLM, SGLang, TGI, Ollama, a cloud API."""

    name: Name
    """Its name in the run's tables and messages."""
    base_url: str
    """E.g. http://localhost:8000/v1."""
    model: Annotated[str, Field(min_length=1)]
    """The server's name of the model."""
    key_variable: str = ""
    """The environment variable that holds the API key; empty for a server without one."""
    samples: Positive = 3
    """Answers per pair (self-consistency)."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.7
    """Sampling temperature."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling: the probability mass that is sampled from."""
    max_tokens: Positive = 1024
    """Maximum tokens of an answer, reasoning tokens included."""
    structured: Literal["auto", "json_schema", "json_object", "none"] = "auto"
    """How structured output is requested; `auto` tries the three in this order."""
    concurrency: Positive = 16
    """Concurrent calls."""
    timeout: Annotated[float, Field(gt=0)] = 60.0
    """Seconds after which a call fails."""
    input_price: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Price of a million prompt tokens, in the currency of `annotate.budget`."""
    output_price: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Price of a million completion tokens."""
    extra: dict[str, object] = Field(default_factory=dict)
    """Additional fields of the request, e.g. {chat_template_kwargs: {enable_thinking: false}}."""

    @field_validator("extra")
    @classmethod
    def _plain_json(cls, extra: dict[str, object]) -> dict[str, object]:
        try:
            json.dumps(extra, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"must be plain JSON, for the request: {error}") from None
        for name in ("max_tokens", "max_completion_tokens"):
            if (limit := extra.get(name)) is not None and (type(limit) is not int or limit < 1):
                raise ValueError(f"{name} must be a positive whole number, got {limit!r}")
        return extra


class AnnotateConfig(Section):
    """Who writes the rationales that the teacher is trained on, and which are accepted (docs/annotation.md)."""

    annotator: Literal["rules", "llm", "teacher"] = "rules"
    """Rules; chat models behind `endpoints`; or the fine-tuned teacher of another run, `teacher_run`."""
    unlabelled: bool = False
    """Whether unlabelled pairs are annotated too, for `finetune` to train on."""
    teacher_run: str = ""
    """The folder of the run whose teacher annotates."""
    teacher_samples: Positive = 1
    """Rationales that it draws per pair, each a vote; with 1 it decodes greedily."""
    teacher_temperature: Annotated[float, Field(gt=0)] = 0.7
    """Sampling temperature where it draws more than one."""
    reuse_labelled: bool = False
    """Whether labelled pairs keep the rationales that `teacher_run` accepted for them, so that its teacher explains the
    unlabelled ones alone."""
    prompt: str = "en"
    """`en`, `zh`, `ja`, `es`, or a Jinja file of your own."""
    definitions: dict[str, str] = Field(default_factory=dict)
    """Label -> its definition; those of ESCI have defaults."""
    dimension_definitions: dict[str, str] = Field(default_factory=dict)
    """Dimension -> its definition; the default dimensions have one."""
    examples: tuple[dict[str, object], ...] = ()
    """Few-shot examples in the prompt: [{query, item: {title, ...}, answer: {...}}, ...]."""
    fields: tuple[str, ...] = ("title", "brand", "color", "category", "bullets")
    """Item fields in the prompt; `attributes` is one of them."""
    reasoning: bool = False
    """Whether the answer has a sentence or two of free reasoning before the label."""
    endpoints: tuple[ChatEndpointConfig, ...] = ()
    """The chat models."""
    store: str = ""
    """Folder that caches every answer, so that no request is paid for twice. Empty: `<run_root>/answers`."""
    budget: Annotated[float, Field(ge=0)] = 0.0
    """Maximum cost of the answers in `store`; 0 for no limit."""
    max_attempts: Positive = 6
    """Calls for an answer before the run continues without it."""
    allow_pending: bool = False
    """Whether pairs with missing answers are left out; otherwise they stop the run."""
    weights: Literal["gold", "equal"] = "gold"
    """Whether votes are weighted by each model's agreement with gold labels (Dawid-Skene), or equally."""
    min_vote_fraction: Fraction = 0.5
    """Minimum fraction of the vote for a label to be accepted."""
    max_flaws: Annotated[int | None, Field(ge=0)] = None
    """Most hallucinated values, contradictions and broken rules of an accepted rationale; null for any number."""
    gold_filter: Literal["keep", "drop", "ask_again"] = "ask_again"
    """What happens to a pair whose consensus differs from its gold label."""
    reviews: str = ""
    """A review table that a person has edited."""
    injection_pairs: NonNegative = 0
    """Pairs of which adversarial copies are annotated, to measure prompt injection; 19 copies a pair."""

    @model_validator(mode="after")
    def _check(self):
        if self.annotator == "llm" and not self.endpoints:
            raise ValueError("annotator: llm needs endpoints")
        if self.annotator == "teacher" and not self.teacher_run:
            raise ValueError("annotator: teacher needs teacher_run, the folder of a finished run")
        if self.reuse_labelled and not (self.annotator == "teacher" and self.unlabelled):
            raise ValueError("reuse_labelled leaves the unlabelled pairs to annotator: teacher; set unlabelled: true")
        if self.reviews and self.annotator == "rules":
            raise ValueError("reviews decide on the answers of annotator llm or teacher; with rules there are none")
        names = [endpoint.name for endpoint in self.endpoints]
        if len(set(names)) != len(names):
            raise ValueError(f"endpoints must not repeat a name, got {names}")
        return self
