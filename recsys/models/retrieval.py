"""What every retrieval model is: settings that know how to be fitted, and what a fit leaves behind.

A `RetrievalModel` is a frozen dataclass of settings with three verbs. `estimate` says what a fit will
need before it starts. `fit` learns from interactions and returns a `Fitted`: arrays that score all
items for a query, without Ray, without I/O. What is served of it is its `export`, in one of two
shapes: vectors with a user encoder, or an item-to-item table. The contract of both stands in
`tests/contracts/retrieval_model.py`, which each model inherits.

What counts for all of them:
- Settings that can't work are refused when they are made, not in the middle of a fit.
- A query of a user who was trained on and one of a stranger with the same history are both answered;
  an empty history is answered by what the model knows without one, popularity at the worst.
- An item that nothing taught has no score (-inf), unless its content says something.
- An event of weight 0 teaches nothing; the same pair twice counts as the sum of its weights where the
  model weighs pairs, and once where it does not (its docstring says which).
- The same data and seed give the same arrays.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Protocol, Self

import numpy as np

from recsys.errors import CapacityError, SettingsError
from recsys.interactions import Interactions, Queries
from recsys.models.item_to_item.table import ItemTable
from recsys.models.search_space import Space

Arrays = Mapping[str, np.ndarray]
# (share done in 0 .. 1, what is being done)
Progress = Callable[[float, str], None]


def silent(share: float, doing: str) -> None:
    """No progress display."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a fit needs at its peak, on top of the data; seconds on two cores, within a factor of three."""

    memory_mb: float
    seconds: float


@dataclass(frozen=True, slots=True)
class NamedArrays:
    """What is nothing but arrays: it travels as a dictionary of them, by the names of its fields (without
    those that it makes of them)."""

    def arrays(self) -> Arrays:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """The inverse of `arrays`; others may stand among them."""
        return cls(**{f.name: arrays[f.name] for f in fields(cls) if f.init})


class UserEncoding(Protocol):
    """Queries to vectors float32 [B, D]; serves users that it has never seen."""

    def encode(self, queries: Queries) -> np.ndarray: ...
    def arrays(self) -> Arrays: ...


@dataclass(frozen=True, slots=True)
class Vectors:
    """One export: the inner product of a query's vector and an item's is the score."""

    items: np.ndarray  # float32 [V, D]; a row of NaN = an item that nothing taught
    encoder: UserEncoding

    def score(self, queries: Queries) -> np.ndarray:
        """float32 [B, V]; -inf for what nothing taught."""
        scores: np.ndarray = self.encoder.encode(queries) @ self.items.T
        scores[:, np.isnan(self.items[:, 0])] = -np.inf
        return scores


Export = Vectors | ItemTable | Mapping[str, "Export"]  # the last of a blend: each part's own


class Fitted(Protocol):
    """What a fit leaves: arrays only."""

    def score(self, queries: Queries) -> np.ndarray:
        """Scores of all items, float32 [B, V]; -inf = none. Doesn't depend on batch-mates (to 1e-5)."""
        ...

    def arrays(self) -> Arrays:
        """All that `from_arrays` of the same class needs."""
        ...

    def export(self) -> Export:
        """What an index serves of it: it ranks alike all that a query's history doesn't hold."""
        ...


class RetrievalModel(Protocol):
    explicit: ClassVar[bool]  # predicts values (ratings); then its `Fitted` has `predict`, too
    space: ClassVar[Space]  # what tuning may try

    def estimate(self, data: Interactions) -> Estimate: ...

    def fit(self, data: Interactions, *, seed: int, progress: Progress = silent) -> Fitted:
        """Raises DataError where the data can't teach this model anything."""
        ...


class Predicts(Protocol):
    """A `Fitted` of explicit values."""

    def predict(self, queries: Queries, item: np.ndarray) -> np.ndarray:
        """The value that query b gives to item[b]; float32 [B], never NaN."""
        ...


def check_settings(
    settings: object,
    *,
    counts: Sequence[str] = (),
    positive: Sequence[str] = (),
    endless: Sequence[str] = (),
    exponents: Sequence[str] = (),
    not_negative: Sequence[str] = (),
    shares: Sequence[str] = (),
) -> None:
    """Raises SettingsError for the first of these fields that is out of its range, or that has a value out of
    it. None, which leaves a setting to the data, is in each range; NaN is in none, infinity in that of
    `endless` alone."""
    for names, fits, allowed in (
        (counts, lambda x: x >= 1, "1 or more"),
        (counts, lambda x: x < 2**31, "2,147,483,647 or less"),
        (positive, lambda x: x > 0, "above 0"),
        (endless, lambda x: x > 0, "above 0"),
        (exponents, lambda x: 0 <= x <= 10, "from 0 to 10"),  # counts to a larger power overflow
        (not_negative, lambda x: x >= 0, "0 or more"),
        (shares, lambda x: 0 <= x <= 1, "from 0 to 1"),
    ):
        for name in names:
            value = getattr(settings, name)
            values = value if isinstance(value, tuple) else (value,)
            if not all(one is None or fits(one) for one in values):
                raise SettingsError(f"{name} = {value!r}: must be {allowed}")
            if math.inf in values and name not in endless:
                raise SettingsError(f"{name} = {value!r}: must be finite")


def check_capacity(estimate: Estimate, *, what: str, available_mb: float) -> None:
    """Raises CapacityError, with the figures, when a fit would not fit into `available_mb`."""
    if estimate.memory_mb > available_mb:
        raise CapacityError(
            f"{what} would take about {estimate.memory_mb:,.0f} MB and {available_mb:,.0f} MB may be used; "
            "choose a model with fewer or smaller tables, or a machine with more memory"
        )
