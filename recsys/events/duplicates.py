"""Which events are the same event again: one of this user and event id, stored within a horizon.

Times are append times of the bus, and a partition is judged on its own, in order: so a replay, however
it is cut into batches, decides alike. User and event id count together, so nobody's event can be
displaced by another user's. Ids are kept as 64-bit hashes in sorted runs that are merged as they grow
(16 bytes an event); the hashes are comparable within this process only. What is older than the horizon
is forgotten by the median of the last times, so that a few that are far ahead make nothing forgotten.
"""

import numpy as np
import polars as pl
import pyarrow as pa

_LAST = 1000  # events whose times say how late it is

Run = tuple[np.ndarray, np.ndarray]  # sorted hashes uint64 [N], when each was stored int64 [N]


def identities(events: pa.Table) -> np.ndarray:
    """A 64-bit hash of user and event id of each event, uint64 [N]."""
    frame = pl.DataFrame({name: pl.Series(events[name]) for name in ("user_id", "event_id")})
    return frame.hash_rows(seed=0).to_numpy()


class SeenEvents:
    """The stored events of one partition that are not older than the horizon."""

    def __init__(self, *, horizon_ms: int) -> None:
        self.horizon_ms = horizon_ms
        self._runs: list[Run] = []
        self._last = np.zeros(0, np.int64)  # times of the last events

    def __len__(self) -> int:
        return sum(len(hashes) for hashes, _ in self._runs)

    def note(self, hashes: np.ndarray, times: np.ndarray) -> None:
        """These were stored: hashes uint64 [N] at times int64 [N] (ms)."""
        if not len(hashes):
            return
        order = np.lexsort((times, hashes))
        self._runs.append((hashes[order], times[order]))
        self._last = np.concatenate([self._last, times[-_LAST:]])[-_LAST:]
        since = int(np.sort(self._last)[(len(self._last) - 1) // 2]) - self.horizon_ms
        while len(self._runs) > 1 and len(self._runs[-1][0]) * 2 >= len(self._runs[-2][0]):
            self._runs[-2:] = [_merged(*self._runs[-2:], since=since)]

    def new(self, hashes: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Whether each event is stored, bool [N], which is then noted; rows are in order of offset."""
        stored = np.ones(len(hashes), bool)
        suspect = self._held(hashes)
        _, first, count = np.unique(hashes, return_index=True, return_counts=True)
        if (count > 1).any():
            repeated = np.isin(hashes, hashes[first[count > 1]])
            suspect |= repeated
        last: dict[int, int] = {}
        for row in np.flatnonzero(suspect).tolist():
            identity, time = int(hashes[row]), int(times[row])
            before = last.get(identity, self._time_of(hashes[row]))
            stored[row] = before is None or time - before > self.horizon_ms
            if stored[row]:
                last[identity] = time
        self.note(hashes[stored], times[stored])
        return stored

    def _held(self, hashes: np.ndarray) -> np.ndarray:
        held = np.zeros(len(hashes), bool)
        for known, _ in self._runs:
            place = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
            held |= known[place] == hashes
        return held

    def _time_of(self, identity: np.uint64) -> int | None:
        """When it was stored last."""
        found: list[int] = []
        for known, times in self._runs:
            after = np.searchsorted(known, identity, side="right")
            if after and known[after - 1] == identity:
                found.append(int(times[after - 1]))
        return max(found, default=None)


def _merged(older: Run, newer: Run, *, since: int) -> Run:
    hashes, times = np.concatenate([older[0], newer[0]]), np.concatenate([older[1], newer[1]])
    kept = times >= since
    hashes, times = hashes[kept], times[kept]
    order = np.lexsort((times, hashes))
    return hashes[order], times[order]
