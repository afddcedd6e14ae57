"""What the HTTP endpoints read and answer. An unknown field is an error that names it."""

import math
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from recsys.pipeline.items import Names
from recsys.types import Slate

Id = Annotated[str, Field(min_length=1, max_length=256)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Context(Body):
    """Where the request comes from; the same fields as an event's context."""

    device: str | None = None
    session_id: str | None = None
    page: str | None = None
    country: Annotated[str, Field(max_length=64)] | None = None


class RecommendationsRequest(Body):
    user_id: Id
    scene: str = "home"
    n: int | None = None
    exclude: Annotated[list[Id], Field(max_length=1000)] = []
    country: Annotated[str, Field(max_length=64)] | None = None
    context: Context = Context()


class SimilarRequest(Body):
    item_id: Id
    n: int | None = None
    country: Annotated[str, Field(max_length=64)] | None = None
    category: Annotated[str, Field(max_length=256)] | None = None


Text = Annotated[str, Field(min_length=1, max_length=256)]
LongText = Annotated[str, Field(max_length=1000)]
Texts = Annotated[list[Text], Field(max_length=250)]
Moment = Annotated[
    AwareDatetime,
    Field(strict=False, ge=datetime(1, 1, 2, tzinfo=UTC), le=datetime(9999, 12, 30, tzinfo=UTC)),
]


class Item(Body):
    """What is not said is not known: a record replaces the one before. When it was published is said once."""

    item_id: Id
    title: LongText | None = None
    categories: Texts | None = Field(None, description="the first is the primary one")
    tags: Texts | None = None
    price: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    available: bool | None = None
    min_age: Annotated[int, Field(ge=0, le=150)] | None = None
    countries_allowed: Texts | None = Field(None, description="null or empty = all")
    countries_blocked: Texts | None = None
    published_at: Moment | None = Field(None, description="null = now, of an item that is new")
    expires_at: Moment | None = None
    attributes: Annotated[dict[Text, LongText], Field(max_length=100)] | None = None
    vector: Annotated[list[float], Field(max_length=4096)] | None = Field(
        None, description="in the space of the served release; null = the one it has, else of its content"
    )


class ItemsRequest(Body):
    items: Annotated[list[Item], Field(min_length=1, max_length=1000)]


class ErrorDetail(BaseModel):
    code: str
    message: str


class ErrorAnswer(BaseModel):
    error: ErrorDetail


class RecommendedItem(BaseModel):
    item_id: str
    title: str | None
    score: float | None = Field(description="null = not ranked: backfill, or the ranker was away")
    sources: list[str]
    position: int = Field(description="1 = first")


class RecommendationsAnswer(BaseModel):
    slate_id: str = Field(description="send it back as context.slate_id of the events that follow")
    user_id: str
    scene: str
    release: str
    items: list[RecommendedItem]
    arms: dict[str, str]
    degraded: list[str]


class SimilarItem(BaseModel):
    item_id: str
    title: str | None
    score: float


class SimilarAnswer(BaseModel):
    item_id: str
    release: str
    items: list[SimilarItem]
    degraded: list[str]


class ItemResult(BaseModel):
    item_id: str
    vector: str = Field(description="given, content, kept (it had one), or none: nothing finds it")


class ItemsAnswer(BaseModel):
    release: str
    items: list[ItemResult]


class DeletedAnswer(BaseModel):
    item_id: str
    deleted: bool


class EventResult(BaseModel):
    event_id: str | None
    status: str = Field(description="accepted: it is on the bus; rejected: see reason")
    reason: str | None = None


class EventsAnswer(BaseModel):
    accepted: int
    rejected: int
    results: list[EventResult]


def slate_body(slate: Slate, *, release: str, names: Names) -> dict[str, Any]:
    """A RecommendationsAnswer as plain values: the hot path validates nothing that we made ourselves. An item
    that a step elsewhere knows before this process does is left out."""
    return {
        "slate_id": slate.slate_id,
        "user_id": slate.user_id,
        "scene": slate.scene,
        "release": release,
        "items": [
            {
                "item_id": names.ids[entry.item],
                "title": names.titles[entry.item],
                "score": None if math.isnan(entry.score) else entry.score,
                "sources": [source.label for source in entry.sources],
                "position": place,
            }
            for place, entry in enumerate((e for e in slate.items if e.item < len(names.ids)), start=1)
        ],
        "arms": dict(slate.arms),
        "degraded": list(slate.degraded),
    }
