"""The sources: what a model knows, asked once per batch.

Each wraps a pure model from `recsys.models` and says which events of a history count for it. Only
the two-tower source does I/O: its index shards may live in other processes. Tables answer on the event
loop, in a millisecond or so; a model that scores the whole catalog does so in a thread.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from recsys.errors import UnavailableError
from recsys.interactions import Queries
from recsys.models.item_to_item.table import ItemTable
from recsys.models.popularity import propose_popular
from recsys.models.retrieval import Fitted
from recsys.models.sparse_scores import Proposals, decay_weights, history_matrix, look_up, propose_top
from recsys.models.top_k import top_k
from recsys.models.two_tower.user_encoder import UserEncoder
from recsys.pipeline.items import Growing
from recsys.pipeline.scopes import Scope
from recsys.pipeline.seams import Retrieved
from recsys.types import Histories, RequestBatch, offsets_of


@dataclass(frozen=True, slots=True)
class TableSource:
    """Neighbors of what the user consumed, by an item-to-item table."""

    name: str
    table: ItemTable
    weights: Callable[[Histories, np.ndarray], np.ndarray]  # (histories, now [B]) -> float32 [M]
    k: int

    async def __call__(self, batch: RequestBatch) -> Retrieved:
        weights = self.weights(batch.histories, batch.now)
        scores = self.table.score(batch.histories, weights=weights)
        return Retrieved(
            propose_top(scores, k=self.k, hidden=batch.hidden),
            {self.name: lambda offsets, item: look_up(scores, offsets=offsets, item=item)},
        )


@dataclass(frozen=True, slots=True)
class HistorySource:
    """The user's own consumption, decayed with age: what is bought again."""

    items: int
    half_life_days: float
    k: int
    name: str = "history"

    async def __call__(self, batch: RequestBatch) -> Retrieved:
        weights = decay_weights(batch.histories, now=batch.now, half_life_days=self.half_life_days)
        scores = history_matrix(batch.histories, weights=weights, items=self.items)
        return Retrieved(
            propose_top(scores, k=self.k, hidden=batch.hidden),
            {self.name: lambda offsets, item: look_up(scores, offsets=offsets, item=item)},
        )


@dataclass(frozen=True, slots=True)
class PopularitySource:
    """What everybody buys lately. `scores` float32 [V]."""

    scores: np.ndarray
    k: int
    name: str = "popularity"

    async def __call__(self, batch: RequestBatch) -> Retrieved:
        proposals = propose_popular(self.scores, requests=len(batch), k=self.k, hidden=batch.hidden)
        return Retrieved(proposals, {self.name: lambda offsets, item: _of(self.scores, item)})


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The best of all items by any retrieval model, to which every user is a stranger with a history.

    It takes tens of milliseconds and more, in compiled loops that let other threads run: on the event
    loop it would hold up all other requests, and the parts of a blend would wait for each other.
    """

    name: str
    fitted: Fitted
    items: int  # V: younger ones are not known to it
    k: int

    async def __call__(self, batch: RequestBatch) -> Retrieved:
        scores, proposals = await asyncio.to_thread(self._propose, batch)
        return Retrieved(proposals, {self.name: partial(_score_of, scores)})

    def _propose(self, batch: RequestBatch) -> tuple[np.ndarray, Proposals]:
        """The scores float32 [B, V], -inf where there is none or the item is hidden, and the k best."""
        histories = batch.histories.where(batch.histories.item < self.items)
        scores = self.fitted.score(Queries(np.full(len(batch), -1), histories, batch.now))
        for own, hidden in zip(scores, batch.hidden):
            own[hidden[hidden < self.items]] = -np.inf
        best = top_k(scores, k=min(self.k, self.items), tie_order=np.arange(self.items))
        found = best >= 0
        item = best[found]
        request = np.nonzero(found)[0]
        return scores, Proposals(offsets_of(found.sum(1)), item, scores[request, item])


class Shard(Protocol):
    """One part of an index, wherever it runs."""

    @property
    def name(self) -> str: ...

    def __call__(
        self, queries: np.ndarray, k: int, scopes: Sequence[Scope] = ()
    ) -> Awaitable[tuple[np.ndarray, np.ndarray]]:
        """(item rows int32 [B, k], scores float32 [B, k]) in each query's scope, best first; -1 and -inf
        where there is none."""


Observe = Callable[[RequestBatch, np.ndarray, Proposals], None]  # (batch, queries float32 [B, D], answer)


def unobserved(batch: RequestBatch, queries: np.ndarray, proposals: Proposals) -> None:
    """Nobody watches."""


@dataclass(frozen=True, slots=True)
class TwoTowerSource:
    """Nearest items to the user's vector, from all shards in parallel, merged with stable ties."""

    encoder: UserEncoder
    vectors: Growing  # float32 [V, D], and of items that came since
    shards: Sequence[Shard]
    k: int
    deadline_ms: float = 500.0  # of each shard: one that misses it is left out
    # Told each answer to which all shards contributed, for those who watch the index.
    observe: Observe = unobserved
    name: str = "two_tower"

    async def __call__(self, batch: RequestBatch) -> Retrieved:
        queries = self.encoder.encode(batch.histories, now=batch.now, user_features=batch.user_features)
        # Hidden items would take places, and a shard does not know them: ask for as many more.
        k = self.k + max((len(h) for h in batch.hidden), default=0)
        scopes = Scope.of_batch(batch)
        answers = await asyncio.gather(*(self._ask(shard, queries, k, scopes) for shard in self.shards))
        missing = tuple(
            f"{self.name}:{shard.name}"
            for shard, answer in zip(self.shards, answers, strict=True)
            if answer is None
        )
        found = [answer for answer in answers if answer is not None]
        if not found:
            raise UnavailableError(f"no shard of {self.name} answered within {self.deadline_ms:g} ms")
        rows = np.concatenate([rows for rows, _ in found], axis=1)
        scores = np.concatenate([scores for _, scores in found], axis=1)
        proposals = nearest(rows, scores, k=self.k, hidden=batch.hidden)
        if not missing:
            self.observe(batch, queries, proposals)
        return Retrieved(proposals, {self.name: partial(self._score, queries)}, missing)

    async def _ask(
        self, shard: Shard, queries: np.ndarray, k: int, scopes: Sequence[Scope]
    ) -> tuple[np.ndarray, np.ndarray] | None:
        try:
            return await asyncio.wait_for(shard(queries, k, scopes), self.deadline_ms / 1000)
        except (UnavailableError, TimeoutError):
            return None

    def _score(self, queries: np.ndarray, offsets: np.ndarray, item: np.ndarray) -> np.ndarray:
        request = np.repeat(np.arange(len(queries)), np.diff(offsets))
        vectors = self.vectors[item]
        score = np.einsum("nd,nd->n", queries[request], vectors)
        known = (item < len(self.vectors)) | vectors.any(axis=1)
        return np.where(known, score, np.nan).astype(np.float32)


def nearest(rows: np.ndarray, scores: np.ndarray, *, k: int, hidden: tuple[np.ndarray, ...]) -> Proposals:
    """The k best of each line of merged shard answers [B, S], without hidden rows; ties to the lower row."""
    items, values = [], []
    for request in range(len(rows)):
        usable = rows[request] >= 0
        if hidden and len(hidden[request]):
            usable &= ~np.isin(rows[request], hidden[request])
        item, value = rows[request][usable], scores[request][usable]
        best = np.lexsort((item, -value))[:k]
        items.append(item[best])
        values.append(value[best])
    return Proposals(
        offsets_of(np.array([len(i) for i in items], np.int64)),
        np.concatenate([*items, np.zeros(0, np.int32)]).astype(np.int32),
        np.concatenate([*values, np.zeros(0, np.float32)]).astype(np.float32),
    )


def _score_of(scores: np.ndarray, offsets: np.ndarray, item: np.ndarray) -> np.ndarray:
    """The score float32 [B, V] of each candidate, NaN where there is none."""
    known = item < scores.shape[1]
    request = np.repeat(np.arange(len(scores)), np.diff(offsets))
    score = scores[request, np.where(known, item, 0)]
    return np.where(known & (score > -np.inf), score, np.nan).astype(np.float32)


def _of(scores: np.ndarray, item: np.ndarray) -> np.ndarray:
    """The score of each item row, NaN beyond the model's vocabulary."""
    known = item < len(scores)
    return np.where(known, scores[np.where(known, item, 0)], np.nan).astype(np.float32)
