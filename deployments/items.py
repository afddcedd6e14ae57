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

from deployments.http_errors import UnknownItemError
from recsys.catalog.writing import CatalogWriter
from recsys.errors import DataError, RequestError
from recsys.pipeline.items import DELETED, Names
from recsys.pipeline.new_items import content_vectors
from recsys.releases.live import LiveCatalog

Origin = Literal["given", "content", "kept", "none"]  # where an item's vector is from


class ItemWriter:
    def __init__(self, live: LiveCatalog, names: Names, writer: CatalogWriter) -> None:
        self._live, self._rows, self._writer = live, names.rows, writer
        self._thread = ThreadPoolExecutor(1, "catalog-writer")  # one: a writer takes turns anyway

    async def upsert(
        self, items: Sequence[dict[str, Any]], vectors: Sequence[list[float] | None], *, now: int
    ) -> list[Origin]:
        """Items are columns of ITEM_SCHEMA, each has a vector or None. Raises RequestError,
        UnavailableError."""
        return await self._run(self._upsert, items, vectors, now)

    async def delete(self, item_id: str) -> None:
        """Raises UnknownItemError, UnavailableError."""
        row = self._rows.get(item_id)
        if row is None or self._live.items.line[np.array([row])][0] == DELETED:
            raise UnknownItemError(f"the catalog has no item {item_id!r}")
        await self._run(self._writer.delete, [item_id])

    async def _run(self, work: Any, *arguments: Any) -> Any:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)
        except DataError as error:  # the bus does not take it
            raise RequestError(str(error)) from error

    def _upsert(
        self, items: Sequence[dict[str, Any]], vectors: Sequence[list[float] | None], now: int
    ) -> list[Origin]:
        ids = [item["item_id"] for item in items]
        if len(set(ids)) < len(ids):
            twice = next(item_id for place, item_id in enumerate(ids) if item_id in ids[:place])
            raise RequestError(f"item {twice!r} stands twice in a request: send it once")
        made = content_vectors(self._live.token, [item.get("title") for item in items])
        origins, written = list[Origin](), {}
        for place, (item, given) in enumerate(zip(items, vectors, strict=True)):
            origin, vector = self._vector(item["item_id"], given, made[place])
            origins.append(origin)
            if vector is not None:
                written[item["item_id"]] = {self._live.space: vector}
            if item["item_id"] not in self._rows and item.get("published_at") is None:
                item["published_at"] = datetime.fromtimestamp(now, UTC)  # it was not there before
        self._writer.upsert(items, written)
        return origins

    def _vector(
        self, item_id: str, given: list[float] | None, content: np.ndarray
    ) -> tuple[Origin, np.ndarray | None]:
        """Where an item's vector is from, and what of it has to be written."""
        if given is not None:
            return "given", self._unit(item_id, given)
        row = self._rows.get(item_id)
        if row is not None and self._live.has_vector(row):
            # An index that was rebuilt without the deleted item has lost it.
            known = self._live.items.vectors[np.array([row])][0]
            return "kept", known if self._live.items.line[np.array([row])][0] < 0 else None
        return ("content", content) if content.any() else ("none", None)

    def _unit(self, item_id: str, given: list[float]) -> np.ndarray:
        vector = np.array(given, np.float64)
        size, norm = self._live.token.shape[1], float(np.linalg.norm(vector))
        if vector.shape != (size,) or not 0 < norm < np.inf:
            raise RequestError(
                f"the vector of item {item_id!r} has {len(given)} numbers, or none but 0: "
                f"give {size} finite ones"
            )
        return (vector / norm).astype(np.float32)
