"""What the HTTP endpoints read and answer. An unknown field is an error that names it."""

import math
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from recsys.types import Slate

Id = Annotated[str, Field(min_length=1, max_length=256)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Context(Body):
    """Where the request comes from; the same fields as an event's context."""

    device: str | None = None
    session_id: str | None = None
    page: str | None = None
    country: str | None = None


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


class EventResult(BaseModel):
    event_id: str | None
    status: str = Field(description="accepted: it is on the bus; rejected: see reason")
    reason: str | None = None


class EventsAnswer(BaseModel):
    accepted: int
    rejected: int
    results: list[EventResult]


def slate_body(
    slate: Slate, *, release: str, ids: Sequence[str], titles: Sequence[str | None]
) -> dict[str, Any]:
    """A RecommendationsAnswer as plain values: the hot path validates nothing that we made ourselves."""
    return {
        "slate_id": slate.slate_id,
        "user_id": slate.user_id,
        "scene": slate.scene,
        "release": release,
        "items": [
            {
                "item_id": ids[entry.item],
                "title": titles[entry.item],
                "score": None if math.isnan(entry.score) else entry.score,
                "sources": [source.label for source in entry.sources],
                "position": place,
            }
            for place, entry in enumerate(slate.items, start=1)
        ],
        "arms": dict(slate.arms),
        "degraded": list(slate.degraded),
    }
