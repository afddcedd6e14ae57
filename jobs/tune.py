"""Searches for better settings of one retrieval model, on its training part alone.

    python -m jobs.tune --model ease --trials 20 --minutes 30
    python -m jobs.tune --model "ials factors=128" --format atomic --path ../shared/data/ml-100k

On what a release with this model as its single stage learns from, or on data as `recsys evaluate` takes
them. What at most 2,000 users are asked is held out of the training part, as the test will ask it.
Settings that are given stay. What the trials find is kept in `tuning/<name>` of the work directory, each
also as a run in MLflow: started again, with more trials or minutes too, it goes on.
"""

from pathlib import Path
from typing import Any

from jobs.session import run_job
from jobs.workspace import Progress, Workspace, silent
from recsys.datasets.formats import read_problems
from recsys.errors import SettingsError
from recsys.interactions import Interactions
from recsys.memory import free_mb
from recsys.models.held_out import USERS, asked_slice
from recsys.models.search_space import text_of
from recsys.settings import Settings, model_of, words_of
from recsys.training.search import NINTHS, Search, Trial
from recsys.training.tracking import track_run
from recsys.training.tuning import run_trials


def run(
    settings: Settings,
    *,
    model: str = "",
    trials: int = 20,
    minutes: int = 30,
    name: str = "",
    format: str = "",
    path: str = "",
    progress: Progress = silent,
) -> dict[str, Any]:
    if not model:
        raise SettingsError("give --model, the name of one: 'ease'")
    defaults, given = model_of(model), {setting.partition("=")[0] for setting in words_of(model)[1:]}
    space = {key: values for key, values in defaults.space.items() if key not in given}
    data = _training_part(settings, model, format, path)
    rest, held_out = asked_slice(data, most=USERS, seed=settings.seed)
    search = Search(defaults, space, rest, held_out, settings.seed)
    name = name or model.split()[0]

    def ended(trial: Trial, count: int) -> None:
        _track(settings, search, trial, name=name, model=model)
        told = trial.failed or f"{search.metric} {trial.values[-1]:.4f} of {NINTHS[len(trial.values) - 1]}/9"
        progress(count / trials, f"trial {count} of {trials}: {text_of(trial.settings)}: {told}")

    folder = settings.folder / "tuning" / name
    found = run_trials(
        search, trials=trials, minutes=minutes, folder=folder, memory_mb=free_mb(), ended=ended
    )
    best = search.best(found)
    return {
        "model": f"{model} {text_of(best.settings)}" if best.number else model,
        search.metric: best.values[-1],
        "defaults": next((trial.values[-1] for trial in found if trial.whole and not trial.number), None),
        "trials": len(found),
        "stopped": sum(trial.stopped for trial in found),
        "failed": sum(trial.failed is not None for trial in found),
        "kept": str(folder),
    }


def _training_part(settings: Settings, model: str, format: str, path: str) -> Interactions:
    if bool(format) != bool(path):
        raise SettingsError("--format and --path go together: give both, or neither for the work directory")
    if path:
        (problem,) = read_problems(format, Path(path), seed=settings.seed)
        return problem.train
    return Workspace.of_model(settings, model).taught


def _track(settings: Settings, search: Search, trial: Trial, *, name: str, model: str) -> None:
    settings.folder.mkdir(parents=True, exist_ok=True)
    values = {f"{search.metric} at {n} of 9": v for n, v in zip(NINTHS, trial.values, strict=False)}
    track_run(
        settings.registry_uri,
        experiment=f"{settings.registry.model}-tuning",
        name=f"{name} {trial.number}",
        parameters={"model": model, **trial.settings, "seed": settings.seed},
        metrics=values | {"seconds": trial.seconds},
        tags={"tuning": name, "failed": trial.failed} if trial.failed else {"tuning": name},
    )


if __name__ == "__main__":
    run_job(
        run,
        description=__doc__,
        model="the model, and settings that are not to be changed: 'ials factors=128'",
        trials="how many settings are tried, its own among them (20)",
        minutes="no trial begins or goes on after so many, counted from this start (30)",
        name="of the search, in the work directory and in MLflow (the model's name)",
        format="of other data than the work directory's, as in `recsys evaluate`",
        path="of these data",
    )
