"""Which public data sets recsys reads by name. One's own files are `mapped`'s business."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from recsys.datasets.movielens import read_movielens_100k, read_movielens_latest_small
from recsys.datasets.online_retail import SHIPPED, read_online_retail
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
    check_dataset(name, path)
    return DATASETS[name](path)


def check_dataset(name: str, path: str | Path | None = None) -> None:
    """Raises DataError for an unknown name, a missing path, and one where nothing is: before long work."""
    if name not in DATASETS:
        raise DataError(f"no data set {name!r}; known: {', '.join(DATASETS)}; for your own file use --map")
    if path is None and name != "online-retail":
        raise DataError(
            f"{name} is not shipped with recsys (its license forbids it); give the path of its folder"
        )
    if path is not None and not Path(path).exists():
        raise DataError(f"nothing at {path}: give the file or folder of {name}")


def fingerprint(name: str, path: str | Path | None = None) -> str:
    """Hash of the files that `read_dataset` would read: the same again means that nothing changed."""
    place = Path(path) if path is not None else SHIPPED
    digest = hashlib.sha256(name.encode())
    for file in sorted(f for f in place.rglob("*") if f.is_file()) if place.is_dir() else [place]:
        if file.is_file():
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
