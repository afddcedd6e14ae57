"""Trains the retrieval models: the two-tower through Ray Train, tables and columns beside it.

    python -m jobs.train_retrieval
    python -m jobs.train_retrieval --model "ials factors=128"

Without `--model` all that the pipeline serves is trained: one run forwards through time leaves a snapshot at the start of each window, so that the ranker learns
from candidates of models that had not seen what it is asked to predict.
"""

from typing import Any, cast

import numpy as np
import ray

from jobs.session import run_job
from jobs.workspace import Progress, Workspace, silent
from recsys.features.text import hash_tokens
from recsys.settings import Settings
from recsys.training.runner import train_two_tower_parallel
from recsys.training.snapshot import fit_snapshot


def run(settings: Settings, *, progress: Progress = silent) -> dict[str, Any]:
    workspace = Workspace(settings)
    training, windows = settings.training, workspace.windows
    known = workspace.interactions.before(windows.held_out)
    progress(0.05, f"two-tower on {training.workers} workers, {len(known):,} events")
    towers = train_two_tower_parallel(
        known,
        tokens=hash_tokens(workspace.catalog.titles, buckets=training.two_tower.model.token_buckets),
        category=workspace.category,
        cutoffs=windows.starts,
        sizes=workspace.sizes,
        settings=training.two_tower,
        seed=settings.seed,
        workers=training.workers,
        storage=str(workspace.folder / "training"),
        name="two-tower",
    )
    fit = ray.remote(num_cpus=1)(cast(Any, fit_snapshot))
    log, category = ray.put(known), ray.put(workspace.category)
    waiting = [fit.remote(log, tower=t, category=category, settings=training.tables) for t in towers]
    for number, reference in enumerate(waiting):
        progress(0.6 + 0.4 * number / len(waiting), "item-to-item tables, popularity, item columns")
        workspace.save_snapshot(ray.get(reference))
    return {
        "items": workspace.sizes[-1],
        "dimensions": towers[-1].item_vectors.shape[1],
        "loss": round(towers[-1].loss, 3),
        "snapshots": [str(np.datetime64(start, "s").astype("M8[D]")) for start in windows.starts],
        "window_days": windows.days,
    }


if __name__ == "__main__":
    run_job(run, description=__doc__)
