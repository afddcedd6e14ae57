"""The fresh segment: vectors that came after the index was built, looked through one and all.

It is small: a rebuild of the index takes it in. Not safe for threads; the shard that holds it is.
"""

import numpy as np


class FreshSegment:
    def __init__(self, dimensions: int) -> None:
        self._vectors = np.zeros((64, dimensions), np.float32)
        self._rows = np.zeros(64, np.int32)
        self._place: dict[int, int] = {}  # item row -> place; places 0 .. len - 1 are taken

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, row: int) -> bool:
        return row in self._place

    @property
    def rows(self) -> np.ndarray:
        return self._rows[: len(self)]

    def put(self, row: int, vector: np.ndarray) -> None:
        """Adds the vector float32 [D] of an item row, or replaces it."""
        place = self._place.setdefault(row, len(self._place))
        if place == len(self._rows):
            self._vectors = np.concatenate([self._vectors, np.zeros_like(self._vectors)])
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        self._vectors[place], self._rows[place] = vector, row

    def drop(self, row: int) -> None:
        """Forgets an item row, if it is here; the last one takes its place."""
        place = self._place.pop(row, None)
        if place is not None and place < len(self):
            last = len(self)
            self._vectors[place], self._rows[place] = self._vectors[last], self._rows[last]
            self._place[int(self._rows[place])] = place

    def search(self, queries: np.ndarray, *, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """All of it, unordered: item rows int32 [m] and scores float32 [B, m] of queries float32 [B, D];
        of those alone that `allowed` bool [by item row] has."""
        rows, vectors = self.rows, self._vectors[: len(self)]
        if allowed is not None:
            kept = is_allowed(allowed, rows)
            rows, vectors = rows[kept], vectors[kept]
        return rows, queries @ vectors.T


def is_allowed(allowed: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Whether `allowed` bool [by item row] has each of `rows`, bool [n]; it has none beyond its end."""
    known = rows < len(allowed)
    return known & allowed[np.where(known, rows, 0)] if len(allowed) else known
