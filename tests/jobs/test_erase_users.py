"""Erasure from both stores, while the follower of the bus lags behind."""

from datetime import UTC, datetime

import numpy as np

from jobs.erase_users import erase_users
from jobs.workspace import open_store
from recsys.events.bus import BusSettings, open_bus
from recsys.events.codec import decode_events
from recsys.events.validation import ValidationSettings
from recsys.events.wire import Decoder
from recsys.features.online import OnlineStore
from recsys.features.streaming import Applied, follow
from recsys.settings import OnlineStore as OnlineStoreSettings
from recsys.settings import Settings
from tests.events_on_bus import body, ingest


def test_who_was_erased_stays_out_of_both_stores_whoever_lags(tmp_path, redis_url, redis_client):
    settings = Settings(workdir=str(tmp_path), online_store=OnlineStoreSettings(url=redis_url))
    bus, online = open_bus(BusSettings(redis_url, partitions=1)), OnlineStore(redis_client)
    told: list[Applied] = []

    def catch_up() -> None:
        follow(
            bus,
            online,
            partitions=[0],
            rows_of=lambda ids: np.zeros(len(ids), np.int32),
            stop=lambda: online.applied_offset(bus.topic, 0) >= bus.end_offsets()[0],
            event_types=("click",),
            decoder=Decoder(),
            validation=ValidationSettings(),
            horizon_s=3600.0,
            on_applied=lambda batch, applied: told.append(applied),
            block_ms=20,
        )

    bus.publish(decode_events([body(n) for n in range(10)]))
    catch_up()
    bus.publish(decode_events([body(n) for n in range(10, 20)]))  # the follower lags
    ingest(open_store(settings), bus)
    done = erase_users(settings, ["u1", "u2"])
    assert (done["events"], done["histories"]) == (8, 2)
    catch_up()
    users = online.get(["u0", "u1", "u2", "u3"], now=0)
    assert users.histories.counts.tolist() == [4, 0, 0, 4]
    assert told[-1].erased == 4
    now = datetime.now(UTC).isoformat()
    bus.publish(decode_events([body(21), body(22), body(31, timestamp=now)]))  # two that were sent late
    catch_up()
    ingest(open_store(settings), bus)
    assert online.get(["u1", "u2"], now=0).histories.counts.tolist() == [1, 0], "later events are welcome"
    assert open_store(settings).count() == 12 + 1
