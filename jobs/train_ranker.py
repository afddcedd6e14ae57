"""Trains a ranker for each scene, through Ray Train's XGBoost, on replayed windows.

    python -m jobs.train_ranker

Rows are what the models of a window's start propose to the users who come back in it, labeled with
what they then consumed: the same request path, the same features as in serving. A single stage
(`training.model`) has no ranker.
"""

from functools import partial
from typing import Any

import numpy as np
import ray

from jobs.session import run_job
from jobs.workspace import Progress, Workspace, silent, write_atomically
from recsys.errors import DataError
from recsys.index.shard import exact_shard
from recsys.models.ranker import RankerSettings, RankingRows
from recsys.pipeline.offline import PointInTimeUsers, label_candidates, relevant_items
from recsys.pipeline.wiring import recommender
from recsys.settings import Settings
from recsys.training.ranker import rows_to_keep, train_ranker
from recsys.training.runner import train_xgboost


def run(settings: Settings, *, progress: Progress = silent) -> dict[str, Any]:
    if settings.training.model is not None:
        return {"rankers": "none: a single stage keeps the order of its model"}
    workspace = Workspace(settings)
    windows = workspace.windows
    wanted = {scene.ranker: name for name, scene in settings.pipeline.scenes.items()}
    if missing := set(wanted) - set(settings.training.rankers):
        raise DataError(f"ranker {sorted(missing)[0]!r} of a scene has no entry in training.rankers")
    make: Any = ray.remote(num_cpus=1)(ranking_rows)
    waiting = {
        make.remote(settings, scene, window): ranker
        for window in range(len(windows.starts) - 1)
        for ranker, scene in wanted.items()
    }
    total = len(waiting)
    parts: dict[str, list[tuple[int, RankingRows]]] = {ranker: [] for ranker in wanted}
    while waiting:
        (ready,), _ = ray.wait(list(waiting))
        parts[waiting.pop(ready)].append(ray.get(ready))
        progress(0.5 * (1 - len(waiting) / total), "replaying past windows")
    # In the order of the windows, not of arrival: the same rows give the same trees.
    rows = {
        r: RankingRows.concatenate([p for _, p in sorted(ps, key=lambda x: x[0])]) for r, ps in parts.items()
    }
    # Starting Ray Train is dear: rankers of the same settings share a run.
    alike: dict[RankerSettings, dict[str, RankingRows]] = {}
    for ranker, table in rows.items():
        alike.setdefault(settings.training.rankers[ranker], {})[ranker] = table
    for ranker_settings, tables in alike.items():
        progress(0.5, f"XGBoost on {settings.training.workers} workers: {', '.join(tables)}")
        boosters = train_xgboost(
            partial(train_ranker, settings=ranker_settings, seed=settings.seed),
            rows=tables,
            workers=settings.training.workers,
            storage=str(workspace.folder / "training"),
            name=f"rankers-{'-'.join(tables)}",
        )
        for ranker, content in boosters.items():
            write_atomically(workspace.folder / "rankers" / f"{ranker}.ubj", content)
    return {
        ranker: {
            "requests": len(table),
            "rows": len(table.label),
            "positives": int(table.label.sum()),
            "columns": table.features.shape[1],
        }
        for ranker, table in rows.items()
    }


def ranking_rows(settings: Settings, scene: str, window: int) -> tuple[int, RankingRows]:
    """(window, the labeled candidates of one window in one scene)."""
    workspace = Workspace(settings)
    windows, log = workspace.windows, workspace.interactions
    start, end = windows.starts[window], windows.end_of(window)
    parts = workspace.parts(start, rankers={})
    snapshot = parts.snapshot
    shown = settings.pipeline.scenes[scene]
    ranker: RankerSettings = settings.training.rankers[shown.ranker]
    past = recommender(
        parts,
        users=PointInTimeUsers(log, start),
        shards=[exact_shard(snapshot.vectors)],
    )
    blocks = label_candidates(
        past,
        relevant_items(log, start=start, end=end, items=len(snapshot), new_only=shown.hide_consumed),
        scene=scene,
        now=start,
        item_features=snapshot.item_features,
        category=snapshot.category,
        keep=partial(rows_to_keep, negatives=ranker.negatives, seed=settings.seed),
    )
    rows = RankingRows.concatenate(list(blocks))
    return window, rows.take(np.flatnonzero(np.diff(rows.offsets)))


if __name__ == "__main__":
    run_job(run, description=__doc__)
