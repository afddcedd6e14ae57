"""Items over HTTP: put on the catalog changelog, and answered when this replica has them from there.

The row is the changelog's to give. An item comes with its vector, or gets one of its content here, once, for
all replicas; one that the models know keeps the vector that it has.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np

from deployments.catalog_tail import CatalogTail
from deployments.http_errors import UnknownItemError
from recsys.catalog.writing import CatalogWriter
from recsys.errors import DataError, RequestError, UnavailableError
from recsys.pipeline.items import Names
from recsys.pipeline.new_items import content_vectors
from recsys.releases.live import LiveCatalog

MOST_WAITING = 64  # requests: of 2 MB each at the most
Origin = Literal["given", "content", "kept", "none"]  # where an item's vector is from


class ItemWriter:
    def __init__(self, live: LiveCatalog, names: Names, tail: CatalogTail) -> None:
        """`tail`: by which `live` and `names` are kept up to date."""
        self._live, self._rows, self._tail = live, names.rows, tail
        self._writer = CatalogWriter(tail.bus, follower=tail.follower, row_of=names.rows.get)
        self._waiting = 0
        self._thread = ThreadPoolExecutor(1, "catalog-writer")  # one: a writer takes turns anyway

    async def upsert(
        self, items: Sequence[dict[str, Any]], vectors: Sequence[list[float] | None], *, now: int
    ) -> list[Origin]:
        """Items are columns of ITEM_SCHEMA, each has a vector or None. Raises RequestError,
        UnavailableError."""
        return await self._run(self._upsert, items, vectors, now)

    async def delete(self, item_id: str) -> None:
        """Raises UnknownItemError, UnavailableError."""
        await self._run(self._delete, item_id)

    async def _run(self, work: Any, *arguments: Any) -> Any:
        if self._waiting >= MOST_WAITING:
            raise UnavailableError(f"{self._waiting} requests wait already to change the catalog; ask again")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)
        except DataError as error:  # the bus does not take it
            raise RequestError(str(error)) from error
        finally:
            self._waiting -= 1

    def _delete(self, item_id: str) -> None:
        self._meet([item_id])
        row = self._rows.get(item_id)
        if row is None or self._live.items.is_deleted(row):
            raise UnknownItemError(f"the catalog has no item {item_id!r}")
        self._writer.delete([item_id])

    def _meet(self, ids: Sequence[str]) -> None:
        """An item that is not known here may have come by another replica just now."""
        self._tail.check_bus()
        if not all(item_id in self._rows for item_id in ids):
            self._tail.wait(timeout_s=1.0)

    def _upsert(
        self, items: Sequence[dict[str, Any]], vectors: Sequence[list[float] | None], now: int
    ) -> list[Origin]:
        ids = [item["item_id"] for item in items]
        if len(set(ids)) < len(ids):
            twice = next(item_id for place, item_id in enumerate(ids) if item_id in ids[:place])
            raise RequestError(f"item {twice!r} stands twice in a request: send it once")
        self._meet(ids)
        origins, written = list[Origin](), {}
        for item, given in zip(items, vectors, strict=True):
            origin, vector = self._vector(item, given)
            origins.append(origin)
            if vector is not None:
                written[item["item_id"]] = {self._live.space: vector}
            if item["item_id"] not in self._rows and item.get("published_at") is None:
                item["published_at"] = datetime.fromtimestamp(now, UTC)  # it was not there before
        self._writer.upsert(items, written)
        return origins

    def _vector(self, item: dict[str, Any], given: list[float] | None) -> tuple[Origin, np.ndarray | None]:
        """Where an item's vector is from, and what of it has to be written."""
        if given is not None:
            return "given", self._unit(item["item_id"], given)
        row = self._rows.get(item["item_id"])
        if row is not None and self._live.has_vector(row):
            return "kept", None
        (content,) = content_vectors(self._live.token, [item.get("title")])
        return ("content", content) if content.any() else ("none", None)

    def _unit(self, item_id: str, given: list[float]) -> np.ndarray:
        vector = np.array(given, np.float64)
        size, norm = self._live.token.shape[1], float(np.linalg.norm(vector))
        if vector.shape != (size,) or not 0 < norm < np.inf:
            raise RequestError(
                f"the vector of item {item_id!r} has {len(given)} numbers: give {size} finite ones, not all 0"
            )
        return (vector / norm).astype(np.float32)
