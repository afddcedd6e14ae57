"""Prometheus metrics: what a trace says, counted.

Multiprocess mode: every replica of a node writes to one folder (PROMETHEUS_MULTIPROC_DIR in its
environment), and `exposition` adds the folder up, so that a scrape sees the same counters whichever
replica answers. Counters of ended replicas stay in the folder: sums never go down. The folder is one
node's, so on a cluster scrape a gateway of each node.
"""

import collections
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
import psutil  # type: ignore[import-untyped]
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recsys.catalog.following import Follower
from recsys.features.streaming import Applied
from recsys.index.shard import LocalShard
from recsys.pipeline.trace import Answer
from recsys.types import Removal

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
SIZES = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (0, 1, 5, 10, 20, 50, 100)
SHARES = (0.5, 0.8, 0.9, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995, 0.9999, 1.0)


class RequestMetrics:
    def __init__(self) -> None:
        registry = _registry()
        self.requests = Counter(
            "recsys_requests",
            "Requests by route, scene and status",
            ["route", "scene", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "recsys_request_seconds", "Time in the gateway", ["route"], buckets=SECONDS, registry=registry
        )


class Counted:
    """Counts every HTTP request of the application that it wraps, refused ones too."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.metrics: RequestMetrics | None = (
            None  # made in the replica: an application is pickled on its way
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self.metrics = self.metrics or RequestMetrics()
        start, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            # Paths that nobody serves share one label: a scan must not fill the memory.
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, scope.get("scene", ""), str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - start)


class GatewayMetrics:
    def __init__(self) -> None:
        registry = _registry()
        self.stage_seconds = Histogram(
            "recsys_stage_seconds",
            "Time of a batch in a step of the request path",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self.proposed = Counter(
            "recsys_candidates_proposed", "Candidates by source", ["source"], registry=registry
        )
        self.removed = Counter(
            "recsys_candidates_removed", "Candidates removed, by reason", ["reason"], registry=registry
        )
        self.degraded = Counter(
            "recsys_degraded", "Answers that admit something", ["what"], registry=registry
        )
        self.batch_size = Histogram(
            "recsys_batch_size", "Requests that crossed the path together", buckets=SIZES, registry=registry
        )
        self.slate_length = Histogram(
            "recsys_slate_length", "Items of a slate", ["scene"], buckets=LENGTHS, registry=registry
        )

    def record(self, answer: Answer) -> None:
        """What one batch went through."""
        self.batch_size.observe(len(answer.slates))
        for stage, seconds in answer.trace.seconds.items():
            self.stage_seconds.labels(stage).observe(seconds)
        for source, counts in answer.candidates.proposed.items():
            self.proposed.labels(source).inc(float(np.sum(counts)))
        for code, count in enumerate(np.bincount(answer.candidates.removed_by)):
            if code and count:
                self.removed.labels(Removal(code).name.lower()).inc(float(count))
        for slate in answer.slates:
            self.slate_length.labels(slate.scene).observe(len(slate.items))
            for what in slate.degraded:
                self.degraded.labels(what).inc()


class CollectorMetrics:
    def __init__(self) -> None:
        registry = _registry()
        self.events = Counter(
            "recsys_events",
            "Events posted, by what became of them",
            ["status", "reason"],
            registry=registry,
        )
        self.waiting = Gauge(
            "recsys_events_waiting",
            "Events posted that are not answered yet",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.publish_seconds = Histogram(
            "recsys_publish_seconds",
            "Until the bus had a batch of posted events",
            buckets=SECONDS,
            registry=registry,
        )
        self.outages = Counter("recsys_bus_outages", "Times the bus stopped answering", registry=registry)

    def record(self, reasons: Sequence[str | None]) -> None:
        """The answer to one request: why each event is rejected; None = accepted."""
        for reason, count in collections.Counter(reasons).items():
            self.events.labels("rejected" if reason else "accepted", reason or "").inc(count)


class StreamerMetrics:
    def __init__(self) -> None:
        registry = _registry()
        self.events = Counter(
            "recsys_stream_events",
            "Events read from the bus, by what became of them",
            ["status"],
            registry=registry,
        )
        self.lag = Histogram(
            "recsys_stream_lag_seconds",
            "From the bus to the online store",
            buckets=SECONDS,
            registry=registry,
        )

    def record(self, applied: Applied, *, lag_s: float) -> None:
        for status in (
            "events",
            "repeated",
            "other_types",
            "unknown_items",
            "rejected",
            "duplicate",
            "erased",
        ):
            self.events.labels(status).inc(getattr(applied, status))
        self.lag.observe(max(lag_s, 0.0))


class CatalogMetrics:
    """Of one follower of the catalog changelog, and of the shards that it keeps up to date."""

    def __init__(self, what: str) -> None:
        registry = _registry()
        self.what = what

        def gauge(name: str, text: str, label: str, mode: Literal["livemax", "livemin"] = "livemax") -> Gauge:
            return Gauge(name, text, [label], multiprocess_mode=mode, registry=registry)

        self.behind = gauge("recsys_catalog_behind", "Changes that are not applied yet", "what")
        self.lag = gauge(
            "recsys_catalog_lag_seconds", "From the bus to the replica, of the last change", "what"
        )
        self.read = gauge(
            "recsys_catalog_read_time", "When the changelog was last read, epoch seconds", "what", "livemin"
        )
        self.void = gauge("recsys_catalog_void", "Changes that no reader takes", "what")
        self.unreadable = gauge("recsys_catalog_unreadable", "Changes that can't be read", "what")
        self.fresh = gauge("recsys_index_fresh_items", "Items that came after the index was built", "shard")
        self.tombstones = gauge(
            "recsys_index_tombstone_share", "Share of the built part that is deleted or replaced", "shard"
        )

    def record(self, follower: Follower, *, behind: int, shards: Sequence[LocalShard]) -> None:
        self.behind.labels(self.what).set(behind)
        self.lag.labels(self.what).set(follower.lag_s)
        self.read.labels(self.what).set(time.time())
        self.void.labels(self.what).set(follower.void)
        self.unreadable.labels(self.what).set(follower.unreadable)
        for one in shards:
            self.fresh.labels(one.name).set(one.shard.fresh.alive)
            built = one.shard.index.ntotal
            self.tombstones.labels(one.name).set(one.shard.tombstones / built if built else 0.0)


class IndexMetrics:
    """What the index finds of what is asked of it."""

    def __init__(self) -> None:
        registry = _registry()
        self.recall = Histogram(
            "recsys_index_live_recall",
            "Recall of sampled requests against exact search",
            buckets=SHARES,
            registry=registry,
        )
        self.fill = Histogram(
            "recsys_index_fill_rate",
            "Share of the neighbors asked for that were found, of a request",
            buckets=SHARES,
            registry=registry,
        )

    def record_fill(self, found: np.ndarray, *, k: int) -> None:
        """`found` [B]: neighbors of each request."""
        for count in found.tolist():
            self.fill.observe(count / k)


def exposition() -> bytes:
    """All metrics of this node's replicas, in Prometheus's text format."""
    for path in Path(os.environ[FOLDER]).glob("gauge_live*_*.db"):
        pid = int(path.stem.rpartition("_")[2])
        if not psutil.pid_exists(pid):  # killed: what waited there waits no more
            with suppress(FileNotFoundError):  # another replica shows the metrics too
                mark_process_dead(pid)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return generate_latest(registry)


def _registry() -> CollectorRegistry:
    """One for each replica: its files are what is read, the registry only makes names unique."""
    Path(os.environ[FOLDER]).mkdir(parents=True, exist_ok=True)
    return CollectorRegistry()
