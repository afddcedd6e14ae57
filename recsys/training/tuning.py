"""Tuning a retrieval model's settings; this file imports ray, and is the only one that knows Ray Tune.

Decides that ASHA (Li et al. 2018, "A system for massively parallel hyperparameter tuning") ends a trial
that isn't among the best third of those that got as far, but never trial 0; and how many run at once.
Each trial that ended is a line of a journal, and what is started again goes on from there. Tune's own
restore isn't used: it forgets what ASHA has seen, brings back the callbacks of the first start, and begins
anew without an error where the kill cut its state. The caller has called `ray.init`.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import ray
import ray.cloudpickle
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from threadpoolctl import threadpool_limits

from recsys.errors import DataError, SettingsError, in_one_line
from recsys.models.retrieval import check_capacity
from recsys.training.driver import environment, fingerprint
from recsys.training.search import NINTHS, Search, Trial

_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints a table whatever the verbosity
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no files for TensorBoard
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # else Ctrl-C looks like a search that ended
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # they are in the journal
    "TUNE_WARN_THRESHOLD_S": "60",  # the first run in MLflow takes seconds
}
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def run_trials(
    search: Search,
    *,
    trials: int,
    minutes: float,
    folder: Path,
    memory_mb: float,
    ended: Callable[[Trial, int], None] = lambda trial, count: None,
) -> list[Trial]:
    """All trials that ended, until there are `trials` or, counted from now, `minutes` are over; those of
    earlier starts are in `folder`. On a node as many run at once as it has CPUs, and room in `memory_mb` for
    what the model says that it needs; each has its part of both. Nodes are taken to be like the smallest.
    `ended` is told of each trial, and how many that makes.

    Raises SettingsError where there is nothing to search, or `folder` is of another search; what `ended`
    raises ends the run, and its trial is run again at the next start.
    """
    _check(search, trials, minutes)
    journal = _Journal.of(search, folder)
    waiting = [number for number in range(trials) if number not in {trial.number for trial in journal.trials}]
    if not waiting:
        return journal.trials
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and "CPU" in node["Resources"]]
    cpus, gpus = (min(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
    room = memory_mb / search.model.estimate(search.data).memory_mb
    at_once = int(max(1, min(room, cpus, len(waiting))))
    at_once, threads = even_shares(int(cpus), at_once)
    resources = {"CPU": float(threads)} | ({"GPU": min(1.0, gpus / at_once)} if gpus else {})
    fit = tune.with_parameters(_Fit, search=search, memory_mb=memory_mb / at_once, threads=threads)
    told = _Told(search, journal, ended)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    shutil.rmtree(folder / "tune", ignore_errors=True)
    try:
        with environment(_QUIET):
            tune.run(
                tune.with_resources(fit, resources),
                config={"number": tune.grid_search(waiting)},
                scheduler=_Halving(journal.trials, mode=search.mode),
                time_budget_s=60 * minutes,
                storage_path=str(folder.resolve()),
                name="tune",
                callbacks=[told],
                reuse_actors=True,
                raise_on_failed_trial=False,
                verbose=0,
            )
    except tune.TuneError:
        if told.broken is not None:
            raise told.broken from None
        raise
    return journal.trials


def even_shares(cpus: int, most: int) -> tuple[int, int]:
    """How many trials run at once, at most `most`, and the threads of each: Ray runs as many as there are
    threads for, and each is promised its part of the memory."""
    threads = -(-cpus // most)
    return cpus // threads, threads


def _check(search: Search, trials: int, minutes: float) -> None:
    if trials < 1 or not minutes > 0:
        raise SettingsError(f"trials = {trials}, minutes = {minutes:g}: give 1 or more, and more than 0")
    if not search.space:
        name = type(search.model).__name__
        raise SettingsError(f"{name} has no setting left to tune: give fewer, or choose another model")
    if not len(search.data) or not len(search.held_out):
        raise DataError("the log is too short to hold anything out of it: give more data")


@dataclass(frozen=True, slots=True)
class _Journal:
    path: Path
    trials: list[Trial]

    @classmethod
    def of(cls, search: Search, folder: Path) -> "_Journal":
        """What `folder` holds of this search. Raises SettingsError where it is of another one."""
        about = {
            "model": repr(search.model),
            "space": repr(dict(search.space)),
            "seed": search.seed,
            "data": fingerprint({"data": search.data, "held_out": search.held_out}),
        }
        folder.mkdir(parents=True, exist_ok=True)
        journal = cls(folder / "trials.jsonl", [])
        journal.path.touch()
        text = journal.path.read_text()
        whole = text[: text.rfind("\n") + 1]  # a kill may have cut the last line
        os.truncate(journal.path, len(whole.encode()))
        if not whole:
            journal._write(about)
            return journal
        then, *lines = map(json.loads, whole.splitlines())
        for key, value in about.items():
            if then[key] != value:
                raise SettingsError(
                    f"{folder} is of another search: its {key} was {then[key]} and is {value} now; give "
                    "another name, or delete the folder"
                )
        journal.trials.extend(Trial(**line) for line in lines)
        return journal

    def add(self, trial: Trial) -> None:
        self._write(asdict(trial))
        self.trials.append(trial)

    def _write(self, line: Mapping[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


class _Fit(tune.Trainable):
    """A trial on a worker; a step is the fit on the next share of the users."""

    def setup(  # type: ignore[override]  # with parameters
        self, config: dict[str, Any], search: Search, memory_mb: float, threads: int
    ) -> None:
        self.search, self.memory_mb, self.number = search, memory_mb, config["number"]
        self.values: list[float] = []
        # For what is not loaded yet, and for what is.
        os.environ |= dict.fromkeys(_THREADS, str(threads))
        threadpool_limits(threads)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.number, self.values = new_config["number"], []
        return True

    def step(self) -> dict[str, Any]:
        ninths, search = NINTHS[len(self.values)], self.search
        model = replace(cast(Any, search.model), **search.settings(self.number))
        data, judged = search.share(ninths)
        check_capacity(model.estimate(data), what=f"{ninths}/9 of the users", available_mb=self.memory_mb)
        value = search.quality(model.fit(data, seed=search.seed), judged)
        if not np.isfinite(value):
            raise SettingsError(f"the fit on {ninths}/9 of the users diverged")
        self.values.append(value)
        return {"ninths": ninths, "value": value, "values": list(self.values)}


class _Halving(ASHAScheduler):
    """ASHA that knows the trials of earlier starts and lets the model's own settings pass."""

    def __init__(self, trials: Sequence[Trial], *, mode: str) -> None:
        super().__init__("ninths", "value", mode, NINTHS[-1], NINTHS[0], NINTHS[1] / NINTHS[0])
        for trial in trials:
            known: Any = SimpleNamespace(trial_id=f"journal-{trial.number}", config={"number": trial.number})
            self.on_trial_add(cast(Any, None), known)
            for ninths, value in zip(NINTHS, trial.values, strict=False):
                self.on_trial_result(None, known, {"ninths": ninths, "value": value})

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision: str = super().on_trial_result(tune_controller, trial, result)
        passes = trial.config["number"] == 0 and result["ninths"] < NINTHS[-1]
        return self.CONTINUE if passes else decision


class _Told(tune.Callback):
    """Writes what ended into the journal, after `ended` has taken it."""

    def __init__(self, search: Search, journal: _Journal, ended: Callable[[Trial, int], None]) -> None:
        self.search, self.journal, self.ended = search, journal, ended
        self.broken: BaseException | None = None

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._end(trial)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        error = ray.cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
        cause = getattr(error, "cause", error)
        self._end(trial, failed=in_one_line(cause) or f"{type(cause).__name__}: {cause}".splitlines()[0])

    def _end(self, trial: Any, *, failed: str | None = None) -> None:
        number, last = trial.config["number"], trial.last_result
        found = Trial(
            number,
            self.search.settings(number),
            last.get("values", []),
            round(last.get("time_total_s", 0.0), 2),
            failed,
        )
        try:
            self.ended(found, len(self.journal.trials) + 1)
        except BaseException as error:
            self.broken = error  # Tune would make a text of it
            raise
        self.journal.add(found)
