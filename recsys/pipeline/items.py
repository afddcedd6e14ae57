"""The items that a request path knows, by row: those of its release, and what the catalog says since.

An item that changes gets a new line of `frame`; which line is an item's, `line` knows, so that whoever
computes something of an item's columns does so once for each line. Rows that nobody described here yet are
known as such: an index shard may have read further in the changelog than this process. One thread changes
it; another one may read meanwhile.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

UNKNOWN, DELETED = -1, -2  # lines of rows that have none


class Growing:
    """An array [V, ...] with a value for every row, also for those beyond its end."""

    def __init__(self, values: np.ndarray, *, beyond: float) -> None:
        self.beyond = beyond
        self._values, self._size = values, len(values)
        self._later: np.ndarray = np.full((0, *values.shape[1:]), beyond, values.dtype)

    def __len__(self) -> int:
        """Rows of the release: those beyond it are few, and not counted."""
        return self._size

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        inside = rows < self._size
        if inside.all():
            found: np.ndarray = self._values[rows]
            return found
        later = self._later
        found = np.full((*np.shape(rows), *self._values.shape[1:]), self.beyond, self._values.dtype)
        found[inside] = self._values[rows[inside]]
        grown = (rows >= self._size) & (rows < self._size + len(later))
        found[grown] = later[rows[grown] - self._size]
        return found

    def put(self, row: int, value: np.ndarray | float) -> None:
        if row < self._size:
            self._values[row] = value
            return
        place = row - self._size
        if place >= len(self._later):
            more = np.full((place + 64, *self._values.shape[1:]), self.beyond, self._values.dtype)
            self._later = np.concatenate([self._later, more])
        self._later[place] = value


class LiveItems:
    def __init__(self, frame: pl.DataFrame, *, vectors: np.ndarray, category: np.ndarray) -> None:
        """`frame`: the item contract and `category`, a line for each of V rows; `vectors` float32 [V, D] and
        `category` int32 [V] (-1 = none) by row. It writes into the arrays."""
        self.frame = frame
        self.line = Growing(np.arange(len(frame), dtype=np.int32), beyond=UNKNOWN)
        self.vectors = Growing(vectors, beyond=0.0)
        self.category = Growing(category, beyond=-1)
        self._codes = dict(zip(frame["category"].to_list(), category.tolist())) if len(category) else {}

    def upsert(self, rows: Sequence[int], items: pl.DataFrame, vectors: dict[int, np.ndarray]) -> None:
        """These rows are `items` (columns of `frame`) from now on; `vectors`: row -> float32 [D], of some."""
        first = len(self.frame)
        # Before any line of it is known, so that a reader never has a line without its columns.
        self.frame = pl.concat([self.frame, items.select(self.frame.columns).cast(self.frame.schema)])
        for place, (row, name) in enumerate(zip(rows, items["category"].to_list())):
            if name and name not in self._codes:
                self._codes[name] = max(self._codes.values(), default=-1) + 1
            self.category.put(row, self._codes[name] if name else -1)
            if row in vectors:
                self.vectors.put(row, vectors[row])
            self.line.put(row, first + place)

    def delete(self, rows: Sequence[int]) -> None:
        for row in rows:
            self.line.put(row, DELETED)
