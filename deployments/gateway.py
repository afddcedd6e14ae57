"""The HTTP entrance: validates, gathers requests into batches, and answers.

Item ids become rows here and rows become ids. What one request asks wrongly is refused before it
joins a batch; where a batch fails for want of Redis or by a rule, its scenes are asked again on their
own, so that only those fail that must. Compute runs on the event loop, Redis in threads.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.middleware import Middleware

from deployments.bodies import (
    DeletedAnswer,
    ErrorAnswer,
    EventsAnswer,
    ItemsAnswer,
    ItemsRequest,
    RecommendationsAnswer,
    RecommendationsRequest,
    SimilarAnswer,
    SimilarRequest,
    slate_body,
)
from deployments.catalog_tail import CatalogTail
from deployments.collector import Collector
from deployments.http_errors import HANDLERS, BodyLimit, UnknownItemError, json_response
from deployments.items import ItemWriter
from deployments.metrics import CollectorMetrics, Counted, GatewayMetrics, exposition
from deployments.online_users import OnlineUsers
from deployments.stage import placed, shards_of
from recsys.catalog.changelog import Change
from recsys.errors import RequestError, RuleError, UnavailableError
from recsys.events.bus import BusSettings
from recsys.events.validation import ValidationSettings
from recsys.pipeline.items import Names
from recsys.pipeline.scenes import check_scenes
from recsys.pipeline.similar import Similar
from recsys.releases.live import LiveCatalog
from recsys.releases.manifest import open_release
from recsys.releases.parts import load_parts
from recsys.types import RequestBatch, Slate

MAX_BODY = 2_000_000  # bytes: 1,000 events of 2 kB


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """The part of the settings that the gateway needs, as plain values."""

    online_store_url: str
    time_to_live_s: int
    bus: BusSettings  # its url is given
    validation: ValidationSettings
    queue_events: int
    wait_s: float
    max_n: int
    default_n: int
    clock: int | None  # epoch seconds at which time stands still; None = now
    batch: int
    batch_wait_s: float
    step_timeout_s: float  # of a step that is placed elsewhere


@dataclass(frozen=True, slots=True)
class Asked:
    """One valid request, in rows."""

    user_id: str
    scene: str
    n: int
    exclude: tuple[int, ...]
    country: str | None


EVENTS_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"type": ["object", "array"]}}},
        "description": "an event, or a list of events: see recsys.events.schema",
    }
}
errors: dict[int | str, dict[str, Any]] = {code: {"model": ErrorAnswer} for code in (400, 404, 413, 422, 503)}
app = FastAPI(
    title="recsys",
    description="Slates, similar items and events.",
    responses=errors,
    exception_handlers=HANDLERS,
    middleware=[Middleware(Counted), Middleware(BodyLimit, limit=MAX_BODY)],
)


@serve.deployment
@serve.ingress(app)
class Gateway:
    def __init__(
        self,
        release: str,
        options: GatewayOptions,
        *,
        shards: Mapping[str, DeploymentHandle],
        steps: Mapping[str, DeploymentHandle],
        streamer: DeploymentHandle,
    ) -> None:
        """`release`: path of the manifest; `shards` and `steps`: name -> handle of what is elsewhere.
        `streamer` is not called: Serve runs what the entrance refers to."""
        opened = open_release(release)
        parts = load_parts(opened)
        self.manifest, self.scenes = opened.manifest, parts.settings.scenes
        self.options = options
        self.users = OnlineUsers(options.online_store_url, options.time_to_live_s, options.clock)
        self.live = LiveCatalog.of_path(opened, parts, shards=not shards)
        self.recommender = placed(
            parts,
            live=self.live,
            users=self.users,
            shards=shards,
            steps=steps,
            timeout_s=options.step_timeout_s,
        )
        self.similar = Similar(self.live.items.vectors, shards_of(self.live, shards), self.recommender.rules)
        self.names = Names(parts.items["item_id"].to_list(), parts.items["title"].to_list())
        self.tail = CatalogTail(opened, self._apply, bus=options.bus, what="gateway", shards=self.live.shards)
        self.items = ItemWriter(self.live, self.names, self.tail)
        self.collector = Collector(
            options.bus,
            validation=options.validation,
            queue_events=options.queue_events,
            wait_s=options.wait_s,
            metrics=CollectorMetrics(),
        )
        self.metrics = GatewayMetrics()
        gathered: Any = self._gathered
        gathered.set_max_batch_size(options.batch)
        gathered.set_batch_wait_timeout_s(options.batch_wait_s)

    def _apply(self, changes: Sequence[tuple[int, Change]]) -> None:
        self.names.apply(changes)  # first: what is found has a name
        self.live.apply(changes)

    def now(self) -> int:
        return int(time.time()) if self.options.clock is None else self.options.clock

    @app.post("/v1/recommendations", response_model=RecommendationsAnswer)
    async def recommendations(self, request: Request, body: RecommendationsRequest) -> Response:
        """A slate for a user, known or not, in a scene."""
        check_scenes((body.scene,), self.scenes)
        request.scope["scene"] = body.scene
        asked = Asked(
            user_id=body.user_id,
            scene=body.scene,
            n=self._checked_n(body.n),
            exclude=tuple(self.names.rows[i] for i in body.exclude if i in self.names.rows),
            country=body.country or body.context.country,
        )
        slate = await self._gathered(asked)
        if isinstance(slate, Exception):
            raise slate
        return json_response(slate_body(slate, release=self.manifest.id, names=self.names))

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.002, max_concurrent_batches=4)
    async def _gathered(self, asked: list[Asked]) -> list[Slate | Exception]:
        """The slate of each request, or what must be raised for it."""
        try:
            return await self._recommend(asked)
        except (UnavailableError, RuleError) as error:
            if len({one.scene for one in asked}) == 1:
                return [error] * len(asked)
            return await self._by_scene(asked)

    async def _by_scene(self, asked: list[Asked]) -> list[Slate | Exception]:
        """A batch that failed, asked again scene by scene."""
        answers: list[Slate | Exception] = [UnavailableError("not asked")] * len(asked)
        for scene in {one.scene for one in asked}:
            own = [place for place, one in enumerate(asked) if one.scene == scene]
            try:
                found: list[Slate | Exception] = await self._recommend([asked[place] for place in own])
            except (UnavailableError, RuleError) as error:
                found = [error] * len(own)
            for place, answer in zip(own, found, strict=True):
                answers[place] = answer
        return answers

    async def _recommend(self, asked: list[Asked]) -> list[Slate | Exception]:
        batch = RequestBatch(
            user_ids=tuple(one.user_id for one in asked),
            scene=tuple(one.scene for one in asked),
            n=np.array([one.n for one in asked], np.int32),
            now=np.full(len(asked), self.now(), np.int64),
            exclude=tuple(one.exclude for one in asked),
            country=tuple(one.country for one in asked),
        )
        answer = await self.recommender.recommend(batch)
        self.metrics.record(answer)
        return list(answer.slates)

    @app.post("/v1/similar", response_model=SimilarAnswer)
    async def similar_items(self, body: SimilarRequest) -> Response:
        """The items nearest to an item, that anybody may see."""
        return await self._similar(body.item_id, body.n, body.country, body.category)

    @app.get("/v1/similar/{item_id}", response_model=SimilarAnswer)
    async def similar_to(
        self, item_id: str, n: int | None = None, country: str | None = None, category: str | None = None
    ) -> Response:
        """The items nearest to an item, that anybody may see."""
        return await self._similar(item_id, n, country, category)

    async def _similar(
        self, item_id: str, n: int | None, country: str | None, category: str | None
    ) -> Response:
        row = self.names.rows.get(item_id)
        if row is None or self.live.items.is_deleted(row):
            raise UnknownItemError(f"release {self.manifest.id} has no item {item_id!r}")
        if not self.live.has_vector(row):
            raise UnknownItemError(f"nothing is known of item {item_id!r} that others could be like")
        rows, scores, missing = await self.similar(
            row, n=self._checked_n(n), now=self.now(), country=country, category=category
        )
        items = [
            {"item_id": self.names.ids[r], "title": self.names.titles[r], "score": float(s)}
            for r, s in zip(rows.tolist(), scores, strict=True)
            if r < len(self.names.ids)
        ]
        return json_response(
            {"item_id": item_id, "release": self.manifest.id, "items": items, "degraded": missing}
        )

    @app.post("/v1/events", response_model=EventsAnswer, openapi_extra=EVENTS_BODY)
    async def post_events(self, request: Request) -> Response:
        """One event or a list of up to 1,000. Accepted means that the bus acknowledged it.

        503: send all again later, with the same event ids."""
        results = await self.collector.take(await request.body(), now=self.now())
        accepted = sum(result["status"] == "accepted" for result in results)
        return json_response({"accepted": accepted, "rejected": len(results) - accepted, "results": results})

    @app.post("/v1/items", response_model=ItemsAnswer)
    async def post_items(self, body: ItemsRequest) -> Response:
        """Adds items, or replaces what is known of them; every replica has them within a second, unless the
        bus is away."""
        items = [item.model_dump(exclude={"vector"}) for item in body.items]
        vectors = [item.vector for item in body.items]
        origins = await self.items.upsert(items, vectors, now=self.now())
        answers = [{"item_id": i["item_id"], "vector": o} for i, o in zip(items, origins, strict=True)]
        return json_response({"release": self.manifest.id, "items": answers})

    @app.delete("/v1/items/{item_id:path}", response_model=DeletedAnswer)
    async def delete_item(self, item_id: str) -> Response:
        """Nobody is shown the item any more. Posted again, it is back."""
        await self.items.delete(item_id)
        return json_response({"item_id": item_id, "deleted": True})

    @app.get("/healthz")
    async def healthz(self) -> Response:
        """This replica runs."""
        return json_response({"status": "ok"})

    @app.get("/readyz")
    async def readyz(self) -> Response:
        """The release is loaded and the online store answers; else 503."""
        await asyncio.to_thread(self.users.ping)
        return json_response({"status": "ready", "release": self.manifest.id})

    @app.get("/v1/release")
    async def release(self) -> Response:
        """What is served."""
        manifest = self.manifest
        return json_response(
            {
                "release": manifest.id,
                "as_of": manifest.as_of,
                "items": manifest.items,
                "scenes": sorted(self.scenes),
                "evaluation": manifest.evaluation,
            }
        )

    @app.get("/metrics")
    async def metrics_text(self) -> Response:
        """Prometheus metrics of all replicas of this node."""
        return Response(await asyncio.to_thread(exposition), media_type=CONTENT_TYPE_LATEST)

    def check_health(self) -> None:
        self.tail.check_health()

    def _checked_n(self, n: int | None) -> int:
        n = self.options.default_n if n is None else n
        if not 1 <= n <= self.options.max_n:
            raise RequestError(f"n = {n}: ask for 1 to {self.options.max_n} items")
        return n
