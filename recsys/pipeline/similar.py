"""Similar items: nearest by the vectors of the index, less what the rules remove.

The asker is nobody in particular: age and country are not known unless given, so restricted items
stay away. Rules may remove much, so the shards are asked again for more until the list is full.
"""

import asyncio
import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recsys.errors import UnavailableError
from recsys.pipeline.items import Growing
from recsys.pipeline.scopes import Scope
from recsys.pipeline.seams import Stage
from recsys.pipeline.sources import Shard, nearest
from recsys.types import HOUR, Candidates, RequestBatch, Sources

SCENE = "similar"  # what rules see


@dataclass(frozen=True, slots=True)
class Similar:
    vectors: Growing  # float32 [V, D], unit norm, and of items that came since
    shards: Sequence[Shard]
    rules: Stage
    deadline_ms: float = 1000.0  # of all shards together

    async def __call__(
        self, row: int, *, n: int, now: int, country: str | None = None, category: str | None = None
    ) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        """(item rows int32 [<= n], inner products float32, shards that did not answer), best first; of
        `category` alone, if one is named.

        Raises UnavailableError if no shard answers, RuleError.
        """
        k, scope = 2 * n, Scope(country, now // HOUR, category)
        while True:
            rows, scores, missing = await self._nearest(row, k, scope)
            alive = await self._alive(rows, scores, now=now, country=country)
            if alive.sum() >= n or len(rows) < k:  # there are no more
                return rows[alive][:n], scores[alive][:n], missing
            k *= 4

    async def _nearest(
        self, row: int, k: int, scope: Scope
    ) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        query = self.vectors[np.array([row])]
        answers = await asyncio.gather(*(self._ask(shard, query, k + 1, scope) for shard in self.shards))
        missing = tuple(s.name for s, a in zip(self.shards, answers, strict=True) if a is None)
        found = [answer for answer in answers if answer is not None]
        if not found:
            raise UnavailableError(
                f"no shard of the index answered within {self.deadline_ms:g} ms: ask again"
            )
        best = nearest(
            np.concatenate([rows for rows, _ in found], axis=1),
            np.concatenate([scores for _, scores in found], axis=1),
            k=k,
            hidden=(np.array([row]),),
        )
        return best.item, best.score, tuple(f"two_tower:{name}" for name in missing)

    async def _ask(
        self, shard: Shard, query: np.ndarray, k: int, scope: Scope
    ) -> tuple[np.ndarray, np.ndarray] | None:
        try:
            return await asyncio.wait_for(shard(query, k, [scope]), self.deadline_ms / 1000)
        except (UnavailableError, TimeoutError):
            return None

    async def _alive(
        self, rows: np.ndarray, scores: np.ndarray, *, now: int, country: str | None
    ) -> np.ndarray:
        nobody = RequestBatch(
            user_ids=("",),
            scene=(SCENE,),
            n=np.array([len(rows)], np.int32),
            now=np.array([now], np.int64),
            exclude=((),),
            country=(country,),
        )
        candidates = Candidates(
            np.array([0, len(rows)], np.int32),
            rows,
            score=scores,
            source=np.full(len(rows), Sources.TWO_TOWER, np.uint32),
            removed_by=np.zeros(len(rows), np.uint8),
        )
        judged = self.rules(nobody, candidates)
        return (await judged if inspect.isawaitable(judged) else judged).alive
