"""The few frozen dataclasses and type aliases that several packages share.

Shapes are written with B pairs, L tokens, C labels, D dimensions, V = 3 verdicts, E features.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from jax_rele.types.outputs import DecoderOutputs as DecoderOutputs
    from jax_rele.types.outputs import StudentOutputs as StudentOutputs

PyTree: TypeAlias = Any
"""A tree of arrays, or of what stands for them: shapes, shardings, names."""

Params: TypeAlias = Mapping[str, Any]
"""A nested mapping of variables by name, as Flax returns it."""

VERDICTS = ("match", "mismatch", "absent")
"""What a comparison of query and item on one dimension can yield, in the order of every verdict array.

`match`: both state the dimension and agree. `mismatch`: both state it and disagree. `absent`: the query does not ask
for it or the item does not state it, so there is nothing to compare.
"""

QUERY = "query"
"""The `Span.source` of text in the query; any other source is a field of the item."""

ITEM_FIELDS = ("title", "brand", "color", "category", "bullets", "description")
"""The text fields of an item that models may read; `attributes` are read by the annotators."""

Quoting: TypeAlias = Literal["auto", "none", "standard", "backslash"]
Html: TypeAlias = Literal["keep", "text"]


@dataclass(frozen=True)
class ReadOptions:
    """How files of rows are read; the values are those of `data` in a config.

    Attributes:
      fields: canonical name of a field -> its name in the file.
      encoding: of text files.
      delimiter: one character between the cells of CSV and TSV; empty to choose it by the header.
      quoting: how quotes in CSV and TSV are read, see `jax_rele.data.sources.delimited`.
      html: whether HTML in queries and items is kept or becomes plain text.
      max_characters: a row with a longer text is bad; 0 for any length.
      from_command: whether the user gave them as options of a command, which messages name then.
    """

    fields: Mapping[str, str] = field(default_factory=dict)
    encoding: str = "utf-8"
    delimiter: str = ""
    quoting: Quoting = "auto"
    html: Html = "keep"
    max_characters: int = 100_000
    from_command: bool = False

    def name_of(self, option: str) -> str:
        """What the user sets: `data.quoting` in a config, or `--quoting` on the command line."""
        if self.from_command:
            return f"--{option.replace('_', '-')}"
        return "labels.aliases" if option == "aliases" else f"data.{option}"


@dataclass(frozen=True)
class LabelSchema:
    """Ordered relevance grades. Two grades is the binary case.

    Attributes:
      names: the grades, in the order of every label array.
      gains: the relevance of each grade, from 0 to 1; a pair's score is its expected gain.
      positive: the grades that count as relevant in the binary view.
    """

    names: tuple[str, ...]
    gains: tuple[float, ...]
    positive: tuple[str, ...]

    def __post_init__(self):
        if len(self.names) < 2 or len(set(self.names)) != len(self.names) or "" in self.names:
            raise ValueError(f"names must be at least two distinct labels, got {list(self.names)}")
        if len(self.gains) != len(self.names):
            raise ValueError(f"gains must hold one number per label: {len(self.names)}, got {len(self.gains)}")
        if not all(0.0 <= gain <= 1.0 for gain in self.gains):
            raise ValueError(f"gains must lie in [0, 1], got {list(self.gains)}")
        unknown = [name for name in self.positive if name not in self.names]
        if unknown or not 0 < len(set(self.positive)) < len(self.names):
            raise ValueError(f"positive must name some but not all of {list(self.names)}, got {list(self.positive)}")

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str | None) -> int:
        """The position of a label. Raises ValueError for a name outside the schema, and for None."""
        if name is None:
            raise ValueError("a pair without a label has no index")
        return self.names.index(name)

    @property
    def is_positive(self) -> np.ndarray:
        """[C] bool: which labels are relevant in the binary view."""
        return np.array([name in self.positive for name in self.names])

    def expected_gain(self, probs: np.ndarray) -> np.ndarray:
        """[..., C] label distributions -> [...] expected gains."""
        # A sum by rows and not a matrix product, which may round equal rows differently and so break ties.
        return (np.asarray(probs, np.float64) * np.asarray(self.gains, np.float64)).sum(axis=-1)


@dataclass(frozen=True)
class Item:
    """What is sold. Every text may be empty except the title; all of it is written by sellers and untrusted."""

    id: str
    title: str
    brand: str = ""
    color: str = ""
    category: str = ""
    bullets: str = ""
    description: str = ""
    attributes: tuple[tuple[str, str], ...] = ()

    def texts(self, fields: Sequence[str]) -> Iterator[tuple[str, str]]:
        """The non-empty (field, text) pairs among `fields`, in that order."""
        for name in fields:
            text = getattr(self, name)
            if text:
                yield name, text


@dataclass(frozen=True)
class Tag:
    """A segment of a query that a person marked, with the person's type for it (e.g. `core_product_type`)."""

    text: str
    type: str


@dataclass(frozen=True)
class Pair:
    """One (query, item) to judge.

    Attributes:
      label: the human judgement, a name of the label schema, or None.
      split: `train`, `validation` or `test`, or None before the data are split.
      tags: human segments of the query, or None where nobody tagged it.
      query_frequency: how often the query was typed, or None where unknown.
      long_tail: whether the query is a rare one, or None where the data do not say.
    """

    pair_id: str
    query: str
    item: Item
    label: str | None = None
    locale: str = ""
    split: str | None = None
    tags: tuple[Tag, ...] | None = None
    query_frequency: int | None = None
    long_tail: bool | None = None


@dataclass(frozen=True)
class Comparison:
    """One step of the reasoning: what query and item say of a dimension, and whether they agree."""

    dimension: str
    query_values: tuple[str, ...] = ()
    item_values: tuple[str, ...] = ()
    verdict: str = "absent"

    def __post_init__(self):
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict must be one of {VERDICTS}, got {self.verdict!r}")
        if not self.dimension or "" in self.query_values or "" in self.item_values:
            raise ValueError("a dimension's name and its values must not be empty strings")


@dataclass(frozen=True)
class Rationale:
    """The chain of thought as data: one comparison per dimension, in order, and the label that follows from them.

    `label` is None where no judgement is known. `comparisons` is empty in a rationale that holds a label alone.
    """

    comparisons: tuple[Comparison, ...] = ()
    label: str | None = None

    def __post_init__(self):
        names = [comparison.dimension for comparison in self.comparisons]
        if len(set(names)) != len(names):
            raise ValueError(f"a dimension is compared twice in {names}")
        if self.label == "":
            raise ValueError("a label must not be an empty string")

    def verdict(self, dimension: str) -> str:
        """The verdict on a dimension; `absent` for a dimension that the rationale does not compare."""
        for comparison in self.comparisons:
            if comparison.dimension == dimension:
                return comparison.verdict
        return "absent"


@dataclass(frozen=True)
class Rule:
    """A business rule, e.g. that an item of another brand is a Substitute at best.

    Attributes:
      text: the rule in words; may be empty where there are conditions.
      conditions: {dimension: verdicts}. The rule applies where the verdict on every dimension is one of those; without
        conditions it is in words alone and is never checked.
      labels: the labels that are allowed where it applies.
    """

    text: str = ""
    conditions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    labels: tuple[str, ...] = ()

    def __str__(self) -> str:
        """In words; made of the conditions where it has no text."""
        if self.text:
            return self.text
        conditions = (f"{name} is {' or '.join(verdicts)}" for name, verdicts in self.conditions.items())
        return f"Where {' and '.join(conditions)}, the label is {' or '.join(self.labels)}."

    def applies(self, rationale: Rationale) -> bool:
        """Whether the verdicts of a rationale meet its conditions."""
        return bool(self.conditions) and all(
            rationale.verdict(name) in verdicts for name, verdicts in self.conditions.items()
        )


@dataclass(frozen=True, order=True)
class Span:
    """Evidence: characters [start, end) of the query or of one field of the item, for one dimension."""

    source: str
    start: int
    end: int
    dimension: str


@dataclass(frozen=True)
class Signals:
    """What a teacher says of N pairs. Arrays are aligned with `pair_ids`.

    Attributes:
      label_probs: [N, C] label distribution.
      verdict_probs: [N, D, V] verdict distribution; NaN rows where the teacher gave no verdict.
      evidence: N tuples of spans.
      rationales: N texts in the grammar of `jax_rele.rationale`, empty where there is none.
      confidence: [N] how sure the teacher is, in [0, 1]; ones by default.
      rationale_embedding: [N, R] vectors of the rationales, NaN rows where there is none; None where all lack one.
    """

    pair_ids: tuple[str, ...]
    label_probs: np.ndarray
    verdict_probs: np.ndarray
    evidence: tuple[tuple[Span, ...], ...]
    rationales: tuple[str, ...]
    confidence: np.ndarray | None = None
    rationale_embedding: np.ndarray | None = None

    def __post_init__(self):
        if self.confidence is None:
            object.__setattr__(self, "confidence", np.ones(len(self.pair_ids), np.float32))


def __getattr__(name: str) -> Any:
    """What models return is imported when it is first used: processes that read rows need no jax."""
    if name in ("DecoderOutputs", "StudentOutputs"):
        return getattr(importlib.import_module("jax_rele.types.outputs"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
