"""Merges small files of the event store and deletes replaced ones, beside a running ingestion.

    python -m jobs.tidy_events --keep-hours 168

A store that is fed continuously gets a file for each commit and month: run this once a day.
"""

from dataclasses import asdict
from typing import Any

from jobs.session import run_job
from jobs.workspace import Progress, open_store, silent
from recsys.events.maintenance import compact, vacuum
from recsys.settings import Settings


def run(settings: Settings, *, progress: Progress = silent, keep_hours: int = 168) -> dict[str, Any]:
    store = open_store(settings)
    progress(0.0, "merging small files")
    merged = compact(store)
    progress(0.5, "deleting replaced files")
    return asdict(merged) | {"deleted": vacuum(store, keep_hours=keep_hours)}


if __name__ == "__main__":
    run_job(
        run, description=__doc__, keep_hours="how long replaced files stay, for readers of older versions"
    )
