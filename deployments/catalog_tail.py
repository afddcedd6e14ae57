"""What keeps a replica up to date with the catalog: a thread that follows the changelog of its release.

A replica is ready when all that the changelog held is applied. While the bus is away it goes on with what it
knows, and its metrics say since when.
"""

import logging
import time
from collections.abc import Sequence
from contextlib import suppress

from deployments.metrics import CatalogMetrics
from recsys.catalog.changelog import PARTITION
from recsys.catalog.following import CATCH_UP_S, Apply, Follower, Tail
from recsys.errors import UnavailableError
from recsys.events.bus import Bus, BusSettings, open_bus
from recsys.index.shard import LocalShard
from recsys.releases.live import watermark
from recsys.releases.manifest import Release

PAUSE_S = 0.5  # before the next try while the bus is away
MEASURED_S = 1.0  # between two looks at how far it is behind

logger = logging.getLogger("ray.serve")


class CatalogTail:
    """Follows until the process ends."""

    def __init__(
        self,
        release: Release,
        apply: Apply,
        *,
        bus: BusSettings,
        what: str,
        shards: Sequence[LocalShard] = (),
    ) -> None:
        """Returns when `apply` was given all changes up to now. The metrics tell of `what` follows, and of
        `shards`. Raises UnavailableError if the bus stays away."""
        start, deadline = watermark(release), time.monotonic() + CATCH_UP_S
        self._metrics, self._shards, self._measured = CatalogMetrics(what), shards, 0.0
        self._settings = bus.of_changelog(start.log)
        self._ends: Bus | None = None
        self.bus = _patiently(self._settings, deadline)
        self.follower = Follower(self.bus, start=start, apply=apply)
        self.follower.catch_up(timeout_s=deadline - time.monotonic())
        self._tail = Tail(self.follower, on_read=self._measure).start()

    def check_bus(self) -> None:
        """Raises UnavailableError while the changelog can't be read."""
        if self._tail.outage is not None:
            raise UnavailableError(f"the catalog can't be changed now: {self._tail.outage}")

    def wait(self, *, timeout_s: float) -> None:
        """Returns when all that the changelog holds by now is applied, or after that time. One thread may
        wait."""
        try:
            self._ends = self._ends or open_bus(self._settings)  # the other one is the follower's
            self.follower.wait_for(self._ends.end_offsets()[PARTITION] - 1, timeout_s=timeout_s)
        except UnavailableError:
            return

    def check_health(self) -> None:
        """Raises RuntimeError if nobody follows any more."""
        self._tail.check()

    def _measure(self) -> None:
        if time.monotonic() - self._measured > MEASURED_S:
            self._measured = time.monotonic()
            with suppress(OSError):  # a full disk is no reason to follow no more
                self._metrics.record(self.follower, behind=self.follower.behind(), shards=self._shards)


def _patiently(settings: BusSettings, deadline: float) -> Bus:
    """The bus, when it is there."""
    while True:
        try:
            return open_bus(settings)
        except UnavailableError as error:
            if time.monotonic() > deadline:
                raise
            logger.warning("the catalog changelog waits: %s", error)
            time.sleep(PAUSE_S)
