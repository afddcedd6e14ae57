"""The three seams of the request path. Whoever satisfies one of them can be placed in the recommender.

A step or stage that runs elsewhere is an async wrapper with the same signature, so the recommender
awaits whatever is awaitable and knows nothing of placement.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from recsys.models.sparse_scores import Proposals
from recsys.types import Candidates, RequestBatch


class RequestStep(Protocol):
    """Pure: who is in which arm."""

    def __call__(self, batch: RequestBatch) -> RequestBatch | Awaitable[RequestBatch]: ...


class Hydrator(Protocol):
    """I/O, once per batch: fills in what the request did not carry."""

    async def __call__(self, batch: RequestBatch) -> RequestBatch: ...


@dataclass(frozen=True, slots=True)
class Retrieved:
    """What one source proposes for a batch, and its opinion of items that only others propose."""

    proposals: Proposals
    scores: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]
    # name -> (offsets [B + 1], item [N]) -> float32 [N]; NaN = the source can't say
    degraded: tuple[str, ...] = ()  # index shards that did not answer


class Source(Protocol):
    """I/O, once per batch: proposes candidates, none of them among `batch.hidden`."""

    @property
    def name(self) -> str:
        """Of a bit of `recsys.types.Sources`, in lower case."""

    async def __call__(self, batch: RequestBatch) -> Retrieved: ...


class Stage(Protocol):
    """Synchronous and pure. Marks what it removes; never drops a row."""

    def __call__(self, batch: RequestBatch, candidates: Candidates) -> Candidates | Awaitable[Candidates]: ...
