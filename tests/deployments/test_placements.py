"""Placement is configuration: the same slates from every one, and a lost shard replica is no outage."""

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ray import serve

from recsys.models.blend import FittedBlend
from recsys.pipeline.offline import PointInTimeUsers, batch_of
from recsys.pipeline.wiring import recommender
from recsys.releases.manifest import write_release
from recsys.releases.parts import load_parts, local_shards
from recsys.settings import model_of
from recsys.training.snapshot import TableSettings, single_stage
from tests.deployments.service import Service, replica_pids, until
from tests.world import ITEMS, NOW, release_parts

USERS = [f"u{user:03d}" for user in range(50)]
SLATE = "/v1/recommendations"


@pytest.mark.parametrize("config", ["laptop", "staged", "cluster"])
def test_every_placement_gives_the_slates_of_the_plain_recommender(service: Service, config: str) -> None:
    service.use(config)
    plain = recommender(
        load_parts(service.release),
        users=PointInTimeUsers(service.world.interactions, NOW),
        shards=local_shards(service.release),
    )
    for scene in ("home", "discover"):
        expected = asyncio.run(plain.recommend(batch_of(USERS, scene=scene, now=NOW, n=10))).slates
        replies = service.slates([{"user_id": user, "scene": scene, "n": 10} for user in USERS])
        for slate, reply in zip(expected, replies, strict=True):
            assert reply.status == 200
            assert reply.body["degraded"] == list(slate.degraded)
            assert reply.body["arms"] == dict(slate.arms)
            assert [item["item_id"] for item in reply.body["items"]] == [f"i{i.item}" for i in slate.items]
            assert [item["score"] for item in reply.body["items"]] == pytest.approx(
                [i.score for i in slate.items], abs=1e-5
            )


def test_the_service_answers_while_a_shard_replica_is_killed(service: Service) -> None:
    service.use("cluster")
    before = replica_pids("Shard0")
    assert len(before) >= 2
    with service.asking({"user_id": "u007", "n": 5}) as replies:
        until(lambda: len(replies) > 20, within_s=20, what="answers before the kill")
        os.kill(before[0], signal.SIGKILL)
        until(
            lambda: len(set(replica_pids("Shard0")) - {before[0]}) >= 2 and _running("Shard0") >= 2,
            within_s=60,
            what="the lost replica is back",
        )
    assert {reply.status for reply in replies} == {200}
    assert {what for reply in replies for what in reply.body["degraded"]} <= {"two_tower:0", "two_tower"}


def test_a_purchase_is_known_to_every_replica(service: Service) -> None:
    service.use("cluster")
    assert len(replica_pids("Gateway")) == 2
    ask = {"user_id": "u112", "scene": "discover", "n": 10}
    bought = service.ask(SLATE, ask).body["items"][0]["item_id"]
    service.ask("/v1/events", {"user_id": "u112", "item_id": bought, "event_type": "purchase"})

    def shown() -> bool:
        return any(
            bought in [item["item_id"] for item in reply.body["items"]]
            for reply in service.slates([ask] * 30)
        )

    until(lambda: not shown(), within_s=2.0, what="hidden by every replica")
    assert not shown()


def test_a_single_stage_is_placed_and_asked_like_any_release(service: Service, tmp_path: Path) -> None:
    """Without rankers: what ranks elsewhere leaves the order of the models, and is not missing."""
    made = service.world.parts
    log = service.world.interactions.before(NOW)
    parts = {name: model_of(name).fit(log, seed=0) for name in ("covisitation", "normalized_ease")}
    snapshot = single_stage(
        FittedBlend(parts, np.array([0.6, 0.4], np.float32), 10.0),
        log,
        as_of=NOW,
        category=made.snapshot.category,
        settings=TableSettings(),
        seed=0,
    )
    written = release_parts(replace(made, snapshot=snapshot, rankers={}), tmp_path / "index")
    release = write_release(tmp_path, written, as_of=NOW, items=ITEMS)
    before = service.release
    service.deploy("cluster", release)
    try:
        plain = recommender(
            load_parts(release), users=PointInTimeUsers(log, NOW), shards=local_shards(release)
        )
        for scene in ("home", "discover"):
            expected = asyncio.run(plain.recommend(batch_of(USERS[:20], scene=scene, now=NOW, n=10))).slates
            replies = service.slates([{"user_id": user, "scene": scene, "n": 10} for user in USERS[:20]])
            for slate, reply in zip(expected, replies, strict=True):
                assert reply.body["release"] == release.manifest.id
                assert reply.body["degraded"] == []
                found = [(item["item_id"], set(item["sources"])) for item in reply.body["items"]]
                assert found == [(f"i{i.item}", {s.label for s in i.sources}) for i in slate.items]
                assert all(item["score"] > 0 for item in reply.body["items"])
        near = service.ask("/v1/similar/i7?n=3").body
        assert len(near["items"]) == 3
        assert near["items"][0]["score"] >= near["items"][2]["score"]
    finally:
        service.placement, service.release = "none", before  # whoever comes next deploys anew


def _running(deployment: str) -> int:
    return serve.status().applications["recsys"].deployments[deployment].replica_states.get("RUNNING", 0)
