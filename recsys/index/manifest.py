"""What an index is, as its files say: type, shards, the setting that it is searched with, and why that one.

    <folder>/<n>.faiss       one shard, in FAISS's own format
    <folder>/<n>.rows.npy    the item row of each of its positions
    <folder>/curve.json      what was found, and in what time, with each setting that was tried
    <folder>/manifest.json   written last

Times stand in the curve alone, so that the same build gives the same bytes of everything else.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recsys.errors import ReleaseError
from recsys.index.tuning import Point
from recsys.index.vectors import VectorStream, fingerprint

MANIFEST = "manifest.json"
CURVE = "curve.json"
MODELS_ONLY = -1  # an index of the items that the models have seen


@dataclass(frozen=True, slots=True)
class ShardFile:
    items: int
    bytes: int


@dataclass(frozen=True, slots=True)
class IndexManifest:
    factory: str
    dimensions: int
    items: int  # that have a vector
    shards: tuple[ShardFile, ...]
    at: int  # neighbors of which recall is the found share
    asked: float  # recall that the build had to reach
    setting: Mapping[str, float]
    recall: float  # with this setting, of queries that the choice never saw
    queries: int
    vectors: str  # fingerprint of the vectors that it holds
    built_at: int = MODELS_ONLY  # offset in the catalog changelog: vectors from before are in it

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "IndexManifest":
        """Raises ReleaseError."""
        try:
            tree = json.loads(content)
            tree["shards"] = tuple(ShardFile(**shard) for shard in tree["shards"])
            return cls(**tree)
        except (ValueError, TypeError, KeyError) as error:
            raise ReleaseError(f"the index has no manifest ({error}): build the release anew") from error


def shard_files(number: int) -> tuple[str, str]:
    """Names of the index and of the rows of a shard."""
    return f"{number}.faiss", f"{number}.rows.npy"


def read_manifest(folder: Path, *, of: VectorStream) -> IndexManifest:
    """Raises ReleaseError if no index was built there, or one of other vectors."""
    try:
        manifest = IndexManifest.from_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise ReleaseError(f"no index in {folder}: run `python -m jobs.build_index`") from error
    if manifest.vectors != fingerprint(of):
        raise ReleaseError(
            f"the index in {folder} is of other vectors: run `python -m jobs.build_index` after training"
        )
    return manifest


def curve_to_json(curve: Sequence[Point]) -> bytes:
    return json.dumps([asdict(point) for point in curve], indent=1).encode()


def curve_of(tree: Iterable[Mapping[str, Any]]) -> tuple[Point, ...]:
    """Points from what `curve_to_json` wrote of them, parsed."""
    return tuple(Point(**point) for point in tree)
