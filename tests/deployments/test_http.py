"""The HTTP endpoints of the laptop placement: answers, every error, and what the metrics say."""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from recsys.pipeline.offline import batch_of
from recsys.releases.manifest import Release
from recsys.releases.registry import Registry
from tests.deployments.service import Reply, Service, until
from tests.world import ITEMS, NOW

BUY = {"user_id": "u110", "item_id": "i1", "event_type": "purchase", "value": 3.0, "quantity": 1}


@pytest.fixture
def laptop(service: Service) -> Service:
    return service.use("laptop")


def test_a_slate_carries_all_that_the_caller_needs(laptop: Service) -> None:
    body = {"user_id": "u001", "n": 5, "context": {"page": "start", "country": "DE"}}
    reply = laptop.ask("/v1/recommendations", body)
    assert reply.status == 200
    slate = reply.body
    assert set(slate) == {"slate_id", "user_id", "scene", "release", "items", "arms", "degraded"}
    assert (slate["user_id"], slate["scene"], slate["release"]) == (
        "u001",
        "home",
        laptop.release.manifest.id,
    )
    assert slate["degraded"] == []
    assert slate["arms"]["diversity"] in ("weight:control", "weight:diverse")
    assert [item["position"] for item in slate["items"]] == [1, 2, 3, 4, 5]
    titles = dict(laptop.world.parts.items.select("item_id", "title").iter_rows())
    for item in slate["items"]:
        assert item["title"] == titles[item["item_id"]]
        assert isinstance(item["score"], float)
        assert item["sources"]


def test_an_unknown_user_gets_a_slate_that_says_so(laptop: Service) -> None:
    for scene in ("home", "discover"):
        reply = laptop.ask("/v1/recommendations", {"user_id": "nobody", "scene": scene})
        assert reply.status == 200
        assert reply.body["degraded"] == ["unknown_user"]
        assert len(reply.body["items"]) == 20


def test_a_long_slate_is_filled_and_backfill_has_no_score(laptop: Service) -> None:
    items = laptop.ask("/v1/recommendations", {"user_id": "u002", "scene": "discover", "n": 50}).body["items"]
    assert len({item["item_id"] for item in items}) == 50
    for item in items:
        assert (item["score"] is None) == (item["sources"] == ["backfill"])


def test_excluded_items_stay_away(laptop: Service) -> None:
    body = {"user_id": "u003", "n": 10}
    first = [item["item_id"] for item in laptop.ask("/v1/recommendations", body).body["items"]]
    excluded = [*first[:4], "no such item"]
    again = laptop.ask("/v1/recommendations", body | {"exclude": excluded}).body["items"]
    assert len(again) == 10
    assert not {item["item_id"] for item in again} & set(excluded)


def error(path: str, status: int, code: str, says: str, body: Any = None, **how: Any) -> Any:
    return pytest.param(path, body, how, status, code, says, id=f"{status}-{says}"[:40])


SLATE, SIMILAR, EVENTS = "/v1/recommendations", "/v1/similar", "/v1/events"


@pytest.mark.parametrize(
    ("path", "body", "how", "status", "code", "says"),
    [
        error(SLATE, 400, "malformed_json", "not JSON", raw=b"{user_id"),
        error(EVENTS, 400, "malformed_json", "not JSON", raw=b"[{"),
        error(SLATE, 422, "request", "user_id", {}),
        error(SLATE, 422, "request", "user_id", {"user_id": ""}),
        error(SLATE, 422, "request", "user_id", {"user_id": 7}),
        error(SLATE, 422, "request", "user_id", {"user_id": "u" * 257}),
        error(SLATE, 422, "request", "color", {"user_id": "u1", "color": "red"}),
        error(SLATE, 422, "request", "dictionary", raw=b"[1]"),
        error(SLATE, 422, "request", "'attic'", {"user_id": "u1", "scene": "attic"}),
        error(SLATE, 422, "request", "n = 0: ask for 1 to 50", {"user_id": "u1", "n": 0}),
        error(SLATE, 422, "request", "n = 51: ask for 1 to 50", {"user_id": "u1", "n": 51}),
        error(SLATE, 422, "request", "n", {"user_id": "u1", "n": "5"}),
        error(SLATE, 422, "request", "n", {"user_id": "u1", "n": True}),
        error(SLATE, 422, "request", "exclude", {"user_id": "u1", "exclude": "i1"}),
        error(SLATE, 422, "request", "context.planet", {"user_id": "u1", "context": {"planet": "Mars"}}),
        error(SIMILAR, 404, "unknown_item", "'x1'", {"item_id": "x1"}),
        error(SIMILAR, 422, "request", "n = 51", {"item_id": "i1", "n": 51}),
        error(SIMILAR + "/x1", 404, "unknown_item", "'x1'"),
        error(SIMILAR + "/i1?n=many", 422, "request", "n"),
        error(EVENTS, 422, "request", "0 events: send 1 to 1,000", []),
        error(EVENTS, 422, "request", "1001 events", [BUY] * 1001),
        error(EVENTS, 413, "too_large", "2,000,000 bytes", raw=b" " * 2_000_001),
        error("/v2/recommendations", 404, "not_found", "/v2/recommendations", {}),
        error(SLATE, 405, "method_not_allowed", "GET"),
    ],
)
def test_every_error_has_one_shape(
    laptop: Service, path: str, body: Any, how: dict[str, Any], status: int, code: str, says: str
) -> None:
    reply = laptop.ask(path, body, **how)
    assert reply.status == status, reply.body
    assert set(reply.body) == {"error"}
    assert reply.body["error"]["code"] == code
    assert says in reply.body["error"]["message"]


def test_mixed_scenes_lengths_and_arms_in_one_batch_answer_as_alone(laptop: Service) -> None:
    bodies = [
        {"user_id": f"u{user:03d}", "scene": scene, "n": 1 + user % 7}
        for user in range(24)
        for scene in ("home", "discover")
    ]
    wrong = [{"user_id": "u001", "scene": "attic"}, {"user_id": "u001", "n": 0}]
    together = laptop.slates([*bodies, *wrong], clients=50)
    assert [reply.status for reply in together] == [200] * len(bodies) + [422, 422]
    assert len({reply.body["arms"]["diversity"] for reply in together[: len(bodies)]}) == 2
    assert len({reply.body["slate_id"] for reply in together[: len(bodies)]}) == len(bodies)
    for body, reply in zip(bodies, together, strict=False):
        assert (reply.body["user_id"], reply.body["scene"]) == (body["user_id"], body["scene"])
        (alone,) = asyncio.run(
            laptop.world.recommender.recommend(
                batch_of([body["user_id"]], scene=body["scene"], now=NOW, n=body["n"])
            )
        ).slates
        assert [item["item_id"] for item in reply.body["items"]] == [f"i{item.item}" for item in alone.items]


def test_similar_items_are_the_nearest_that_anybody_may_see(laptop: Service) -> None:
    vectors, row = laptop.world.parts.snapshot.vectors, 7
    posted = laptop.ask("/v1/similar", {"item_id": f"i{row}", "n": 50}).body
    assert laptop.ask(f"/v1/similar/i{row}?n=50").body == posted
    found = [int(item["item_id"][1:]) for item in posted["items"]]
    order = sorted(range(ITEMS), key=lambda r: -float(vectors[row] @ vectors[r]))
    # tests/world.py: unavailable, for adults, blocked somewhere, without a title
    shown = [r for r in order if r != row and r % 15 and r % 10 and r % 13 and r % 29]
    assert found == shown[:50]
    french = laptop.ask("/v1/similar", {"item_id": f"i{row}", "n": 50, "country": "DE"}).body["items"]
    assert any(int(item["item_id"][1:]) % 13 == 0 for item in french)


def test_a_purchase_is_gone_from_the_next_slate_within_a_second(laptop: Service) -> None:
    ask = {"user_id": "u111", "scene": "discover", "n": 10}
    bought = laptop.ask(SLATE, ask).body["items"][0]["item_id"]
    reply = laptop.ask(EVENTS, BUY | {"user_id": "u111", "item_id": bought})
    assert (reply.status, reply.body["accepted"]) == (200, 1)
    until(
        lambda: bought not in [item["item_id"] for item in laptop.ask(SLATE, ask).body["items"]],
        within_s=1.0,
        what=f"{bought} hidden after its purchase",
    )


def test_each_event_is_answered_on_its_own(laptop: Service) -> None:
    reply = laptop.ask(
        EVENTS,
        [
            BUY | {"event_id": "mine"},
            BUY | {"event_type": "dance"},
            BUY | {"quantity": "two"},
            "no object",
            BUY | {"timestamp": "2099-01-01T00:00:00Z"},
            {"user_id": "u110", "item_id": "i1", "event_type": "view"},
        ],
    )
    assert reply.status == 200
    assert (reply.body["accepted"], reply.body["rejected"]) == (2, 4)
    results = reply.body["results"]
    assert [result["status"] == "accepted" for result in results] == [True, False, False, False, False, True]
    assert results[0] == {"event_id": "mine", "status": "accepted", "reason": None}
    assert results[1]["reason"] == "unknown_type"
    assert "quantity" in results[2]["reason"]
    assert results[3]["event_id"] is None
    assert results[4]["reason"] == "future_timestamp"
    assert len(results[5]["event_id"]) == 32


def test_health_readiness_release_and_documents(laptop: Service) -> None:
    assert laptop.ask("/healthz").body == {"status": "ok"}
    assert laptop.ask("/readyz").body == {"status": "ready", "release": laptop.release.manifest.id}
    release = laptop.ask("/v1/release").body
    assert release["release"] == laptop.release.manifest.id
    assert release["scenes"] == ["discover", "home"]
    paths = laptop.ask("/openapi.json").body["paths"]
    assert {SLATE, SIMILAR, EVENTS, "/readyz", "/metrics"} <= set(paths)


def test_metrics_are_the_same_whichever_replica_answers(laptop: Service) -> None:
    def counted() -> float:
        lines = str(laptop.ask("/metrics").body).splitlines()
        label = f'recsys_requests_total{{route="{SLATE}",scene="discover",status="200"}}'
        return next((float(line.split()[-1]) for line in lines if line.startswith(label)), 0.0)

    before = counted()
    laptop.slates([{"user_id": "u005", "scene": "discover", "n": 3}] * 20)
    assert [counted() - before for _ in range(8)] == [20.0] * 8
    text = str(laptop.ask("/metrics").body)
    for name in (
        'recsys_stage_seconds_bucket{le="0.005",stage="retrieval"}',
        'recsys_candidates_proposed_total{source="two_tower"}',
        'recsys_candidates_removed_total{reason="unavailable"}',
        'recsys_degraded_total{what="unknown_user"}',
        "recsys_batch_size_count",
        'recsys_slate_length_sum{scene="home"}',
        'recsys_events_total{reason="",status="accepted"}',
        'recsys_events_total{reason="unknown_type",status="rejected"}',
        "recsys_events_waiting 0.0",
        "recsys_publish_seconds_count",
        "recsys_bus_outages_total",
        'recsys_stream_events_total{status="events"}',
        'status="422"',
    ):
        assert name in text, name


def test_without_redis_only_what_hides_purchases_fails(laptop: Service) -> None:
    """A hung Redis: the discover scene can't know what was bought, so it must not answer."""
    redis = Path(laptop.settings.workdir) / "redis" / "redis.json"
    pid = int(redis.read_text().split('"pid": ')[1].split(",")[0])
    bodies = [{"user_id": "u001", "scene": ("home", "discover")[i % 2], "n": 5} for i in range(12)]
    os.kill(pid, signal.SIGSTOP)
    try:
        replies = laptop.slates(bodies)
        ready = laptop.ask("/readyz")
    finally:
        os.kill(pid, signal.SIGCONT)
    for body, reply in zip(bodies, replies, strict=True):
        if body["scene"] == "home":
            assert reply.status == 200
            assert reply.body["degraded"] == ["online_store"]
        else:
            assert reply.status == 503
            assert reply.body["error"]["code"] == "unavailable"
            assert reply.headers["retry-after"] == "1"
    assert (ready.status, ready.body["error"]["code"]) == (503, "unavailable")
    time.sleep(0.1)
    assert laptop.ask(SLATE, bodies[1]).status == 200
    assert laptop.ask("/readyz").status == 200


def test_the_alias_rolls_the_service_over_and_back_without_a_failed_request(laptop: Service) -> None:
    ask = {"user_id": "u004", "n": 10}
    old, new = laptop.release, laptop.other_release
    registry = Registry(f"sqlite:///{laptop.settings.folder / 'mlflow.db'}")
    for release in (old, new):
        version = registry.register(release.manifest.id, uri=release.uri)
        registry.promote(version)
    before = slate_ids(laptop.ask(SLATE, ask))
    with laptop.asking(ask) as replies:
        laptop.deploy_champion()
        until(lambda: serves(replies, new), within_s=10, what="the champion")
        assert slate_ids(replies[-1]) != before
        registry.rollback()
        laptop.deploy_champion()
        until(lambda: serves(replies, old), within_s=10, what="the champion before")
        assert slate_ids(replies[-1]) == before
    assert {reply.status for reply in replies} == {200}


def slate_ids(reply: Reply) -> list[str]:
    return [item["item_id"] for item in reply.body["items"]]


def serves(replies: list[Reply], release: Release) -> bool:
    return {reply.body["release"] for reply in replies[-20:]} == {release.manifest.id}
