"""Ratings by biased matrix factorization ("SVD"), averaged over what the factors may be.

Decides the model (Koren, Bell and Volinsky 2009): a rating is a mean, a bias of the user, one of the item
and the product of their factors. It is not fitted once but sampled (Bayesian PMF, Salakhutdinov and Mnih
2008), so there is no regularization to choose and small histories are shrunk as far as the data say.
Whoever asks, trained on or not, gets the expected vector given their rated history, under each kept
sample. Events without a value are ignored; the same pair twice is two ratings, weighted by their events.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from recsys.errors import DataError
from recsys.interactions import Interactions, Queries
from recsys.models.factors.gibbs import Prior, Values, sample_rows
from recsys.models.retrieval import Arrays, Estimate, NamedArrays, Progress, Vectors, check_settings, silent
from recsys.models.search_space import Choice, Space
from recsys.types import Histories


@dataclass(frozen=True, slots=True)
class RatingEncoder(NamedArrays):
    """Rated histories to vectors, from S samples of the items' K = 1 + factors numbers, the bias first."""

    items: np.ndarray  # float32 [S, V, K]; of an item that nobody rated, the sample's mean item
    mean: np.ndarray  # float32 [S, K] of a user
    precision: np.ndarray  # float32 [S, K, K] of a user
    noise_precision: np.ndarray  # float32 [S] of a value
    scale: np.ndarray  # float64 [4] mean and deviation of the values, the least and the largest
    rated: np.ndarray  # bool [V] somebody rated it

    def encode(self, queries: Queries) -> np.ndarray:
        """float32 [B, S (K - 1) + 2]: the factors under each sample, 1 for the item's bias, the user's."""
        values = _values(queries.histories, self)
        normal = np.zeros((len(queries), self.mean.shape[1]))
        samples, k = self.mean.shape
        found = np.empty((len(queries), samples * (k - 1) + 2), np.float32)
        bias = np.zeros(len(queries))
        for s in range(samples):
            prior = Prior(self.mean[s].astype(np.float64), self.precision[s].astype(np.float64))
            others = self.items[s].astype(np.float64)
            precision = float(self.noise_precision[s])
            users = sample_rows(values, others, prior=prior, noise_precision=precision, normal=normal)
            found[:, s * (k - 1) : (s + 1) * (k - 1)] = users[:, 1:]
            bias += users[:, 0] / samples
        found[:, -2] = 1
        found[:, -1] = bias
        return found

    def item_vectors(self) -> np.ndarray:
        """float32 [V, S (K - 1) + 2] whose product with an encoded query is the value."""
        samples, items, k = self.items.shape
        center, deviation = self.scale[:2]
        factors = self.items[:, :, 1:].transpose(1, 0, 2).reshape(items, samples * (k - 1)) / samples
        bias = self.items[:, :, 0].mean(0)[:, None] + center / deviation
        return (deviation * np.concatenate((factors, bias, np.ones((items, 1))), axis=1)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class SvdFitted:
    encoder: RatingEncoder
    items: np.ndarray  # float32 [V, D] `RatingEncoder.item_vectors`

    def score(self, queries: Queries) -> np.ndarray:
        """The expected values, float32 [B, V]; not cut to the range of the values, so that few are equal."""
        scores = self.encoder.encode(queries) @ self.items.T
        scores[:, ~self.encoder.rated] = -np.inf
        return scores

    def predict(self, queries: Queries, item: np.ndarray) -> np.ndarray:
        """The expected value that query b gives to item[b], within the range seen; float32 [B]."""
        expected = np.einsum("bd,bd->b", self.encoder.encode(queries), self.items[item])
        return np.clip(expected, *self.encoder.scale[2:]).astype(np.float32)

    def arrays(self) -> Arrays:
        return self.encoder.arrays()

    @classmethod
    def of(cls, encoder: RatingEncoder) -> "SvdFitted":
        return cls(encoder, encoder.item_vectors())

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> "SvdFitted":
        return cls.of(RatingEncoder.from_arrays(arrays))

    def export(self) -> Vectors:
        return Vectors(np.where(self.encoder.rated[:, None], self.items, np.float32(np.nan)), self.encoder)


@dataclass(frozen=True, slots=True)
class Svd:
    factors: int = 16  # 0 = biases only
    warmup: int = 20  # sweeps before the first that is kept
    samples: int = 40  # sweeps that are kept
    thinning: int = 2  # one in so many is kept: neighbors are alike

    explicit: ClassVar[bool] = True
    space: ClassVar[Space] = {"factors": Choice((4, 8, 16, 32, 64))}

    def __post_init__(self) -> None:
        check_settings(self, counts=("samples", "thinning"), not_negative=("factors", "warmup"))

    def estimate(self, data: Interactions) -> Estimate:
        k, rows = self.factors + 1, data.users + data.items
        sweep = 2 * len(data) * k * (k + 4) + rows * (k**3 / 2 + 20 * k)
        sweeps = self.warmup + self.samples * self.thinning
        kept = self.samples * data.items * k * 4e-6
        memory = 100 + 2.5 * kept + 3 * (rows + k) * k * 8e-6 + 100e-6 * len(data)
        return Estimate(memory, 2 + sweeps * sweep / 2e9)

    def fit(self, data: Interactions, *, seed: int, progress: Progress = silent) -> SvdFitted:
        """Raises DataError where no event has a value and a positive weight."""
        given = data.teaching()
        given = given.where(np.isfinite(given.histories.value))
        if not len(given):
            raise DataError(
                f"none of {len(data):,} events has a value (rating) to learn from; choose another model"
            )
        value = given.histories.value.astype(np.float64)
        deviation = float(value.std()) or 1.0
        scale = np.array([value.mean(), deviation, value.min(), value.max()])
        by_user, by_item = _both_ways(given, (value - scale[0]) / deviation)
        rated = np.diff(by_item.offsets) > 0
        items, mean, precision, noise = _chain(
            by_user, by_item, self, rated=rated, seed=seed, progress=progress
        )
        return SvdFitted.of(RatingEncoder(items, mean, precision, noise, scale, rated))


def _chain(
    by_user: Values, by_item: Values, model: Svd, *, rated: np.ndarray, seed: int, progress: Progress
) -> tuple[np.ndarray, ...]:
    """Samples of the items' vectors, of the users' mean and precision, and of the noise's precision."""
    rng = np.random.default_rng(seed)
    k = model.factors + 1
    active = np.diff(by_user.offsets) > 0
    users, items = np.zeros((len(by_user), k)), rng.standard_normal((len(by_item), k)) * 0.1
    items[:, 0] = 0
    noise_precision = 1.0
    kept: list[tuple[np.ndarray, ...]] = []
    sweeps = model.warmup + model.samples * model.thinning
    for sweep in range(1, sweeps + 1):
        progress((sweep - 1) / sweeps, f"sweep {sweep} of {sweeps}")
        of_users = Prior.sample(users[active], rng=rng)
        draws = rng.standard_normal(users.shape)
        users = sample_rows(by_user, items, prior=of_users, noise_precision=noise_precision, normal=draws)
        of_items = Prior.sample(items[rated], rng=rng)
        draws = rng.standard_normal(items.shape)
        items = sample_rows(by_item, users, prior=of_items, noise_precision=noise_precision, normal=draws)
        items[~rated] = of_items.mean
        squares = _squares(by_user, users, items)
        noise_precision = rng.gamma((1 + len(by_user.value)) / 2, 2 / (1 + squares))
        if sweep > model.warmup and (sweep - model.warmup) % model.thinning == 0:
            kept.append((items, of_users.mean, of_users.precision, np.array(noise_precision)))
    return tuple(np.stack(column).astype(np.float32) for column in zip(*kept))


def _squares(values: Values, users: np.ndarray, items: np.ndarray) -> float:
    """Sum of the weighted squared errors."""
    mine = users[np.repeat(np.arange(len(values)), np.diff(values.offsets))]
    other = items[values.other]
    expected = mine[:, 0] + other[:, 0] + np.einsum("nd,nd->n", mine[:, 1:], other[:, 1:])
    return float((values.weight * (values.value - expected) ** 2).sum())


def _both_ways(data: Interactions, value: np.ndarray) -> tuple[Values, Values]:
    """The events as rows of users and as rows of items; weights with mean 1."""
    log = data.histories
    weight = data.weights.astype(np.float64) / data.weights.mean()
    order = np.argsort(log.item, kind="stable")
    items = np.concatenate(([0], np.cumsum(np.bincount(log.item, minlength=data.items))))
    return (
        Values(log.offsets.astype(np.int64), log.item, value, weight),
        Values(items, log.request[order].astype(np.int32), value[order], weight[order]),
    )


def _values(histories: Histories, encoder: RatingEncoder) -> Values:
    """The rated events of known items, as the samples see them."""
    inside = (histories.item >= 0) & (histories.item < len(encoder.rated))
    rated = histories.where(inside & np.isfinite(histories.value))
    value = (rated.value.astype(np.float64) - encoder.scale[0]) / encoder.scale[1]
    return Values(rated.offsets.astype(np.int64), rated.item, value, np.ones(len(value)))
