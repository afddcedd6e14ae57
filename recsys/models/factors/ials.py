"""Implicit matrix factorization by alternating least squares (iALS), exact in each step; no sampling.

Decides the objective (Hu, Koren and Volinsky 2008, as Rendle et al. 2021 revisited it): each pair that was
taken wants a score of 1 with its weight, all pairs want 0 with a small weight, and who took more is
regularized more. What isn't set is decided by the data: the number of factors by its size, the weight of
the unobserved by its density, the regularization on a slice held out. Whoever asks, trained on or not,
gets the same ridge solution of their history. Same pair twice: the weights add up.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from scipy import sparse

from recsys.interactions import Interactions, Queries
from recsys.models.factors.weighted_ridge import Side, row_work, solve_rows
from recsys.models.held_out import held_out_ndcg, validation_slice
from recsys.models.retrieval import Arrays, Estimate, NamedArrays, Progress, Vectors, check_settings, silent
from recsys.models.search_space import Choice, LogUniform, Space, Uniform
from recsys.models.sparse_scores import history_matrix

MOST_FACTORS = 1024
MOST_NUMBERS = 4e8  # in the vectors of both sides together
UNOBSERVED = 20.0  # weight of all unobserved pairs, over that of all observed
LADDER = (0.02, 0.0125, 0.008, 0.005, 0.003, 0.002, 0.00125, 0.0008, 0.0005, 0.0003)  # strong to weak
POLISHING = 2  # epochs on all events, after what was found without those held out
# The vectors of one side, given those of the other.
Half = Callable[[Side], np.ndarray]


@dataclass(frozen=True, slots=True)
class RidgeEncoder(NamedArrays):
    """Histories to the vectors that the objective gives them, the items' being fixed."""

    items: np.ndarray  # float32 [V, D] in their eigenbasis; 0 = nothing taught this item
    spectrum: np.ndarray  # float32 [D] `Side.spectrum` of the items
    average: np.ndarray  # float32 [D] for an empty history: what the share of takers of each item gives
    penalty: np.ndarray  # float64 [3] `Penalty` of a user
    event_weight: np.ndarray  # float32 [] what an event of a history counts: the mean weight in training

    def encode(self, queries: Queries) -> np.ndarray:
        """float32 [B, D]."""
        weights = np.full(len(queries.histories.item), self.event_weight, np.float32)
        taken = history_matrix(queries.histories, weights=weights, items=len(self.items))
        taken.data[~self.taught[taken.indices]] = 0
        taken.eliminate_zeros()
        penalty = Penalty(*self.penalty).of(taken.sum(1))
        vectors = solve_rows(Side(self.items, self.spectrum), taken, penalty=penalty)
        vectors[np.diff(taken.indptr) == 0] = self.average
        return vectors

    @property
    def taught(self) -> np.ndarray:
        return np.asarray(self.items.any(1))


@dataclass(frozen=True, slots=True)
class IalsFitted:
    encoder: RidgeEncoder

    def score(self, queries: Queries) -> np.ndarray:
        scores = self.encoder.encode(queries) @ self.encoder.items.T
        scores[:, ~self.encoder.taught] = -np.inf
        return scores

    def arrays(self) -> Arrays:
        return self.encoder.arrays()

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> "IalsFitted":
        return cls(RidgeEncoder.from_arrays(arrays))

    def export(self) -> Vectors:
        items = np.where(self.encoder.taught[:, None], self.encoder.items, np.float32(np.nan))
        return Vectors(items, self.encoder)


@dataclass(frozen=True, slots=True)
class Penalty:
    """The squared norm's weight for a row of weight w: scale (w + unobserved)^exponent."""

    scale: float
    unobserved: float
    exponent: float

    def of(self, weight: np.ndarray) -> np.ndarray:
        """float32 [B] > 0."""
        return (self.scale * (weight + self.unobserved) ** self.exponent).astype(np.float32)

    @classmethod
    def on(cls, weight: np.ndarray, *, others: int, model: "Ials") -> "Penalty":
        """For rows of `weight` [B] in all, each with `others` to take; the mean row's doesn't depend on the
        exponent."""
        assert model.unobserved_weight is not None
        assert model.regularization is not None
        unobserved = model.unobserved_weight * others
        mean = weight[weight > 0].mean() + unobserved
        return cls(model.regularization * mean ** (1 - model.exponent), unobserved, model.exponent)


@dataclass(frozen=True, slots=True)
class Ials:
    factors: int | None = None  # None = a quarter of the smaller side, at most 1,024
    regularization: float | None = None  # lambda; None = the best of LADDER on a slice held out
    unobserved_weight: float | None = None  # alpha_0; None = UNOBSERVED times the density, at most 1/2
    exponent: float = 1.0  # nu; 1 = proportional to a row's weight, 0 = the same for all rows
    epochs: int = 6

    explicit: ClassVar[bool] = False
    space: ClassVar[Space] = {
        "factors": Choice((32, 64, 128, 256, 512)),
        "regularization": LogUniform(0.001, 0.05),
        "unobserved_weight": LogUniform(0.01, 0.5),
        "exponent": Uniform(0.5, 1),
    }

    def __post_init__(self) -> None:
        check_settings(
            self,
            counts=("factors", "epochs"),
            positive=("regularization",),
            not_negative=("unobserved_weight",),
            exponents=("exponent",),
        )

    def estimate(self, data: Interactions) -> Estimate:
        factors = self.shaped(data).factors or 1
        users, items = data.histories.counts, np.bincount(data.histories.item, minlength=data.items)
        work = row_work(users, factors).sum() + row_work(items, factors).sum()
        work += 1.5 * (data.users + data.items) * factors**2 + 40.0 * factors**3
        epochs = self.epochs if self.regularization else 5 * self.epochs + POLISHING
        both_sides = (data.users + data.items) * factors * 4e-6
        return Estimate(150 + 2.5 * both_sides + 60e-6 * len(data), 3 + epochs * work / 8e10)

    def fit(
        self, data: Interactions, *, seed: int, progress: Progress = silent, halves: "Halves | None" = None
    ) -> IalsFitted:
        """`halves` says where the two steps of an epoch are done; None = in this process.

        Raises DataError without an event of positive weight.
        """
        halves = halves or Table.halves
        data = data.teaching()
        model = self.shaped(data)
        start = _random_items(data, model, seed=seed)
        if model.regularization is None:
            model, start = _regularized(model, data, start, seed=seed, progress=progress, halves=halves)
        table = Table.of(data)
        found = alternate(*halves(table, model), start, model=model, progress=progress)
        return folding_in(table, found, model=model)

    def shaped(self, data: Interactions) -> "Ials":
        """The same with the number of factors and the unobserved weight decided."""
        users = max(int((data.histories.counts > 0).sum()), 1)
        items = max(len(np.unique(data.histories.item)), 1)
        size = min(MOST_FACTORS, min(users, items) / 4, MOST_NUMBERS / (data.users + data.items))
        density = data.weights.sum(dtype=np.float64) / (users * items)
        factors = self.factors or max(8, int(size) // 8 * 8)
        given = self.unobserved_weight
        unobserved = min(UNOBSERVED * density, 0.5) if given is None else given
        return replace(self, factors=factors, unobserved_weight=float(unobserved))


@dataclass(frozen=True, slots=True)
class Table:
    """Who took what with which weight, by user and by item."""

    users: sparse.csr_array  # float32 [U, V]
    items: sparse.csr_array  # float32 [V, U]
    event_weight: float

    @classmethod
    def of(cls, data: Interactions) -> "Table":
        users = history_matrix(data.histories, weights=data.weights, items=data.items)
        return cls(users, sparse.csr_array(users.T), float(data.weights.mean()))

    def penalties(self, model: Ials) -> tuple[Penalty, Penalty]:
        """Of a user and of an item."""
        by_user, by_item = self.users.sum(1), self.items.sum(1)
        return (
            Penalty.on(by_user, others=int((by_item > 0).sum()), model=model),
            Penalty.on(by_item, others=int((by_user > 0).sum()), model=model),
        )

    def halves(self, model: Ials) -> tuple[Half, Half]:
        """The two steps of an epoch: the users' vectors, given the items', and the other way round."""
        of_user, of_item = self.penalties(model)
        for_users, for_items = of_user.of(self.users.sum(1)), of_item.of(self.items.sum(1))
        return (
            lambda side: solve_rows(side, self.users, penalty=for_users),
            lambda side: solve_rows(side, self.items, penalty=for_items),
        )


Halves = Callable[[Table, Ials], tuple[Half, Half]]


def alternate(
    users: Half, items: Half, start: np.ndarray, *, model: Ials, progress: Progress = silent
) -> np.ndarray:
    """The items' vectors after `model.epochs` epochs from those of `start` float32 [V, D]."""
    unobserved = model.unobserved_weight or 0.0
    vectors = start
    for epoch in range(model.epochs):
        progress(epoch / model.epochs, f"epoch {epoch + 1} of {model.epochs}")
        vectors = items(Side.of(users(Side.of(vectors, unobserved=unobserved)), unobserved=unobserved))
    return vectors


def folding_in(table: Table, items: np.ndarray, *, model: Ials) -> IalsFitted:
    """What is left of a fit: the items' vectors float32 [V, D] and how users are solved from them."""
    side = Side.of(items, unobserved=model.unobserved_weight or 0.0)
    side.vectors[~items.any(1)] = 0
    penalty, _ = table.penalties(model)
    taking = max(int((np.diff(table.users.indptr) > 0).sum()), 1)
    share = sparse.csr_array((table.items.sum(1) / taking)[None].astype(np.float32))
    average = solve_rows(side, share, penalty=penalty.of(share.sum(1)), threads=1)[0]
    scalars = np.array([penalty.scale, penalty.unobserved, penalty.exponent])
    weight = np.float32(table.event_weight)
    return IalsFitted(RidgeEncoder(side.vectors, side.spectrum, average, scalars, np.asarray(weight)))


def _random_items(data: Interactions, model: Ials, *, seed: int) -> np.ndarray:
    """Small vectors of the items that were taken, 0 for the others; float32 [V, D]."""
    factors = model.factors or 1
    shape = (data.items, factors)
    start = np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(0.1 / factors**0.5)
    start[np.bincount(data.histories.item, minlength=data.items) == 0] = 0
    return start


def _regularized(
    model: Ials, data: Interactions, start: np.ndarray, *, seed: int, progress: Progress, halves: Halves
) -> tuple[Ials, np.ndarray]:
    """The model with the regularization of LADDER that finds most of what is held out, and what it found as
    the items' vectors. Climbs from the middle, first to stronger ones, then to weaker ones."""
    rest, judged = validation_slice(data, seed=seed)
    middle = len(LADDER) // 2
    if not len(rest) or not len(judged):
        return replace(model, regularization=LADDER[middle]), start
    table = Table.of(rest)
    best, best_vectors, best_quality = middle, start, -1.0
    for direction in (-1, 1):
        step = middle if direction == -1 else middle + 1
        while 0 <= step < len(LADDER):
            progress(0.0, f"regularization {LADDER[step]:g}")
            tried = replace(model, regularization=LADDER[step])
            vectors = alternate(*halves(table, tried), start, model=tried)
            quality = held_out_ndcg(folding_in(table, vectors, model=tried), judged, items=data.items)
            if quality < best_quality:
                break
            best, best_vectors, best_quality = step, vectors, quality
            step += direction
        if best < middle:
            break
    return replace(model, regularization=LADDER[best], epochs=POLISHING), best_vectors
