"""Where the pairs come from and how they are read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from jax_rele.config.base import Fraction, NonNegative, Positive, Section
from jax_rele.types import Html, Quoting, ReadOptions

ItemField = Literal["title", "brand", "color", "category", "bullets", "description"]


class SplitsConfig(Section):
    """Fractions of the queries; a query is never in two splits."""

    train: Fraction = 0.6
    """Fraction of the queries to train on."""
    validation: Fraction = 0.2
    """Fraction of the queries on which thresholds and temperatures are chosen."""
    test: Fraction = 0.2
    """Fraction of the queries that the reported metrics are computed on."""
    existing: Literal["keep", "ignore"] = "keep"
    """Whether the `split` of a row is kept or ignored. Where the rows have train but no validation (or no test) split,
    its fraction comes from their train split."""
    leakage: Literal["refuse", "drop"] = "refuse"
    """What happens where the rows of one query have two splits: an error, or the rows of the earlier split (train, then
    validation, then test) are quarantined."""
    fold: tuple[int, int] | None = None
    """[k, K], one run of a cross-validation: all queries are divided into K folds, the k-th (from 1) is the test split
    and the others are train and validation in the proportion of their fractions. `compare --folds K` runs all K."""

    @model_validator(mode="after")
    def _check(self):
        total = self.train + self.validation + self.test
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"train + validation + test must be 1, got {total:g}")
        if self.fold is not None and not 1 <= self.fold[0] <= self.fold[1] >= 2:
            number, count = self.fold
            raise ValueError(f"fold: [k, K] needs K of 2 or more and k of 1 to K, got [{number}, {count}]")
        return self

    @model_serializer(mode="wrap")
    def _without_unset_fold(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Leaves out a fold that is None, so that the hashes of plain runs do not depend on it."""
        return {name: value for name, value in handler(self).items() if name != "fold" or value is not None}


class CandidatesConfig(Section):
    """Unlabelled pairs of training queries and other items, for the teacher to score."""

    per_query: NonNegative = 3
    """Pairs per training query."""
    bm25: Fraction = 0.5
    """Fraction of them whose item BM25 retrieves for the query."""
    same_category: Fraction = 0.0
    """Fraction whose item has the category of an item that was judged for the query."""
    same_brand: Fraction = 0.0
    """Fraction whose item has the brand of an item that was judged for the query. The rest is sampled at random."""

    @model_validator(mode="after")
    def _check(self):
        total = self.bm25 + self.same_category + self.same_brand
        if total > 1.0 + 1e-6:
            raise ValueError(f"bm25 + same_category + same_brand must be at most 1, got {total:g}")
        return self


class TextLossConfig(Section):
    """Text that models cannot read: characters that a tokenizer does not know, and texts that are longer than a model
    reads. Both are counted in every stage; below are the fractions that are warned about, and those that stop it."""

    warn_unknown: Fraction = 0.02
    """Fraction of unknown characters, white space apart, above which a stage warns."""
    max_unknown: Fraction = 0.25
    """Fraction of unknown characters above which it stops."""
    warn_cut: Fraction = 0.25
    """Fraction of pairs whose query or item is cut above which a stage warns."""
    max_cut: Fraction = 1.0
    """Fraction of pairs whose query or item is cut above which it stops."""


class HuggingFaceConfig(Section):
    """How a Hugging Face data set is read."""

    subset: str = ""
    """Name of its configuration, where it has several."""
    revision: str = ""
    """Branch, tag or commit on the hub; empty for the newest."""
    streaming: bool = False
    """Whether rows are streamed, without a copy of the data set on disk."""


class DataConfig(Section):
    """Where the pairs come from and how they are read (docs/data.md)."""

    path: str = "sample"
    """`sample` (the bundled ESCI pairs); a JSONL, CSV, TSV or Parquet file, a folder of those, or a glob, also at
    gs:// or s3://; `hf:NAME`, a data set on the Hugging Face hub or a saved folder; `tfds:NAME`."""
    manual_dir: str = ""
    """Folder of the official files that a benchmark (tfds:esci, tfds:wands) is built from; empty: downloaded."""
    hugging_face: HuggingFaceConfig = HuggingFaceConfig()
    fields: dict[str, str] = Field(default_factory=dict)
    """Documented field -> its name in the file, e.g. {item: product}; the documented names are always accepted."""
    item_fields: Annotated[tuple[ItemField, ...], Field(min_length=1)] = ("brand", "color", "title")
    """The item's texts that models and baselines read, in this order; a long text is truncated at its end."""
    encoding: str = "utf-8"
    """Encoding of text files; a row that does not decode is quarantined."""
    delimiter: str = ""
    """What separates the cells of CSV and TSV files. Empty: the comma of .csv or the tab of .tsv, or where the header
    has none of them, a semicolon, bar, comma or tab."""
    quoting: Quoting = "auto"
    """Quotes in CSV and TSV. `none`: they are characters; `standard`: quoted cells may hold delimiters and line ends,
    and quotes are doubled; `backslash`: or follow a backslash; `auto`: none where tabs separate the cells, elsewhere
    standard, but a cell that took in other rows is a bad row."""
    html: Html = "keep"
    """Whether HTML tags and entities in queries and items are kept, or become plain text."""
    max_characters: Positive = 100_000
    """A row with a longer text is quarantined."""
    conflicts: Literal["majority", "first", "last", "drop"] = "majority"
    """Which label a pair with conflicting labels gets: the most frequent (a tie goes to the lower grade), the first,
    the last, or none: all its rows are quarantined."""
    splits: SplitsConfig = SplitsConfig()
    max_bad_fraction: Fraction = 0.1
    """A larger fraction of bad rows stops the run; fewer are written to the quarantine table and counted."""
    text_loss: TextLossConfig = TextLossConfig()
    candidates: CandidatesConfig = CandidatesConfig()
    tail_max_frequency: NonNegative = 1
    """A query is long-tail when its frequency, or that of its rarest word in the training split, is at most this."""

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, delimiter: str) -> str:
        return one_character(delimiter)

    @model_serializer(mode="wrap")
    def _without_unset_form(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Leaves out how files are written where that is not set, so that hashes of plain runs do not depend on it."""
        unset = {name for name in ("delimiter", "quoting", "html") if getattr(self, name) == _default(name)}
        return {name: value for name, value in handler(self).items() if name not in unset}

    @property
    def reading(self) -> ReadOptions:
        """How the files are read, apart from where they lie."""
        return ReadOptions(
            self.fields, self.encoding, self.delimiter, self.quoting, self.html, max_characters=self.max_characters
        )


def one_character(delimiter: str) -> str:
    """The character that a delimiter stands for; empty for none. Raises ValueError for anything else."""
    delimiter = {"\\t": "\t", "tab": "\t"}.get(delimiter, delimiter)
    if len(delimiter) > 1 or delimiter in ('"', "\n", "\r"):
        raise ValueError("must be one character, not a quote or a line end; write tab for a tab")
    return delimiter


def _default(name: str) -> object:
    return DataConfig.model_fields[name].default
