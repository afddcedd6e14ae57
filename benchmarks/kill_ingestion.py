"""Kills ingestion with SIGKILL at random points and looks whether the store is whole.

    python -m benchmarks.kill_ingestion [--quick] [--json FILE] [--kills 20] [--seed 1]

For Kafka and Redis, bounded (`--bus`) and continuous (`--follow`): the job, its committer, a reader or
a task dies; it is started again where nobody else does that; at the end the audit must add up, and the
ids in the table must be those that were produced and are valid, each once. Needs `make kafka`.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.report import arguments, report
from recsys.events.audit import audit
from recsys.events.bus import BusSettings, open_bus
from recsys.events.codec import decode_events
from recsys.events.redis_server import start_redis
from recsys.events.store import EventStore
from tests.kafka_server import new_kafka

ROOT = Path(__file__).parent.parent
PATIENCE_S = 120.0
TARGETS = {"bounded": ("job", "ray::Read"), "continuous": ("job", "ray::CommitterActor", "ray::Reader")}


def produce(settings: BusSettings, *, count: int, seed: int, seconds: float) -> Counter[str]:
    """Publishes `count` events over `seconds`, some twice, some invalid; how often each valid id came."""
    bus, rng = open_bus(settings), random.Random(seed)
    ids: Counter[str] = Counter()
    sent: list[dict[str, Any]] = []
    for start in range(0, count, 500):
        bodies = []
        for number in range(start, start + 500):
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
        time.sleep(seconds * 500 / count)
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

    def find(self, target: str) -> int | None:
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
        return random.choice(found) if found else None

    def kill(self, target: str) -> bool:
        pid = self.find(target)
        if pid is None:
            return False
        os.kill(pid, signal.SIGKILL)
        if target == "job" and self.process is not None:
            self.process.wait()
        return True

    def finish(self) -> None:
        if self.process is not None and self.mode == "continuous":
            self.process.terminate()
        if self.process is not None and self.process.wait(timeout=PATIENCE_S):
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
    seconds = 0.0 if mode == "bounded" else 4.0 * len(targets)
    producer = threading.Thread(
        target=lambda: produced.append(produce(bus_settings, count=count, seed=seed, seconds=seconds))
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
        time.sleep(rng.random() * 0.5)
        kills += job.kill(target)
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


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    kills = 4 if options.quick else options.kills
    rng = random.Random(options.seed)
    rows = []
    with tempfile.TemporaryDirectory(prefix="recsys-kill-") as name:
        folder = Path(name)
        with new_kafka(folder / "kafka") as kafka, start_redis(folder / "redis") as redis:
            for url in (kafka.url, redis.url):
                for mode, possible in TARGETS.items():
                    targets = [rng.choice(possible) for _ in range(kills)]
                    start = time.perf_counter()
                    row = survive(
                        url,
                        mode,
                        folder / uuid.uuid4().hex[:8],
                        targets=targets,
                        seed=rng.randrange(1 << 30),
                        count=2000 * kills,
                    )
                    rows.append(row | {"seconds": round(time.perf_counter() - start)})
                    print(rows[-1], dict(Counter(targets)), flush=True)
    report(rows, {}, path=options.json)


if __name__ == "__main__":
    main()
