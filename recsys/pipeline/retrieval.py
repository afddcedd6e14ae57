"""Retrieval: all sources at once, their proposals merged into one list of candidates a request.

A source that misses its deadline while it waits (for index shards), or can't be reached, is left out
and the answer says so (it fails open). An item that several sources propose becomes one candidate with
all their bits; every source then scores every candidate, so that the ranker sees each opinion. Until
the ranker has spoken the order is weighted reciprocal rank fusion (Cormack, Clarke and Büttcher, 2009).
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from recsys.errors import UnavailableError
from recsys.models.blend import CONSTANT
from recsys.models.sparse_scores import HistoryWeights
from recsys.pipeline.seams import Retrieved, Source
from recsys.types import Candidates, RequestBatch, Sources, offsets_of

FUSED = "retrieval"  # the named score that keeps the fused order
CANDIDATES = {
    "two_tower": 150,
    "ease": 150,
    "ease_decayed": 150,
    "basket": 150,
    "history": 500,
    "popularity": 150,
}
_BITS = max(Sources).bit_length()


@dataclass(frozen=True, slots=True)
class RetrievalSettings:
    # How many each of the pipeline's own sources proposes; CANDIDATES where not given.
    candidates: Mapping[str, int] = field(default_factory=dict)
    history: HistoryWeights = field(default_factory=HistoryWeights)
    weights: Mapping[str, float] = field(default_factory=dict)  # in the fused order; 1 where not given
    deadline_ms: float = 1000.0  # of each source

    def __post_init__(self) -> None:
        for setting in ("candidates", "weights"):
            if unknown := set(getattr(self, setting)) - set(CANDIDATES):
                raise ValueError(
                    f"{setting} of {', '.join(sorted(unknown))}: the sources are {', '.join(CANDIDATES)}"
                )
        object.__setattr__(self, "candidates", CANDIDATES | dict(self.candidates))


@dataclass(frozen=True, slots=True)
class Fusion:
    """How the lists of the sources become one order."""

    weights: Mapping[str, float] = field(default_factory=dict)  # source -> weight; 1 where not given
    constant: float = CONSTANT  # added to a rank


@dataclass(frozen=True, slots=True)
class Retrieval:
    sources: Sequence[Source]
    fusion: Fusion = field(default_factory=Fusion)
    deadline_ms: float | None = None  # of each source; None = all are waited for

    async def __call__(self, batch: RequestBatch) -> Candidates:
        answers = await asyncio.gather(*(self._ask(source, batch) for source in self.sources))
        candidates = merge(
            {s.name: a for s, a in zip(self.sources, answers, strict=True) if a is not None},
            requests=len(batch),
            fusion=self.fusion,
        )
        for source, answer in zip(self.sources, answers, strict=True):
            for missing in (source.name,) if answer is None else answer.degraded:
                candidates = candidates.admit(missing)
        return candidates

    async def _ask(self, source: Source, batch: RequestBatch) -> Retrieved | None:
        seconds = None if self.deadline_ms is None else self.deadline_ms / 1000
        try:
            return await asyncio.wait_for(source(batch), seconds)
        except (UnavailableError, TimeoutError):
            return None


def merge(retrieved: Mapping[str, Retrieved], *, requests: int, fusion: Fusion) -> Candidates:
    """One candidate for each (request, item), sorted by item row; `proposed` counts what was put in."""
    width = 1 + max((int(r.proposals.item.max(initial=0)) for r in retrieved.values()), default=0)
    packed, gains = [np.zeros(0, np.int64)], [np.zeros(0)]
    for name, answer in retrieved.items():
        offsets, item = answer.proposals.offsets, answer.proposals.item
        request = np.repeat(np.arange(requests), np.diff(offsets))
        rank = np.arange(len(item)) - offsets[request]
        # The source's bit travels below the pair, so that sorting plain integers does it all.
        packed.append((request * width + item) << _BITS | int(Sources[name.upper()]))
        gains.append(fusion.weights.get(name, 1.0) / (fusion.constant + rank + 1))
    pairs = np.concatenate(packed)
    order = np.argsort(pairs)
    pairs = pairs[order]
    pair = pairs >> _BITS
    first = np.flatnonzero(np.concatenate(([True], pair[1:] != pair[:-1]))) if len(pair) else pair
    bits = pairs & ((1 << _BITS) - 1)
    source = (np.bitwise_or.reduceat(bits, first) if len(pair) else bits).astype(np.uint32)
    fused = np.add.reduceat(np.concatenate(gains)[order], first) if len(pair) else np.zeros(0)
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
