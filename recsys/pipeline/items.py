"""The items that a request path knows, by row: those of its release, and what the catalog says since.

An item that changes gets a new line of `frame`; which line is an item's, `line` knows, so that whoever
computes something of an item's columns does so once for each line. Rows that nobody described here yet are
known as such: an index shard may have read further in the changelog than this process. One thread changes
it; another one may read meanwhile.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import polars as pl
import pyarrow as pa

from recsys.catalog.changelog import Change
from recsys.catalog.schema import items_of_changes
from recsys.datasets.content import words_of

MOST_CHUNKS = 100  # of the frame: what is gathered from more takes long
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

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the release's values."""
        return self._values.shape

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

    def blocks(self, size: int = 65_536) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All rows, int64 [n], and their values, a block at a time."""
        for first, values in ((0, self._values), (self._size, self._later)):
            for start in range(0, len(values), size):
                part = values[start : start + size]
                yield np.arange(first + start, first + start + len(part)), part

    def put(self, row: int, value: np.ndarray | float) -> None:
        if row < self._size:
            self._values[row] = value
            return
        place = row - self._size
        if place >= len(self._later):
            more = np.full((place + 64, *self._values.shape[1:]), self.beyond, self._values.dtype)
            self._later = np.concatenate([self._later, more])
        self._later[place] = value


class Names:
    """Ids and titles by row, and the row of an id: of the release, and of what came since."""

    def __init__(self, ids: list[str], titles: list[str | None]) -> None:
        """It changes both lists."""
        self.ids, self.titles = ids, titles
        self.rows = {item_id: row for row, item_id in enumerate(ids)}

    def apply(self, changes: Sequence[tuple[int, Change]]) -> None:
        """Changes that hold, with their offsets."""
        for _, change in changes:
            title = (change.item or {}).get("title")
            if change.row == len(self.ids):
                self.ids.append(change.item_id)
                self.titles.append(title)
                self.rows[change.item_id] = change.row  # last: who finds the row finds its id
            elif change.kind == "upsert":
                self.titles[change.row] = title


def item_frame(items: pa.Table, categories: Sequence[str]) -> pl.DataFrame:
    """Items (ITEM_SCHEMA) as the request path reads them: times in epoch seconds, and `category` [V], "" =
    none."""
    frame = pl.DataFrame(items)
    epoch = [pl.col(name).dt.epoch("s") for name in ("published_at", "expires_at")]
    return frame.with_columns(pl.Series("category", list(categories), dtype=pl.String), *epoch)


class LiveItems:
    def __init__(self, frame: pl.DataFrame, *, vectors: np.ndarray, category: np.ndarray) -> None:
        """`frame`: the item contract and `category`, a line for each row; `vectors` float32 [V, D] and
        `category` int32 [V] (-1 = none) of the first V rows, which the models know. It writes into the
        arrays."""
        self.frame = frame
        self.line = Growing(np.arange(len(frame), dtype=np.int32), beyond=UNKNOWN)
        self.vectors = Growing(vectors, beyond=0.0)
        self.category = Growing(category, beyond=-1)
        self._codes = dict(zip(frame["category"].to_list(), category.tolist())) if len(category) else {}
        self._kinds = [name for name, _ in Counter(frame["category"].to_list()).most_common() if name]
        if len(category):  # of the rows that the models don't know
            for row, name in enumerate(frame["category"][len(category) :].to_list(), len(category)):
                self.category.put(row, self._code(name))
        self._later: list[int] = []  # rows of the lines after those that it began with
        self._first, self._since = frame, frame[:0]  # what it began with, and what came since
        self._published: dict[int, int | None] = {}  # of rows that changed: it outlives being deleted

    def is_deleted(self, row: int) -> bool:
        return bool(self.line[np.array([row])][0] == DELETED)

    def rows_of_lines(self, start: int, end: int) -> np.ndarray:
        """The row of each of these lines, int64."""
        first = len(self._first)
        later = self._later[max(0, start - first) : max(0, end - first)]
        return np.concatenate([np.arange(start, max(start, first)), np.array(later, np.int64)])

    def apply(self, changes: Sequence[Change], *, space: str) -> None:
        """Makes changes of the catalog count, in their order; `space`: of the vectors that are held here."""
        for kind, run in groupby(changes, key=lambda change: change.kind):
            own = list(run)
            rows = [change.row for change in own]
            if kind == "delete":
                self.delete(rows)
                continue
            self.put_vectors(own, space=space)
            self.upsert(rows, self._described(own))

    def _described(self, upserts: Sequence[Change]) -> pl.DataFrame:
        """Lines of `frame`. When an item was published is said once; a category that is not said is the word
        of the title that is most items' category."""
        items = items_of_changes(upserts)
        first = [(names or [""])[0] for names in items["categories"].to_pylist()]
        words = [set(words_of(title or "")) for title in items["title"].to_pylist()]
        named = [
            name or next((kind for kind in self._kinds if kind in own), "") for name, own in zip(first, words)
        ]
        frame = item_frame(items, named)
        line = self.line[np.array([change.row for change in upserts])]
        published = [
            self._once_published(change.row, number, said)
            for change, number, said in zip(upserts, line.tolist(), frame["published_at"].to_list())
        ]
        return frame.with_columns(pl.Series("published_at", published, dtype=pl.Int64))

    def _once_published(self, row: int, line: int, said: int | None = None) -> int | None:
        """When an item was published, None = always: as is known of its row, else as is `said` now."""
        if row not in self._published:
            self._published[row] = self.frame["published_at"][line] if line >= 0 else said
        return self._published[row]

    def put_vectors(self, upserts: Sequence[Change], *, space: str) -> None:
        """Those that the changes bring."""
        for change in upserts:
            vector = change.vectors.get(space)
            if vector is not None and vector.shape == self.vectors.shape[1:] and vector.any():
                self.vectors.put(change.row, vector)

    def upsert(self, rows: Sequence[int], items: pl.DataFrame) -> None:
        """These rows are `items` (columns of `frame`) from now on."""
        first = len(self.frame)
        self._later += rows
        # Before any line of it is known, so that a reader never has a line without its columns.
        since = pl.concat([self._since, items.select(self.frame.columns).cast(self.frame.schema)])
        self._since = since.rechunk() if since.n_chunks() > MOST_CHUNKS else since
        self.frame = pl.concat([self._first, self._since])
        for place, (row, name) in enumerate(zip(rows, items["category"].to_list())):
            self.category.put(row, self._code(name))
            self.line.put(row, first + place)

    def _code(self, category: str | None) -> int:
        if not category:
            return -1
        if category not in self._codes:
            self._codes[category] = max(self._codes.values(), default=-1) + 1
        return self._codes[category]

    def delete(self, rows: Sequence[int]) -> None:
        for row in rows:
            self._once_published(row, int(self.line[np.array([row])][0]))
            self.line.put(row, DELETED)
