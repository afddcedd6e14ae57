"""The fast ranking is the slow one's equal, ties and gaps included; its metrics are those of `ranx`."""

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

import numba
import numpy as np
import pytest

from recsys.datasets.problem import Judged, judge_users
from recsys.errors import SettingsError
from recsys.evaluation import full_ranking
from recsys.evaluation.full_ranking import measure, rank_all
from recsys.interactions import Queries, interactions_from_pairs
from recsys.models import held_out

USERS, ITEMS = 60, 300


@dataclass
class Given:
    """Scores by user code."""

    scores: np.ndarray

    def score(self, queries: Queries) -> np.ndarray:
        return self.scores[queries.user].copy()

    def arrays(self):
        return {"scores": self.scores}

    def export(self):
        raise NotImplementedError


@pytest.fixture(scope="module")
def judged() -> Judged:
    rng = np.random.default_rng(0)
    train = interactions_from_pairs(
        rng.integers(0, USERS, 600), rng.integers(0, ITEMS, 600), users=USERS, items=ITEMS
    )
    return judge_users(train, user=rng.integers(1, USERS, 500), item=rng.integers(0, ITEMS, 500))


@pytest.fixture
def scores() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((USERS, ITEMS)).astype(np.float32)


def test_masked_items_are_not_ranked_and_all_others_are(judged, scores):
    ranked = rank_all(Given(scores), judged, items=ITEMS, depth=ITEMS)
    for b in range(len(judged)):
        masked = judged.masked[judged.masked_offsets[b] : judged.masked_offsets[b + 1]]
        rest = np.setdiff1d(np.arange(ITEMS), masked)
        assert np.array_equal(np.sort(ranked[b][ranked[b] >= 0]), rest)


@pytest.mark.parametrize("score", [np.nan, -np.inf])
def test_a_fit_that_diverged_is_told_and_not_judged(judged, scores, score):
    with pytest.raises(SettingsError, match=r"diverged.*lower its learning_rate"):
        rank_all(Given(np.full_like(scores, score)), judged, items=ITEMS, depth=5)


def test_a_first_user_who_took_everything_is_no_sign_of_divergence(scores):
    user, item = np.append(np.zeros(ITEMS, int), [1, 1]), np.append(np.arange(ITEMS), [0, 1])
    train = interactions_from_pairs(user, item, users=USERS, items=ITEMS)
    judged = judge_users(train, user=np.array([0, 1]), item=np.array([3, 4]))
    ranked = rank_all(Given(scores), judged, items=ITEMS, depth=5)
    assert (ranked[0] == -1).all()
    assert (ranked[1] >= 0).all()


def test_blocks_change_nothing(judged, scores, monkeypatch):
    whole = rank_all(Given(scores), judged, items=ITEMS, depth=20)
    shares: list[float] = []
    monkeypatch.setattr(held_out, "BLOCK", 7 * ITEMS)
    assert np.array_equal(
        rank_all(Given(scores), judged, items=ITEMS, depth=20, progress=shares.append), whole
    )
    assert len(shares) == -(-len(judged) // 7)
    assert shares[-1] == 1.0


def test_neither_the_order_of_the_file_nor_the_favor_of_the_model_decides_ties(judged):
    ranked = rank_all(Given(np.zeros((USERS, ITEMS), np.float32)), judged, items=ITEMS, depth=ITEMS // 10)
    assert 0.35 < ranked[ranked >= 0].mean() / ITEMS < 0.65
    again = rank_all(Given(np.ones((USERS, ITEMS), np.float32)), judged, items=ITEMS, depth=ITEMS // 10)
    assert np.array_equal(ranked, again)


@pytest.fixture(scope="module")
def ranx() -> ModuleType:
    """Uncompiled, for it would compile for a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba.config, "DISABLE_JIT", True)
        return import_module("ranx")


@pytest.mark.parametrize("k", [1, 10, 20])
def test_metrics_are_those_of_ranx(ranx, judged, scores, k):
    asking = np.repeat(judged.queries.user, judged.target_counts)
    scores[asking, judged.target] += 1.5  # so that all metrics have hits to measure
    ranked = rank_all(Given(scores), judged, items=ITEMS, depth=20)
    wanted = np.full((len(judged), judged.target_counts.max(), 2), -2.0)  # item, relevance; padded
    for b, row in enumerate(wanted):
        targets = judged.target[judged.target_offsets[b] : judged.target_offsets[b + 1]]
        row[: len(targets)] = np.stack([targets, np.ones(len(targets))], axis=1)
    run = np.stack([ranked, np.broadcast_to(np.arange(20, 0, -1), ranked.shape)], axis=2).astype(float)
    names = {"recall": "recall", "ndcg": "ndcg", "mrr": "mrr", "hr": "hit_rate", "precision": "precision"}
    theirs = ranx.evaluate(wanted, run, [f"{name}@{k}" for name in names.values()], return_mean=False)
    ours = measure(ranked, judged, metrics=tuple(names), at=(k,))
    for name, name_there in names.items():
        assert ours[f"{name}@{k}"] == pytest.approx(theirs[f"{name_there}@{k}"], abs=1e-9), name
        assert ours[f"{name}@{k}"].mean() > 0


def test_a_query_without_a_target_is_in_no_mean(judged, scores):
    offsets = judged.target_offsets.copy()
    offsets[1] = 0
    first = Judged(judged.queries, offsets, judged.target, judged.value, judged.masked_offsets, judged.masked)
    ranked = rank_all(Given(scores), first, items=ITEMS, depth=20)
    found = measure(ranked, first, metrics=tuple(full_ranking.METRICS), at=(20,))
    assert all(np.isnan(values[0]) and not np.isnan(values[1:]).any() for values in found.values())
