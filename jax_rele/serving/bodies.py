"""What requests and answers hold. Unknown fields are refused: a misspelt option would silently do nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Strict, Tag

from jax_rele.data.rows import RowError, parse_row
from jax_rele.serving.refusals import BadRequest
from jax_rele.text import is_visible
from jax_rele.types import ITEM_FIELDS, Item, Pair, ReadOptions

_ANY_LENGTH = ReadOptions(max_characters=0)  # the size of a request is limited

SIDES = {
    "query": "query",
    "search_query": "query",
    "item": "item",
    "document": "item",
    "search_document": "item",
}
"""Names of the sides of a pair, ours and those of other services."""


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("is no valid Unicode text") from None
    return text


def _clean(text: str) -> str:
    """As texts of pairs are read: without NUL characters and white space at the ends."""
    text = _unicode(text).replace("\0", "").strip()
    if not is_visible(text):
        raise ValueError("must not be blank")
    return text


Text = Annotated[str, AfterValidator(_clean)]
Word = Annotated[str, AfterValidator(_unicode)]
Side = Literal["query", "item", "search_query", "search_document", "document"]
Flag = Annotated[bool, Strict()]
Count = Annotated[int, Strict(), Field(ge=1)]
"""A number that is none of `true`, `"5"` and `5.0`."""
TopK = Annotated[int, Strict(), Field(ge=1, le=1000)]


class Body(BaseModel):
    """A request: nothing unknown, no NaN."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())


class ItemBody(Body):
    """An item; only the title is needed. Which fields a bundle reads is in `/info`."""

    id: Word | None = None
    title: Text
    brand: Word | None = None
    color: Word | None = None
    category: Word | None = None
    bullets: Word | list[Word] | None = None
    description: Word | None = None
    attributes: dict[Text, Word | int | float | bool | list[Word] | None] = {}


class TextBody(Body):
    """A text as an object, as Cohere's first interface has it."""

    text: Text


BRANCHES = ("a_text", "a_list", "a_text_object", "an_item")
"""Names of the branches of unions, as errors have them."""

TYPES = ("str", "function-after[_unicode(), str]")
"""How the first error ends of a field that takes a text or something else."""


def _item_branch(value: Any) -> str:
    if isinstance(value, str):
        return "a_text"
    has_text = "text" in value if isinstance(value, dict) else isinstance(value, TextBody)
    return "a_text_object" if has_text else "an_item"


ItemLike = Annotated[
    Annotated[Text, Tag("a_text")] | Annotated[TextBody, Tag("a_text_object")] | Annotated[ItemBody, Tag("an_item")],
    Discriminator(_item_branch),
]
Texts = Annotated[
    Annotated[Text, Tag("a_text")] | Annotated[Annotated[list[Text], Field(min_length=1)], Tag("a_list")],
    Discriminator(lambda value: "a_list" if isinstance(value, list) else "a_text"),
]
"""One text or several."""


def _pairs_branch(value: Any) -> str:
    return "a_text" if isinstance(value, list | tuple) and any(isinstance(part, str) for part in value) else "a_list"


TextPair = tuple[Text, Text]
TextPairs = Annotated[
    Annotated[TextPair, Tag("a_text")] | Annotated[Annotated[list[TextPair], Field(min_length=1)], Tag("a_list")],
    Discriminator(_pairs_branch),
]
"""One pair of texts or several."""


RankField = Literal["text", "title", "brand", "color", "category", "bullets", "description"]


class TeiRerank(Body):
    """text-embeddings-inference's `/rerank`."""

    query: Text
    texts: Annotated[list[Text], Field(min_length=1)]
    raw_scores: Flag = False
    return_text: Flag = False
    truncate: Flag | None = None
    truncation_direction: Literal["Right", "right"] = "Right"


class TeiEmbed(Body):
    """text-embeddings-inference's `/embed`; `prompt_name` or `side` says which side the texts are of."""

    inputs: Texts
    normalize: Flag = True
    truncate: Flag | None = None
    truncation_direction: Literal["Right", "right"] = "Right"
    prompt_name: Side | None = None
    side: Side | None = None
    dimensions: Count | None = None


class TeiPredict(Body):
    """text-embeddings-inference's `/predict`: one pair, or several."""

    inputs: TextPairs
    raw_scores: Flag = False
    truncate: Flag | None = None
    truncation_direction: Literal["Right", "right"] = "Right"


class CohereRerank(Body):
    """Cohere's `/v1/rerank` and `/v2/rerank`; `rank_fields` are those of a document that are read, in their order."""

    model: Word = ""
    query: Text
    documents: Annotated[list[ItemLike], Field(min_length=1)]
    rank_fields: Annotated[list[RankField], Field(min_length=1)] | None = None
    top_n: Count | None = None
    return_documents: Flag = False
    max_tokens_per_doc: Count | None = None
    priority: Annotated[int, Strict()] | None = None


class OpenAIEmbeddings(Body):
    """OpenAI's `/v1/embeddings`; `input_type`, or the end of `model`, says which side the texts are of."""

    input: Texts
    model: Word = ""
    input_type: Side | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Count | None = None
    user: Word | None = None


class PairBody(Body):
    """A query and an item."""

    query: Text
    item: ItemLike


class ScoreBody(Body):
    """Pairs to judge: a query with items, or pairs."""

    query: Text | None = None
    items: Annotated[list[ItemLike], Field(min_length=1)] | None = None
    pairs: Annotated[list[PairBody], Field(min_length=1)] | None = None
    model: Word = ""


class SearchBody(Body):
    """A search. `rerank` orders what the two-tower found by the cross-encoder; by default where there is one."""

    query: Text
    k: TopK = 10
    filters: dict[Word, Word] = {}
    rerank: Flag | None = None
    candidates: TopK | None = None


class CompareBody(Body):
    """What the page asks: the same query for every ranker."""

    query: Text
    k: Annotated[int, Strict(), Field(ge=1, le=100)] = 10


class JudgementBody(Body):
    """A grade that a person gave; without label an earlier one is taken back."""

    judge: Annotated[str, Field(max_length=100), AfterValidator(_clean)]
    query: Text
    item: ItemBody
    label: Word | None


class Ranked(BaseModel):
    """One answer of `/rerank`."""

    index: int
    score: float
    text: str | None = None


class Prediction(BaseModel):
    """A label and its probability."""

    label: str
    score: float


class CohereResult(BaseModel):
    """One answer of Cohere's rerank."""

    index: int
    relevance_score: float
    document: dict[str, Any] | None = None


class CohereAnswer(BaseModel):
    """The answer of Cohere's rerank."""

    id: str
    results: list[CohereResult]
    meta: dict[str, Any]


class Embedding(BaseModel):
    """One embedding as OpenAI returns it: numbers, or the base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Embeddings(BaseModel):
    """The answer of OpenAI's embeddings."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: dict[str, int]


class Verdict(BaseModel):
    """The likeliest verdict on a dimension, and its probability."""

    verdict: str
    probability: float


class Evidence(BaseModel):
    """Characters [start, end) of the query or of a field of the item; `text` is what stands there."""

    source: str
    start: int
    end: int
    dimension: str
    text: str


class Judged(BaseModel):
    """A prediction for one pair.

    Fields that the bundle's student does not predict, or that no tier was fitted for, are null.
    """

    index: int
    score: float
    label: str
    labels: dict[str, float]
    verdicts: dict[str, Verdict] | None = None
    evidence: list[Evidence] | None = None
    tier: str | None = None


class ScoreAnswer(BaseModel):
    """Predictions in the order of the request."""

    model: str
    results: list[Judged]


class Hit(Judged):
    """An item that was found; `index` is its rank from 0 on."""

    item: dict[str, Any]
    inner_product: float


class SearchAnswer(BaseModel):
    """What was found, best first."""

    model: str
    query: str
    results: list[Hit]
    ms: dict[str, float]


class Column(BaseModel):
    """One ranker on the page: keys into the items, best first, and what each scores."""

    name: str
    order: list[int]
    scores: list[float]


class CompareAnswer(BaseModel):
    """The items that any ranker found, judged by the best model, and the order of each ranker."""

    query: str
    items: list[dict[str, Any]]
    judged: list[Judged]
    columns: list[Column]
    ms: dict[str, float]


class ErrorBody(BaseModel):
    """Every refusal: one line, and its kind."""

    error: str
    error_type: str


def as_item(value: str | TextBody | ItemBody, path: str) -> Item:
    """An item of a request, at a path in it. Raises BadRequest where it is none."""
    if isinstance(value, TextBody):
        value = value.text
    if isinstance(value, str):
        return Item("", value)
    row = {"query": "none", "item": value.model_dump(exclude_none=True)}
    try:
        return parse_row(row, _ANY_LENGTH, label_map={}, label_names=(), for_prediction=True).item
    except RowError as error:
        raise BadRequest(f"{path}: {error}") from None


def as_pair(query: str, item: str | TextBody | ItemBody, path: str) -> Pair:
    """A pair of a request, whose item is at a path in it. Raises BadRequest where it is none."""
    return Pair("", query, as_item(item, path))


def as_ranked_item(value: str | TextBody | ItemBody, fields: Sequence[str], path: str) -> Item:
    """A document of which these fields are read, in their order. Raises BadRequest where it has none of them."""
    item = as_item(value, path)
    if isinstance(value, str):
        return item
    if isinstance(value, TextBody):
        text = item.title if "text" in fields else ""
    else:
        text = " ".join(filter(None, (getattr(item, field, "") for field in fields)))
    if not text:
        raise BadRequest(f"{path}: the document has none of the rank_fields {', '.join(fields)}")
    return Item("", text)


def item_object(item: Item) -> dict[str, Any]:
    """An item as JSON, without its empty fields."""
    values = {name: getattr(item, name) for name in ("id", *ITEM_FIELDS)} | {"attributes": dict(item.attributes)}
    return {name: value for name, value in values.items() if value}
