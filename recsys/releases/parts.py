"""What a release holds, as bytes by name and back: the one place that knows the file formats."""

import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import xgboost
from pydantic import TypeAdapter

from recsys.experiments.assignment import Experiments
from recsys.index.manifest import CURVE, MANIFEST, IndexManifest, read_manifest, shard_files
from recsys.index.shard import LocalShard, open_shard
from recsys.index.vectors import VectorArray
from recsys.models.ranker import Ranker
from recsys.models.snapshot import Snapshot
from recsys.pipeline.rules import Rule
from recsys.pipeline.wiring import Parts, PipelineSettings
from recsys.releases.manifest import Release

INDEX = "index/"  # what the names of its parts start with
ITEMS = "items.parquet"
TOWER = "models/two_tower.npz"
SPACES = (TOWER, "models/vectors.npz")  # a release has one of them: the hash names the space of its vectors


def encode(parts: Parts) -> dict[str, bytes]:
    """Part name -> bytes, of all but the index."""
    encoded = {f"models/{name}.npz": _npz(arrays) for name, arrays in parts.snapshot.arrays().items()}
    for name, ranker in parts.rankers.items():
        encoded[f"rankers/{name}.ubj"] = bytes(ranker.booster.save_raw("ubj"))
    table = io.BytesIO()
    parts.items.write_parquet(table)
    encoded[ITEMS] = table.getvalue()
    encoded["rules.json"] = json.dumps([asdict(rule) for rule in parts.rules]).encode()
    encoded["experiments.json"] = _json(Experiments, parts.experiments)
    encoded["pipeline.json"] = _json(PipelineSettings, parts.settings)
    return encoded


def load_parts(release: Release) -> Parts:
    """All parts in memory but the index, whose shards may be elsewhere."""
    names = release.manifest.parts
    models = {_stem(n): _load_npz(release.path(n)) for n in names if n.startswith("models/")}
    rankers = {}
    for name in names:
        if name.startswith("rankers/"):
            booster = xgboost.Booster(model_file=bytearray(release.path(name).read_bytes()))
            rankers[_stem(name)] = Ranker(booster)
    return Parts(
        items=pl.read_parquet(release.path(ITEMS)),
        snapshot=Snapshot.from_arrays(models),
        rankers=rankers,
        rules=tuple(Rule(**rule) for rule in json.loads(release.path("rules.json").read_bytes())),
        experiments=TypeAdapter(Experiments).validate_json(release.path("experiments.json").read_bytes()),
        settings=TypeAdapter(PipelineSettings).validate_json(release.path("pipeline.json").read_bytes()),
    )


def index_parts(folder: Path, *, of: np.ndarray) -> dict[str, Path]:
    """Part name -> file, of the index of vectors `of` [V, D] that was built into `folder`. Raises
    ReleaseError."""
    shards = len(read_manifest(folder, of=VectorArray(of)).shards)
    names = [MANIFEST, *(name for number in range(shards) for name in shard_files(number))]
    return {INDEX + name: folder / name for name in names}


def index_curve(folder: Path) -> list[dict[str, Any]]:
    """What was measured of that index, for the release's manifest: times make no other release."""
    curve: list[dict[str, Any]] = json.loads((folder / CURVE).read_bytes())
    return curve


def index_manifest(release: Release) -> IndexManifest:
    return IndexManifest.from_json(release.path(INDEX + MANIFEST).read_bytes())


def load_shard(release: Release, number: int) -> LocalShard:
    index, rows = (release.path(INDEX + name) for name in shard_files(number))
    return open_shard(index, rows, manifest=index_manifest(release), number=number)


def local_shards(release: Release) -> list[LocalShard]:
    """All shards of the index, in this process."""
    return [load_shard(release, number) for number in range(len(index_manifest(release).shards))]


def tower_array(release: Release, name: str) -> np.ndarray:
    """One array of the two-tower encoder, float32 [n, D]; of a release without one, none."""
    if TOWER not in release.manifest.parts:
        return np.zeros((0, index_manifest(release).dimensions), np.float32)
    with np.load(release.path(TOWER)) as arrays:  # reads that one alone
        found: np.ndarray = arrays[name]
        return found


def _stem(name: str) -> str:
    return Path(name).stem


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Uncompressed; the same arrays give the same bytes (np.savez stamps no time)."""
    buffer = io.BytesIO()
    np.savez(buffer, **dict(sorted(arrays.items())))  # type: ignore[arg-type]
    return buffer.getvalue()


def _load_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _json(kind: type, value: Any) -> bytes:
    return TypeAdapter(kind).dump_json(value)
