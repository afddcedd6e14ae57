"""The vectors of many rows given those of the other side: one weighted ridge problem a row, exact.

Decides in which of two forms each is solved. A row that took n of the items, of D dimensions, minimizes
sum over its n of w (1 - x'v)^2 + the unobserved weight times sum over all items of (x'v)^2 + penalty x'x.
In the eigenbasis of the items' Gram matrix all but the first sum is diagonal, so a short row costs an
n x n system (Woodbury) in place of a D x D one; a long row is solved by its normal equations. Rows are
independent: blocks of them go to threads, and the result doesn't depend on how many.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numba
import numpy as np
from scipy import sparse

from recsys.models.threads import available_threads, even_cuts

_BLOCKS = 16  # of rows for each thread, about as much work each


@dataclass(frozen=True, slots=True)
class Side:
    """The vectors of one side, turned into the eigenbasis of their Gram matrix."""

    vectors: np.ndarray  # float32 [V, D]
    spectrum: np.ndarray  # float32 [D] eigenvalues, times the unobserved weight

    @classmethod
    def of(cls, vectors: np.ndarray, *, unobserved: float) -> "Side":
        values, basis = np.linalg.eigh(vectors.T @ vectors)
        return cls(vectors @ basis, np.maximum(values * np.float32(unobserved), 0))


def solve_rows(side: Side, taken: sparse.csr_array, *, penalty: np.ndarray, threads: int = 0) -> np.ndarray:
    """The vectors of the rows of `taken` [B, V] (its data the weights w > 0) in the basis of `side`, float32
    [B, D]; 0 for a row that took nothing. `penalty` float32 [B] > 0. `threads` 0 = all that there are."""
    found = np.zeros((taken.shape[0], len(side.spectrum)), np.float32)
    columns = (taken.indptr.astype(np.int64), taken.indices.astype(np.int32), taken.data.astype(np.float32))
    threads = threads or available_threads()

    def solve(first: int, last: int) -> None:
        _solve(first, last, *columns, side.vectors, side.spectrum, penalty, found)

    cuts = even_cuts(row_work(np.diff(taken.indptr), len(side.spectrum)), threads * _BLOCKS)
    if threads == 1 or len(cuts) == 2:
        solve(0, len(found))
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(solve, cuts[:-1], cuts[1:]))
    return found


def solve_rows_slowly(side: Side, taken: sparse.csr_array, *, penalty: np.ndarray) -> np.ndarray:
    """`solve_rows` by the normal equations of each row, float64 [B, D]. For tests."""
    vectors = side.vectors.astype(np.float64)
    rest = np.diag(side.spectrum.astype(np.float64))
    found = np.zeros((taken.shape[0], vectors.shape[1]))
    for row, weight in enumerate(taken.toarray().astype(np.float64)):
        left = rest + penalty[row] * np.eye(len(rest)) + vectors.T @ (weight[:, None] * vectors)
        found[row] = np.linalg.solve(left, vectors.T @ weight)
    return found


def row_work(counts: np.ndarray, dimensions: int) -> np.ndarray:
    """Multiplications that a row with each of these counts [B] takes, about; float64 [B]."""
    shorter = np.minimum(counts, dimensions).astype(np.float64)
    longer = np.maximum(counts, dimensions).astype(np.float64)
    return shorter**2 * longer / 2 + shorter**3 / 6 + 4 * shorter * longer + dimensions


@numba.njit(nogil=True, cache=True, fastmath=True)
def _solve(first, last, indptr, indices, weight, vectors, spectrum, penalty, found):  # type: ignore[no-untyped-def]
    dimensions = len(spectrum)
    longest = 1
    for row in range(first, last):
        longest = max(longest, indptr[row + 1] - indptr[row])
    side = min(longest, dimensions)
    held = np.empty(side * max(longest, dimensions), np.float32)
    system = np.empty((side, side), np.float32)
    right = np.empty(dimensions, np.float32)
    shrink = np.empty(dimensions, np.float32)
    for row in range(first, last):
        start = indptr[row]
        n = indptr[row + 1] - start
        x = found[row]
        if 0 < n <= dimensions:  # x = S B' (1 + B B')^-1 sqrt(w), where S^2 = 1 / diagonal, B = sqrt(w) V S
            scaled = held[: n * dimensions].reshape(n, dimensions)
            for t in range(dimensions):
                shrink[t] = np.float32(1) / np.sqrt(spectrum[t] + penalty[row])
            for e in range(n):
                root = np.sqrt(weight[start + e])
                right[e] = root
                v = vectors[indices[start + e]]
                for t in range(dimensions):
                    scaled[e, t] = root * v[t] * shrink[t]
            _gram(scaled, n, dimensions, system)
            for e in range(n):
                system[e, e] += np.float32(1)
            _solve_positive(system, n, right)
            for e in range(n):
                for t in range(dimensions):
                    x[t] += scaled[e, t] * right[e]
            for t in range(dimensions):
                x[t] *= shrink[t]
        elif n > dimensions:  # the normal equations
            columns = held[: dimensions * n].reshape(dimensions, n)
            right[:] = 0
            for e in range(n):
                w = weight[start + e]
                root = np.sqrt(w)
                v = vectors[indices[start + e]]
                for t in range(dimensions):
                    columns[t, e] = root * v[t]
                    right[t] += w * v[t]
            _gram(columns, dimensions, n, system)
            for t in range(dimensions):
                system[t, t] += spectrum[t] + penalty[row]
            _solve_positive(system, dimensions, right)
            x[:] = right


@numba.njit(nogil=True, cache=True, fastmath=True)
def _gram(rows, n, k, result):  # type: ignore[no-untyped-def]
    """The lower triangle of rows rows' for `rows` [n, k]; by blocks of 4 x 4, which stay in registers."""
    whole = n - n % 4
    zero = np.float32(0)
    for i in range(0, whole, 4):
        for j in range(0, i + 1, 4):
            a, b, c, d = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
            p, q, r, s = rows[j], rows[j + 1], rows[j + 2], rows[j + 3]
            ap = aq = ar = as_ = bp = bq = br = bs = cp = cq = cr = cs = dp = dq = dr = ds = zero
            for t in range(k):
                ap += a[t] * p[t]
                aq += a[t] * q[t]
                ar += a[t] * r[t]
                as_ += a[t] * s[t]
                bp += b[t] * p[t]
                bq += b[t] * q[t]
                br += b[t] * r[t]
                bs += b[t] * s[t]
                cp += c[t] * p[t]
                cq += c[t] * q[t]
                cr += c[t] * r[t]
                cs += c[t] * s[t]
                dp += d[t] * p[t]
                dq += d[t] * q[t]
                dr += d[t] * r[t]
                ds += d[t] * s[t]
            into = result[i]
            into[j], into[j + 1], into[j + 2], into[j + 3] = ap, aq, ar, as_
            into = result[i + 1]
            into[j], into[j + 1], into[j + 2], into[j + 3] = bp, bq, br, bs
            into = result[i + 2]
            into[j], into[j + 1], into[j + 2], into[j + 3] = cp, cq, cr, cs
            into = result[i + 3]
            into[j], into[j + 1], into[j + 2], into[j + 3] = dp, dq, dr, ds
    for i in range(whole, n):
        for j in range(i + 1):
            total = zero
            for t in range(k):
                total += rows[i, t] * rows[j, t]
            result[i, j] = total


@numba.njit(nogil=True, cache=True, fastmath=True)
def _solve_positive(system, n, right):  # type: ignore[no-untyped-def]
    """Solves the positive definite system whose lower triangle is given, into `right`; by Cholesky, in place,
    with the inverse of its diagonal."""
    for i in range(n):
        for j in range(i):
            value = system[i, j]
            for t in range(j):
                value -= system[i, t] * system[j, t]
            system[i, j] = value * system[j, j]
        value = system[i, i]
        for t in range(i):
            value -= system[i, t] * system[i, t]
        system[i, i] = np.float32(1) / np.sqrt(max(value, np.float32(1e-12)))
    for i in range(n):
        value = right[i]
        for t in range(i):
            value -= system[i, t] * right[t]
        right[i] = value * system[i, i]
    for i in range(n - 1, -1, -1):
        right[i] *= system[i, i]
        for t in range(i):
            right[t] -= system[i, t] * right[i]
