"""Trains retrieval models: all that is served, or one by name beside it.

    python -m jobs.train_retrieval
    python -m jobs.train_retrieval --model "ials factors=128"

The pipeline's: one run of the two-tower forwards through time leaves a snapshot at the start of each
window, so that the ranker learns from candidates of models that had not seen what it is asked to
predict; tables and columns beside it. A single stage's (`training.model`): that model, or what `auto`
chooses, fitted on what was consumed before the held-out window.

One model by name is fitted on what a release of it would learn from, judged on the held-out window,
stored by the hash of its arrays, and tracked in MLflow. A torch model and iALS are spread over
`training.workers`; `--start` goes on from an earlier two-tower of the same settings.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import ray

from jobs.session import run_job
from jobs.workspace import Progress, Workspace, silent
from recsys.advisor.auto import FittedAuto
from recsys.datasets.splits import temporal_split
from recsys.errors import SettingsError
from recsys.evaluation.retrieval import judge, metrics_of, summarize
from recsys.features.text import hash_tokens
from recsys.interactions import Interactions
from recsys.memory import free_mb
from recsys.models.blend import as_blend
from recsys.models.factors.ials import Ials
from recsys.models.retrieval import Fitted, check_capacity
from recsys.settings import Settings, model_of
from recsys.training.distributed import fit_parallel, train_two_tower_parallel
from recsys.training.factorization import fit_ials
from recsys.training.retrieval_models import model_name
from recsys.training.sequence_model import SequenceModel
from recsys.training.snapshot import fit_snapshot, single_stage
from recsys.training.stored import load_fitted, save_fitted
from recsys.training.tracking import track_run
from recsys.training.two_tower_model import TwoTowerModel


def run(
    settings: Settings, *, model: str = "", start: str = "", progress: Progress = silent
) -> dict[str, Any]:
    if model:
        return _fit_one(settings, model, start=start, progress=progress)
    if start:
        raise SettingsError("--start needs a --model: the pipeline's two-tower would see its own future")
    workspace = Workspace(settings)
    if settings.training.model is not None:
        return _fit_single_stage(workspace, settings.training.model, progress)
    return _fit_pipeline(workspace, progress)


def _fit_single_stage(workspace: Workspace, text: str, progress: Progress) -> dict[str, Any]:
    settings, data = workspace.settings, workspace.taught
    model, name = model_of(text), model_name(text.split()[0])
    check_capacity(model.estimate(data), what=name, available_mb=free_mb())
    fitted = _fit(model, data, workspace, name=name, start="", progress=progress)
    served = as_blend(name, fitted)
    snapshot = single_stage(
        served,
        data,
        as_of=workspace.windows.held_out,
        category=workspace.category,
        settings=settings.training.tables,
        seed=settings.seed,
    )
    workspace.save_snapshot(snapshot)
    weights = {part: round(float(weight), 2) for part, weight in zip(served.parts, served.weights)}
    _track(settings, name, {"settings": model, "events": len(data)}, {}, models=str(weights))
    figures = {"items": data.items, "events": len(data), "models": weights}
    return figures | (_choice(fitted) if isinstance(fitted, FittedAuto) else {})


def _choice(fitted: FittedAuto) -> dict[str, Any]:
    """What `auto` found, tried and left out."""
    assert fitted.decision is not None, "a fit knows how it was made"
    found: dict[str, Any] = {
        "leaf": fitted.decision.leaf.value,
        "ndcg@10_on_a_slice": {t.model: round(t.ndcg, 4) for t in fitted.tried if not t.why},
        "not_judged": {t.model: t.why for t in fitted.tried if t.why},
    }
    return {name: value for name, value in found.items() if value}


def _fit_one(settings: Settings, text: str, *, start: str, progress: Progress) -> dict[str, Any]:
    model, name = model_of(text), model_name(text.split()[0])
    workspace = Workspace.of_model(settings, text)
    problem = temporal_split(workspace.described, moment=workspace.windows.held_out)
    check_capacity(model.estimate(problem.train), what=name, available_mb=free_mb())
    fitted = _fit(model, problem.train, workspace, name=name, start=start, progress=progress)
    metrics = metrics_of(summarize([judge(fitted, problem, explicit=model.explicit, progress=progress)]))
    path = save_fitted(workspace.folder / "models", fitted, model=name, settings=repr(model))
    parameters = {"settings": model, "events": len(problem.train)}
    tracked = _track(settings, name, parameters, metrics, stored=str(path))
    return {"model": name, "stored": str(path), "run": tracked, **metrics}


def _fit(
    model: Any, data: Interactions, workspace: Workspace, *, name: str, start: str, progress: Progress
) -> Fitted:
    """On all workers where the model can be spread, else in this process."""
    seed, workers = workspace.settings.seed, workspace.settings.training.workers
    if start and not isinstance(model, TwoTowerModel):
        raise SettingsError(f"--start: only two_tower goes on from an earlier fit, {name} begins anew")
    if isinstance(model, TwoTowerModel | SequenceModel):
        return fit_parallel(
            model,
            data,
            seed=seed,
            workers=workers,
            storage=str(workspace.folder / "training"),
            name=name,
            start=load_fitted(Path(start)).arrays() if start else None,
        )
    if isinstance(model, Ials):
        return fit_ials(model, data, seed=seed, workers=workers, progress=progress)
    fitted: Fitted = model.fit(data, seed=seed, progress=progress)
    return fitted


def _track(
    settings: Settings, name: str, parameters: dict[str, Any], metrics: Mapping[str, float], **tags: str
) -> str:
    return track_run(
        settings.registry_uri,
        experiment=f"{settings.registry.model}-retrieval",
        name=name,
        parameters=parameters | {"seed": settings.seed},
        metrics=metrics,
        tags=tags,
    )


def _fit_pipeline(workspace: Workspace, progress: Progress) -> dict[str, Any]:
    settings, windows = workspace.settings, workspace.windows
    training = settings.training
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
    losses = {f"loss as of {_day(t.cutoff)}": t.loss for t in towers}
    parameters = {"two_tower": training.two_tower, "tables": training.tables, "events": len(known)}
    _track(settings, "pipeline", parameters, losses)
    return {
        "items": workspace.sizes[-1],
        "dimensions": towers[-1].item_vectors.shape[1],
        "loss": round(towers[-1].loss, 3),
        "snapshots": [_day(start) for start in windows.starts],
        "window_days": windows.days,
    }


def _day(moment: int) -> str:
    return str(np.datetime64(moment, "s").astype("M8[D]"))


if __name__ == "__main__":
    run_job(
        run,
        description=__doc__,
        model="one model by name, and its settings: 'ials factors=128'",
        start="stored two_tower to go on from (with --model two_tower)",
    )
