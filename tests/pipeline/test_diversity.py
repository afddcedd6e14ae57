"""Maximal marginal relevance: the batched selection against its definition, and its degenerate cases."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.pipeline.diversity import MMR, DiversitySettings, select, select_slow
from recsys.pipeline.items import LiveItems
from recsys.pipeline.offline import batch_of
from recsys.pipeline.recommender import POSITION, in_score_order
from recsys.types import Candidates, Removal, offsets_of
from tests.world import item_frame

V = 300
rng = np.random.default_rng(0)
VECTORS = rng.normal(size=(V, 8)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
CATEGORY = rng.integers(-1, 9, V).astype(np.int32)


def live_items(category: np.ndarray) -> LiveItems:
    return LiveItems(item_frame(V), vectors=VECTORS, category=category)


def batch(n: list[int]):
    empty = batch_of(["u"] * len(n), scene="home", now=0, n=1)
    return replace(empty, n=np.array(n, np.int32))


def candidates(counts: list[int], seed: int = 0) -> Candidates:
    draw = np.random.default_rng(seed)
    item = np.concatenate([np.sort(draw.choice(V, c, False)) for c in counts] or [[]]).astype(np.int32)
    return Candidates(
        offsets_of(np.array(counts, int)),
        item,
        score=draw.normal(size=len(item)).astype(np.float32),
        source=np.ones(len(item), np.uint32),
        removed_by=np.zeros(len(item), np.uint8),
    )


def slates(made: Candidates) -> list[list[int]]:
    """Item rows of each request in slate order."""
    place = made.scores[POSITION]
    order = np.lexsort((place, made.request))
    order = order[~np.isnan(place[order])]
    return [made.item[order[made.request[order] == r]].tolist() for r in range(len(made.counts))]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    requests=st.integers(1, 4),
    width=st.integers(1, 12),
    weight=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    distinct_top=st.integers(0, 5),
    levels=st.sampled_from([2, 4]),
)
def test_the_batch_selects_what_the_definition_selects(seed, requests, width, weight, distinct_top, levels):
    """Values are quarters, so that ties are real and sums exact."""
    draw = np.random.default_rng(seed)
    relevance = (draw.integers(0, levels + 1, (requests, width)) / levels).astype(np.float32)
    vectors = draw.integers(-1, 2, (requests, width, 3)).astype(np.float32) / 2
    category = draw.integers(-1, 3, (requests, width)).astype(np.int32)
    present = np.arange(width) < draw.integers(0, width + 1, requests)[:, None]
    n = draw.integers(0, width + 4, requests).astype(np.int32)
    made = DiversitySettings(relevance_weight=weight, distinct_top=distinct_top)
    chosen = select(
        relevance=relevance, present=present, vectors=vectors, category=category, n=n, settings=made
    )
    for r in range(requests):
        own = present[r]
        slow = select_slow(
            relevance=relevance[r][own],
            vectors=vectors[r][own],
            category=category[r][own],
            n=int(n[r]),
            settings=made,
        )
        assert chosen[r][chosen[r] >= 0].tolist() == slow


def test_weight_1_is_score_order():
    made = MMR(DiversitySettings(relevance_weight=1.0, distinct_top=0), live_items(CATEGORY))
    proposed = candidates([50, 3, 20])
    asked = batch([10, 10, 20])
    assert slates(made(asked, proposed)) == slates(in_score_order(asked, proposed))


@pytest.mark.parametrize("weight", [0.2, 0.8, 1.0])
def test_a_longer_slate_begins_with_the_shorter_one(weight):
    made = MMR(DiversitySettings(relevance_weight=weight, pool=200), live_items(CATEGORY))
    short, long = made(batch([20]), candidates([250])), made(batch([100]), candidates([250]))
    assert slates(long)[0][:20] == slates(short)[0]


def test_what_could_not_be_scored_comes_last():
    made = MMR(DiversitySettings(relevance_weight=0.9), live_items(CATEGORY))
    proposed = candidates([10])
    score = proposed.score.copy()
    score[[1, 4, 8]] = np.nan
    (slate,) = slates(made(batch([10]), replace(proposed, score=score)))
    assert len(slate) == 10
    assert set(slate[-3:]) == set(proposed.item[[1, 4, 8]].tolist())
    nothing = replace(proposed, score=np.full(10, np.nan, np.float32))
    assert sorted(slates(made(batch([10]), nothing))[0]) == proposed.item.tolist()


def test_equal_scores_are_ordered_by_item_row():
    made = MMR(DiversitySettings(relevance_weight=1.0, distinct_top=0), live_items(CATEGORY))
    proposed = replace(candidates([30]), score=np.ones(30, np.float32))
    assert slates(made(batch([30]), proposed))[0] == proposed.item.tolist()


def test_the_pool_grows_to_what_is_asked_for():
    made = MMR(DiversitySettings(pool=10), live_items(CATEGORY))
    result = made(batch([40, 40]), candidates([60, 25]))
    assert [len(slate) for slate in slates(result)] == [40, 25]


def test_nobody_and_nothing():
    made = MMR(DiversitySettings(), live_items(CATEGORY))
    for counts in ([0], [0, 0, 5], []):
        result = made(batch([3] * len(counts)), candidates(counts))
        assert [len(slate) for slate in slates(result)] == [min(3, c) for c in counts]
    removed = replace(candidates([4]), removed_by=np.full(4, Removal.RULE, np.uint8))
    result = made(batch([3]), removed)
    assert slates(result) == [[]]
    assert (result.removed_by == Removal.RULE).all()


def test_every_candidate_is_shown_or_has_a_reason():
    made = MMR(DiversitySettings(relevance_weight=0.3, pool=20), live_items(CATEGORY))
    proposed = candidates([60])
    removed_by = np.where(np.arange(60) % 7 == 0, Removal.AGE, 0).astype(np.uint8)
    result = made(batch([10]), replace(proposed, removed_by=removed_by))
    (slate,) = slates(result)
    rank = {
        int(i): r
        for r, i in enumerate(
            slates(in_score_order(batch([60]), replace(proposed, removed_by=removed_by)))[0]
        )
    }
    for item, reason, before in zip(result.item, result.removed_by, removed_by, strict=True):
        if before:
            assert reason == before
        elif int(item) in slate:
            assert reason == Removal.ALIVE
        elif rank[int(item)] >= 20:
            assert reason == Removal.BELOW_CUT
        elif rank[int(item)] < 10:
            assert reason == Removal.DIVERSITY
        else:
            assert reason == Removal.BELOW_SLATE
    assert Removal.DIVERSITY in result.removed_by


def test_unknown_categories_are_not_one_category():
    made = MMR(DiversitySettings(relevance_weight=1.0), live_items(np.full(V, -1, np.int32)))
    proposed = candidates([30])
    assert slates(made(batch([3]), proposed)) == slates(in_score_order(batch([3]), proposed))


def test_a_weight_beyond_0_and_1_is_refused():
    for weight in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="relevance_weight"):
            DiversitySettings(relevance_weight=weight)
