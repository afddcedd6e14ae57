"""How many threads a computation takes here, and how rows are shared out among them."""

import os

import numpy as np


def available_threads() -> int:
    """What this process may use: OMP_NUM_THREADS, which Ray sets for its workers, or its cores. Numba's own
    count doesn't know of it."""
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


def even_cuts(work: np.ndarray, blocks: int) -> np.ndarray:
    """Bounds of at most `blocks` runs of rows of about as much `work` [B] each; int64, 0 first, B last."""
    total = np.cumsum(work)
    inner = np.searchsorted(total, np.arange(1, blocks) * (total[-1] if len(total) else 0) / blocks)
    return np.unique(np.concatenate(([0], inner, [len(work)])))
