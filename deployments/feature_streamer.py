"""From the bus to the online store, within a second: one replica that Serve keeps alive.

The offsets live in the online store, so a restart continues where the last update ended and two
streamers during a rolling update change nothing twice. Redis or the bus being away is waited for; any
other error ends the thread, fails the health check and lets Serve start a new replica.
"""

import logging
import threading
import time
from contextlib import closing

import numpy as np
import polars as pl
import pyarrow as pa
from ray import serve

from deployments.catalog_tail import CatalogTail
from deployments.metrics import StreamerMetrics
from recsys.errors import UnavailableError
from recsys.events.batch import Batch
from recsys.events.bus import BusSettings, open_bus
from recsys.events.redis_server import connect
from recsys.events.validation import ValidationSettings
from recsys.events.wire import Decoder
from recsys.features.online import OnlineStore
from recsys.features.streaming import Applied, follow
from recsys.pipeline.items import Names
from recsys.releases.manifest import open_release
from recsys.releases.parts import ITEMS

PAUSE_S = 0.5  # before the next try while Redis or the bus is away

logger = logging.getLogger("ray.serve")


@serve.deployment
class FeatureStreamer:
    def __init__(
        self,
        release: str,
        *,
        online_store_url: str,
        time_to_live_s: int,
        bus: BusSettings,
        validation: ValidationSettings,
        event_types: tuple[str, ...],
        horizon_s: float,
    ) -> None:
        self.online_store_url, self.time_to_live_s = online_store_url, time_to_live_s
        self.bus, self.validation, self.event_types, self.horizon_s = bus, validation, event_types, horizon_s
        opened = open_release(release)
        ids = pl.read_parquet(opened.path(ITEMS), columns=["item_id"])["item_id"].to_list()
        self.names = Names(ids, [None] * len(ids))
        self.tail = CatalogTail(opened, self.names.apply, bus=bus, what="feature streamer")
        self.metrics = StreamerMetrics()
        self.stopping = threading.Event()
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run, name="feature-streamer", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while not self.stopping.is_set():
            try:
                self._follow()
            except UnavailableError as error:
                logger.warning("feature streamer waits: %s", error)
                self.stopping.wait(PAUSE_S)
            except Exception as error:
                self.error = error
                raise

    def _follow(self) -> None:
        store = OnlineStore(connect(self.online_store_url), time_to_live=self.time_to_live_s)
        with closing(open_bus(self.bus)) as bus:
            follow(
                bus,
                store,
                partitions=range(bus.partitions),
                rows_of=self._rows_of,
                stop=self.stopping.is_set,
                event_types=self.event_types,
                decoder=Decoder(self.bus.schemas),
                validation=self.validation,
                horizon_s=self.horizon_s,
                on_applied=self._applied,
            )

    def _rows_of(self, ids: pa.Array) -> np.ndarray:
        rows, wanted = self.names.rows, ids.to_pylist()
        if not all(item_id in rows for item_id in wanted):  # they may be as new as their events
            self.tail.wait(timeout_s=1.0)
        return np.array([rows.get(item_id, -1) for item_id in wanted], np.int32)

    def _applied(self, batch: Batch, applied: Applied) -> None:
        if len(batch.offsets):
            self.metrics.record(applied, lag_s=time.time() - batch.append_ms[-1] / 1000)

    def check_health(self) -> None:
        if not self.thread.is_alive():
            raise RuntimeError(f"the feature streamer ended: {self.error}")
        self.tail.check_health()

    def __del__(self) -> None:
        self.stopping.set()
