"""One shard of an index: what was built, what came since, less what was deleted or is not allowed.

An item stands in the built part by its position there, or in the fresh segment, never in both alive.
Deleted ones are tombstones that the search passes over, as it does what a filter does not allow; where it
then finds too few, it looks further until it has k or has seen all. FAISS marks a missing neighbor with
-1; so do we, and nothing else. FAISS takes as many threads as OMP_NUM_THREADS says: one, in a replica.
"""

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from recsys.errors import ReleaseError
from recsys.index.build import build_shard
from recsys.index.dials import Dials, Search, Setting
from recsys.index.factory import ShardType
from recsys.index.fresh import FreshSegment, is_allowed
from recsys.index.manifest import IndexManifest, read_manifest, shard_files
from recsys.index.vectors import OfShard, VectorArray, VectorStream

WIDER = 4.0  # how much further it looks each time that it found too few
FILTERS = 64  # that a shard keeps at hand
MOST_FETCHED = 2048  # what a GPU returns at the most

Answer = tuple[np.ndarray, np.ndarray]  # item rows int32 [B, k], scores float32 [B, k]


class Filter:
    """Which item rows an answer may hold, bool [by item row]; none beyond its end. Make it once and use it
    often: a shard keeps its own form of those it saw last."""

    def __init__(self, allowed: np.ndarray) -> None:
        self.allowed = allowed


@dataclass(slots=True)
class _Selected:
    """The positions that a filter leaves, in the form that FAISS takes."""

    bits: np.ndarray  # uint8, a bit for each position; FAISS reads them in place
    selector: Any
    count: int
    first: Search | None = None  # how it is searched to begin with

    @classmethod
    def of(cls, allowed: np.ndarray) -> "_Selected":
        """`allowed` bool [n] by position."""
        bits = np.packbits(allowed, bitorder="little")
        return cls(bits, faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits)), int(allowed.sum()))

    def has(self, positions: np.ndarray) -> np.ndarray:
        """Whether each position is left, bool; -1 is not."""
        inside = np.where(positions < 0, 0, positions)
        return (positions >= 0) & (self.bits[inside >> 3] >> (inside & 7) & 1).astype(bool)

    def put(self, position: int, inside: bool) -> None:
        """Into the selection, or out of it."""
        byte, bit = position >> 3, np.uint8(1 << (position & 7))
        self.count += int(inside) - int(self.bits[byte] & bit != 0)
        self.bits[byte] = self.bits[byte] | bit if inside else self.bits[byte] & ~bit
        self.first = None


class IndexShard:
    """A loaded shard. Threads may search and change it at the same time."""

    def __init__(
        self, index: faiss.Index, rows: np.ndarray, *, setting: Setting | None = None, selects: bool = True
    ) -> None:
        """`rows` int32 [n]: the item row of each of the index's positions. `selects`: it passes over what it
        is told, as FAISS's indexes on a CPU do and those on a GPU don't."""
        if len(rows) != index.ntotal:
            raise ReleaseError(f"an index of {index.ntotal} items has rows of {len(rows)}: build it anew")
        self.index, self.dials, self.selects = index, Dials.of(index), selects
        self._dimensions = int(index.d)  # to ask FAISS each time would take a while
        self.fresh = FreshSegment(self._dimensions)
        self._rows = np.append(rows, -1).astype(np.int32)  # position -1 is FAISS's "none"
        self._order = np.argsort(rows, kind="stable")
        self._alive = np.ones(len(rows), bool)
        self._dead = 0
        self._filters: dict[Filter | None, _Selected] = {}
        self._lock = threading.Lock()
        self.turn(setting or {})

    def turn(self, setting: Setting) -> None:
        """From the next search on it is as fast and as thorough as `setting` says."""
        with self._lock:
            self.dials.turn(setting)
            for selected in self._filters.values():
                selected.first = None

    def __len__(self) -> int:
        """Items that are alive."""
        return len(self._alive) - self._dead + self.fresh.alive

    def __contains__(self, row: int) -> bool:
        """Whether it has a vector of that item row, alive or not."""
        return row in self.fresh or self._position(row) is not None

    @property
    def tombstones(self) -> int:
        """Items of the built part that were deleted or replaced since."""
        return self._dead

    def upsert(self, vectors: Mapping[int, np.ndarray]) -> None:
        """From the next search on these item rows have these vectors, float32 [D], and are alive."""
        for row, vector in vectors.items():
            if np.shape(vector) != (self.index.d,) or not np.isfinite(vector).all() or not np.any(vector):
                raise ValueError(f"the vector of item row {row} is not {self.index.d} finite numbers, or 0")
        with self._lock:
            for row, vector in vectors.items():
                self._set_alive(row, False)
                self.fresh.put(row, vector)

    def delete(self, rows: np.ndarray) -> None:
        """From the next search on these item rows are gone; unknown ones are ignored."""
        with self._lock:
            for row in rows.tolist():
                self._set_alive(row, False)

    def restore(self, rows: np.ndarray) -> None:
        """From the next search on these item rows are back with the vector that they had; unknown ones are
        ignored."""
        with self._lock:
            for row in rows.tolist():
                self._set_alive(row, True)

    def search(self, queries: np.ndarray, k: int, *, only: Filter | None = None) -> Answer:
        """The k nearest of float32 [B, D] queries that are alive and that `only` allows: item rows int32
        [B, k] and scores float32 [B, k], best first; -1 and -inf where there are fewer. Fewer columns, but
        one at least, if the shard has fewer items. Raises ValueError for another dimension."""
        if queries.ndim != 2 or queries.shape[1] != self._dimensions:
            raise ValueError(f"queries have {queries.shape[-1]} dimensions, the index {self._dimensions}")
        queries = np.ascontiguousarray(queries, np.float32)
        with self._lock:
            k = min(k, max(len(self), 1))
            built = self._search_built(queries, k, only)
            if not self.fresh.alive:
                return built
            rows, scores = self.fresh.search(queries, allowed=None if only is None else only.allowed)
        near = (scores >= built[1][:, -1:]).any(axis=0)  # others can't be among the k best
        rows, scores = np.broadcast_to(rows[near], (len(queries), near.sum())), scores[:, near]
        rows, scores = (np.concatenate(pair, axis=1) for pair in zip(built, (rows, scores)))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]  # ties are put in order where shards meet
        return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)

    def _search_built(self, queries: np.ndarray, k: int, only: Filter | None) -> Answer:
        first = None
        if not self._dead and only is None:
            first = scores, positions = self.index.search(queries, k)
            # A list's `min`: an array's would take longer than naming the rows.
            if min(positions[:, -1].tolist(), default=0) >= 0:
                return self._rows[positions], scores
        selected = self._selected(only)
        if self.selects:
            scores, positions = self._select(queries, k, selected, first)
        else:
            scores, positions = self._over_fetch(queries, k, selected)
        if positions.size and positions[:, -1].min() < 0:  # the missing are the last of a line
            scores = np.where(positions < 0, np.float32(-np.inf), scores)
        return self._rows[positions], scores

    def _select(self, queries: np.ndarray, k: int, selected: _Selected, first: Answer | None) -> Answer:
        """Scores and positions of what is selected, -1 = none. As thorough as it takes: at first as many of
        the selected are looked at as would be of all. `first`: what that found, if it was done."""
        wanted, effort = min(k, selected.count), len(self._alive) / max(selected.count, 1)
        if selected.first is None:
            selected.first = self.dials.search_of(selected.selector, effort=effort)
        search = selected.first
        scores, positions = search(queries, k) if first is None else first
        while wanted and not search.all_seen and (few := np.flatnonzero(positions[:, wanted - 1] < 0)).size:
            effort *= WIDER
            search = self.dials.search_of(selected.selector, effort=effort)
            scores[few], positions[few] = search(queries[few], k)
        return scores, positions

    def _over_fetch(self, queries: np.ndarray, k: int, selected: _Selected) -> Answer:
        """The same of an index that can't select: what is not selected is dropped from more than k."""
        scores, positions = np.zeros((len(queries), k), np.float32), np.full((len(queries), k), -1)
        few, most = np.arange(len(queries)), min(len(self._alive), MOST_FETCHED)
        wanted, fetched = min(k, selected.count), 0
        while wanted and few.size and fetched < most:
            share = selected.count / len(self._alive)
            fetched = min(max(ceil(k / share), int(fetched * WIDER)), most)
            score, position = self.index.search(queries[few], fetched)
            left = selected.has(position)
            order = np.argsort(~left, axis=1, kind="stable")[:, :k]  # the selected first, as they come
            scores[few, : order.shape[1]] = np.take_along_axis(score, order, 1)
            kept = np.where(np.take_along_axis(left, order, 1), np.take_along_axis(position, order, 1), -1)
            positions[few, : order.shape[1]] = kept
            few = few[positions[few, wanted - 1] < 0]
        return scores, positions

    def _selected(self, only: Filter | None) -> _Selected:
        found = self._filters.pop(only, None)
        if found is None:
            found = _Selected.of(
                self._alive if only is None else self._alive & is_allowed(only.allowed, self._rows[:-1])
            )
        while len(self._filters) >= FILTERS:
            self._filters.pop(next(iter(self._filters)))
        self._filters[only] = found  # the last one asked for is the last to go
        return found

    def _set_alive(self, row: int, alive: bool) -> None:
        """Of the vector that counts: the fresh segment's, if it has the item, else the built part's."""
        if row in self.fresh:
            self.fresh.set_alive(row, alive)
            return
        position = self._position(row)
        if position is not None and self._alive[position] != alive:
            self._alive[position] = alive
            self._dead += -1 if alive else 1
            self._change_filters(row, position, alive)

    def _position(self, row: int) -> int | None:
        """Of an item row in the built part."""
        rows = self._rows[:-1]
        place = np.searchsorted(rows, np.int32(row), sorter=self._order)  # of another type it copies all rows
        found = place < len(rows) and rows[self._order[place]] == row
        return int(self._order[place]) if found else None

    def _change_filters(self, row: int, position: int, alive: bool) -> None:
        for only, selected in self._filters.items():
            if not alive or only is None or bool(is_allowed(only.allowed, np.array([row]))[0]):
                selected.put(position, alive)


def unfiltered(scope: Any) -> None:
    """Every scope is of all items."""


@dataclass(frozen=True, slots=True)
class LocalShard:
    """A shard in this process, behind the signature of one that is elsewhere."""

    name: str
    shard: IndexShard
    filter_of: Callable[[Any], Filter | None] = unfiltered

    async def __call__(self, queries: np.ndarray, k: int, scopes: Sequence[Hashable] = ()) -> Answer:
        """`scopes`: that of each query, which `filter_of` knows; none = all items."""
        places: dict[Filter | None, list[int]] = {}
        for place, scope in enumerate(scopes):
            places.setdefault(self.filter_of(scope), []).append(place)
        if len(places) < 2:
            return self.shard.search(queries, k, only=next(iter(places), None))
        k = min(k, max(len(self.shard), 1))
        rows = np.full((len(queries), k), -1, np.int32)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        for only, own in places.items():
            row, score = self.shard.search(queries[own], k, only=only)
            rows[own, : row.shape[1]], scores[own, : row.shape[1]] = row, score
        return rows, scores


def open_shard(index: Path, rows: Path, *, manifest: IndexManifest, number: int) -> LocalShard:
    """A shard from its two files. They are mapped into memory: replicas on one node share it.

    Raises ReleaseError if they are not those of the manifest.
    """
    try:
        # FAISS maps a file that was cut off and crashes on it, so its size is looked at first.
        found, expected = index.stat().st_size + rows.stat().st_size, manifest.shards[number].bytes
        if found != expected:
            raise ReleaseError(
                f"{index} and its rows have {found:,} bytes, not {expected:,}: build the index anew"
            )
        read = faiss.read_index(str(index), faiss.IO_FLAG_MMAP_IFC)
        return LocalShard(str(number), IndexShard(read, np.load(rows), setting=manifest.setting))
    except (RuntimeError, OSError, ValueError) as error:
        raise ReleaseError(f"{index} is no FAISS index: build the index anew") from error


def shards_in(folder: Path, *, of: VectorStream) -> list[LocalShard]:
    """The shards of the index of these vectors that was built into `folder`. Raises ReleaseError."""
    manifest = read_manifest(folder, of=of)
    files = [[folder / name for name in shard_files(number)] for number in range(len(manifest.shards))]
    return [open_shard(*own, manifest=manifest, number=number) for number, own in enumerate(files)]


def exact_shard(vectors: np.ndarray, number: int = 0, shards: int = 1) -> LocalShard:
    """One of `shards` of vectors float32 [V, D] by item row, in this process; looked through one and all."""
    built = build_shard(OfShard(VectorArray(vectors), number, shards), ShardType())
    return LocalShard(str(number), IndexShard(built.index, built.rows))
