"""Recall of what was answered, against all that could have been."""

import time

import numpy as np
import pytest

from recsys.models.sparse_scores import Proposals
from recsys.pipeline.items import LiveItems
from recsys.pipeline.live_recall import LiveRecall
from recsys.pipeline.scopes import Scopes
from recsys.types import RequestBatch
from tests.world import NOW, item_frame

V, D, K = 80, 6, 10


def items() -> LiveItems:
    vectors = np.random.default_rng(0).normal(size=(V, D)).astype(np.float32)
    vectors[[4, 44]] = 0
    return LiveItems(item_frame(V), vectors=vectors, category=np.zeros(V, np.int32))


def batch(hidden: list[int]) -> RequestBatch:
    return RequestBatch(
        ("u",),
        ("home",),
        np.array([5]),
        np.array([NOW]),
        ((),),
        country=("DE",),
        hidden=(np.array(hidden, np.int32),),
    )


def answer(rows: np.ndarray) -> Proposals:
    return Proposals(
        np.array([0, len(rows)], np.int32), rows.astype(np.int32), np.zeros(len(rows), np.float32)
    )


def nearest(known: LiveItems, query: np.ndarray, hidden: list[int]) -> np.ndarray:
    """By definition: alive, with a vector, available, not hidden, best first."""
    rows = [
        r
        for r in range(V)
        if known.line[np.array([r])][0] >= 0
        and r % 15
        and known.vectors[np.array([r])].any()
        and r not in hidden
    ]
    return np.array(sorted(rows, key=lambda r: -float(known.vectors[np.array([r])][0] @ query)))


@pytest.mark.parametrize("lost", [0, 1, 4])
def test_recall_is_the_share_of_the_nearest_that_was_found(lost):
    known, told = items(), []
    known.delete([7, 8])
    query, hidden = np.random.default_rng(1).normal(size=(1, D)).astype(np.float32), [3, 20, 21]
    expected = nearest(known, query[0], hidden)
    found = np.append(expected[lost:K], expected[60 : 60 + lost])  # the first ones are not found
    LiveRecall(known, Scopes(known), told.append, k=K)(batch(hidden), query, answer(found))
    until(lambda: told)
    assert told == [pytest.approx(1 - lost / K)]


def test_fewer_than_asked_for_is_no_loss_where_there_are_no_more():
    known, told = items(), []
    known.delete(range(5, V))
    query = np.ones((1, D), np.float32)
    LiveRecall(known, Scopes(known), told.append, k=K)(batch([]), query, answer(np.array([1, 2, 3])))
    until(lambda: told)
    assert told == [1.0]
    known.delete(range(5))
    watch = LiveRecall(known, Scopes(known), told.append, k=K)
    watch(batch([]), query, answer(np.array([], np.int32)))
    until(lambda: watch._next < np.inf)
    assert told == [1.0]  # nothing to find: nothing to tell


def test_it_looks_seldom():
    known, told = items(), []
    watch = LiveRecall(known, Scopes(known), lambda recall: (told.append(recall), time.sleep(0.05)), k=K)
    start = time.monotonic()
    while time.monotonic() - start < 0.5:
        watch(batch([]), np.ones((1, D), np.float32), answer(np.array([1])))
    assert len(told) == 1


def until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
