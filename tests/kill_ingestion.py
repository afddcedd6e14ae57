"""Ingestion as a process that is killed with SIGKILL, and whether the store is whole afterwards.

The job, its committer, a reader or a task dies; the job is started again where nobody else does that.
At the end the audit must add up, and the ids in the table must be those that were produced and are
valid, each once.
"""

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml

from recsys.events.audit import audit
from recsys.events.bus import BusSettings, open_bus
from recsys.events.codec import decode_events
from recsys.events.store import EventStore

ROOT = Path(__file__).parent.parent
PATIENCE_S = 120.0
TARGETS = {"bounded": ("job", "ray::Read"), "continuous": ("job", "ray::CommitterActor", "ray::Reader")}


def produce(
    settings: BusSettings, *, count: int, seed: int, until: threading.Event | None = None
) -> Counter[str]:
    """Publishes `count` events at once, or so many a second `until` then; some twice, some invalid.

    How often each valid id came.
    """
    bus, rng = open_bus(settings), random.Random(seed)
    ids: Counter[str] = Counter()
    sent: list[dict[str, Any]] = []
    step = count // 10
    for start in itertools.count(0, step):
        if until.is_set() if until else start >= count:
            break
        bodies = []
        for number in range(start, start + step):
            event = {
                "event_id": f"{seed}-{number}",
                "user_id": f"u{number % 97}",
                "item_id": "i",
                "event_type": "click" if rng.random() > 0.01 else "nonsense",
                "timestamp": "2026-01-01T00:00:00Z",
            }
            again = rng.choice(sent) if sent and rng.random() < 0.02 else None
            sent.append(event)
            bodies += [event] if again is None else [event, again]
        bus.publish(decode_events(bodies))
        ids.update(body["event_id"] for body in bodies if body["event_type"] == "click")
        if until:
            until.wait(0.1)
    bus.close()
    return ids


class Job:
    """`python -m jobs.ingest` as a process of its own."""

    def __init__(self, folder: Path, mode: str) -> None:
        self.folder, self.mode = folder, mode
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        flag = "--bus" if self.mode == "bounded" else "--follow"
        with (self.folder / "job.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jobs.ingest", flag, "--config", str(self.folder / "recsys.yaml")],
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def find(self, target: str, rng: random.Random) -> int | None:
        """Process id of the job itself, or of one of its Ray processes by the beginning of its title."""
        if not self.running or self.process is None:
            return None
        if target == "job":
            return self.process.pid
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if " ".join(child.cmdline()).startswith(target):
                    found.append(child.pid)
            except psutil.Error:
                continue
        return rng.choice(sorted(found)) if found else None

    def kill(self, target: str, rng: random.Random) -> bool:
        pid = self.find(target, rng)
        if pid is None:
            return False
        os.kill(pid, signal.SIGKILL)
        if target == "job" and self.process is not None:
            self.process.wait()
        return True

    def finish(self) -> None:
        if self.process is not None and self.mode == "continuous":
            self.process.terminate()
        # -TERM: it was told before it had come so far as to listen.
        fine = (0, -signal.SIGTERM) if self.mode == "continuous" else (0,)
        if self.process is not None and self.process.wait(timeout=PATIENCE_S) not in fine:
            raise AssertionError(f"the job failed: {(self.folder / 'job.log').read_text()[-2000:]}")


def survive(
    url: str, mode: str, folder: Path, *, targets: Sequence[str], seed: int = 1, count: int = 20_000
) -> dict[str, Any]:
    """Runs ingestion with a kill -9 of each of `targets` at a random moment. Raises AssertionError."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    bus_settings = BusSettings(url=url, topic=f"kill-{uuid.uuid4().hex[:8]}", partitions=3)
    tree = {
        "workdir": str(folder),
        "bus": {"url": url, "topic": bus_settings.topic, "partitions": 3},
        "ingestion": {"commit_s": 0.3, "commit_events": 500},
    }
    (folder / "recsys.yaml").write_text(yaml.safe_dump(tree))
    store, bus, job = EventStore(str(folder / "events")), open_bus(bus_settings), Job(folder, mode)
    produced: list[Counter[str]] = []
    enough = None if mode == "bounded" else threading.Event()
    producer = threading.Thread(
        target=lambda: produced.append(produce(bus_settings, count=count, seed=seed, until=enough))
    )
    producer.start()
    if mode == "bounded":
        producer.join()
    kills = 0
    for target in targets:
        if not job.running:
            job.start()
        before = store.version()
        _until(lambda before=before: store.version() > before or not job.running, "a commit")
        time.sleep(rng.random() * 0.2)
        while job.running:
            if job.kill(target, rng):
                kills += 1
                break
            time.sleep(0.01)  # a task between two others
    if enough:
        enough.set()
    producer.join()
    if not job.running:
        job.start()
    if mode == "continuous":
        ends = bus.end_offsets()
        _until(lambda: store.committed(bus.topic, bus.partitions) == ends, "all to be committed", job)
    job.finish()
    found = audit(store, bus)
    bus.close()
    assert found.adds_up, found
    assert all(line.lag_messages == 0 for line in found.partitions), found
    stored = store.read(columns=["event_id"])["event_id"].to_pylist()
    assert sorted(stored) == sorted(produced[0]), "the ids in the table are not those that were produced"
    copies = sum(produced[0].values()) - len(produced[0])
    assert sum(line.duplicate for line in found.partitions) == copies, found
    return {"what": f"{url.partition(':')[0]}, {mode}", "kills": kills, "events": len(stored), "whole": "yes"}


def _until(condition: Any, what: str, job: Job | None = None) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline or (job is not None and not job.running):
            log = (job.folder / "job.log").read_text()[-2000:] if job else ""
            raise AssertionError(f"waited in vain for {what}: {log}")
        time.sleep(0.02)
