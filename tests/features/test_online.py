"""The online store on a real Redis, against a slow reader that unpacks user by user."""

import struct

import numpy as np
import pytest

from recsys.errors import DataError, UnavailableError
from recsys.events.redis_server import connect, start_redis
from recsys.features.online import OnlineStore, OnlineUsers
from recsys.types import Histories, offsets_of


def random_histories(rng: np.random.Generator, counts) -> Histories:
    total = int(np.sum(counts))
    value = rng.random(total).astype(np.float32)
    value[::3] = np.nan
    return Histories(
        offsets=offsets_of(np.asarray(counts)),
        item=rng.integers(0, 2**31 - 1, total).astype(np.int32),
        time=rng.integers(-(2**62), 2**62, total),
        quantity=rng.random(total).astype(np.float32),
        value=value,
        order=rng.integers(-(2**63), 2**63 - 1, total),
    )


def slow_get(client, namespace: str, user_ids) -> OnlineUsers:
    """The specification of the format: one key, one field after the other."""
    parts, births, times, known = [], [], [], []
    for user in user_ids:
        blob = client.get(f"recsys:{namespace}:user:{user}")
        known.append(blob is not None)
        if blob is None:
            parts.append(Histories.empty(1))
            births.append(0)
            times.append(0)
            continue
        version, _, n, birth, _, as_of, _ = struct.unpack_from("<HHIiiqq", blob)
        assert version == 1
        places = [(n, "q", 0), (n, "q", 8), (n, "i", 16), (n, "f", 20), (n, "f", 24)]
        time, order, item, quantity, value = (
            struct.unpack_from(f"<{count}{kind}", blob, 32 + at * n) for count, kind, at in places
        )
        parts.append(
            Histories(
                offsets_of(np.array([n])),
                np.array(item, np.int32),
                np.array(time, np.int64),
                np.array(quantity, np.float32),
                np.array(value, np.float32),
                np.array(order, np.int64),
            )
        )
        births.append(birth)
        times.append(as_of)
    return OnlineUsers(
        Histories.concatenate(parts),
        np.array(births, np.int32),
        np.array(times, np.int64),
        np.array(known),
    )


def assert_same(one: OnlineUsers, two: OnlineUsers) -> None:
    for name in ("offsets", *Histories.COLUMNS):
        a, b = getattr(one.histories, name), getattr(two.histories, name)
        assert a.dtype == b.dtype
        assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f"), name
    for name in ("birth_year", "as_of", "known"):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name
        assert getattr(one, name).dtype == getattr(two, name).dtype


def test_one_read_equals_the_slow_reader(redis_client):
    rng = np.random.default_rng(0)
    store = OnlineStore(redis_client, namespace="r1")
    counts = rng.integers(0, 40, 1500)
    counts[:3] = (0, 1, 300)
    users = [f"u{n}" for n in range(1500)]
    births = rng.integers(1920, 2010, 1500)
    store.put(
        users,
        histories=random_histories(rng, counts),
        as_of=np.arange(1500),
        birth_year=births,
    )
    for asked in (users, ["nobody"], ["u2", "nobody", "u0", "u2", "ü"], ["u1"]):
        assert_same(store.get(asked, now=0), slow_get(redis_client, "r1", asked))
    assert len(store.get([], now=0).known) == 0
    other = OnlineStore(redis_client, namespace="r2")
    assert not other.get(["u1"], now=0).known.any()


def test_values_past_their_time_to_live_are_missing(redis_client):
    """A peer enforced it offline only, and served stale features online."""
    store = OnlineStore(redis_client, namespace="r", time_to_live=100)
    histories = random_histories(np.random.default_rng(1), [2, 3])
    store.put(
        ["old", "new"],
        histories=histories,
        as_of=np.array([1000, 1050]),
    )
    assert store.get(["old", "new"], now=1099).known.tolist() == [True, True]
    users = store.get(["old", "new"], now=1100)
    assert users.known.tolist() == [False, True]
    assert users.histories.counts.tolist() == [0, 3]
    assert users.as_of.tolist() == [0, 1050]
    assert np.array_equal(users.histories.time, histories.time[2:])
    assert 100 < redis_client.ttl("recsys:r:user:old") <= 200


def test_only_the_newest_events_are_kept(redis_client):
    store = OnlineStore(redis_client, namespace="r", max_history=2)
    histories = random_histories(np.random.default_rng(1), [3, 1])
    store.put(["a", "b"], histories=histories, as_of=0)
    users = store.get(["a", "b"], now=0)
    assert users.histories.item.tolist() == histories.item[1:].tolist()


def test_a_foreign_struct_is_refused(redis_client):
    store = OnlineStore(redis_client, namespace="r")
    redis_client.set("recsys:r:user:b", b"something else, but long enough for a header")
    with pytest.raises(DataError, match="another format"):
        store.get(["b"], now=0)
    redis_client.set("recsys:r:user:b", b"short")
    with pytest.raises(DataError, match="another format"):
        store.get(["b"], now=0)


def test_a_change_that_raced_with_another_writer_is_made_again(redis_url, redis_client):
    """Read, then write: whoever wrote in between must not be overwritten."""
    store = OnlineStore(redis_client, namespace="r")
    rival = OnlineStore(connect(redis_url), namespace="r")
    seen = []

    def update(users: OnlineUsers, offset: int, erased_ms: np.ndarray):
        seen.append((int(users.birth_year[0]), offset))
        if len(seen) == 1:
            rival.put(["a"], histories=Histories.empty(1), as_of=7, birth_year=np.array([5]))
        changed = OnlineUsers(users.histories, users.birth_year + 1, users.as_of, np.ones(1, bool))
        return changed, 9

    assert store.change(["a"], topic="events", partition=0, update=update) == 9
    assert seen == [(0, 0), (5, 0)]
    assert store.get(["a"], now=0).birth_year.tolist() == [6]
    assert store.applied_offset("events", 0) == 9
    assert store.applied_offset("events", 1) == 0


def test_an_erasure_is_noted_and_deletes(redis_url, redis_client):
    store = OnlineStore(redis_client, namespace="r")
    store.put(["a", "b"], histories=Histories.empty(2), as_of=7)
    assert store.forget([], at_ms=4) == 0
    assert store.forget(["a", "nobody"], at_ms=5) == 1
    assert store.forget(["nobody"], at_ms=6) == 0
    assert store.get(["a", "b"], now=0).known.tolist() == [False, True]
    seen = []
    store.change(["a", "b", "nobody"], topic="t", partition=0, update=lambda *given: seen.append(given[2]))
    assert seen[0].tolist() == [5, 0, 6]
    other = OnlineStore(redis_client, namespace="other")
    other.change(["a"], topic="t", partition=0, update=lambda *given: seen.append(given[2]))
    assert seen[1].tolist() == [0]


def test_a_lost_redis_is_named(tmp_path):
    server = start_redis(tmp_path)
    store = OnlineStore(connect(server.url), namespace="r")
    server.stop()
    with pytest.raises(UnavailableError, match=str(server.port)):
        store.get(["a"], now=0)
