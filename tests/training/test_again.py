"""The score for being held: chosen as ranking everything anew would choose it, and only where it helps."""

from dataclasses import replace

import numpy as np
import pytest

from recsys.datasets.problem import Judged
from recsys.interactions import Queries
from recsys.models.held_out import AT, lists_of, ndcg_of
from recsys.models.sequence.encoder import RecurrentEncoder
from recsys.training.again import GRID, _Part, with_again
from recsys.types import Histories, offsets_of

ITEMS, D = 40, 4


def encoder_of() -> RecurrentEncoder:
    rng = np.random.default_rng(0)
    vectors = {name: np.zeros(D, np.float32) for name in ("start", "input_shift", "output_shift")}
    gains = {name: np.ones(D, np.float32) for name in ("input_gain", "output_gain")}
    wide = {name: rng.normal(size=(1, 3 * D, D)).astype(np.float32) for name in ("gates", "memory")}
    biases = {name: np.zeros((1, 3 * D), np.float32) for name in ("gates_bias", "memory_bias")}
    items = rng.normal(size=(ITEMS, D)).astype(np.float32)
    return RecurrentEncoder(
        items=items,
        again=np.full(2, 9, np.float32),
        window=np.array(6),
        temperature=np.array(0.0),
        **vectors,
        **gains,
        **wide,
        **biases,
    )


def judged_of(*, questions: int, again: float, seed: int = 0) -> Judged:
    """Each asks for one thing: with chance `again` for what its history holds before its newest event."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(2, 9, questions)
    item = rng.integers(0, ITEMS, counts.sum()).astype(np.int32)
    offsets, n = offsets_of(counts), len(item)
    histories = Histories(
        offsets, item, np.arange(n), np.ones(n, np.float32), np.ones(n, np.float32), np.arange(n)
    )
    older = item[offsets[1:] - 2]
    target = np.where(rng.random(questions) < again, older, rng.integers(0, ITEMS, questions))
    return Judged(
        Queries(np.full(questions, -1), histories, np.zeros(questions, np.int64)),
        np.arange(questions + 1, dtype=np.int32),
        target.astype(np.int32),
        np.full(questions, np.nan, np.float32),
        np.zeros(questions + 1, np.int32),
        np.zeros(0, np.int32),
    )


@pytest.mark.parametrize("again", [(0, 0), (1.5, -1), (-3, 3)])
def test_gains_are_those_of_ranking_everything(again):
    judged = judged_of(questions=200, again=0.3)
    again = np.array(again, np.float32)
    encoder = replace(encoder_of(), again=again)
    plain = replace(encoder, again=np.zeros(2, np.float32))
    slow = ndcg_of(lists_of(encoder, judged, items=ITEMS, depth=AT), judged)
    part = _Part.of(plain, judged, plain.score(judged.queries))
    assert part.gains(again).mean() == pytest.approx(slow)


def test_what_is_asked_for_again_gets_more():
    found = with_again(encoder_of(), judged_of(questions=500, again=0.6))
    assert found.again[1] == GRID[-1] > found.again[0]


def test_what_is_never_asked_for_again_or_only_by_chance_changes_nothing():
    never = judged_of(questions=50, again=0)
    held = np.repeat(never.target, np.diff(never.queries.histories.offsets)) == never.queries.histories.item
    nobody = never.take(np.flatnonzero(~np.logical_or.reduceat(held, never.queries.histories.offsets[:-1])))
    for judged in (nobody, never.take(np.arange(0)), judged_of(questions=20, again=0, seed=1)):
        np.testing.assert_array_equal(with_again(encoder_of(), judged).again, 0)


def test_what_is_held_and_masked_says_nothing():
    """The first point of the grid was kept: all that was held lost three logits."""
    judged = judged_of(questions=50, again=1)
    masked = replace(judged, masked_offsets=judged.target_offsets, masked=judged.target)
    np.testing.assert_array_equal(with_again(encoder_of(), masked).again, 0)
