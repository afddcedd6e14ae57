"""Builds an index: every shard from the stream, then one setting for all of them that finds enough.

Two rounds of work for each shard, which share nothing and so run anywhere: build it and find its exact
neighbors of the held-out queries; then see what it finds with each setting. How the rounds are run is the
caller's: one after the other here, by Ray's tasks in jobs. No step holds more than one shard's vectors.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import faiss
import numpy as np

from recsys.hashing import shard_of_rows
from recsys.index.build import build_shard
from recsys.index.cells import sample_by_length
from recsys.index.exact import best_of, exact_neighbors
from recsys.index.factory import ShardType, shard_type
from recsys.index.manifest import (
    CURVE,
    MANIFEST,
    MODELS_ONLY,
    IndexManifest,
    ShardFile,
    curve_to_json,
    shard_files,
)
from recsys.index.settings import IndexSettings
from recsys.index.tuning import SLACK, Probe, choose, nearest_with_ties, points, probe
from recsys.index.vectors import OfShard, VectorStream, fingerprint

FEW = 256  # a shard with fewer items has nothing to learn a type from: it is exact

_Work = TypeVar("_Work")
# Runs a function on each piece of work, in any order and anywhere; the results come in order.
Each = Callable[[Callable[[_Work], Any], Iterable[_Work]], list[Any]]
Progress = Callable[[float, str], None]


def one_by_one(function: Callable[[_Work], Any], work: Iterable[_Work]) -> list[Any]:
    return [function(piece) for piece in work]


def silent(share: float, doing: str) -> None:
    """No progress display."""


@dataclass(frozen=True, slots=True)
class _Shard:
    """All that one shard's work needs."""

    number: int
    stream: VectorStream  # of this shard
    kind: ShardType
    folder: Path
    queries: np.ndarray
    settings: IndexSettings
    seed: int
    nearest: np.ndarray | None = None


def build_index(
    stream: VectorStream,
    folder: Path,
    *,
    settings: IndexSettings,
    queries: np.ndarray | None = None,
    seed: int = 0,
    built_at: int = MODELS_ONLY,
    each: Each = one_by_one,
    progress: Progress = silent,
) -> IndexManifest:
    """Writes the index of `stream` into `folder`; it holds the vectors of the changelog up to offset
    `built_at`. `queries` float32 [Q, D] are real ones; without
    any, items stand in for them, as those who ask for similar ones do. The half by which recall is reported
    is held out of the tuning, not of the model's training.

    Where no item has a vector the index is empty. Raises RecallError if no setting finds enough,
    CapacityError, SettingsError, DataError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)  # until it is written again there is no index
    sizes = _sizes(stream, settings.shards)
    queries = _questions(stream, queries, count=settings.queries, seed=seed)
    kind = shard_type(
        settings.factory, items=int(sizes.max()), dimensions=stream.dimensions, memory_mb=settings.memory_mb
    )
    kinds = [
        replace(kind, cells=min(kind.cells, size)) if size >= FEW else ShardType() for size in sizes.tolist()
    ]
    shards = [
        _Shard(
            number,
            OfShard(stream, number, settings.shards),
            own,
            folder,
            queries,
            settings,
            seed,
        )
        for number, own in enumerate(kinds)
    ]
    progress(0.05, f"{settings.shards} shards of {sizes.sum():,} items, {kind}")
    built = each(_build, shards)
    rows, scores = (np.concatenate(columns, axis=1) for columns in zip(*(found for found, _ in built)))
    rows, scores = best_of(rows, scores, k=settings.at + SLACK)
    nearest = nearest_with_ties(rows, scores, at=settings.at)
    progress(0.6, "tuning")
    found = points(
        each(_probe, [replace(shard, nearest=nearest) for shard in shards]), nearest=nearest, at=settings.at
    )
    point = choose(found, recall=settings.recall, what=f"an index of {sizes.sum():,} items, {kind},")
    manifest = IndexManifest(
        factory=str(kind if sizes.max() >= FEW else ShardType()),
        dimensions=stream.dimensions,
        items=int(sizes.sum()),
        shards=tuple(ShardFile(int(size), written) for size, (_, written) in zip(sizes, built)),
        at=settings.at,
        asked=settings.recall,
        setting=point.setting,
        recall=point.held_out,
        queries=len(queries),
        vectors=fingerprint(stream),
        built_at=built_at,
    )
    (folder / CURVE).write_bytes(curve_to_json(found))
    (folder / MANIFEST).write_bytes(manifest.to_json())
    return manifest


def _build(shard: _Shard) -> tuple[tuple[np.ndarray, np.ndarray], int]:
    """Writes the shard; its exact neighbors of the queries (rows, scores), and its bytes."""
    length = float(np.linalg.norm(shard.queries, axis=1).mean()) if len(shard.queries) else 1.0
    made = build_shard(shard.stream, shard.kind, query_length=length, seed=shard.seed)
    index_file, rows_file = (shard.folder / name for name in shard_files(shard.number))
    faiss.write_index(made.index, str(index_file))
    np.save(rows_file, made.rows)
    settings = shard.settings
    found = exact_neighbors(
        shard.stream.blocks(), shard.queries, k=settings.at + SLACK, device=settings.device
    )
    return found, index_file.stat().st_size + rows_file.stat().st_size


def _probe(shard: _Shard) -> list[Probe]:
    assert shard.nearest is not None
    index_file, rows_file = (shard.folder / name for name in shard_files(shard.number))
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # as a replica has, whose time is wanted
    try:
        return probe(
            faiss.read_index(str(index_file), faiss.IO_FLAG_MMAP_IFC),
            np.load(rows_file),
            queries=shard.queries,
            nearest=shard.nearest,
            at=shard.settings.at,
        )
    finally:
        faiss.omp_set_num_threads(threads)


def _sizes(stream: VectorStream, shards: int) -> np.ndarray:
    """Items of each shard, int64 [shards]."""
    sizes = np.zeros(shards, np.int64)
    for rows, _ in stream.blocks():
        sizes += np.bincount(shard_of_rows(rows, shards), minlength=shards)
    return sizes


def _questions(stream: VectorStream, queries: np.ndarray | None, *, count: int, seed: int) -> np.ndarray:
    """At most `count` queries float32 [Q, D]: of those given that ask for something, else of items."""
    if queries is not None:
        asking = queries[np.einsum("qd,qd->q", queries, queries) > 0]
        if len(asking):
            order = np.random.default_rng(seed).permutation(len(asking))[:count]
            return np.ascontiguousarray(asking[order], np.float32)
    items = sample_by_length(stream.blocks(), count=count, seed=seed).reshape(-1, stream.dimensions)
    mixed = np.random.default_rng(seed).permutation(len(items))  # they came by age: halves must not differ
    return items[mixed]
