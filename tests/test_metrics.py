"""Metrics against a slow reference that follows the definitions word by word."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recsys.metrics import (
    bootstrap_interval,
    category_diversity_at,
    coverage_at,
    hits,
    hr_at,
    mrr_at,
    ndcg_at,
    novelty_at,
    paired_difference,
    precision_at,
    recall_at,
)

ITEMS = 12


def slow(ranking: list[int], relevant: set[int], k: int) -> tuple[float, float]:
    if not relevant:
        return math.nan, math.nan
    top = [i for i in ranking[:k] if i >= 0]
    recall = len([i for i in top if i in relevant]) / len(relevant)
    gain = sum(1 / math.log2(place + 2) for place, i in enumerate(top) if i in relevant)
    ideal = sum(1 / math.log2(place + 2) for place in range(min(k, len(relevant))))
    return recall, gain / ideal


requests = st.lists(
    st.tuples(st.permutations(range(ITEMS)), st.integers(0, ITEMS), st.sets(st.integers(0, ITEMS - 1))),
    min_size=1,
    max_size=5,
)


@given(requests, st.integers(1, ITEMS))
def test_equal_to_the_definition(batch, k):
    ranked = np.array([[*r[:n], *[-1] * (ITEMS - n)] for r, n, _ in batch], np.int32)
    counts = np.array([len(relevant) for *_, relevant in batch])
    offsets = np.concatenate(([0], np.cumsum(counts)))
    relevant = np.array([i for *_, r in batch for i in sorted(r)], np.int32)
    hit = hits(ranked, offsets, relevant)
    expected = [slow(list(row), r, k) for row, (*_, r) in zip(ranked, batch, strict=True)]
    np.testing.assert_allclose(recall_at(hit, counts, k), [e[0] for e in expected])
    np.testing.assert_allclose(ndcg_at(hit, counts, k), [e[1] for e in expected])


def test_padding_is_never_a_hit():
    assert not hits(np.array([[-1, -1]]), np.array([0, 1]), np.array([0])).any()


def test_coverage_counts_items_once_and_no_padding():
    assert coverage_at(np.array([[0, 1], [1, -1]]), 4, 2) == 0.5


def test_category_diversity_counts_unknown_categories_apart():
    category = np.array([7, 7, -1, -1])
    ranked = np.array([[0, 1, -1, -1], [2, 3, -1, -1], [0, 2, 1, 3], [-1, -1, -1, -1]])
    np.testing.assert_allclose(category_diversity_at(ranked, category, 4), [1 / 2, 1, 3 / 4, np.nan])


def test_bootstrap_covers_the_mean_nine_times_in_ten():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        low, high = bootstrap_interval(rng.normal(1, 1, 200), rng=rng, samples=300)
        covered += low <= 1 <= high
    assert covered >= 88
    assert all(np.isnan(bootstrap_interval(np.array([np.nan]), rng=rng)))


@given(requests, st.integers(1, ITEMS))
def test_hr_mrr_and_precision_follow_their_definitions(batch, k):
    ranked = np.array([[*r[:n], *[-1] * (ITEMS - n)] for r, n, _ in batch], np.int32)
    counts = np.array([len(relevant) for *_, relevant in batch])
    offsets = np.concatenate(([0], np.cumsum(counts)))
    hit = hits(ranked, offsets, np.array([i for *_, r in batch for i in sorted(r)], np.int32))
    for b, (*_, relevant) in enumerate(batch):
        top = ranked[b, :k].tolist()
        places = [place for place, i in enumerate(top, 1) if i in relevant]
        expected = (bool(places), 1 / places[0] if places else 0.0, len(places) / k)
        found = (hr_at(hit, counts, k)[b], mrr_at(hit, counts, k)[b], precision_at(hit, counts, k)[b])
        np.testing.assert_allclose(found, expected if relevant else [np.nan] * 3)


def test_novelty_is_the_surprise_in_bits():
    ranked = np.array([[0, 1], [2, -1], [-1, -1]])
    found = novelty_at(ranked, np.array([4.0, 4.0, 0.0]), 2)
    np.testing.assert_allclose(found, [1.0, 4.0, np.nan])


def test_the_randomization_test_rejects_at_its_level():
    rng = np.random.default_rng(0)
    rejected = 0
    for _ in range(100):
        values = rng.normal(size=60)
        rejected += paired_difference(values, values + rng.normal(size=60), rng=rng, samples=300)[3] < 0.1
    assert 3 <= rejected <= 20
    mean, low, high, p = paired_difference(np.ones(50) + 0.1 * rng.normal(size=50), np.zeros(50), rng=rng)
    assert low < mean < high
    assert p < 0.001
    assert all(np.isnan(paired_difference(np.array([np.nan]), np.array([1.0]), rng=rng)))
