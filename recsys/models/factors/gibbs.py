"""One Gibbs sweep of Bayesian matrix factorization: vectors given vectors, and what all of them share.

Decides the conditional distributions (Salakhutdinov and Mnih 2008): a row's vector is normal around the
ridge solution of its values; mean and precision of all rows are normal-Wishart given the rows. The noise
is drawn by the caller, so that rows are independent and blocks of them go to threads.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numba
import numpy as np

from recsys.models.threads import available_threads, even_cuts


@dataclass(frozen=True, slots=True)
class Values:
    """What some rows gave to which of the other side's rows; row r: entries offsets[r]:offsets[r + 1]."""

    offsets: np.ndarray  # int64 [R + 1]
    other: np.ndarray  # int32 [N]
    value: np.ndarray  # float64 [N]
    weight: np.ndarray  # float64 [N] > 0

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True, slots=True)
class Prior:
    """What is believed of a row before its values."""

    mean: np.ndarray  # float64 [K]
    precision: np.ndarray  # float64 [K, K]

    @classmethod
    def sample(cls, vectors: np.ndarray, *, rng: np.random.Generator) -> "Prior":
        """Given the rows' `vectors` [R, K], under a weak belief (K + 1 degrees of freedom, weight 2) that
        they are standard normal."""
        rows, k = vectors.shape
        center = vectors.mean(0) if rows else np.zeros(k)
        spread = (vectors - center).T @ (vectors - center)
        scale = np.linalg.inv(np.eye(k) + spread + 2 * rows / (2 + rows) * np.outer(center, center))
        triangle = np.tril(rng.standard_normal((k, k)), -1)
        triangle[np.diag_indices(k)] = np.sqrt(rng.chisquare(k + 1 + rows - np.arange(k)))
        root = np.linalg.cholesky((scale + scale.T) / 2) @ triangle  # Bartlett's decomposition
        precision = root @ root.T
        noise = np.linalg.solve(root.T, rng.standard_normal(k)) / np.sqrt(2 + rows)
        return cls(rows / (2 + rows) * center + noise, precision)


def sample_rows(
    values: Values, others: np.ndarray, *, prior: Prior, noise_precision: float, normal: np.ndarray
) -> np.ndarray:
    """Vectors of all rows given those of the other side, float64 [R, K]; column 0 is a row's bias.

    A value is bias + the other's bias + the product of the rest, with normal noise. `normal` [R, K] are
    standard normal draws; zeros give the mean.
    """
    found = np.empty((len(values), others.shape[1]))
    base = prior.precision @ prior.mean
    columns = (values.offsets, values.other, values.value, values.weight)

    def sample(first: int, last: int) -> None:
        _sample(first, last, *columns, others, prior.precision, base, noise_precision, normal, found)

    threads = available_threads()
    cuts = even_cuts(np.diff(values.offsets) + 0.3 * others.shape[1], 4 * threads)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(sample, cuts[:-1], cuts[1:]))
    return found


def mean_rows_slowly(
    values: Values, others: np.ndarray, *, prior: Prior, noise_precision: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean [R, K] and covariance [R, K, K] of what `sample_rows` draws, by their definition. For tests."""
    k = others.shape[1]
    means, covariances = np.empty((len(values), k)), np.empty((len(values), k, k))
    for row in range(len(values)):
        mine = slice(values.offsets[row], values.offsets[row + 1])
        design = others[values.other[mine]].copy()
        residual = values.value[mine] - design[:, 0]
        design[:, 0] = 1
        weighted = noise_precision * values.weight[mine, None] * design
        covariances[row] = np.linalg.inv(prior.precision + weighted.T @ design)
        means[row] = covariances[row] @ (prior.precision @ prior.mean + weighted.T @ residual)
    return means, covariances


@numba.njit(nogil=True, cache=True, fastmath=True)
def _sample(  # type: ignore[no-untyped-def]
    first, last, offsets, other, value, weight, others, precision, base, noise_precision, normal, found
):
    k = others.shape[1]
    system, right, design = np.empty((k, k)), np.empty(k), np.empty(k)
    for row in range(first, last):
        for i in range(k):
            right[i] = base[i]
            for j in range(i + 1):
                system[i, j] = precision[i, j]
        for e in range(offsets[row], offsets[row + 1]):
            design[:] = others[other[e]]
            residual = value[e] - design[0]
            design[0] = 1
            for i in range(k):
                scaled = noise_precision * weight[e] * design[i]
                right[i] += scaled * residual
                for j in range(i + 1):
                    system[i, j] += scaled * design[j]
        for i in range(k):  # Cholesky, with the inverse of the diagonal
            for j in range(i):
                s = system[i, j]
                for t in range(j):
                    s -= system[i, t] * system[j, t]
                system[i, j] = s * system[j, j]
            s = system[i, i]
            for t in range(i):
                s -= system[i, t] * system[i, t]
            system[i, i] = 1 / np.sqrt(s)
        for i in range(k):
            s = right[i]
            for t in range(i):
                s -= system[i, t] * right[t]
            right[i] = s * system[i, i]
        for i in range(k):
            right[i] += normal[row, i]
        for i in range(k - 1, -1, -1):
            right[i] *= system[i, i]
            for t in range(i):
                right[t] -= system[i, t] * right[i]
        found[row] = right
