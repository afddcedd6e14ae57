"""From the bus to the online store, within a second: one replica that Serve keeps alive.

The offsets live in the online store, so a restart continues where the last update ended and two
streamers during a rolling update change nothing twice. Redis being away is waited for; any other
error ends the thread, fails the health check and lets Serve start a new replica.
"""

import logging
import threading
import time

import numpy as np
import polars as pl
from ray import serve

from deployments.metrics import StreamerMetrics
from recsys.errors import UnavailableError
from recsys.events.bus import RedisStreamsBus
from recsys.events.redis_server import connect
from recsys.features.online import OnlineStore
from recsys.features.streaming import follow
from recsys.releases.manifest import open_release

PAUSE_S = 0.5  # before the next try while Redis is away

logger = logging.getLogger("ray.serve")


@serve.deployment
class FeatureStreamer:
    def __init__(
        self,
        release: str,
        *,
        online_store_url: str,
        bus_url: str,
        partitions: int,
        event_types: tuple[str, ...],
        time_to_live_s: int,
    ) -> None:
        self.online_store_url, self.bus_url, self.partitions = online_store_url, bus_url, partitions
        self.event_types, self.time_to_live_s = event_types, time_to_live_s
        opened = open_release(release)
        ids = pl.read_parquet(opened.path("items.parquet"), columns=["item_id"])["item_id"]
        self.rows = {item_id: row for row, item_id in enumerate(ids)}
        self.metrics = StreamerMetrics()
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, name="feature-streamer", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while not self.stopping.is_set():
            try:
                self._follow()
            except UnavailableError as error:
                logger.warning("feature streamer waits: %s", error)
                self.stopping.wait(PAUSE_S)

    def _follow(self) -> None:
        follow(
            RedisStreamsBus(connect(self.bus_url), partitions=self.partitions),
            OnlineStore(connect(self.online_store_url), time_to_live=self.time_to_live_s),
            partitions=range(self.partitions),
            rows_of=lambda ids: np.array([self.rows.get(i, -1) for i in ids.to_pylist()], np.int32),
            stop=self.stopping.is_set,
            event_types=self.event_types,
            on_applied=lambda records, applied: self.metrics.record(
                applied, lag_s=time.time() - records.append_time_ms[-1] / 1000
            ),
        )

    def check_health(self) -> None:
        if not self.thread.is_alive():
            raise RuntimeError("the feature streamer's thread ended: see the replica's log for its error")

    def __del__(self) -> None:
        self.stopping.set()
