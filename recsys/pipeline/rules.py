"""Business rules: hard filters, as vectorized expressions. They fail closed: an error removes the slate.

Built in, from the item's own fields: availability, publication and expiry, countries, age. From the
rules file, SQL expressions over the item's columns and the request's (`country`, `age`, `scene`),
read by polars: a rule whose expression is true removes the candidate. Rules that look only at items
are evaluated once for the whole catalog, so at request time they cost one look-up.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl

from recsys.errors import RuleError, SettingsError
from recsys.types import Candidates, Removal, RequestBatch

REQUEST_COLUMNS = ("country", "age", "scene")
SECONDS_A_YEAR = 365.2425 * 86_400


@dataclass(frozen=True, slots=True)
class Rule:
    """A line of the rules file."""

    name: str
    remove: str  # SQL expression: true removes, null does not


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules stage. `items`: one line per row of the catalog, columns of the item contract
    (`item_id`, `title`, `category`, `price`, `available`, `min_age`, `countries_allowed`,
    `countries_blocked`, `published_at` and `expires_at` as epoch seconds)."""

    items: pl.DataFrame
    rules: Sequence[Rule] = ()
    static: np.ndarray = field(init=False)  # uint8 [V] Removal that needs no request
    dynamic: tuple[tuple[str, pl.Expr], ...] = field(init=False)
    limited: np.ndarray = field(init=False)  # bool [V] not for all countries
    bounds: dict[str, np.ndarray] = field(init=False)  # numeric columns, NaN = no bound

    def __post_init__(self) -> None:
        available = self.items["available"].fill_null(True).to_numpy()
        static = np.where(available, Removal.ALIVE, Removal.UNAVAILABLE).astype(np.uint8)
        dynamic = []
        for rule in self.rules:
            expression = _parse(rule, set(self.items.columns))
            if set(expression.meta.root_names()) & set(REQUEST_COLUMNS):
                dynamic.append((rule.name, expression))
            else:
                static[(static == 0) & _evaluate(rule.name, expression, self.items)] = Removal.RULE
        listed = [
            self.items[c].list.len().fill_null(0) > 0 for c in ("countries_allowed", "countries_blocked")
        ]
        object.__setattr__(self, "limited", (listed[0] | listed[1]).to_numpy())
        object.__setattr__(self, "static", static)
        object.__setattr__(self, "dynamic", tuple(dynamic))
        object.__setattr__(
            self,
            "bounds",
            {
                name: self.items[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
                for name in ("min_age", "published_at", "expires_at")
            },
        )

    def __call__(self, batch: RequestBatch, candidates: Candidates) -> Candidates:
        item, request = candidates.item, candidates.request
        if len(item) and item.max() >= len(self.static):
            raise RuleError(f"item row {item.max()} is beyond the {len(self.static)} rows the rules know")
        now = batch.now[request]
        age = ages(batch)[request]
        with np.errstate(invalid="ignore"):
            reasons = [
                (_listed(candidates, batch.exclude), Removal.EXCLUDED),
                (_listed(candidates, batch.hidden), Removal.CONSUMED),
                (self.static[item], None),
                (
                    (self.bounds["published_at"][item] > now) | (self.bounds["expires_at"][item] <= now),
                    Removal.EXPIRED,
                ),
                # Not knowing a visitor's age or country is no reason to show what is restricted.
                (
                    ~np.isnan(self.bounds["min_age"][item]) & ~(age >= self.bounds["min_age"][item]),
                    Removal.AGE,
                ),
                (self._country(batch, item, request), Removal.COUNTRY),
                (self._expressions(batch, item, request, age), Removal.RULE),
            ]
        removed_by = candidates.removed_by.copy()
        for mask, reason in reasons:
            code = mask.astype(np.uint8) if reason is None else np.where(mask, reason, 0)
            removed_by = np.where(removed_by == 0, code, removed_by)
        return replace(candidates, removed_by=removed_by.astype(np.uint8))

    def _country(self, batch: RequestBatch, item: np.ndarray, request: np.ndarray) -> np.ndarray:
        removed = np.zeros(len(item), bool)
        if self.limited.any():
            countries = list(batch.country) or [None] * len(batch)
            for country in set(countries):  # a few in a batch
                mine = np.array([c == country for c in countries])[request]
                removed[mine] = self._barred(country)[item[mine]]
        return removed

    def _barred(self, country: str | None) -> np.ndarray:
        """Items that may not be shown in `country`, bool [V]; nowhere known counts as nowhere allowed."""
        if country is None:
            return self.limited
        allowed, blocked = pl.col("countries_allowed"), pl.col("countries_blocked")
        barred = (allowed.list.len() > 0) & ~allowed.list.contains(country) | blocked.list.contains(country)
        return self.items.select(barred.fill_null(False).alias("barred"))["barred"].to_numpy()

    def _expressions(
        self, batch: RequestBatch, item: np.ndarray, request: np.ndarray, age: np.ndarray
    ) -> np.ndarray:
        removed = np.zeros(len(item), bool)
        if not self.dynamic:
            return removed
        # From lists: an object array in which None stands beside a text becomes polars's Object, not String.
        country = pl.Series("country", list(batch.country) or [None] * len(batch), dtype=pl.String)
        frame = self.items[item].with_columns(
            country.gather(request),
            pl.Series("age", age, dtype=pl.Float64, nan_to_null=True),
            pl.Series("scene", list(batch.scene), dtype=pl.String).gather(request),
        )
        for name, expression in self.dynamic:
            removed |= _evaluate(name, expression, frame)
        return removed


def ages(batch: RequestBatch) -> np.ndarray:
    """The age that each user has surely reached, from the year of birth; float64 [B], NaN = not known."""
    if not len(batch.birth_year):
        return np.full(len(batch), np.nan)
    year = np.floor(1970 + batch.now / SECONDS_A_YEAR)
    return np.where(batch.birth_year > 0, year - batch.birth_year - 1, np.nan)


def _parse(rule: Rule, columns: set[str]) -> pl.Expr:
    try:
        expression = pl.sql_expr(rule.remove)
    except Exception as error:  # polars raises several kinds for bad SQL
        raise SettingsError(f"rule {rule.name!r}: {rule.remove!r} is not an expression: {error}") from error
    unknown = set(expression.meta.root_names()) - columns - set(REQUEST_COLUMNS)
    if unknown:
        raise SettingsError(
            f"rule {rule.name!r} names {', '.join(sorted(unknown))}: "
            f"columns are {', '.join(sorted(columns | set(REQUEST_COLUMNS)))}"
        )
    return expression


def _evaluate(name: str, expression: pl.Expr, frame: pl.DataFrame) -> np.ndarray:
    """Where the rule holds, bool [lines of frame]; null is false. Raises RuleError."""
    try:
        column = frame.select(expression.alias("remove"))["remove"]
        if column.dtype != pl.Boolean:
            raise RuleError(f"rule {name!r} gives {column.dtype}, not true or false")
        if len(column) == 1 != len(frame):  # an expression without columns
            column = column.new_from_index(0, len(frame))
        return column.fill_null(False).to_numpy()
    except pl.exceptions.PolarsError as error:
        raise RuleError(f"rule {name!r} failed: {error}") from error


def _listed(candidates: Candidates, listed: Sequence[Any]) -> np.ndarray:
    """Whether each candidate is among its request's rows, bool [N]."""
    removed = np.zeros(len(candidates), bool)
    for r, rows in enumerate(listed):
        if len(rows):
            mine = slice(candidates.offsets[r], candidates.offsets[r + 1])
            removed[mine] = np.isin(candidates.item[mine], np.asarray(rows))
    return removed
