"""Item-to-item tables: fast scoring against the slow definition, which pairs teach, how rows are cut."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.interactions import Interactions
from recsys.models.item_to_item.table import ItemTable, pair_matrix, table_of, truncate, truncate_sparse
from recsys.types import Histories, offsets_of


def random_log(seed: int, *, users: int = 30, items: int = 12) -> Interactions:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 9, users)
    events = int(counts.sum())
    histories = Histories(
        offsets_of(counts),
        rng.integers(0, items - 1, events).astype(np.int32),  # the last item is never bought
        np.arange(events, dtype=np.int64),
        np.ones(events, np.float32),
        np.ones(events, np.float32),
        np.repeat(np.arange(users) * 10, counts) + rng.integers(0, 2, events),
    )
    return Interactions(np.arange(users).astype(object), histories, items)


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=40)
def test_fast_scores_equal_slow_ones(seed):
    rng = np.random.default_rng(seed)
    log = random_log(seed)
    table = ItemTable(
        rng.integers(-1, 12, (12, 4)).astype(np.int32), rng.normal(size=(12, 4)).astype(np.float32)
    )
    weights = rng.choice([0, 0.5, 1, 2], len(log)).astype(np.float32)
    fast = table.score(log.histories, weights=weights)
    slow = table.score_slowly(log.histories, weights=weights)
    reached = fast.copy()
    reached.data[:] = 1
    assert ((reached.toarray() > 0) == ~np.isnan(slow)).all()
    np.testing.assert_allclose(fast.toarray(), np.nan_to_num(slow), atol=1e-5)


def test_a_score_does_not_depend_on_batch_mates():
    log = random_log(3)
    rng = np.random.default_rng(3)
    table = truncate(rng.normal(size=(12, 12)).astype(np.float32), np.arange(12), items=12, k=5)
    weights = np.linspace(0.1, 1, len(log)).astype(np.float32)
    together = table.score(log.histories, weights=weights).toarray()
    for user in (0, 7, 29):
        alone = log.histories.take(np.array([user]))
        own = weights[log.histories.offsets[user] : log.histories.offsets[user + 1]]
        np.testing.assert_array_equal(table.score(alone, weights=own).toarray()[0], together[user])


def test_a_cut_row_keeps_its_largest_magnitudes():
    rng = np.random.default_rng(0)
    full, active = rng.normal(size=(6, 6)).astype(np.float32), np.array([0, 2, 3, 5, 7, 8])
    table = truncate(full, active, items=10, k=3)
    dense = table.matrix.toarray()[np.ix_(active, active)]
    for row in range(6):
        kept = np.argsort(-np.abs(full[row]))[:3]
        np.testing.assert_array_equal(np.flatnonzero(dense[row]), np.sort(kept))
        np.testing.assert_array_equal(dense[row, kept], full[row, kept])
    assert (table.neighbor[[1, 4, 6, 9]] == -1).all()
    by_blocks = table_of(lambda a, b: full[a:b], active, items=10, k=3)
    np.testing.assert_array_equal(by_blocks.neighbor, table.neighbor)


def test_a_cut_sparse_row_keeps_its_largest_positive_weights():
    table = truncate_sparse(
        np.array([0, 0, 0, 2]), np.array([1, 2, 3, 0]), np.array([0.5, 2.0, -1.0, 1.0]), items=4, k=2
    )
    np.testing.assert_array_equal(table.neighbor, [[2, 1], [-1, -1], [0, -1], [-1, -1]])


def test_a_pair_counts_once_with_its_largest_weight():
    log = Histories(
        np.array([0, 3, 4], np.int32),
        np.array([1, 1, 0, 2], np.int32),
        np.arange(4, dtype=np.int64),
        np.ones(4, np.float32),
        np.ones(4, np.float32),
        np.arange(4, dtype=np.int64),
    )
    users = np.array(["a", "b"], object)
    even = pair_matrix(Interactions(users, log, 4)).toarray()
    np.testing.assert_array_equal(even, [[1, 1, 0, 0], [0, 0, 1, 0]])
    weight = np.array([1, 3, 2, 0], np.float32)
    weighted = pair_matrix(Interactions(users, log, 4, weight=weight)).toarray()
    np.testing.assert_array_equal(weighted, [[1, 1.5, 0, 0], [0, 0, 0, 0]])  # the mean weight is 2
