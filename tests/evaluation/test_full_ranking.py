"""The fast ranking is the slow one's equal, ties and gaps included; its metrics are those of `ranx`."""

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.datasets.problem import Judged, judge_users
from recsys.errors import SettingsError
from recsys.evaluation import full_ranking
from recsys.evaluation.full_ranking import measure, rank_all, top_k, top_k_slowly
from recsys.interactions import Queries, interactions_from_pairs

USERS, ITEMS = 60, 300
FEW_VALUES = [-1.0, 0.0, 1.0, 2.5, np.inf, -np.inf, np.nan]  # so that there are ties


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


@settings(deadline=None)  # the first call compiles
@given(
    scores=st.integers(0, 40).flatmap(
        lambda items: st.lists(
            st.lists(st.sampled_from(FEW_VALUES), min_size=items, max_size=items), min_size=0, max_size=4
        ).map(lambda rows: np.array(rows, np.float32).reshape(len(rows), items))
    ),
    k=st.integers(0, 50),
    seed=st.integers(0, 9),
)
def test_the_fast_ranking_equals_the_slow_one(scores, k, seed):
    order = np.random.default_rng(seed).permutation(scores.shape[1])
    assert np.array_equal(top_k(scores, k=k, tie_order=order), top_k_slowly(scores, k=k, tie_order=order))


@pytest.mark.parametrize("items", [full_ranking.STRIDE, 3 * full_ranking.STRIDE + 1])
@pytest.mark.parametrize("kind", ["distinct", "tied", "all equal", "rising", "falling"])
def test_rows_longer_than_one_stretch(items, kind):
    rng = np.random.default_rng(3)
    scores = rng.standard_normal((7, items)).astype(np.float32)
    if kind == "tied":
        scores = np.round(scores)
    if kind == "all equal":
        scores[:] = 1.0
    if kind in ("rising", "falling"):
        scores = np.sort(scores, axis=1)[:, :: 1 if kind == "rising" else -1].copy()
    scores[rng.random(scores.shape) < 0.1] = -np.inf
    scores[rng.random(scores.shape) < 0.1] = np.nan
    order = rng.permutation(items)
    for k in (1, 20, items - 1, items + 3):
        found = top_k(scores, k=k, tie_order=order)
        assert np.array_equal(found, top_k_slowly(scores, k=k, tie_order=order))


def test_what_has_no_score_takes_no_place():
    scores = np.array([[np.nan, 1.0, -np.inf, 2.0], [np.nan, np.nan, -np.inf, -np.inf]], np.float32)
    assert top_k(scores, k=3, tie_order=np.arange(4)).tolist() == [[3, 1, -1], [-1, -1, -1]]


def test_scores_are_left_as_they_are():
    scores = np.array([[np.nan, 1.0, -np.inf, 2.0]], np.float32)
    top_k(scores, k=2, tie_order=np.arange(4))
    assert np.array_equal(scores, np.array([[np.nan, 1.0, -np.inf, 2.0]], np.float32), equal_nan=True)


def test_a_part_of_a_larger_array_is_ranked_as_a_copy_of_it():
    wide = np.random.default_rng(5).standard_normal((6, 40)).astype(np.float32)
    part = wide[::2, 3:33]
    order = np.random.default_rng(6).permutation(30)
    found = top_k(part, k=5, tie_order=order)
    assert np.array_equal(found, top_k(np.ascontiguousarray(part), k=5, tie_order=order))


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


def test_blocks_change_nothing(judged, scores, monkeypatch):
    whole = rank_all(Given(scores), judged, items=ITEMS, depth=20)
    shares: list[float] = []
    monkeypatch.setattr(full_ranking, "BLOCK_MB", 7 * ITEMS * 4 / 1e6)
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
