"""Products of a sparse matrix with a block of dense columns, on all threads.

Decides the layout: a query is a column, so that each entry of the sparse matrix is one run over
neighboring numbers. Threads share out the rows, so a result doesn't depend on their number. scipy does the
same on one thread.
"""

from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
from scipy import sparse

from recsys.models.threads import available_threads, even_cuts

CHUNK = 256  # columns at once: what a row of them takes stays in the nearest cache


def product(matrix: sparse.csr_array, columns: np.ndarray) -> np.ndarray:
    """CSR float32 [N, K] times float32 [K, B]; float32 [N, B]."""
    columns = np.ascontiguousarray(columns, np.float32)
    found = np.empty((matrix.shape[0], columns.shape[1]), np.float32)
    cuts = even_cuts(np.diff(matrix.indptr), available_threads())

    def fill(first: int, last: int) -> None:
        _rows(matrix.indptr, matrix.indices, matrix.data, columns, found, first, last)

    with ThreadPoolExecutor(available_threads()) as pool:
        list(pool.map(fill, cuts[:-1], cuts[1:]))
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
