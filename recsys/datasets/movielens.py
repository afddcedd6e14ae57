"""MovieLens ratings as events: 100k (RecBole's atomic files, or u.data and u.item) and latest-small.

A rating is an event of type `rating` whose value is the stars; its id is the hash of user, movie and
time. Genres are the categories. Titles keep what the file says. A movie's `published_at` is its first
rating; movies that nobody rated are there from the start. Neither set may be shipped with recsys.
"""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from recsys.catalog.schema import conform_items
from recsys.datasets.tables import Dataset, read_table
from recsys.errors import DataError
from recsys.events.schema import conform, hashed_ids
from recsys.events.times import parse_times

# The order of u.item's 19 flags, from its README.
_GENRES = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]


def read_movielens_100k(folder: str | Path) -> Dataset:
    """`folder` holds ml-100k.inter and ml-100k.item, or u.data and u.item. Raises DataError."""
    folder = Path(folder)
    if (folder / "ml-100k.inter").exists():
        ratings = read_table(folder / "ml-100k.inter", delimiter="\t")
        movies = read_table(folder / "ml-100k.item", delimiter="\t")
        ratings = ratings.rename_columns([c.split(":")[0] for c in ratings.column_names])
        movies = movies.rename_columns([c.split(":")[0] for c in movies.column_names])
        columns = (movies["item_id"], movies["movie_title"], pc.split_pattern(_genres(movies["class"]), " "))
        return _dataset(ratings.select(["user_id", "item_id", "rating", "timestamp"]), *columns)
    if (folder / "u.data").exists():
        names = ["user_id", "item_id", "rating", "timestamp"]
        ratings = read_table(folder / "u.data", delimiter="\t", names=names)
        head = ["item_id", "title", "release", "video", "url", *_GENRES]
        movies = read_table(folder / "u.item", delimiter="|", names=head, encoding="latin-1")
        flags = np.column_stack([movies[g].to_numpy() == "1" for g in _GENRES])
        genres = pa.array([[g for g, on in zip(_GENRES, row) if on] for row in flags], pa.list_(pa.string()))
        return _dataset(ratings, movies["item_id"], movies["title"], genres)
    raise DataError(f"{folder} holds neither ml-100k.inter nor u.data; give the folder of MovieLens 100k")


def read_movielens_latest_small(folder: str | Path) -> Dataset:
    """`folder` holds ratings.csv and movies.csv. Raises DataError."""
    folder = Path(folder)
    if not (folder / "ratings.csv").exists():
        raise DataError(f"{folder} holds no ratings.csv; give the folder of MovieLens latest-small")
    ratings = read_table(folder / "ratings.csv").rename_columns(["user_id", "item_id", "rating", "timestamp"])
    movies = read_table(folder / "movies.csv")
    genres = pc.split_pattern(_genres(movies["genres"]), "|")
    return _dataset(ratings, movies["movieId"], movies["title"], genres)


def _genres(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(pc.equal(column, "(no genres listed)"), pa.scalar(None, pa.string()), column)


def _dataset(
    ratings: pa.Table, ids: pa.ChunkedArray, titles: pa.ChunkedArray, genres: pa.ChunkedArray
) -> Dataset:
    key = pc.binary_join_element_wise(ratings["user_id"], ratings["item_id"], ratings["timestamp"], "\x1f")
    time = parse_times(ratings["timestamp"], where="MovieLens, column timestamp")
    columns = {
        "event_id": hashed_ids(key.to_pylist()),
        "user_id": ratings["user_id"],
        "item_id": ratings["item_id"],
        "event_type": pa.array(np.full(len(ratings), "rating", object), pa.string()),
        "timestamp": time,
        "value": ratings["rating"].cast(pa.float64()),
    }
    events = conform(pa.table(columns))
    times = pl.DataFrame(events.select(["item_id", "timestamp"]))
    published = dict(times.group_by("item_id").agg(pl.col("timestamp").min()).iter_rows())
    items = {
        "item_id": ids,
        "title": titles,
        "categories": genres,
        "published_at": pa.array([published.get(i) for i in ids.to_pylist()], pa.timestamp("us", tz="UTC")),
    }
    return Dataset(events=events, items=conform_items(pa.table(items)))
