"""Business rules: hard filters, as vectorized expressions. They fail closed: an error removes the slate.

Built in, from the item's own fields: availability, publication and expiry, countries, age. From the
rules file, SQL expressions over the item's columns and the request's (`country`, `age`, `scene`),
read by polars: a rule whose expression is true removes the candidate. Rules that look only at items
are evaluated once for each line of the items, so at request time they cost one look-up.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from recsys.errors import RuleError, SettingsError
from recsys.pipeline.items import DELETED, LiveItems
from recsys.types import Candidates, Removal, RequestBatch

REQUEST_COLUMNS = ("country", "age", "scene")
COUNTRIES = 300  # that are kept at hand
SECONDS_A_YEAR = 365.2425 * 86_400


@dataclass(frozen=True, slots=True)
class Rule:
    """A line of the rules file."""

    name: str
    remove: str  # SQL expression: true removes, null does not


class _Column:
    """An array that others are appended to, without copying it each time."""

    def __init__(self, values: np.ndarray) -> None:
        self._values, self._size = values, len(values)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        found: np.ndarray = self._values[places]
        return found

    def all(self) -> np.ndarray:
        return self._values[: self._size]

    def append(self, more: np.ndarray) -> None:
        end = self._size + len(more)
        if end > len(self._values):
            room = np.zeros(end + end // 4 + 64, self._values.dtype)
            room[: self._size] = self.all()
            self._values = room
        self._values[self._size : end] = more
        self._size = end


@dataclass(slots=True)
class _Judged:
    """What needs no request, of the first L lines of the items."""

    static: _Column  # uint8 [L] Removal
    limited: _Column  # bool [L] not for all countries
    bounds: dict[str, _Column]  # numeric columns, NaN = no bound
    barred: dict[str, _Column]  # country -> bool [<= L], of those that were asked for

    def append(self, more: "_Judged") -> None:
        """Further lines."""
        self.static.append(more.static.all())
        self.limited.append(more.limited.all())
        for name, values in self.bounds.items():
            values.append(more.bounds[name].all())


class Rules:
    """The rules stage of `items`."""

    def __init__(self, items: LiveItems, rules: Sequence[Rule] = ()) -> None:
        """Raises SettingsError for a rule that is none, RuleError for one that fails on an item."""
        self.items = items
        parsed = [(rule.name, _parse(rule, set(items.frame.columns))) for rule in rules]
        asked = set(REQUEST_COLUMNS)
        self._dynamic = [(name, e) for name, e in parsed if set(e.meta.root_names()) & asked]
        self._static = [(name, e) for name, e in parsed if not set(e.meta.root_names()) & asked]
        self._judged = self._judge(items.frame)

    def __call__(self, batch: RequestBatch, candidates: Candidates) -> Candidates:
        item, request = candidates.item, candidates.request
        line, frame = self.items.line[item], self.items.frame  # in this order: a line is in the frame
        absent = np.select([line >= 0, line == DELETED], [0, Removal.DELETED], Removal.UNKNOWN)
        if not len(frame):
            return _marked(candidates, [(absent.astype(np.uint8), None)])
        judged, line = self._up_to_date(frame), np.maximum(line, 0)
        now = batch.now[request]
        age = ages(batch)[request]
        bounds = {name: values[line] for name, values in judged.bounds.items()}
        with np.errstate(invalid="ignore"):
            reasons = [
                (absent.astype(np.uint8), None),
                (_listed(candidates, batch.exclude), Removal.EXCLUDED),
                (_listed(candidates, batch.hidden), Removal.CONSUMED),
                (judged.static[line], None),
                ((bounds["published_at"] > now) | (bounds["expires_at"] <= now), Removal.EXPIRED),
                # Not knowing a visitor's age or country is no reason to show what is restricted.
                (~np.isnan(bounds["min_age"]) & ~(age >= bounds["min_age"]), Removal.AGE),
                (self._country(batch, line, request, judged, frame), Removal.COUNTRY),
                (self._expressions(batch, line, request, age, frame), Removal.RULE),
            ]
        return _marked(candidates, reasons)

    def _up_to_date(self, frame: pl.DataFrame) -> _Judged:
        """What is known of all lines; of new ones from now on."""
        known = len(self._judged.static)
        if known < len(frame):
            self._judged.append(self._judge_safely(frame[known:]))
        return self._judged

    def _judge_safely(self, frame: pl.DataFrame) -> _Judged:
        """An item on which a rule fails is not shown; it must not close the shop, nor hide others."""
        try:
            return self._judge(frame)
        except RuleError as error:
            if len(frame) == 1:
                logging.getLogger(__name__).error("%s: item %s is not shown", error, frame["item_id"][0])
                return self._judge(frame, closed=True)
            half = len(frame) // 2
            judged = self._judge_safely(frame[:half])
            judged.append(self._judge_safely(frame[half:]))
            return judged

    def _judge(self, frame: pl.DataFrame, *, closed: bool = False) -> _Judged:
        """`closed`: all of it is removed. Raises RuleError."""
        available = frame["available"].fill_null(True).to_numpy()
        static = np.where(available, Removal.ALIVE, Removal.UNAVAILABLE).astype(np.uint8)
        if closed:
            static[:] = Removal.RULE
        for name, expression in () if closed else self._static:
            static[(static == 0) & _evaluate(name, expression, frame)] = Removal.RULE
        limited = frame.select(barred(None).alias("limited"))["limited"].to_numpy()
        bounds = {
            name: _Column(frame[name].cast(pl.Float64).fill_null(np.nan).to_numpy())
            for name in ("min_age", "published_at", "expires_at")
        }
        return _Judged(_Column(static), _Column(limited), bounds, {})

    def _country(
        self, batch: RequestBatch, line: np.ndarray, request: np.ndarray, judged: _Judged, frame: pl.DataFrame
    ) -> np.ndarray:
        removed = np.zeros(len(line), bool)
        if judged.limited.all().any():
            countries = list(batch.country) or [None] * len(batch)
            for country in set(countries):  # a few in a batch
                mine = np.array([c == country for c in countries])[request]
                removed[mine] = _barred_lines(country, judged, frame)[line[mine]]
        return removed

    def _expressions(
        self,
        batch: RequestBatch,
        line: np.ndarray,
        request: np.ndarray,
        age: np.ndarray,
        frame: pl.DataFrame,
    ) -> np.ndarray:
        removed = np.zeros(len(line), bool)
        if not self._dynamic:
            return removed
        # From lists: an object array in which None stands beside a text becomes polars's Object, not String.
        country = pl.Series("country", list(batch.country) or [None] * len(batch), dtype=pl.String)
        asked = frame[line].with_columns(
            country.gather(request),
            pl.Series("age", age, dtype=pl.Float64, nan_to_null=True),
            pl.Series("scene", list(batch.scene), dtype=pl.String).gather(request),
        )
        for name, expression in self._dynamic:
            removed |= _evaluate(name, expression, asked)
        return removed


def _barred_lines(country: str | None, judged: _Judged, frame: pl.DataFrame) -> _Column:
    """Lines that may not be shown in `country`, bool [L]."""
    if country is None:
        return judged.limited
    if country not in judged.barred:
        if len(judged.barred) >= COUNTRIES:  # visitors say where they are: that must not fill the memory
            judged.barred.clear()
        judged.barred[country] = _Column(np.zeros(0, bool))
    known = judged.barred[country]
    if len(known) < len(judged.static):
        further = frame[len(known) : len(judged.static)]
        known.append(further.select(barred(country).alias("barred"))["barred"].to_numpy())
    return known


def barred(country: str | None) -> pl.Expr:
    """Whether an item may not be shown in `country`; nowhere known counts as nowhere allowed."""
    allowed, blocked = pl.col("countries_allowed"), pl.col("countries_blocked")
    if country is None:
        return (allowed.list.len().fill_null(0) > 0) | (blocked.list.len().fill_null(0) > 0)
    unlisted = (allowed.list.len() > 0) & ~allowed.list.contains(country)
    return unlisted.fill_null(False) | blocked.list.contains(country).fill_null(False)


def _marked(candidates: Candidates, reasons: Sequence[tuple[np.ndarray, Removal | None]]) -> Candidates:
    """`candidates` removed by the first of `reasons` that holds: bool [N] and why, or codes uint8 [N]."""
    removed_by = candidates.removed_by.copy()
    for mask, reason in reasons:
        code = mask.astype(np.uint8) if reason is None else np.where(mask, reason, 0)
        removed_by = np.where(removed_by == 0, code, removed_by)
    return replace(candidates, removed_by=removed_by.astype(np.uint8))


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
