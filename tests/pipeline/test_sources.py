"""The sources: what they propose, what they must not, and how shards are put together."""

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import UnavailableError
from recsys.index.shard import exact_shard
from recsys.interactions import Queries
from recsys.pipeline.hydration import Hydration
from recsys.pipeline.offline import PointInTimeUsers, batch_of
from recsys.pipeline.retrieval import RetrievalSettings
from recsys.pipeline.seams import Source
from recsys.pipeline.sources import ModelSource, TwoTowerSource, nearest
from recsys.pipeline.wiring import live_items, retrieval
from recsys.settings import model_of
from recsys.types import RequestBatch
from tests.world import ITEMS, NOW, world

USERS = [f"u{user:03d}" for user in range(40)] + ["nobody"]


MODELS = ("popularity", "covisitation", "normalized_ease")


@cache
def model_source(name: str, k: int = 20) -> ModelSource:
    return ModelSource(name, model_of(name).fit(world().interactions.before(NOW), seed=0), ITEMS, k)


def hydrated(scene: str) -> RequestBatch:
    parts = world().parts
    users = PointInTimeUsers(world().interactions, NOW)
    hydration = Hydration(users, parts.settings.scenes, parts.snapshot.category)
    return asyncio.run(hydration(batch_of(USERS, scene=scene, now=NOW, n=10)))


def tower(shards: int, k: int = 20) -> TwoTowerSource:
    snapshot = world().parts.snapshot
    made = [exact_shard(snapshot.vectors, n, shards) for n in range(shards)]
    return TwoTowerSource(snapshot.models.encoder, live_items(world().parts).vectors, made, k)


def sources(settings: RetrievalSettings) -> Sequence[Source]:
    parts = world().parts
    return retrieval(parts.snapshot, live_items(parts), tower(2).shards, settings).sources


@pytest.mark.parametrize("scene", ["home", "discover"])
@pytest.mark.parametrize("k", [5, ITEMS])
def test_no_source_proposes_what_is_hidden_or_an_item_twice(scene, k):
    parts, batch = world().parts, hydrated(scene)
    settings = replace(
        parts.settings.retrieval, candidates=dict.fromkeys(parts.settings.retrieval.candidates, k)
    )
    if scene == "discover":
        assert max(len(hidden) for hidden in batch.hidden) > 5
    for source in sources(settings):
        proposals = asyncio.run(source(batch)).proposals
        assert len(proposals.offsets) == len(batch) + 1
        for r, hidden in enumerate(batch.hidden):
            mine = slice(proposals.offsets[r], proposals.offsets[r + 1])
            item, score = proposals.item[mine], proposals.score[mine]
            assert len(item) <= k
            assert ((item >= 0) & (item < ITEMS)).all()  # FAISS's -1 never gets out
            assert len(np.unique(item)) == len(item)
            assert not np.isin(item, hidden).any(), source.name
            assert (np.diff(score) <= 0).all(), source.name
            assert not np.isnan(score).any()


def test_hidden_items_do_not_shorten_what_is_proposed():
    batch = hydrated("discover")
    proposals = asyncio.run(tower(2, k=20)(batch)).proposals
    left = [ITEMS - len(hidden) for hidden in batch.hidden]
    assert np.diff(proposals.offsets).tolist() == [min(20, n) for n in left]


def test_one_shard_two_shards_and_seven_propose_alike():
    batch = hydrated("discover")
    one, *others = (asyncio.run(tower(shards)(batch)).proposals for shards in (1, 2, 7))
    for other in others:
        np.testing.assert_array_equal(one.offsets, other.offsets)
        np.testing.assert_array_equal(one.item, other.item)
        np.testing.assert_allclose(one.score, other.score, atol=1e-6)


def test_the_proposals_are_the_exact_nearest():
    batch = hydrated("home")
    snapshot = world().parts.snapshot
    encoder = snapshot.models.encoder
    queries = encoder.encode(batch.histories, now=batch.now, user_features=batch.user_features)
    proposals = asyncio.run(tower(2, k=10)(batch)).proposals
    exact = np.sort(queries @ snapshot.vectors.T, axis=1)[:, ::-1][:, :10]
    np.testing.assert_allclose(proposals.score.reshape(-1, 10), exact, atol=1e-5)


def test_every_source_scores_what_it_proposes_as_it_ranked_it():
    parts, batch = world().parts, hydrated("home")
    for source in retrieval(
        parts.snapshot, live_items(parts), tower(2).shards, parts.settings.retrieval
    ).sources:
        retrieved = asyncio.run(source(batch))
        proposals = retrieved.proposals
        (score,) = retrieved.scores.values()
        np.testing.assert_allclose(
            score(proposals.offsets, proposals.item), proposals.score, rtol=1e-5, atol=1e-6
        )


def test_an_item_younger_than_the_models_is_not_known_to_them():
    parts, batch = world().parts, hydrated("home")
    offsets = np.concatenate(([0], np.full(len(batch), 1))).astype(np.int32)
    for source in retrieval(
        parts.snapshot, live_items(parts), tower(2).shards, parts.settings.retrieval
    ).sources:
        (score,) = asyncio.run(source(batch)).scores.values()
        assert np.isnan(score(offsets, np.array([ITEMS + 3], np.int32))).all(), source.name


@pytest.mark.parametrize("scene", ["home", "discover"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_proposes_its_best_that_are_not_hidden(name, scene):
    source, batch = model_source(name), hydrated(scene)
    proposals = asyncio.run(source(batch)).proposals
    scores = source.fitted.score(Queries(np.full(len(batch), -1), batch.histories, batch.now))
    for r, hidden in enumerate(batch.hidden):
        scores[r, hidden] = -np.inf
        best = [i for i in np.lexsort((np.arange(ITEMS), -scores[r])) if scores[r, i] > -np.inf][:20]
        mine = slice(proposals.offsets[r], proposals.offsets[r + 1])
        assert proposals.item[mine].tolist() == best
        np.testing.assert_allclose(proposals.score[mine], scores[r, best], rtol=1e-5, atol=1e-5)


@dataclass(frozen=True)
class Table:
    """A model that scores everybody alike."""

    scores: np.ndarray

    def score(self, queries: Queries) -> np.ndarray:
        assert (queries.histories.item < len(self.scores)).all()
        return np.tile(self.scores, (len(queries), 1))


def test_what_a_model_can_not_score_is_not_proposed_and_nan_when_looked_up():
    nothing = -np.inf
    scores = np.array([nothing, 2, nothing, 5, 2, -1], np.float32)
    batch = batch_of(["a", "b"], scene="home", now=NOW, n=1)
    young = world().interactions.histories.take(np.array([0, 1]))  # some items are younger than the model
    batch = replace(batch, histories=young, hidden=(np.array([3, 70]), np.zeros(0, np.int32)))
    retrieved = asyncio.run(ModelSource("ials", Table(scores), len(scores), 3)(batch))
    assert retrieved.proposals.offsets.tolist() == [0, 3, 6]
    assert retrieved.proposals.item.tolist() == [1, 4, 5, 3, 1, 4]
    look_up = retrieved.scores["ials"]
    found = look_up(np.array([0, 3, 6]), np.array([1, 2, 6, 3, 0, 5]))
    np.testing.assert_array_equal(found, np.array([2, np.nan, np.nan, 5, np.nan, -1], np.float32))


def test_a_model_that_computes_does_not_hold_up_the_others():
    started, go_on = threading.Event(), threading.Event()

    class Slow(Table):
        def score(self, queries: Queries) -> np.ndarray:
            started.set()
            assert go_on.wait(30), "nobody else ran meanwhile"
            return super().score(queries)

    batch = hydrated("home")

    async def both() -> None:
        source = ModelSource("ials", Slow(np.ones(ITEMS, np.float32)), ITEMS, 3)
        asked = asyncio.create_task(source(batch))
        while not started.is_set():
            await asyncio.sleep(0.001)
        go_on.set()
        await asked

    asyncio.run(both())


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_nearest_is_the_k_best_and_ties_go_to_the_lower_row(seed, k):
    draw = np.random.default_rng(seed)
    rows = np.stack([draw.permutation(12)[:8] for _ in range(3)]).astype(np.int32)
    scores = (draw.integers(0, 3, rows.shape) / 2).astype(np.float32)  # many ties
    absent = draw.random(rows.shape) < 0.3
    rows[absent], scores[absent] = -1, -np.inf
    hidden = tuple(draw.permutation(12)[: draw.integers(0, 4)].astype(np.int32) for _ in range(3))
    best = nearest(rows, scores, k=k, hidden=hidden)
    # another order of the shards' answers gives the same
    shuffled = draw.permutation(rows.shape[1])
    again = nearest(rows[:, shuffled], scores[:, shuffled], k=k, hidden=hidden)
    for r in range(3):
        usable = [(-s, i) for s, i in zip(scores[r], rows[r], strict=True) if i >= 0 and i not in hidden[r]]
        mine = slice(best.offsets[r], best.offsets[r + 1])
        assert best.item[mine].tolist() == [i for _, i in sorted(usable)[:k]]
    np.testing.assert_array_equal(best.item, again.item)


class Broken:
    name = "1"

    async def __call__(self, queries, k, scopes=()):
        raise UnavailableError("gone")


class Late(Broken):
    async def __call__(self, queries, k, scopes=()):
        await asyncio.sleep(30)


@pytest.mark.parametrize("lost", [Broken(), Late()])
def test_a_lost_shard_costs_its_share_and_is_named(lost):
    batch = hydrated("home")
    source = tower(2)
    source = replace(source, shards=[source.shards[0], lost], deadline_ms=300)
    retrieved = asyncio.run(source(batch))
    assert retrieved.degraded == ("two_tower:1",)
    assert (np.diff(retrieved.proposals.offsets) == 20).all()
    with pytest.raises(UnavailableError, match="no shard of two_tower"):
        asyncio.run(replace(source, shards=[lost])(batch))
