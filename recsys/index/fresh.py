"""The fresh segment: vectors that came after the index was built, looked through one and all.

It is small: a rebuild of the index takes it in. Not safe for threads; the shard that holds it is.
"""

import numpy as np


class FreshSegment:
    def __init__(self, dimensions: int) -> None:
        self._vectors = np.zeros((64, dimensions), np.float32)
        self._rows = np.zeros(64, np.int32)
        self._alive = np.zeros(64, bool)
        self._place: dict[int, int] = {}  # item row -> place; places 0 .. len - 1 are taken
        self.alive = 0

    def __len__(self) -> int:
        """All that are held, alive or not."""
        return len(self._place)

    def __contains__(self, row: int) -> bool:
        return row in self._place

    def put(self, row: int, vector: np.ndarray) -> None:
        """Adds the vector float32 [D] of an item row, or replaces it; it is alive."""
        place = self._place.setdefault(row, len(self._place))
        if place == len(self._rows):
            full = self._vectors, self._rows, self._alive
            self._vectors, self._rows, self._alive = (np.concatenate([a, np.zeros_like(a)]) for a in full)
        self._vectors[place], self._rows[place] = vector, row
        self.set_alive(row, True)

    def set_alive(self, row: int, alive: bool) -> None:
        """Hides or shows an item row that is held."""
        place = self._place[row]
        self.alive += int(alive) - int(self._alive[place])
        self._alive[place] = alive

    def search(self, queries: np.ndarray, *, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """All that are alive, unordered: item rows int32 [m] and scores float32 [B, m] of queries float32
        [B, D]; of those alone that `allowed` bool [by item row] has."""
        kept = self._alive[: len(self)]
        if allowed is not None:
            kept = kept & is_allowed(allowed, self._rows[: len(self)])
        if kept.all():
            return self._rows[: len(self)], queries @ self._vectors[: len(self)].T
        places = np.flatnonzero(kept)
        return self._rows[places], queries @ self._vectors[places].T


def is_allowed(allowed: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Whether `allowed` bool [by item row] has each of `rows`, bool [n]; it has none beyond its end."""
    known = rows < len(allowed)
    return known & allowed[np.where(known, rows, 0)] if len(allowed) else known
