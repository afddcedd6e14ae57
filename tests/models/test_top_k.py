"""The fast ranking is the slow one's equal, ties and gaps included."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.models.top_k import STRIDE, top_k, top_k_slowly

FEW_VALUES = [-1.0, 0.0, 1.0, 2.5, np.inf, -np.inf, np.nan]  # so that there are ties


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


@pytest.mark.parametrize("items", [STRIDE, 3 * STRIDE + 1])
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
