"""The online store as the request path reads it: connected when first asked.

A replica must start while Redis is away (scenes that hide nothing can be answered without it), and
must find it again when it is back.
"""

import time
from dataclasses import dataclass, field

from recsys.events.redis_server import connect
from recsys.features.online import OnlineStore
from recsys.pipeline.hydration import Users

TIMEOUT_S = 0.5  # of an answer of Redis; the client tries twice


@dataclass(slots=True)
class OnlineUsers:
    url: str
    time_to_live_s: int = 0  # 0 = for ever
    clock: int | None = None  # epoch seconds; None = now
    _store: OnlineStore | None = field(default=None, repr=False)

    @property
    def store(self) -> OnlineStore:
        """Raises UnavailableError."""
        if self._store is None:
            self._store = OnlineStore(
                connect(self.url, timeout_s=TIMEOUT_S), time_to_live=self.time_to_live_s
            )
        return self._store

    def users(self, user_ids: tuple[str, ...]) -> Users:
        now = int(time.time()) if self.clock is None else self.clock
        found = self.store.get(user_ids, now=now)
        return Users(found.histories, found.known, found.birth_year)

    def ping(self) -> None:
        """Raises UnavailableError if Redis does not answer."""
        self.store.applied_offset("events", 0)
