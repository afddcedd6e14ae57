"""Runs, their summary and their comparison, on models whose answers are known."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

from recsys.datasets.problem import Problem, judge_users
from recsys.evaluation.retrieval import COLD_ITEMS, EVERYONE, compare, metrics_of, run_model, summarize
from recsys.interactions import Interactions, Queries, interactions_from_pairs
from recsys.models.retrieval import Estimate

USERS, ITEMS = 40, 30


@dataclass
class Fixed:
    """Scores that are given: what is right, blurred by noise."""

    scores: np.ndarray

    def score(self, queries: Queries) -> np.ndarray:
        return self.scores[queries.user].copy()

    def predict(self, queries: Queries, item: np.ndarray) -> np.ndarray:
        return self.scores[queries.user, item]

    def arrays(self) -> dict[str, np.ndarray]:
        return {"scores": self.scores}

    def export(self):
        raise NotImplementedError


@dataclass(frozen=True)
class Blurred:
    noise: float
    wanted: np.ndarray
    explicit: ClassVar[bool] = False

    def estimate(self, data: Interactions) -> Estimate:
        return Estimate(1.0, 1.0)

    def fit(self, data, *, seed, progress=None):
        rng = np.random.default_rng(seed)
        return Fixed((self.wanted + self.noise * rng.normal(size=self.wanted.shape)).astype(np.float32))


class BlurredValues(Blurred):
    explicit: ClassVar[bool] = True


@pytest.fixture(scope="module")
def problem() -> Problem:
    rng = np.random.default_rng(0)
    user, item = np.repeat(np.arange(1, USERS), 6), rng.integers(0, ITEMS - 3, 6 * (USERS - 1))
    train = interactions_from_pairs(user, item, users=USERS, items=ITEMS)
    users, targets = np.repeat(np.arange(USERS), 3), rng.integers(0, ITEMS, 3 * USERS)
    test = judge_users(train, user=users, item=targets, value=rng.normal(size=len(users)))
    return Problem(train, test, metrics=("recall", "ndcg"), at=(5, 10))


@pytest.fixture(scope="module")
def wanted(problem: Problem) -> np.ndarray:
    found = np.zeros((USERS, ITEMS))
    owner = problem.test.queries.user[np.repeat(np.arange(len(problem.test)), problem.test.target_counts)]
    found[owner, problem.test.target] = 1
    return found


def run(model, problem, seed=0):
    return run_model(model, problem, seed=seed)


def test_what_is_trained_on_is_masked_and_the_rest_is_found(problem, wanted):
    line = summarize([run(Blurred(0.0, wanted), problem)]).groups[EVERYONE]
    masked = {
        (q, i)
        for q in range(len(problem.test))
        for i in problem.test.masked[problem.test.masked_offsets[q] : problem.test.masked_offsets[q + 1]]
    }
    reachable = []
    for q in range(len(problem.test)):
        targets = problem.test.target[problem.test.target_offsets[q] : problem.test.target_offsets[q + 1]]
        reachable.append(np.mean([(q, t) not in masked for t in targets]))
    assert line["recall@5"][0] == pytest.approx(np.mean(reachable))


def test_groups_are_told_apart(problem, wanted):
    groups = summarize([run(Blurred(0.5, wanted), problem)]).groups
    # All with a history have six events: none is above the median.
    assert set(groups) == {EVERYONE, "cold users", "light users", COLD_ITEMS}
    cold = summarize([run(Blurred(0.0, wanted), problem)]).groups["cold users"]
    assert cold["recall@5"][0] == 1.0  # user 0 has no history, so nothing of theirs is masked


def test_a_better_model_is_told_from_a_worse_one_and_equals_are_not(problem, wanted):
    good, bad = [run(Blurred(0.3, wanted), problem)], [run(Blurred(3.0, wanted), problem)]
    mean, low, high, p = compare(good, bad)[EVERYONE]["ndcg@10"]
    assert low > 0
    assert p < 0.01
    assert low < mean < high
    mean, low, high, p = compare(good, good)[EVERYONE]["ndcg@10"]
    assert (mean, p) == (0.0, 1.0)


def test_several_seeds_are_averaged(problem, wanted):
    runs = [run(Blurred(0.5, wanted), problem, seed=s) for s in (1, 2, 3)]
    singles = [summarize([r]).groups[EVERYONE]["recall@10"][0] for r in runs]
    value, low, high = summarize(runs).groups[EVERYONE]["recall@10"]
    assert value == pytest.approx(np.mean(singles))
    assert low < value < high


def test_explicit_models_are_judged_by_rmse(problem, wanted):
    summary = summarize([run(BlurredValues(0.0, wanted), problem)])
    owner = problem.test.queries.user[np.repeat(np.arange(len(problem.test)), problem.test.target_counts)]
    error = wanted[owner, problem.test.target] - problem.test.value
    value, low, high = summary.groups[EVERYONE]["rmse"]
    assert value == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-6)
    assert low < value < high
    assert "rmse" in metrics_of(summary)


def test_without_a_known_value_there_is_no_rmse(problem, wanted):
    """A mean of nothing was taken: a warning, and a NaN in the comparison's JSON."""
    none = np.full(len(problem.test.value), np.nan, np.float32)
    unrated = replace(problem, test=replace(problem.test, value=none))
    rated, runs = run(BlurredValues(0.0, wanted), problem), [run(BlurredValues(0.0, wanted), unrated)]
    assert metrics_of(summarize(runs))["rmse"] is None
    assert "squared error" not in compare(runs, runs)[EVERYONE]
    of_both = summarize([rated, *runs]).groups[EVERYONE]["rmse"]
    assert of_both[0] == pytest.approx(summarize([rated]).groups[EVERYONE]["rmse"][0])


def test_a_group_that_some_folds_lack_is_compared_in_the_others(problem, wanted):
    """A fold without cold items ended the comparison in a KeyError, after all fits."""
    runs = [[run(Blurred(n, wanted), problem, seed=seed) for seed in (1, 2)] for n in (0.1, 2.0)]
    assert COLD_ITEMS in runs[0][0].groups
    for each in runs:
        del each[1].groups[COLD_ITEMS]
    for order in (1, -1):
        found = compare(*(each[::order] for each in runs))
        assert found[COLD_ITEMS]["recall@5"][0] > 0


def test_differences_are_those_of_the_means(problem, wanted):
    """Of folds, which users are in unequally often, they had other weights, and other signs."""
    runs = [[run(Blurred(n, wanted), problem, seed=seed) for seed in (1, 2, 3)] for n in (1.0, 1.1)]
    for each in runs:
        for values in each[0].groups.values():
            values.update({name: np.where(np.arange(len(v)) < 9, v, np.nan) for name, v in values.items()})
    ours, theirs = (summarize(each).groups[EVERYONE]["ndcg@5"] for each in runs)
    difference = compare(*runs)[EVERYONE]["ndcg@5"]
    assert difference[0] == pytest.approx(ours[0] - theirs[0])
    assert ours[1] <= ours[0] <= ours[2]
