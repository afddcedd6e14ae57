"""Products of a sparse matrix with a block of dense columns, on all threads.

Decides the layout: a query is a column, so that each entry of the sparse matrix is one run over
neighboring numbers. Threads share out the rows, so a result doesn't depend on their number. scipy does the
same on one thread.
"""

from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
from scipy import sparse

CHUNK = 256  # columns at once: what a row of them takes stays in the nearest cache


def product(matrix: sparse.csr_array, columns: np.ndarray) -> np.ndarray:
    """CSR float32 [N, K] times float32 [K, B]; float32 [N, B]."""
    columns = np.ascontiguousarray(columns, np.float32)
    found = np.empty((matrix.shape[0], columns.shape[1]), np.float32)
    threads = numba.get_num_threads()
    # Equal shares of the entries, not of the rows.
    cuts = np.searchsorted(matrix.indptr, np.linspace(0, matrix.nnz, threads + 1)[1:-1])
    bounds = np.concatenate(([0], cuts, [matrix.shape[0]]))
    with ThreadPoolExecutor(threads) as pool:
        list(
            pool.map(
                lambda t: _rows(
                    matrix.indptr, matrix.indices, matrix.data, columns, found, bounds[t], bounds[t + 1]
                ),
                range(threads),
            )
        )
    return found


@numba.njit(nogil=True, cache=True, fastmath=True)
def _rows(indptr, indices, data, columns, found, start, stop):  # type: ignore[no-untyped-def]
    """Rows start .. stop - 1 of the product into `found`."""
    for row in range(start, stop):
        total = found[row]
        total[:] = 0
        for entry in range(indptr[row], indptr[row + 1]):
            factor = data[entry]
            other = columns[indices[entry]]
            for b in range(len(total)):
                total[b] += factor * other[b]
