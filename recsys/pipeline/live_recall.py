"""How much of what is nearest the index finds, of requests that are served: sampled, beside their answers.

An answer is compared with exact search over the vectors of the items as they are now, in a thread of its
own, one query at a time and so seldom that it takes a small share of a core, however large the catalog. A
recall that sinks says that queries or items have moved away from those that the index was tuned to.
"""

import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from recsys.index.fresh import is_allowed
from recsys.models.sparse_scores import Proposals
from recsys.pipeline.items import LiveItems
from recsys.pipeline.scopes import Scope, Scopes
from recsys.types import RequestBatch

BUSY = 0.01  # share of a core
SAME = 1e-5  # scores that are as near are a tie


class LiveRecall:
    """May stand as `observe` of a TwoTowerSource."""

    def __init__(self, items: LiveItems, scopes: Scopes, record: Callable[[float], None], *, k: int) -> None:
        """`k`: how many the source proposes; `record`: told each recall, in that thread."""
        self._items, self._scopes, self._record, self._k = items, scopes, record, k
        self._random = np.random.default_rng()
        self._thread = ThreadPoolExecutor(1, "live-recall")
        self._next = 0.0  # when the next one may be looked at; inf = one is

    def __call__(self, batch: RequestBatch, queries: np.ndarray, proposals: Proposals) -> None:
        if time.monotonic() < self._next:
            return
        self._next = math.inf
        place = int(self._random.integers(len(batch)))
        found = proposals.item[proposals.offsets[place] : proposals.offsets[place + 1]]
        hidden = batch.hidden[place] if batch.hidden else np.zeros(0, np.int32)
        only = self._scopes(Scope.of_batch(batch)[place])
        allowed = None if only is None else only.allowed
        self._thread.submit(self._look, queries[place], found, hidden, allowed)

    def _look(
        self, query: np.ndarray, found: np.ndarray, hidden: np.ndarray, allowed: np.ndarray | None
    ) -> None:
        start = time.monotonic()
        try:
            recall = self._recall(query, found, hidden, allowed)
            if recall is not None:
                self._record(recall)
        except Exception:  # nobody waits for it
            logging.getLogger(__name__).exception("the recall of a request is not known")
        finally:
            end = time.monotonic()
            self._next = end + (end - start) / BUSY

    def _recall(
        self, query: np.ndarray, found: np.ndarray, hidden: np.ndarray, allowed: np.ndarray | None
    ) -> float | None:
        """None = there is nothing to find."""
        scores = [np.zeros(0, np.float32)]
        for rows, vectors in self._items.vectors.blocks():
            kept = (self._items.line[rows] >= 0) & vectors.any(axis=1) & ~np.isin(rows, hidden)
            if allowed is not None:
                kept &= is_allowed(allowed, rows)
            scores.append(vectors[kept] @ query)
        all_scores = np.concatenate(scores)
        wanted = min(self._k, len(all_scores))
        if not wanted:
            return None
        last = np.partition(all_scores, -wanted)[-wanted]
        hits = self._items.vectors[found] @ query >= last - SAME
        return min(int(hits.sum()), wanted) / wanted
