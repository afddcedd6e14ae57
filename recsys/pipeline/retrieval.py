"""Retrieval: all sources at once, their proposals merged into one list of candidates a request.

A source that misses its deadline while it waits (for index shards), or can't be reached, is left out
and the answer says so (it fails open). An item that several sources propose becomes one candidate with
all their bits; every source then scores every candidate, so that the ranker sees each opinion. Until
the ranker has spoken the order is weighted reciprocal rank fusion (Cormack, Clarke and Büttcher, 2009),
whose constant is 60.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from recsys.errors import UnavailableError
from recsys.models.sparse_scores import HistoryWeights
from recsys.pipeline.seams import Retrieved, Source
from recsys.types import Candidates, RequestBatch, Sources, offsets_of

FUSION_CONSTANT = 60
FUSED = "retrieval"  # the named score that keeps the fused order


@dataclass(frozen=True, slots=True)
class RetrievalSettings:
    candidates: Mapping[str, int] = field(
        default_factory=lambda: {
            "two_tower": 150,
            "ease": 150,
            "ease_decayed": 150,
            "basket": 150,
            "history": 500,
            "popularity": 150,
        }
    )  # how many each source proposes
    history: HistoryWeights = field(default_factory=HistoryWeights)
    weights: Mapping[str, float] = field(default_factory=dict)  # in the fused order; 1 where not given
    deadline_ms: float = 1000.0  # of each source

    def __post_init__(self) -> None:
        names = {source.label for source in Sources if source != Sources.BACKFILL}
        if set(self.candidates) != names:
            odd = ", ".join(sorted(set(self.candidates) ^ names))
            raise ValueError(
                f"candidates must say how many for each of {', '.join(sorted(names))}: see {odd}"
            )
        if unknown := set(self.weights) - names:
            raise ValueError(
                f"weights of {', '.join(sorted(unknown))}: the sources are {', '.join(sorted(names))}"
            )


@dataclass(frozen=True, slots=True)
class Retrieval:
    sources: Sequence[Source]
    settings: RetrievalSettings

    async def __call__(self, batch: RequestBatch) -> Candidates:
        answers = await asyncio.gather(*(self._ask(source, batch) for source in self.sources))
        candidates = merge(
            {s.name: a for s, a in zip(self.sources, answers, strict=True) if a is not None},
            requests=len(batch),
            weights=self.settings.weights,
        )
        for source, answer in zip(self.sources, answers, strict=True):
            for missing in (source.name,) if answer is None else answer.degraded:
                candidates = candidates.admit(missing)
        return candidates

    async def _ask(self, source: Source, batch: RequestBatch) -> Retrieved | None:
        try:
            return await asyncio.wait_for(source(batch), self.settings.deadline_ms / 1000)
        except (UnavailableError, TimeoutError):
            return None


def merge(retrieved: Mapping[str, Retrieved], *, requests: int, weights: Mapping[str, float]) -> Candidates:
    """One candidate for each (request, item), sorted by item row; `proposed` counts what was put in."""
    width = 1 + max((int(r.proposals.item.max(initial=0)) for r in retrieved.values()), default=0)
    packed, fusion = [np.zeros(0, np.int64)], [np.zeros(0)]
    for name, answer in retrieved.items():
        offsets, item = answer.proposals.offsets, answer.proposals.item
        request = np.repeat(np.arange(requests), np.diff(offsets))
        rank = np.arange(len(item)) - offsets[request]
        # The bit travels in the low byte, so that sorting plain integers does it all.
        packed.append((request * width + item) << 8 | int(Sources[name.upper()]))
        fusion.append(weights.get(name, 1.0) / (FUSION_CONSTANT + rank + 1))
    pairs = np.concatenate(packed)
    order = np.argsort(pairs)
    pairs = pairs[order]
    pair = pairs >> 8
    first = np.flatnonzero(np.concatenate(([True], pair[1:] != pair[:-1]))) if len(pair) else pair
    source = (
        np.bitwise_or.reduceat(pairs & 255, first).astype(np.uint32) if len(pair) else np.zeros(0, np.uint32)
    )
    fused = np.add.reduceat(np.concatenate(fusion)[order], first) if len(pair) else np.zeros(0)
    fused = fused.astype(np.float32)
    item = (pair[first] % width).astype(np.int32)
    offsets = offsets_of(np.bincount(pair[first] // width, minlength=requests))
    return Candidates(
        offsets,
        item,
        score=fused,
        source=source,
        removed_by=np.zeros(len(item), np.uint8),
        scores={FUSED: fused}
        | {
            score: look_up(offsets, item)
            for answer in retrieved.values()
            for score, look_up in answer.scores.items()
        },
        proposed={name: np.diff(r.proposals.offsets).astype(np.int32) for name, r in retrieved.items()},
    )
