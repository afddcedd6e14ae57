"""The catalog changes while the service answers: on every replica, through kills and a new index."""

import itertools
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from ray.exceptions import RayError

from recsys.hashing import shard_of_rows
from recsys.index.building import build_index
from recsys.index.settings import IndexSettings
from recsys.index.vectors import VectorArray
from recsys.releases.live import LiveCatalog
from recsys.releases.manifest import Release, with_parts, write_release
from recsys.releases.parts import INDEX, index_parts, load_parts
from tests.deployments.service import Reply, Service, ask_each, replica_pids, until
from tests.world import ITEMS, NOW, SHARDS, item_frame, release_parts, world

SLATE, POST = "/v1/recommendations", "/v1/items"
ROWS = ITEMS + 3  # of the catalog: with items that the models have not seen, so that its log is its own
VECTORS = world().parts.snapshot.vectors


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    folder = tmp_path_factory.mktemp("catalog")
    parts = replace(world().parts, items=item_frame(ROWS))
    return write_release(folder, release_parts(parts, folder / "index"), as_of=NOW, items=ITEMS)


@pytest.fixture(scope="module")
def shop(service: Service, release: Release) -> Iterator[Service]:
    """Two replicas of each shard and of the gateway."""
    before = service.release
    service.deploy("cluster", release)
    yield service
    service.deploy("laptop", before)


def found_by_each(row: int, vector: np.ndarray) -> list[bool]:
    """Whether each replica of the item's shard finds it as the nearest to its own vector."""
    number = int(shard_of_rows(np.array([row]), SHARDS)[0])
    answers = ask_each(f"Shard{number}", vector[None].astype(np.float32), 3)
    return [row in rows[0].tolist() for rows, _ in answers]


def post(shop: Service, item_id: str, **columns: Any) -> Reply:
    return shop.ask(POST, {"items": [{"item_id": item_id, "title": "mug", **columns}]})


def delete(shop: Service, item_id: str) -> Reply:
    return shop.ask(f"{POST}/{quote(item_id)}", method="DELETE")


def next_row(counted: Iterator[int] = itertools.count(ROWS)) -> int:  # noqa: B008 one for the module
    """The row that the next new item gets."""
    return next(counted)


def test_an_upsert_is_on_every_replica_within_a_second_and_a_delete_too(shop: Service) -> None:
    row, vector = next_row(), -VECTORS[7]
    with shop.asking({"user_id": "u001", "n": 5}, clients=4) as replies:
        reply = post(shop, "new one", vector=(3 * vector).tolist())  # its length does not count
        assert reply.body["items"] == [{"item_id": "new one", "vector": "given"}], reply.body
        took = until(lambda: found_by_each(row, vector) == [True, True], within_s=1.0, what="found by each")
        assert all(answer.status == 200 for answer in similar_to_each(shop, "new one"))
        assert delete(shop, "new one").body == {"item_id": "new one", "deleted": True}
        gone = until(
            lambda: found_by_each(row, vector) == [False, False], within_s=1.0, what="gone from each"
        )
        assert {answer.status for answer in similar_to_each(shop, "new one")} == {404}
        assert delete(shop, "new one").status == 404
        post(shop, "new one")  # without its vector, which it has
        until(lambda: found_by_each(row, vector) == [True, True], within_s=1.0, what="back on each")
        delete(shop, "new one")
    assert {reply.status for reply in replies} == {200}
    print(f"found by every replica after {took * 1e3:.0f} ms, gone after {gone * 1e3:.0f} ms")


def similar_to_each(shop: Service, item_id: str) -> list[Reply]:
    """Of so many that both gateways are asked."""
    time.sleep(0.2)
    return [shop.ask("/v1/similar", {"item_id": item_id, "n": 2}) for _ in range(16)]


def test_a_new_item_is_shown_and_its_purchase_hides_it(shop: Service) -> None:
    next_row()
    others = [f"i{row}" for row in range(ROWS)]
    # Of a user whose slates no other test compares.
    ask = {"user_id": "u113", "scene": "discover", "n": 50, "exclude": others}
    seen = shown(shop, ask | {"exclude": []})
    like = VECTORS[int(seen[0][1:])]  # what this user wants
    post(shop, "wanted", title="candle of today", vector=like.tolist())
    until(lambda: "wanted" in shown(shop, ask), within_s=2.0, what="shown")
    shop.ask("/v1/events", {"user_id": "u113", "item_id": "wanted", "event_type": "purchase"})
    until(lambda: "wanted" not in shown(shop, ask), within_s=2.0, what="hidden from who has it")
    delete(shop, "wanted")


def shown(shop: Service, ask: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in shop.ask(SLATE, ask).body["items"]]


def test_what_is_not_available_is_found_no_more_until_it_is(shop: Service) -> None:
    row = 8
    item = {"item_id": "i8", "title": "lamp", "categories": ["lamp"]}
    shop.ask(POST, {"items": [item | {"available": False}]})
    until(lambda: found_by_each(row, VECTORS[row]) == [False, False], within_s=1.0, what="gone")
    assert "i8" not in shown(shop, {"user_id": "u002", "n": 50})
    reply = shop.ask(POST, {"items": [item]})
    assert reply.body["items"] == [{"item_id": "i8", "vector": "kept"}]
    until(lambda: found_by_each(row, VECTORS[row]) == [True, True], within_s=1.0, what="back")


def test_an_item_gets_its_vector_of_its_content_once(shop: Service) -> None:
    next_row()
    reply = post(shop, "of words", title="mug number 6")
    assert reply.body["items"][0]["vector"] == "content"
    assert post(shop, "of words", title="clock").body["items"][0]["vector"] == "kept"
    near = shop.ask("/v1/similar", {"item_id": "of words", "n": 5}).body["items"]
    assert len(near) == 5
    next_row()
    assert post(shop, "nameless", title=None).body["items"][0]["vector"] == "none"
    reply = shop.ask("/v1/similar", {"item_id": "nameless"})
    assert (reply.status, reply.body["error"]["code"]) == (404, "unknown_item")
    delete(shop, "of words")
    delete(shop, "nameless")


def test_similar_items_of_one_category(shop: Service) -> None:
    near = shop.ask("/v1/similar", {"item_id": "i7", "n": 10, "category": "lamp"}).body["items"]
    assert near
    assert all(int(item["item_id"][1:]) % 6 == 1 for item in near)


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ({"vector": [1.0]}, "'x' has 1 numbers"),
        ({"vector": [0.0] * VECTORS.shape[1]}, "not all 0"),
        ({"price": -1}, "price"),
        ({"price": "1"}, "price"),
        ({"color": "red"}, "color"),
        ({"published_at": "yesterday"}, "published_at"),
        ({"published_at": "2026-11-26T10:00:00"}, "published_at"),  # of no zone
        ({"item_id": ""}, "item_id"),
        ({"attributes": {"a": 1}}, "attributes"),
        ({"categories": [""]}, "categories"),
    ],
)
def test_an_item_that_is_none_is_refused_and_nothing_of_its_request_is_written(
    shop: Service, item: dict[str, Any], says: str
) -> None:
    good = {"item_id": "good", "title": "mug"}
    reply = shop.ask(POST, {"items": [good, {"item_id": "x"} | item]})
    assert (reply.status, reply.body["error"]["code"]) == (422, "request"), reply.body
    assert says in reply.body["error"]["message"]
    assert shop.ask("/v1/similar", {"item_id": "good"}).status == 404


def test_requests_that_are_none(shop: Service) -> None:
    twice = shop.ask(POST, {"items": [{"item_id": "x"}, {"item_id": "x"}]})
    assert (twice.status, "'x' stands twice" in twice.body["error"]["message"]) == (422, True)
    assert shop.ask(POST, {"items": []}).status == 422
    assert shop.ask(POST, {"items": [{"item_id": f"i{n}"} for n in range(1001)]}).status == 422
    assert delete(shop, "nobody").body["error"]["code"] == "unknown_item"


def test_metrics_tell_of_the_catalog_and_of_what_the_index_finds(shop: Service) -> None:
    def text() -> str:
        return str(shop.ask("/metrics").body)

    for name in (
        'recsys_catalog_behind{what="gateway"} 0.0',
        'recsys_catalog_behind{what="shard 0"} 0.0',
        'recsys_catalog_lag_seconds{what="feature streamer"}',
        'recsys_catalog_read_time{what="ranking"}',
        'recsys_index_tombstone_share{shard="1"}',
        'recsys_index_fresh_items{shard="0"}',
        "recsys_index_fill_rate_count",
        "recsys_index_live_recall_count",
    ):
        until(lambda name=name: name in text(), within_s=10, what=name)


def test_a_replica_that_starts_late_knows_what_was_written(shop: Service) -> None:
    row, vector = next_row(), -VECTORS[9]
    post(shop, "before it started", vector=vector.tolist())
    deployment = f"Shard{shard_of_rows(np.array([row]), SHARDS)[0]}"
    before = replica_pids(deployment)
    with shop.asking({"user_id": "u007", "n": 5}) as replies:
        os.kill(before[0], signal.SIGKILL)
        until(lambda: len(set(replica_pids(deployment)) - {before[0]}) == 2, within_s=60, what="a new one")
        until(lambda: answers_of(row, vector) == [True, True], within_s=60, what="both answer, and find it")
    assert {reply.status for reply in replies} == {200}
    delete(shop, "before it started")


def answers_of(row: int, vector: np.ndarray) -> list[bool]:
    """As `found_by_each`, while replicas may be lost or about to start."""
    try:
        return found_by_each(row, vector)
    except (RayError, AttributeError):  # a replica that still loads has nothing to call
        return []


def test_a_rebuilt_index_takes_over_without_a_failed_request(
    shop: Service, release: Release, tmp_path: Path
) -> None:
    row, vector = next_row(), -VECTORS[3]
    post(shop, "kept by the rebuild", vector=vector.tolist())
    rebuilt = with_new_index(shop, release, tmp_path)
    with shop.asking({"user_id": "u009", "n": 10}, clients=4) as replies:
        until(lambda: len(replies) > 10, within_s=20, what="answers before")
        shop.deploy("cluster", rebuilt, Shard1=1)
        until(lambda: replies[-1].body["release"] == rebuilt.manifest.id, within_s=30, what="the new one")
        post(shop, "kept by the rebuild", price=2.0)
        until(lambda: all(answers_of(row, vector) or [False]), within_s=10, what="found in the new index")
    assert {reply.status for reply in replies} == {200}
    assert {len(reply.body["items"]) for reply in replies} == {10}
    assert {reply.body["release"] for reply in replies} == {release.manifest.id, rebuilt.manifest.id}
    delete(shop, "kept by the rebuild")
    until(lambda: not any(answers_of(row, vector) or [True]), within_s=5, what="gone from the new index")


def test_the_only_replica_of_a_shard_is_killed_and_answers_say_so(shop: Service) -> None:
    """In the placement that the test before has left."""
    (pid,) = replica_pids("Shard1")
    with shop.asking({"user_id": "u007", "n": 10}) as replies:
        until(lambda: len(replies) > 10, within_s=20, what="answers before")
        os.kill(pid, signal.SIGKILL)
        until(lambda: replies[-1].body["degraded"] == ["two_tower:1"], within_s=20, what="a partial answer")
        until(lambda: not any(r.body["degraded"] for r in replies[-10:]), within_s=60, what="whole again")
    assert {reply.status for reply in replies} == {200}
    assert {len(reply.body["items"]) for reply in replies} == {10}
    told = {tuple(reply.body["degraded"]) for reply in replies}
    assert told <= {(), ("two_tower:1",), ("two_tower",)}


def with_new_index(shop: Service, release: Release, folder: Path) -> Release:
    """As `jobs.build_index --release` makes it."""
    from jobs.build_index import vectors_now

    vectors, position = vectors_now(release, load_parts(release), settings=shop.settings)
    build_index(VectorArray(vectors), folder, settings=IndexSettings(shards=SHARDS), built_at=position.offset)
    made = with_parts(release, index_parts(folder, of=vectors), instead_of=INDEX)
    live = LiveCatalog.of_path(made, load_parts(made), shards=True)
    shared = set(made.manifest.parts.items()) & set(release.manifest.parts.items())
    assert {name for name, _ in shared} >= {n for n in made.manifest.parts if not n.startswith(INDEX)}
    assert sum(shard.shard.fresh.alive for shard in live.shards) == 0
    return made
