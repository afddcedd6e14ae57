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
from recsys.index.shard import IndexSettings, IndexShard, LocalShard, build_shards
from recsys.models.ranker import Ranker
from recsys.models.snapshot import Snapshot
from recsys.pipeline.rules import Rule
from recsys.pipeline.wiring import Parts, PipelineSettings
from recsys.releases.manifest import Release


def encode(parts: Parts, *, index: IndexSettings) -> dict[str, bytes]:
    """Part name -> bytes."""
    encoded = {f"models/{name}.npz": _npz(arrays) for name, arrays in parts.snapshot.arrays().items()}
    for number, shard in enumerate(build_shards(parts.snapshot.vectors, settings=index)):
        encoded[f"index/{number}.faiss"] = shard
    for name, ranker in parts.rankers.items():
        encoded[f"rankers/{name}.ubj"] = bytes(ranker.booster.save_raw("ubj"))
    table = io.BytesIO()
    parts.items.write_parquet(table)
    encoded["items.parquet"] = table.getvalue()
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
        items=pl.read_parquet(release.path("items.parquet")),
        snapshot=Snapshot.from_arrays(models),
        rankers=rankers,
        rules=tuple(Rule(**rule) for rule in json.loads(release.path("rules.json").read_bytes())),
        experiments=TypeAdapter(Experiments).validate_json(release.path("experiments.json").read_bytes()),
        settings=TypeAdapter(PipelineSettings).validate_json(release.path("pipeline.json").read_bytes()),
    )


def shard_names(release: Release) -> list[str]:
    return sorted((n for n in release.manifest.parts if n.startswith("index/")), key=lambda n: int(_stem(n)))


def load_shard(release: Release, name: str) -> LocalShard:
    return LocalShard(_stem(name), IndexShard.load(release.path(name)))


def local_shards(release: Release) -> list[LocalShard]:
    """All shards of the index, in this process."""
    return [load_shard(release, name) for name in shard_names(release)]


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
