"""A search for better settings of a retrieval model: what a trial is fitted on, by what it is judged.

Decides that a trial is fitted on a ninth, a third and then all of the training users and judged on the same
held-out events each time, by NDCG@10, or by the RMSE of what predicts ratings; that trial 0 has the
model's own settings, so that there is something to compare with; and that only trials on all users can
win. The settings of trial n follow from the seed and n. Knows nothing of how trials are run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from recsys.datasets.problem import Judged
from recsys.errors import DataError, RecsysError
from recsys.interactions import Interactions
from recsys.models.held_out import AT, lists_of, ndcg_of
from recsys.models.retrieval import Fitted, Predicts, RetrievalModel
from recsys.models.search_space import Space, draw

NINTHS = (1, 3, 9)  # of the training users, one after the other


@dataclass(frozen=True, slots=True)
class Search:
    """What is searched, and on what; another search has another journal."""

    model: RetrievalModel  # trial 0, and what the others have in common
    space: Space
    data: Interactions  # without what is held out
    held_out: Judged
    seed: int

    @property
    def metric(self) -> str:
        return "rmse" if self.model.explicit else f"ndcg@{AT}"

    @property
    def mode(self) -> str:
        return "min" if self.model.explicit else "max"

    def settings(self, number: int) -> dict[str, Any]:
        """Of trial `number`, those of the space."""
        if number == 0:
            return {name: getattr(self.model, name) for name in self.space}
        return draw(self.space, np.random.default_rng((self.seed, number)))

    def share(self, ninths: int) -> tuple[Interactions, Judged]:
        """The events of so many ninths of the users, and the queries; who is not among them is a stranger."""
        users = np.flatnonzero(self.data.histories.counts)
        among = np.zeros(self.data.users, bool)
        among[np.random.default_rng(self.seed).permutation(users)[: -(-len(users) * ninths // 9)]] = True
        asked = self.held_out.queries
        known = (asked.user >= 0) & among[asked.user]
        queries = replace(asked, user=np.where(known, asked.user, -1))
        return self.data.where(among[self.data.histories.request]), replace(self.held_out, queries=queries)

    def quality(self, fitted: Fitted, judged: Judged) -> float:
        """The metric. Raises DataError for RMSE where no value (rating) is known."""
        if not self.model.explicit:
            return ndcg_of(lists_of(fitted, judged, items=self.data.items, depth=AT), judged)
        rated = np.flatnonzero(~np.isnan(judged.value))
        if not len(rated):
            raise DataError("no event held out has a value (rating): choose a model that needs none")
        asking = np.repeat(np.arange(len(judged)), judged.target_counts)[rated]
        found = cast(Predicts, fitted).predict(judged.queries.take(asking), judged.target[rated])
        return float(np.sqrt(np.mean((found.astype(np.float64) - judged.value[rated]) ** 2)))

    def best(self, trials: Sequence["Trial"]) -> "Trial":
        """Of those on all users. Raises RecsysError where there is none."""
        whole = [trial for trial in trials if trial.whole]
        if not whole:
            failed = next((trial for trial in trials if trial.failed), None)
            why = f"trial {failed.number}: {failed.failed}" if failed else "give more minutes"
            raise RecsysError(f"none of {len(trials)} trials got to be fitted on all users; {why}")
        return (min if self.mode == "min" else max)(whole, key=lambda trial: trial.values[-1])


@dataclass(frozen=True, slots=True)
class Trial:
    """One that ended: on all users, stopped early, or failed."""

    number: int
    settings: Mapping[str, Any]
    values: Sequence[float]  # of the metric, for each of NINTHS that it got to
    seconds: float
    failed: str | None = None  # why

    @property
    def whole(self) -> bool:
        return self.failed is None and len(self.values) == len(NINTHS)

    @property
    def stopped(self) -> bool:
        return self.failed is None and not self.whole
