"""What of the catalog a request may be shown at all, in the form in which an index searches: its rows.

The rules judge each candidate; where they remove much, an index that does not know finds little that is
left. A scope is what many requests share, so it is worked out once: of the country, and of the hour, whose
every moment it admits. So it may leave more than the rules do, and never less. What changed meanwhile counts
after a moment; the rules are at once.
"""

import time
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from recsys.index.shard import FILTERS, Filter
from recsys.pipeline.items import LiveItems
from recsys.pipeline.rules import barred
from recsys.types import HOUR, RequestBatch

OLD_S = 0.3  # after which changes are taken in


@dataclass(frozen=True, slots=True)
class Scope:
    country: str | None  # None = not known: what is not for all countries stays away
    hour: int  # since the epoch
    category: str | None = None  # None = all

    @classmethod
    def of_batch(cls, batch: RequestBatch) -> list["Scope"]:
        """That of each request."""
        countries = batch.country or [None] * len(batch)
        return [cls(c, int(hour)) for c, hour in zip(countries, batch.now // HOUR)]

    def holds(self) -> pl.Expr:
        """Of a line of the items."""
        now = self.hour * HOUR
        holds = (
            pl.col("available").fill_null(True)
            & (pl.col("published_at").fill_null(now) < now + HOUR)
            & (pl.col("expires_at").fill_null(now + HOUR) > now)
            & ~barred(self.country)
        )
        return holds & (pl.col("category") == self.category) if self.category is not None else holds


@dataclass(frozen=True, slots=True)
class _Known:
    filter: Filter
    lines: int  # of the items that it knows
    everything: bool
    made: float


class Scopes:
    """The filters of the scopes that are asked for. Not for two threads at once."""

    def __init__(self, items: LiveItems) -> None:
        self._items = items
        self._known: dict[Scope, _Known] = {}
        self._countries, self._categories, self._lines = set[str](), set[str](), 0  # that items name

    def __call__(self, scope: Scope) -> Filter | None:
        """The rows of a scope; None = all that are not deleted."""
        frame, now = self._items.frame, time.monotonic()
        scope = self._named(scope, frame)
        known = self._known.pop(scope, None) or _Known(Filter(np.zeros(0, bool)), 0, True, 0.0)
        if known.lines < len(frame) and now - known.made > OLD_S:
            known = self._up_to_date(scope, known, frame, now)
        while len(self._known) >= FILTERS:
            self._known.pop(next(iter(self._known)))
        self._known[scope] = known
        return None if known.everything else known.filter

    def _up_to_date(self, scope: Scope, known: _Known, frame: pl.DataFrame, now: float) -> _Known:
        rows = self._items.rows_of_lines(known.lines, len(frame))
        holds = frame[known.lines :].select(scope.holds().alias("holds"))["holds"].to_numpy()
        before = known.filter.allowed
        allowed = np.zeros(max(len(before), int(rows.max()) + 1), bool)
        allowed[: len(before)] = before
        allowed[rows] = holds  # the last line of a row counts
        same = np.array_equal(allowed[: len(before)], before) and not allowed[len(before) :].any()
        # The same object as long as it can be: a shard would make its own form of another one.
        found = known.filter if same and known.lines else Filter(allowed)
        return _Known(found, len(frame), known.everything and bool(holds.all()), now)

    def _named(self, scope: Scope, frame: pl.DataFrame) -> Scope:
        """The scope itself, or one that leaves the same: visitors may name any country and category, and
        what no item names needs one filter and not many."""
        if self._lines < len(frame):
            new, self._lines = frame[self._lines :], len(frame)
            for column in ("countries_allowed", "countries_blocked"):
                self._countries.update(new[column].drop_nulls().explode().drop_nulls().unique().to_list())
            self._categories.update(new["category"].drop_nulls().unique().to_list())
        country = scope.country if scope.country is None or scope.country in self._countries else ""
        known = scope.category is None or scope.category in self._categories
        return replace(scope, country=country, category=scope.category if known else "\0")
