"""One retrieval model on one problem: fitted, ranked over all items, judged; and several such runs together.

Decides the groups that are told apart (users by what is known of them, targets by how often training
saw the item), what a mean over runs is (runs weigh alike; the interval is over users, each with the
mean of its runs), and how two models are compared: on the same queries, user by user.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from recsys.datasets.problem import Judged, Problem
from recsys.evaluation.full_ranking import measure, rank_all
from recsys.interactions import COLD_ITEM_EVENTS
from recsys.metrics import bootstrap_interval, coverage_at, novelty_at, paired_difference
from recsys.models.retrieval import Fitted, Predicts, Progress, RetrievalModel, silent
from recsys.types import offsets_of

Compared = tuple[float, float, float, float]  # mean difference, low, high, p
EVERYONE, COLD_ITEMS = "all", "cold items"


@dataclass(frozen=True, slots=True)
class Run:
    """One model, one problem, one seed. Values are float64 [B], one for each query."""

    user: np.ndarray  # int64 [B] user code; -1 = a session
    groups: dict[str, dict[str, np.ndarray]]  # group -> metric -> values, NaN for queries outside of it
    squared_error: np.ndarray | None  # float64 [R] of each known value, from explicit models
    coverage: dict[str, float]  # coverage@k -> share of the catalog
    seconds: float  # of fit and ranking


@dataclass(frozen=True, slots=True)
class Summary:
    """Runs together: group -> metric -> (mean, low, high); low and high of the 95 % interval."""

    groups: dict[str, dict[str, tuple[float, float, float]]]
    seconds: float  # of all fits and rankings, per run


def run_model(
    model: RetrievalModel,
    problem: Problem,
    *,
    seed: int,
    progress: Progress = silent,
    look: Callable[[Fitted], None] = lambda fitted: None,
) -> Run:
    """Fit on `problem.train`, `look` at the fit, then `judge`."""
    started = time.perf_counter()
    fitted = model.fit(problem.train, seed=seed, progress=progress)
    look(fitted)
    run = judge(fitted, problem, explicit=model.explicit, progress=progress)
    return replace(run, seconds=time.perf_counter() - started)


def judge(fitted: Fitted, problem: Problem, *, explicit: bool = False, progress: Progress = silent) -> Run:
    """Rank all items for each query of `problem.test`, and measure; `explicit` models predict values, too."""
    started = time.perf_counter()
    train, test, metrics, at = problem.train, problem.test, problem.metrics, problem.at
    depth = min(max(at), train.items)  # nobody has more places than there are items
    ranked = rank_all(
        fitted, test, items=train.items, depth=depth, progress=lambda share: progress(share, "ranking")
    )
    popularity = np.bincount(train.histories.item, minlength=train.items).astype(np.float64)
    groups = {EVERYONE: measure(ranked, test, metrics=metrics, at=at)}
    groups[EVERYONE] |= {f"novelty@{k}": novelty_at(ranked, popularity, k) for k in at}
    for name, inside in _user_groups(test).items():
        groups[name] = {m: np.where(inside, v, np.nan) for m, v in groups[EVERYONE].items()}
    cold = popularity[test.target] < COLD_ITEM_EVENTS
    if cold.any() and not cold.all():
        groups[COLD_ITEMS] = measure(ranked, _targets_where(test, cold), metrics=metrics, at=at)
    return Run(
        test.queries.user,
        groups,
        _squared_error(fitted, test) if explicit else None,
        {f"coverage@{k}": coverage_at(ranked, train.items, k) for k in at},
        time.perf_counter() - started,
    )


def summarize(runs: Sequence[Run], *, seed: int = 0) -> Summary:
    """The mean over users of their mean over the runs, which may be of other seeds or folds of a data set."""
    rng = np.random.default_rng(seed)
    groups: dict[str, dict[str, tuple[float, float, float]]] = {}
    if runs[0].squared_error is not None:
        errors = [cast(np.ndarray, run.squared_error) for run in runs]
        low, high = (float(np.sqrt(end)) for end in bootstrap_interval(np.concatenate(errors), rng=rng))
        groups[EVERYONE] = {"rmse": (_mean(np.sqrt([_mean(e) for e in errors])), low, high)}
    for group in dict.fromkeys(name for run in runs for name in run.groups):
        line = groups.setdefault(group, {})
        inside = [run for run in runs if group in run.groups]
        for metric in inside[0].groups[group]:
            of_users = _by_user(inside, lambda run, g=group, m=metric: run.groups[g][m])  # type: ignore[misc]
            line[metric] = (_mean(of_users), *bootstrap_interval(of_users, rng=rng))
    for name in runs[0].coverage:
        found = [run.coverage[name] for run in runs]
        groups[EVERYONE][name] = (float(np.mean(found)), min(found), max(found))
    return Summary(groups, float(np.mean([run.seconds for run in runs])))


def compare(ours: Sequence[Run], theirs: Sequence[Run], *, seed: int = 0) -> dict[str, dict[str, Compared]]:
    """Group -> metric -> (mean of ours - theirs, low, high, p), paired by user; the runs are of the same
    problems in the same order. Metrics that are no mean over queries are left out."""
    rng = np.random.default_rng(seed)
    found: dict[str, dict[str, Compared]] = {}
    if ours[0].squared_error is not None and theirs[0].squared_error is not None:
        errors = [
            np.concatenate([cast(np.ndarray, r.squared_error) for r in runs]) for runs in (ours, theirs)
        ]
        if len(errors[0]):
            found[EVERYONE] = {"squared error": paired_difference(*errors, rng=rng)}
    for group in dict.fromkeys(name for run in ours for name in run.groups):
        pairs = [pair for pair in zip(ours, theirs, strict=True) if all(group in run.groups for run in pair)]
        for metric in pairs[0][0].groups[group] if pairs else ():
            values = [
                _by_user(runs, lambda run, g=group, m=metric: run.groups[g][m])  # type: ignore[misc]
                for runs in zip(*pairs, strict=True)
            ]
            found.setdefault(group, {})[metric] = paired_difference(*values, rng=rng)
    return found


def _by_user(runs: Sequence[Run], values: Callable[[Run], np.ndarray]) -> np.ndarray:
    """The mean over runs of each user's values, float64 [users]; a session is its place in the test."""
    if len(runs) == 1:
        return values(runs[0])
    keys = np.concatenate([np.where(r.user >= 0, r.user, -1 - np.arange(len(r.user))) for r in runs])
    found = np.concatenate([values(r) for r in runs])
    _, place = np.unique(keys, return_inverse=True)
    known = ~np.isnan(found)
    counts = np.bincount(place, known)
    with np.errstate(invalid="ignore"):
        return np.where(counts > 0, np.bincount(place, np.where(known, found, 0)) / counts, np.nan)


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def _user_groups(test: Judged) -> dict[str, np.ndarray]:
    """Queries by their number of known events: none, up to the median of those who have any, or more."""
    known = test.queries.histories.counts
    middle = np.median(known[known > 0]) if (known > 0).any() else 0
    groups = {
        "cold users": known == 0,
        "light users": (known > 0) & (known <= middle),
        "heavy users": known > middle,
    }
    return {name: inside for name, inside in groups.items() if inside.any() and not inside.all()}


def _targets_where(judged: Judged, keep: np.ndarray) -> Judged:
    owner = np.repeat(np.arange(len(judged)), judged.target_counts)
    return Judged(
        judged.queries,
        offsets_of(np.bincount(owner[keep], minlength=len(judged))),
        judged.target[keep],
        judged.value[keep],
        judged.masked_offsets,
        judged.masked,
    )


def _squared_error(fitted: Fitted, test: Judged) -> np.ndarray:
    """Of each target with a value, in blocks of queries; float64 [R]."""
    explicit = cast(Predicts, fitted)
    owner = np.repeat(np.arange(len(test)), test.target_counts)
    known = np.flatnonzero(~np.isnan(test.value))
    errors = []
    for start in range(0, len(known), 20_000):
        rows = known[start : start + 20_000]
        asked = explicit.predict(test.queries.take(owner[rows]), test.target[rows])
        errors.append((asked.astype(np.float64) - test.value[rows]) ** 2)
    return np.concatenate([*errors, np.zeros(0)])


def metrics_of(summary: Summary) -> dict[str, Any]:
    """What machines read: metric -> `figure` of everyone."""
    return {name: figure(value) for name, (value, _, _) in summary.groups[EVERYONE].items()}


def figure(value: float) -> float | None:
    """As JSON can hold it: rounded to 6 digits; NaN and what is infinite are null."""
    return round(value, 6) if np.isfinite(value) else None
