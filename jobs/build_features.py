"""Materializes the users as of the release's moment: their histories to the online store.

    python -m jobs.build_features

Item columns are fitted with the models (`jobs.train_retrieval`), since they carry the same moment. The
user view is computed from the history at the moment of a request, by the function that training uses.
"""

import time
from contextlib import closing
from typing import Any

import numpy as np

from jobs.session import bus_session, online_store_url, run_job
from jobs.workspace import Progress, Workspace, silent
from recsys.events.bus import Bus, open_bus
from recsys.events.redis_server import connect
from recsys.features.histories import histories_at
from recsys.features.online import OnlineStore
from recsys.features.views import ITEM_FEATURES, USER_FEATURES, user_features
from recsys.settings import Settings


def run(settings: Settings, *, progress: Progress = silent) -> dict[str, Any]:
    time_to_live = int(settings.online_store.time_to_live_days * 86_400)
    # A Redis started here ends here; what was written lies in its append-only file.
    with online_store_url(settings) as url, bus_session(settings) as bus, closing(open_bus(bus)) as opened:
        store = OnlineStore(connect(url), time_to_live=time_to_live)
        return materialize(Workspace(settings), store, opened, progress=progress)


def materialize(workspace: Workspace, store: OnlineStore, bus: Bus, *, progress: Progress) -> dict[str, Any]:
    """Every user's history before the release's moment; the bus is followed from its present end."""
    log, moment = workspace.interactions, workspace.windows.held_out
    codes = np.arange(len(log.user_ids))
    histories = histories_at(log, users=codes, now=np.full(len(codes), moment))
    known = np.flatnonzero(histories.counts)
    histories = histories.take(known)
    users = [str(u) for u in log.user_ids[known]]
    progress(0.2, f"{len(users):,} users to the online store")
    store.put(users, histories=histories, as_of=moment)
    store.start_at(bus.topic, bus.end_offsets())
    progress(0.8, "looking some up")
    seconds = []
    for user in users[:: max(1, len(users) // 200)]:
        start = time.perf_counter()
        found = store.get((user,), now=moment)
        user_features(found.histories, now=np.array([moment]), category=workspace.category)
        seconds.append(time.perf_counter() - start)
    return {
        "users": len(users),
        "events": len(histories.item),
        "user_columns": len(USER_FEATURES),
        "item_columns": len(ITEM_FEATURES),
        "as_of": str(np.datetime64(moment, "s")),
        "lookup_ms_p50": round(1000 * float(np.median(seconds)), 2),
    }


if __name__ == "__main__":
    run_job(run, description=__doc__)
