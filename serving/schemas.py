"""What goes over the wire: requests and answers, as OpenAPI shows them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

Scalar = str | int | float | bool | None


def _encodable(value: str) -> str:
    """Refuses what JSON can spell and UTF-8 cannot: half of a pair of surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("is no valid Unicode text") from None
    return value


Text = Annotated[StrictStr, AfterValidator(_encodable)]
Value = (
    Text
    | StrictBool
    | Annotated[StrictInt, Field(ge=-(2**63) + 1, le=2**63 - 1)]
    | Annotated[StrictFloat, Field(allow_inf_nan=False)]
    | None
)


class Request(BaseModel):
    """What all requests have in common: no unknown fields."""

    model_config = ConfigDict(extra="forbid")


class Range(Request):
    """From `min` to `max`, both included; either may be left out."""

    min: Value = None
    max: Value = None


Where = dict[Text, Value | list[Value] | Range]

WHERE = Field(
    default=None,
    description="Filter on the columns of the index (see /info): a value, a list of values, or a range "
    '`{"min": ..., "max": ...}`. All conditions have to hold.',
    examples=[{"taken": {"min": "2024-01-01", "max": "2024-12-31"}}],
)
RERANK = Field(
    default=None,
    description='How many of the best the fusion encoder scores anew; "auto" where that is cheap, "off" for none. '
    "Without it, what the service was started with.",
)
K = Field(default=10, ge=1, description="Results for each query.")
Rerank = Annotated[StrictInt, Field(ge=1)] | Literal["auto", "off"] | None


class SearchRequest(Request):
    """A search by texts, in any languages."""

    queries: Text | Annotated[list[Text], Field(min_length=1)] = Field(
        description="One text, or several.", examples=[["ein Hund im Schnee", "a dog in the snow"]]
    )
    k: StrictInt = K
    where: Where | None = WHERE
    rerank: Rerank = RERANK
    modality: Literal["image", "text"] | None = Field(
        default=None, description="What is to be found; an error if the gallery holds the other."
    )


class CompareRequest(Request):
    """One query in several languages."""

    queries: dict[Text, Text] = Field(
        min_length=2,
        description="Language -> the query in it.",
        examples=[{"en": "a dog in the snow", "de": "ein Hund im Schnee", "ja": "雪の中の犬"}],
    )
    k: StrictInt = K
    depth: StrictInt | None = Field(
        default=None, ge=1, description="Places that ranks are looked up in; by default five times k."
    )
    where: Where | None = WHERE
    rerank: Rerank = RERANK


class Hit(BaseModel):
    """One item found."""

    id: str
    score: float = Field(description="What the order follows: the cosine similarity, or the score of re-ranking.")
    similarity: float | None = Field(default=None, description="The cosine, if anything was re-ranked.")
    match: float | None = Field(default=None, description="Probability of a match, if this item was re-ranked.")
    text: str | None = Field(default=None, description="Of a gallery of texts.")
    image: str | None = Field(default=None, description="Where the photo is, on this service.")
    metadata: dict[str, Scalar] = Field(default={}, description="Columns of the index.")


class QueryResult(BaseModel):
    """The items found for one query, best first."""

    query: str | None = Field(description="The text; null for a photo alone.")
    hits: list[Hit]


class SearchResponse(BaseModel):
    """Answers in the order of the queries."""

    modality: str | None = Field(description='What was searched: "image" or "text".')
    results: list[QueryResult]
    took_ms: float = Field(description="From the request to the answer, waiting included.")


class SimilarResponse(BaseModel):
    """What lies nearest to one item, the item itself left out."""

    id: str
    hits: list[Hit]
    took_ms: float


class Item(BaseModel):
    """What is known of one item."""

    id: str
    text: str | None = None
    image: str | None = None
    metadata: dict[str, Scalar] = {}


class LanguageResult(BaseModel):
    """What one language found."""

    language: str
    query: str
    hits: list[Hit]


class Spread(BaseModel):
    """Where the languages rank one item."""

    id: str
    ranks: dict[str, int | None] = Field(description="Language -> place, from 0; null beyond `depth`.")
    best: int
    worst: int | None = Field(description="Null if a language has it nowhere in its first `depth`.")
    std: float = Field(description="Standard deviation of the ranks, a miss counted as the place below `depth`.")


class CompareResponse(BaseModel):
    """How far the languages agree, in the items that any of them has among its first k."""

    languages: list[LanguageResult]
    k: int
    depth: int
    mrv: float = Field(description="Mean of `std` over the items: 0 if all languages give the same order.")
    variance: float
    mad: float
    missed: int = Field(description="Ranks beyond `depth`.")
    agreement: float = Field(description="Share of the first k that two languages have in common, mean of all pairs.")
    overlap: dict[str, dict[str, float]] = Field(description="That share for each pair.")
    items: list[Spread] = Field(description="Those that languages disagree on most come first.")
    took_ms: float


class Health(BaseModel):
    """Whether the service answers."""

    status: Literal["ok"]


class Info(BaseModel):
    """What is served, and within which limits."""

    model: str
    gallery: str
    modality: str | None
    items: int
    columns: dict[str, str] = Field(description="Columns that filters can name, with their types.")
    limits: dict[str, int | float]


class Error(BaseModel):
    """Any answer that is no success."""

    detail: str = Field(description="What was wrong, in words.")
