"""Events for tests of the bus and the store, and the shortest way from one to the other."""

import random
from typing import Any

from recsys.events.batch import judge
from recsys.events.bus import Bus
from recsys.events.committer import Committer, IngestionSettings
from recsys.events.store import EventStore
from recsys.events.validation import ValidationSettings
from recsys.events.wire import Decoder


def body(number: int, **changes: Any) -> dict[str, Any]:
    event = {"event_id": f"e{number}", "user_id": f"u{number % 5}", "item_id": "i", "event_type": "click"}
    return event | {"timestamp": "2026-01-01T00:00:00Z"} | changes


def some_bodies(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """Events of which some come twice and some are invalid."""
    rng, bodies = random.Random(seed), list[dict[str, Any]]()
    for number in range(count):
        bodies.append(body(number, event_type="nonsense" if rng.random() < 0.1 else "click"))
        if rng.random() < 0.2:
            bodies.append(rng.choice(bodies))
    return bodies


def new_committer(store: EventStore, bus: Bus, **settings: Any) -> Committer:
    return Committer(
        store, topic=bus.topic, begin=bus.begin_offsets(), settings=IngestionSettings(**settings)
    )


def read_into(committer: Committer, bus: Bus, *, limit: int = 20, commits: bool = True) -> None:
    """All that the bus holds, in this process, with a commit for each batch."""
    decoder, validation = Decoder(), ValidationSettings()
    for partition, end in bus.end_offsets().items():
        while (start := committer.next[partition]) < end:
            records = bus.read(partition, start=start, limit=limit)
            batch = judge(records, start=start, topic=bus.topic, decoder=decoder, validation=validation)
            committer.add(batch)
            if commits:
                committer.commit()
                bus.note_positions("ingestion", committer.committed)


def ingest(store: EventStore, bus: Bus) -> None:
    read_into(new_committer(store, bus), bus)
