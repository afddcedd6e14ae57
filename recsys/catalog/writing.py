"""Writing to the changelog: rows for new items are claimed, and claimed again where somebody was quicker.

A writer returns when its own follower has applied what it wrote, so that whoever asks here next sees it.
"""

import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from recsys.catalog.changelog import PARTITION, Change, Claim, Kind, Log, encode_change
from recsys.catalog.following import Follower
from recsys.errors import UnavailableError

TRIES = 20  # in a row that gain nothing
TOGETHER = 1000  # records of a try; a follower remembers more void ones than that


class CatalogWriter:
    """May be used by many threads, in any number of processes at once."""

    def __init__(
        self, log: Log, *, follower: Follower, row_of: Callable[[str], int | None], timeout_s: float = 5.0
    ) -> None:
        """`follower` is followed by another thread; `row_of` knows what it applied: an item's row, None = it
        has none."""
        self._log, self._follower, self._row_of = log, follower, row_of
        self._timeout_s = timeout_s
        self._lock = threading.Lock()

    def upsert(
        self,
        items: Sequence[Mapping[str, Any]],
        vectors: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    ) -> list[int]:
        """Rows of `items` (columns of ITEM_SCHEMA, each id once), with vectors: item id -> space -> float32
        [D]. Raises UnavailableError: some may have been taken then; writing again changes nothing."""
        given = vectors or {}
        by_id = {item["item_id"]: item for item in items}
        rows = self._write(list(by_id), "upsert", lambda i: (by_id[i], given.get(i, {})))
        return [rows[item["item_id"]] for item in items]

    def delete(self, ids: Sequence[str]) -> dict[str, int]:
        """Rows of those of `ids` that there are. Raises as `upsert`."""
        known = [item_id for item_id in dict.fromkeys(ids) if self._row_of(item_id) is not None]
        return self._write(known, "delete", lambda _: (None, {}))

    def _write(
        self,
        ids: Sequence[str],
        kind: Kind,
        content: Callable[[str], tuple[Mapping[str, Any] | None, Mapping[str, np.ndarray]]],
    ) -> dict[str, int]:
        rows: dict[str, int] = {}
        with self._lock:
            lost = 0
            while lost < TRIES:
                wanted = [item_id for item_id in ids if item_id not in rows][:TOGETHER]
                if not wanted:
                    return rows
                batch, base = uuid.uuid4().hex, self._follower.position.rows
                next_row, changes = base, []
                for item_id in wanted:
                    row, (item, vectors) = self._row_of(item_id), content(item_id)
                    claim = Claim(batch, base) if row is None else None
                    row = next_row if row is None else row
                    changes.append(Change(item_id, row, claim, kind, item, vectors))
                    next_row += claim is not None
                read = self._follower.position.offset
                offsets = self._log.append([encode_change(c) for c in changes], partition=PARTITION)
                if offsets[0] < read:
                    raise UnavailableError(
                        f"the catalog changelog was read to {read}, but what was written now stands at "
                        f"{offsets[0]}: somebody emptied it; restore it"
                    )
                if not self._follower.wait_for(int(offsets[-1]), timeout_s=self._timeout_s):
                    raise UnavailableError(
                        f"what was written to the catalog was not read back within {self._timeout_s:g} s; "
                        "ask again"
                    )
                void = set(self._follower.voided)
                held = {c.item_id: c.row for c, at in zip(changes, offsets.tolist()) if at not in void}
                rows |= held
                lost = 0 if held else lost + 1
        raise UnavailableError(f"{TRIES} claims of rows were lost to other writers; ask again")
