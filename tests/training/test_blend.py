"""The choice of models and weights, on lists whose best blend is known."""

from dataclasses import dataclass

import numpy as np

from recsys.datasets.problem import Judged
from recsys.interactions import Queries
from recsys.models.blend import DEPTH, FittedBlend
from recsys.models.held_out import lists_of, ndcg_of, score_blocks
from recsys.training.blend import choose_weights
from recsys.types import Histories, offsets_of

ITEMS, QUERIES = 1000, 400
NONE = np.zeros(0, np.int32)


def judged(target: np.ndarray, masked: list[np.ndarray] | None = None) -> Judged:
    n = len(target)
    masked = masked or [NONE] * n
    return Judged(
        Queries(np.full(n, -1), Histories.empty(n), np.zeros(n, np.int64)),
        np.arange(n + 1, dtype=np.int32),
        target.astype(np.int32),
        np.full(n, np.nan, np.float32),
        offsets_of(np.array([len(m) for m in masked])),
        np.concatenate(masked).astype(np.int32),
    )


def lists(target: np.ndarray, knows: np.ndarray, seed: int) -> np.ndarray:
    """Of a model that ranks the target first where it `knows`, and in place 100 elsewhere."""
    rng = np.random.default_rng(seed)
    found = np.stack([rng.permutation(np.delete(np.arange(ITEMS), t))[:DEPTH] for t in target])
    found[np.arange(len(target)), np.where(knows, 0, 100)] = target
    return found.astype(np.int32)


TARGET = np.random.default_rng(0).integers(0, ITEMS, QUERIES)
FIRST, SECOND = np.arange(QUERIES) % 2 == 0, np.arange(QUERIES) % 3 > 0


def test_models_that_know_different_things_are_blended():
    given = {"one": lists(TARGET, FIRST, 1), "other": lists(TARGET, SECOND, 2)}
    chosen = choose_weights(given, judged(TARGET), most=3, items=ITEMS)
    assert set(chosen.of) == {"one", "other"}
    assert np.isclose(sum(chosen.of.values()), 1)
    alone = max(ndcg_of(g, judged(TARGET)) for g in given.values())
    assert chosen.gain.mean() > alone + 0.1


def test_a_model_that_knows_nothing_more_is_left_out():
    one = lists(TARGET, FIRST, 1)
    nothing = lists(TARGET, np.zeros(QUERIES, bool), 2)
    chosen = choose_weights({"bad": nothing, "one": one, "same": one}, judged(TARGET), most=3, items=ITEMS)
    assert list(chosen.of) == ["one"]


def test_no_more_models_than_asked_for():
    given = {str(n): lists(TARGET, np.arange(QUERIES) % 4 == n, n) for n in range(4)}
    assert len(choose_weights(given, judged(TARGET), most=4, items=ITEMS).of) == 4
    assert len(choose_weights(given, judged(TARGET), most=2, items=ITEMS).of) == 2


@dataclass
class Given:
    scores: np.ndarray

    def score(self, queries: Queries) -> np.ndarray:
        return self.scores[: len(queries)].copy()

    def arrays(self):
        return {"scores": self.scores}


def test_the_chosen_value_is_that_of_the_blend():
    """What the fast fusion measures is what `FittedBlend` ranks where some items are masked: these took the
    first places of its parts, so that the others' ranks, and the blend, were of another kind."""
    rng = np.random.default_rng(5)
    scores = [rng.standard_normal((QUERIES, ITEMS)).astype(np.float32) for _ in range(2)]
    for s in scores:
        s[np.arange(QUERIES), TARGET] += 3
        s[:, :30] += 4
    masked = [np.delete(np.arange(30), np.flatnonzero(np.arange(30) == t)) for t in TARGET]
    asked = judged(TARGET, masked)
    given = {str(n): lists_of(Given(s), asked, items=ITEMS, depth=DEPTH) for n, s in enumerate(scores)}
    chosen = choose_weights(given, asked, most=2, items=ITEMS)
    parts = {name: Given(scores[int(name)]) for name in chosen.of}
    blend = FittedBlend(parts, np.array(list(chosen.of.values()), np.float32), chosen.constant)
    ((_, _, found),) = score_blocks(blend, asked, items=ITEMS)
    own = found[np.arange(QUERIES), TARGET][:, None]
    better = (found > own).sum(1) + ((found == own).sum(1) - 1) / 2
    gain = np.where(better < 10, 1 / np.log2(2 + better), 0)
    np.testing.assert_allclose(chosen.gain, gain, atol=1e-9)
    assert len(chosen.of) == 2


def test_equal_sums_are_no_gain():
    """A target won all its ties, so that two models that disagreed by chance were a perfect blend."""
    first = np.arange(QUERIES) % 2 == 0
    rival = (TARGET + 1) % ITEMS
    both = (np.stack((TARGET, rival), 1), np.stack((rival, TARGET), 1))
    pairs = [np.where(one[:, None], *both) for one in (first, ~first)]
    padding = np.full((QUERIES, DEPTH - 2), -1)
    given = {str(n): np.concatenate((pair, padding), 1).astype(np.int32) for n, pair in enumerate(pairs)}
    chosen = choose_weights(given, judged(TARGET), most=2, items=ITEMS)
    assert len(chosen.of) == 1


def test_masked_items_are_on_no_list():
    scores = np.arange(ITEMS, dtype=np.float32)[None]
    asked = judged(np.array([0]), [np.array([ITEMS - 1, 5])])
    found = lists_of(Given(scores), asked, items=ITEMS, depth=DEPTH)
    assert found[0, 0] == ITEMS - 2
    assert not np.isin([ITEMS - 1, 5], found).any()
