"""Which public data sets recsys reads by name. One's own files are `mapped`'s business."""

from collections.abc import Callable
from pathlib import Path

from recsys.datasets.movielens import read_movielens_100k, read_movielens_latest_small
from recsys.datasets.online_retail import read_online_retail
from recsys.datasets.tables import Dataset
from recsys.errors import DataError

DATASETS: dict[str, Callable[..., Dataset]] = {
    "online-retail": read_online_retail,
    "movielens-100k": read_movielens_100k,
    "movielens-latest-small": read_movielens_latest_small,
}


def read_dataset(name: str, path: str | Path | None = None) -> Dataset:
    """Events and items of a public data set; only online-retail is shipped and needs no path.

    Raises DataError for an unknown name and for a path that can't be read.
    """
    if name not in DATASETS:
        raise DataError(f"no data set {name!r}; known: {', '.join(DATASETS)}; for your own file use --map")
    if path is None and name != "online-retail":
        raise DataError(
            f"{name} is not shipped with recsys (its license forbids it); give the path of its folder"
        )
    return DATASETS[name](path)
