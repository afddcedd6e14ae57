"""Builds the index of what was trained, a Ray task for each shard, tuned to the recall that is asked.

    python -m jobs.build_index                       of the work directory's newest models
    python -m jobs.build_index --vectors FOLDER      of vectors in Parquet (columns row and vector)
    python -m jobs.build_index --release champion    a new release, equal but for its index

The second takes a catalog of any size: no process holds more than one shard of it.
"""

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import ray

from jobs.session import changelog_session, run_job
from jobs.workspace import Progress, Workspace, silent
from recsys.catalog.changelog import Position
from recsys.catalog.following import Follower
from recsys.errors import SettingsError
from recsys.evaluation.plot import plot_recall_curve
from recsys.index.building import Each, build_index
from recsys.index.manifest import MODELS_ONLY, IndexManifest, curve_of
from recsys.index.vectors import VectorFiles, write_vectors
from recsys.models.snapshot import PipelineModels, Snapshot
from recsys.pipeline.hydration import Hydration
from recsys.pipeline.offline import PointInTimeUsers, batch_of
from recsys.pipeline.wiring import Parts, live_items
from recsys.releases.live import LiveCatalog, watermark
from recsys.releases.manifest import Release, with_parts
from recsys.releases.parts import INDEX, index_curve, index_parts, load_parts
from recsys.releases.registry import resolve
from recsys.settings import Settings

_Work = TypeVar("_Work")


def run(
    settings: Settings, *, vectors: str | None = None, release: str | None = None, progress: Progress = silent
) -> dict[str, Any]:
    if vectors and release:
        raise SettingsError("--vectors and --release: give one of them; a release has vectors of its own")
    if release:
        return rebuild(settings, release=release, progress=progress)
    workspace = Workspace(settings)
    folder = workspace.folder / ("index-of-vectors" if vectors else "index")
    if vectors:
        files = VectorFiles(Path(vectors).absolute())  # tasks have other working directories
        manifest = _build(files, folder, settings=settings, progress=progress)
    else:
        snapshot = workspace.snapshot(workspace.windows.held_out)
        manifest = build_of(snapshot, folder, workspace=workspace, progress=progress)
    return _figures(manifest) | {"plot": str(folder / "recall.png")}


def rebuild(settings: Settings, *, release: str, progress: Progress = silent) -> dict[str, Any]:
    """The release once more, with an index by today's settings of the items that there are today;
    registered, and champion if it was. Its evaluation is still that of the release it was made from."""
    workspace = Workspace(settings)
    opened = resolve(release, registry=settings.registry_uri, model=settings.registry.model)
    parts = load_parts(opened)
    vectors, position = vectors_now(opened, parts, settings=settings)
    with TemporaryDirectory(prefix="index-", dir=workspace.folder) as folder:
        manifest = build_of(
            parts.snapshot,
            Path(folder),
            workspace=workspace,
            vectors=vectors,
            built_at=position.offset,
            progress=progress,
        )
        curve = index_curve(Path(folder))
        made = with_parts(opened, index_parts(Path(folder), of=vectors), instead_of=INDEX, index_curve=curve)
    before = next((r for r in workspace.registry.versions() if r.uri == opened.uri), None)
    metrics = before.metrics if before else {}
    version = workspace.registry.register(made.manifest.id, uri=made.uri, metrics=metrics)
    promoted = before is not None and "champion" in before.aliases
    if promoted:
        workspace.registry.promote(version)
    shared = len(made.manifest.parts.items() & opened.manifest.parts.items())
    return _figures(manifest) | {
        "release": made.manifest.id,
        "version": version,
        "alias": "champion" if promoted else "none",
        "shared_parts": shared,
    }


def vectors_now(release: Release, parts: Parts, *, settings: Settings) -> tuple[np.ndarray, Position]:
    """Vectors of all items by the changelog, float32 [R, D] by row, 0 = none; and where the changelog ends.
    Deleted ones keep theirs: they may come back."""
    live = LiveCatalog(release, live_items(parts))
    start = watermark(release)
    with changelog_session(settings, start.log) as log:
        follower = Follower(log, start=start, apply=live.apply)
        follower.catch_up()
    rows = np.arange(follower.position.rows)
    return live.items.vectors[rows], follower.position


def build_of(
    snapshot: Snapshot,
    folder: Path,
    *,
    workspace: Workspace,
    vectors: np.ndarray | None = None,
    built_at: int = MODELS_ONLY,
    progress: Progress = silent,
) -> IndexManifest:
    """The index of a snapshot's vectors, or of `vectors` in the same space, those of the changelog up to
    `built_at`."""
    queries = real_queries(workspace, snapshot)
    with TemporaryDirectory(prefix="vectors-", dir=workspace.folder) as passing:
        path = Path(passing) / "vectors.parquet"
        write_vectors(path, snapshot.vectors if vectors is None else vectors)
        return _build(
            VectorFiles(path),
            folder,
            settings=workspace.settings,
            queries=queries,
            built_at=built_at,
            progress=progress,
        )


def real_queries(workspace: Workspace, snapshot: Snapshot) -> np.ndarray | None:
    """The query vectors of users as they were at the snapshot's moment, float32 [Q, D]; None of models that
    don't ask an index."""
    if not isinstance(snapshot.models, PipelineModels):
        return None
    settings, log, now = workspace.settings, workspace.interactions, snapshot.as_of
    scenes = settings.pipeline.scenes
    random = np.random.default_rng(settings.seed)
    users = random.permutation(log.user_ids)[: 2 * settings.index.queries]  # some have no past yet
    batch = batch_of(users.tolist(), scene=next(iter(scenes)), now=now, n=1)
    batch = asyncio.run(Hydration(PointInTimeUsers(log, now), scenes, snapshot.category)(batch))
    encoder, features = snapshot.models.encoder, batch.user_features
    queries = encoder.encode(batch.histories, now=batch.now, user_features=features)
    return queries[batch.histories.counts > 0]


def by_ray_tasks(progress: Progress) -> Each:
    """Each piece of work is a Ray task of one CPU; a lost one is done again."""

    def each(function: Callable[[_Work], Any], work: Iterable[_Work]) -> list[Any]:
        task: Any = ray.remote(num_cpus=1, max_retries=3)(function)
        references = [task.remote(piece) for piece in work]
        waiting = list(references)
        while waiting:
            _, waiting = ray.wait(waiting)
            done = 1 - len(waiting) / len(references)
            progress(done, f"{len(references) - len(waiting)} of {len(references)} shards")
        return ray.get(references)

    return each


def _build(
    stream: VectorFiles,
    folder: Path,
    *,
    settings: Settings,
    queries: np.ndarray | None = None,
    built_at: int = MODELS_ONLY,
    progress: Progress,
) -> IndexManifest:
    manifest = build_index(
        stream,
        folder,
        settings=settings.index,
        queries=queries,
        seed=settings.seed,
        built_at=built_at,
        each=by_ray_tasks(progress),
        progress=progress,
    )
    plot_recall_curve(manifest, curve_of(index_curve(folder)), folder / "recall.png")
    return manifest


def _figures(manifest: IndexManifest) -> dict[str, Any]:
    return {
        "factory": manifest.factory,
        "items": manifest.items,
        "shards": len(manifest.shards),
        "megabytes": round(sum(shard.bytes for shard in manifest.shards) / 1e6, 1),
        "setting": dict(manifest.setting),
        f"recall@{manifest.at}": round(manifest.recall, 4),
    }


if __name__ == "__main__":
    run_job(
        run,
        description=__doc__,
        vectors="a folder of Parquet files with columns row and vector, or one",
        release="an alias or the path of a manifest: build its index anew, as a new release",
    )
