"""The whole request path on a small real world: what must hold of every batch, and of every failure."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from recsys.errors import RequestError, RuleError, UnavailableError
from recsys.pipeline.offline import PointInTimeUsers, batch_of
from recsys.pipeline.recommender import POSITION, Recommender
from recsys.pipeline.retrieval import FUSED
from recsys.pipeline.rules import Rule
from recsys.pipeline.seams import Retrieved, Source
from recsys.pipeline.trace import Answer
from recsys.pipeline.wiring import Parts, recommender
from recsys.types import Candidates, Removal, RequestBatch, Sources
from tests.world import CATEGORIES, ITEMS, NOW, USERS, shards, world

EVERYBODY = [f"u{user:03d}" for user in range(USERS)]
FEW = {"two_tower": 12, "ease": 12, "ease_decayed": 12, "basket": 12, "history": 6, "popularity": 9}


def made(parts: Parts | None = None, *, users=None, few: bool = True) -> Recommender:
    """The world's recommender; `few`: sources propose a dozen items instead of the whole catalog."""
    parts = parts or world().parts
    if few:
        retrieval = replace(parts.settings.retrieval, candidates=FEW)
        parts = replace(parts, settings=replace(parts.settings, retrieval=retrieval))
    users = users or PointInTimeUsers(world().interactions, NOW)
    return recommender(parts, users=users, shards=shards(parts.snapshot.vectors))


def mixed_batch(size: int = 64) -> RequestBatch:
    """Both scenes, all arms, known and unknown users, exclusions, countries and lengths."""
    rng = np.random.default_rng(5)
    users = [*rng.choice(EVERYBODY, size - 4, replace=False), "nobody", "x1", "x2", "x3"]
    batch = batch_of(users, scene="home", now=NOW, n=10)
    return replace(
        batch,
        scene=tuple("home" if r % 2 else "discover" for r in range(size)),
        n=(1 + np.arange(size) % 20).astype(np.int32),
        exclude=tuple((r % ITEMS, (7 * r) % ITEMS) if r % 3 == 0 else () for r in range(size)),
        country=tuple((None, "ES", "FR")[r % 3] for r in range(size)),
    )


def ask(service: Recommender, batch: RequestBatch) -> Answer:
    return asyncio.run(service.recommend(batch))


def shown(answer: Answer) -> list[list[int]]:
    return [[item.item for item in slate.items] for slate in answer.slates]


def assert_same(left: Answer, right: Answer, order: np.ndarray) -> None:
    """Request r of `right` is request order[r] of `left`: same slates, same candidates, same scores."""
    assert shown(right) == [shown(left)[r] for r in order]
    assert [s.arms for s in right.slates] == [left.slates[r].arms for r in order]
    assert [s.degraded for s in right.slates] == [left.slates[r].degraded for r in order]
    expected = left.candidates.take(order)
    for name in ("offsets", "item", "source", "removed_by"):
        np.testing.assert_array_equal(getattr(right.candidates, name), getattr(expected, name), name)
    np.testing.assert_allclose(right.candidates.score, expected.score, atol=1e-6)
    for name, score in expected.scores.items():
        np.testing.assert_allclose(right.candidates.scores[name], score, rtol=1e-6, atol=1e-6, err_msg=name)


# Batches


def test_permuting_a_batch_permutes_its_slates_and_changes_no_score():
    service, batch = made(), mixed_batch()
    order = np.random.default_rng(0).permutation(len(batch))
    assert_same(ask(service, batch), ask(service, batch.take(order)), order)


def test_one_by_one_equals_the_batch_of_mixed_scenes_and_arms():
    service, batch = made(), mixed_batch()
    together = ask(service, batch)
    assert len({(slate.scene, slate.arms["diversity"]) for slate in together.slates}) == 4
    for request in range(len(batch)):
        own = np.array([request])
        assert_same(together, ask(service, batch.take(own)), own)


def test_arms_get_different_slates_and_the_users_arm_is_named():
    batch = batch_of(EVERYBODY, scene="home", now=NOW, n=20)
    answer = ask(made(few=False), batch)
    arms = [slate.arms["diversity"] for slate in answer.slates]
    assert set(arms) == {"weight:control", "weight:diverse"}
    assert arms == [world().parts.experiments.arm_of("diversity", user) for user in EVERYBODY]
    alike = {
        arm: np.mean([_similarity(s) for s, a in zip(shown(answer), arms, strict=True) if a == arm])
        for arm in set(arms)
    }
    assert alike["weight:diverse"] < alike["weight:control"]


def _similarity(items: list[int]) -> float:
    vectors = world().parts.snapshot.vectors[items]
    return float((vectors @ vectors.T).mean())


# Conservation


@dataclass
class Counted:
    """A source that counts what it proposes to each request."""

    source: Source
    raw: Counter = field(default_factory=Counter)

    @property
    def name(self) -> str:
        return self.source.name

    async def __call__(self, batch: RequestBatch) -> Retrieved:
        answer = await self.source(batch)
        for request, count in enumerate(np.diff(answer.proposals.offsets)):
            self.raw[request] += int(count)
        return answer


@pytest.mark.parametrize("few", [True, False])
def test_no_candidate_is_ever_lost(few):
    service = made(few=few)
    counted = [Counted(source) for source in service.retrieval.sources]
    service = replace(service, retrieval=replace(service.retrieval, sources=counted))
    sizes = [3, 40, 149, 150] if few else [3, 10, 20, 40]  # of two items nobody knows anything
    batch = replace(mixed_batch(), n=np.tile(sizes, 16).astype(np.int32))
    answer = ask(service, batch)
    candidates = answer.candidates
    for source in counted:
        raw = [source.raw[request] for request in range(len(batch))]
        assert candidates.proposed[source.name].tolist() == raw
    assert ("backfill" in candidates.proposed) == few  # else there is nothing left that was not proposed
    for request in range(len(batch)):
        mine = slice(candidates.offsets[request], candidates.offsets[request + 1])
        bits = candidates.source[mine]
        proposed = sum(int(of[request]) for of in candidates.proposed.values())
        duplicates = sum(int(b).bit_count() - 1 for b in bits)
        removed = Counter(candidates.removed_by[mine].tolist())
        served = removed.pop(Removal.ALIVE, 0)
        assert proposed == duplicates + sum(removed.values()) + served
        assert served == len(answer.slates[request].items)
        assert len(np.unique(candidates.item[mine])) == len(bits)
        for name, of in candidates.proposed.items():
            assert ((bits & Sources[name.upper()]) > 0).sum() == of[request]


def test_what_is_alive_at_the_end_is_what_is_shown_and_no_more():
    answer = ask(made(), mixed_batch())
    place = answer.candidates.scores[POSITION]
    np.testing.assert_array_equal(answer.candidates.alive, ~np.isnan(place))
    for request, slate in enumerate(answer.slates):
        mine = slice(answer.candidates.offsets[request], answer.candidates.offsets[request + 1])
        places = np.sort(place[mine][~np.isnan(place[mine])])
        assert places.tolist() == list(range(len(slate.items)))


# What a slate may hold


def test_nothing_consumed_in_discover_and_something_consumed_at_home():
    consumed = {
        user: set(world().interactions.before(NOW).histories.take(np.array([code])).item.tolist())
        for code, user in enumerate(EVERYBODY)
    }
    for n in (10, ITEMS):  # short slates, and slates that need every item there is
        for scene, hides in (("discover", True), ("home", False)):
            answer = ask(made(), batch_of(EVERYBODY, scene=scene, now=NOW, n=n))
            again = [set(items) & consumed[u] for u, items in zip(EVERYBODY, shown(answer), strict=True)]
            assert any(again) != hides


def test_no_two_of_one_category_in_the_top_3():
    for scene in ("home", "discover"):
        for items in shown(ask(made(), batch_of([*EVERYBODY, "nobody"], scene=scene, now=NOW, n=10))):
            assert len({item % CATEGORIES for item in items[:3]}) == 3


def test_one_category_only_still_fills_the_top_3():
    parts = world().parts
    only = replace(parts, rules=(Rule("mugs only", "category <> 'mug'"),))
    for items in shown(ask(made(only), batch_of(EVERYBODY[:5], scene="home", now=NOW, n=3))):
        assert len(items) == 3
        assert {item % CATEGORIES for item in items} == {0}


def test_a_slate_is_never_short_while_items_exist():
    allowed = np.flatnonzero(made().rules._judged.static.all() == 0)
    adult = [row for row in range(ITEMS) if row % 10 == 0]
    blocked = [row for row in range(ITEMS) if row % 13 == 0]  # a country that isn't known may be FR
    expected = set(allowed) - set(adult) - set(blocked)
    for n in (len(expected) - 1, len(expected), ITEMS):
        answer = ask(made(), batch_of(["u001", "nobody"], scene="home", now=NOW, n=n))
        for items in shown(answer):
            assert len(items) == min(n, len(expected))
            assert len(set(items)) == len(items)
            assert set(items) <= expected


def test_everything_removed_is_an_empty_slate_and_no_error():
    parts = world().parts
    nothing = replace(parts, rules=(Rule("closed", "price >= 0"),))
    answer = ask(made(nothing), batch_of(EVERYBODY[:3], scene="home", now=NOW, n=5))
    assert shown(answer) == [[], [], []]
    assert (answer.candidates.removed_by != Removal.ALIVE).all()
    excluded = replace(batch_of(["u001"], scene="home", now=NOW, n=5), exclude=(tuple(range(ITEMS)),))
    assert shown(ask(made(), excluded)) == [[]]


def test_an_unknown_user_gets_a_slate_that_says_so():
    answer = ask(made(), batch_of(["nobody", "u001"], scene="home", now=NOW, n=10))
    assert [len(slate.items) for slate in answer.slates] == [10, 10]
    assert [slate.degraded for slate in answer.slates] == [("unknown_user",), ()]
    assert not any(Sources.HISTORY in item.sources for item in answer.slates[0].items)


def test_every_slate_has_an_id_of_its_own():
    answer = ask(made(), mixed_batch())
    assert len({slate.slate_id for slate in answer.slates}) == len(answer.slates)


# Failures


@dataclass(frozen=True)
class Failing:
    """Stands where a step stood and raises."""

    error: Exception
    name: str = "ease"

    def __call__(self, *arguments):
        raise self.error


@dataclass(frozen=True)
class FailingSource(Failing):
    async def __call__(self, batch):
        raise self.error


@dataclass(frozen=True)
class SlowSource:
    source: Source

    @property
    def name(self) -> str:
        return self.source.name

    async def __call__(self, batch: RequestBatch) -> Retrieved:
        await asyncio.sleep(30)
        return await self.source(batch)


def with_source(service: Recommender, name: str, wrap) -> Recommender:
    sources = [wrap(s) if s.name == name else s for s in service.retrieval.sources]
    return replace(service, retrieval=replace(service.retrieval, sources=sources, deadline_ms=300))


@pytest.mark.parametrize(
    "wrap", [lambda s: FailingSource(UnavailableError("down"), s.name), SlowSource], ids=["down", "slow"]
)
def test_a_source_that_fails_is_left_out_and_named(wrap):
    for name in ("ease", "two_tower", "popularity"):
        answer = ask(with_source(made(), name, wrap), batch_of(EVERYBODY[:8], scene="home", now=NOW, n=10))
        assert {slate.degraded for slate in answer.slates} == {(name,)}
        assert {len(slate.items) for slate in answer.slates} == {10}
        assert name not in answer.candidates.proposed
        assert not (answer.candidates.source & Sources[name.upper()]).any()


def test_without_any_source_the_slate_is_backfilled():
    service = made()
    for source in service.retrieval.sources:
        service = with_source(service, source.name, lambda s: FailingSource(UnavailableError("down"), s.name))
    answer = ask(service, mixed_batch())
    for slate, n in zip(answer.slates, answer.batch.n, strict=True):
        assert set(FEW) <= set(slate.degraded)
        assert len(slate.items) == n
        assert {item.sources for item in slate.items} == {Sources.BACKFILL}
        assert all(np.isnan(item.score) for item in slate.items)


@dataclass(frozen=True)
class LostShard:
    name: str

    async def __call__(self, queries, k, scopes=()):
        raise UnavailableError("the node is gone")


def test_a_lost_shard_is_named_and_the_other_still_answers():
    service = made()
    tower = service.retrieval.sources[0]
    sources = [replace(tower, shards=[LostShard("0"), tower.shards[1]]), *service.retrieval.sources[1:]]
    service = replace(service, retrieval=replace(service.retrieval, sources=sources))
    answer = ask(service, batch_of(EVERYBODY[:8], scene="home", now=NOW, n=10))
    assert {slate.degraded for slate in answer.slates} == {("two_tower:0",)}
    assert answer.candidates.proposed["two_tower"].min() > 0


def test_without_the_ranker_retrieval_order_stands_and_is_not_passed_off_as_ranked():
    service = replace(made(), ranking=Failing(UnavailableError("down")))
    service = replace(service, diversity=Failing(UnavailableError("down")))
    answer = ask(service, batch_of(EVERYBODY[:8], scene="home", now=NOW, n=10))
    candidates = answer.candidates
    for request, slate in enumerate(answer.slates):
        assert slate.degraded == ("ranking", "diversity")
        mine = slice(candidates.offsets[request], candidates.offsets[request + 1])
        fused = dict(zip(candidates.item[mine].tolist(), candidates.scores[FUSED][mine], strict=True))
        assert all(np.isnan(item.score) for item in slate.items)
        order = [fused[item.item] for item in slate.items if Sources.BACKFILL not in item.sources]
        assert order == sorted(order, reverse=True)


def test_without_diversity_the_ranked_order_stands():
    batch = batch_of(EVERYBODY[:8], scene="home", now=NOW, n=10)
    answer = ask(replace(made(), diversity=Failing(UnavailableError("down"))), batch)
    for slate in answer.slates:
        assert slate.degraded == ("diversity",)
        scores = [item.score for item in slate.items]
        assert len(scores) == 10
        assert scores == sorted(scores, reverse=True)


def test_a_failing_rule_shows_nothing():
    parts = world().parts
    # Only requests meet it: no country is a number.
    broken = replace(parts, rules=(*parts.rules, Rule("broken", "CAST(country AS INT) > 5")))
    batch = replace(batch_of(EVERYBODY[:2], scene="home", now=NOW, n=10), country=("ES", "FR"))
    with pytest.raises(RuleError, match="broken"):
        ask(made(broken), batch)


@pytest.mark.parametrize(
    "step", ["experiments", "hydration", "ranking", "rules", "diversity", "backfill", "source"]
)
def test_a_programmers_error_always_raises(step):
    bug = KeyError("a typo")
    if step == "source":
        service = with_source(made(), "ease", lambda s: FailingSource(bug, s.name))
    else:
        service = replace(made(), **{step: Failing(bug)})
    with pytest.raises(KeyError, match="a typo"):
        ask(service, batch_of(["u001"], scene="home", now=NOW, n=10))


class DeadStore:
    def users(self, user_ids):
        raise UnavailableError("redis://localhost:1 does not answer")


def test_without_the_online_store_home_goes_on_and_discover_does_not():
    service = made(users=DeadStore())
    answer = ask(service, batch_of(["u001", "nobody"], scene="home", now=NOW, n=10))
    assert {slate.degraded for slate in answer.slates} == {("online_store",)}
    assert [len(slate.items) for slate in answer.slates] == [10, 10]
    with pytest.raises(UnavailableError, match="does not answer"):
        ask(service, batch_of(["u001"], scene="discover", now=NOW, n=10))


def test_a_batch_whose_visitors_countries_are_known_and_not_known_is_answered():
    """One visitor without a country beside one with, and any rule about the country crashed the batch:
    an object array of None and texts became polars's type Object, and the cast of it raised."""
    batch = batch_of(["u001", "u002", "u003"], scene="home", now=NOW, n=40)
    answer = ask(made(), replace(batch, country=(None, "ES", "DE")))
    clocks = [any(item % CATEGORIES == 4 for item in items) for items in shown(answer)]
    assert clocks == [True, False, True]


def test_an_unknown_scene_is_refused_by_name():
    with pytest.raises(RequestError, match=r"'checkout'.*discover, home"):
        ask(made(), batch_of(["u001"], scene="checkout", now=NOW, n=10))


def test_a_stage_may_run_elsewhere():
    service, batch = made(), mixed_batch()

    def elsewhere(stage):
        async def call(*arguments) -> RequestBatch | Candidates:
            await asyncio.sleep(0)
            return stage(*arguments)

        return call

    steps = ("experiments", "ranking", "rules", "diversity")
    placed = replace(service, **{name: elsewhere(getattr(service, name)) for name in steps})
    assert_same(ask(service, batch), ask(placed, batch), np.arange(len(batch)))
