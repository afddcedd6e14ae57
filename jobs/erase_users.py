"""Erases users: their events go from the event store, their histories from the online store.

    python -m jobs.erase_users --users 12347,12348

What the bus still holds of them enters neither store again, whoever lags; the bus itself forgets it
when its retention ends. Models and releases hold no user ids.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from jobs.session import online_store_url, run_job
from jobs.workspace import Progress, open_store, silent
from recsys.events.erasure import erase
from recsys.events.redis_server import connect
from recsys.features.online import OnlineStore
from recsys.settings import Settings


def erase_users(settings: Settings, user_ids: Sequence[str]) -> dict[str, Any]:
    now_ms = int(1000 * time.time())  # one moment for both stores
    done = erase(open_store(settings), user_ids, now_ms=now_ms)
    with online_store_url(settings) as url:
        forgotten = OnlineStore(connect(url)).forget(user_ids, at_ms=now_ms)
    return asdict(done) | {"histories": forgotten}


def run(settings: Settings, *, progress: Progress = silent, users: str) -> dict[str, Any]:
    return erase_users(settings, users.split(","))


if __name__ == "__main__":
    run_job(run, description=__doc__, users="user ids, separated by commas")
