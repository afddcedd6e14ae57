"""Speed of the event path on real Kafka: produce, bus -> Delta, lag of continuous ingestion, collector.

    python -m benchmarks.ingestion [--quick] [--json FILE]

Needs `make kafka`. Events have 200 bytes on the bus. The topic is filled beforehand. Our path decodes,
judges, drops duplicates and commits to Delta with offsets; it stands beside two loops over the same
topic with a bare kafka-python consumer in one process: one that writes the bodies as they are, in one
binary column, and one that decodes them with fastavro into the same columns as ours.
"""

import http.client
import io
import json
import random
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from benchmarks.report import arguments, report
from deployments.server import free_port, prepare, start
from recsys.events.audit import audit
from recsys.events.bus import Bus, BusSettings, open_bus
from recsys.events.committer import IngestionSettings
from recsys.events.following import Following, Status, follow
from recsys.events.ingestion import ingest_bus
from recsys.events.schema import EVENT_SCHEMA
from recsys.events.store import EventStore
from recsys.events.validation import ValidationSettings
from recsys.events.wire import encode
from recsys.events.writer_schemas import event_schema
from recsys.memory import family_kb
from recsys.releases.manifest import write_release
from recsys.settings import Serving, Settings
from tests.kafka_server import new_kafka
from tests.world import ITEMS, NOW, release_parts, world

CHUNK = 20_000
RATE = 2000  # events/s of the lag measurement


def events_of(count: int, *, first: int = 0, users: int = 10_000) -> pa.Table:
    """`count` events that take 200 bytes each on the bus."""
    numbers = np.arange(first, first + count)
    rng = np.random.default_rng(first)
    text = pa.array(numbers).cast(pa.string())
    context = pa.StructArray.from_arrays(
        [
            pa.array(["mobile"] * count),
            pa.array([f"session-{n % 5000:08d}" for n in numbers]),
            pa.array(["https://shop.example/garden?page=3"] * count),
            pa.array(rng.integers(1, 40, count).astype(np.int32)),
            pa.array([f"{n:032x}" for n in rng.integers(0, 2**60, count)]),
            pa.array(["GB"] * count),
        ],
        fields=list(EVENT_SCHEMA.field("context").type),
    )
    columns = {
        "event_id": pa.array([f"{n:032x}" for n in numbers]),
        "user_id": pa.array([f"user-{n}" for n in rng.integers(0, users, count)]),
        "item_id": pa.array([f"item-{n}" for n in rng.integers(0, 50_000, count)]),
        "event_type": pa.array(rng.choice(["view", "click", "purchase"], count, p=[0.8, 0.17, 0.03])),
        "timestamp": pa.array(np.full(count, int(time.time() * 1e6))).cast(
            EVENT_SCHEMA.field("timestamp").type
        ),
        "value": pa.array(rng.random(count) + 0.01),
        "order_id": text,
        "context": context,
    }
    return pa.Table.from_arrays(
        [columns.get(f.name, pa.nulls(count, f.type)) for f in EVENT_SCHEMA], schema=EVENT_SCHEMA
    )


def fill(bus: Bus, count: int) -> float:
    """Publishes `count` events; events/s, without the making of them."""
    seconds = 0.0
    for first in range(0, count, CHUNK):
        events = events_of(min(CHUNK, count - first), first=first)
        start = time.perf_counter()
        bus.publish(events)
        seconds += time.perf_counter() - start
    return count / seconds


def bare_producer(servers: str, topic: str, bodies: list[bytes]) -> float:
    producer = KafkaProducer(bootstrap_servers=servers, acks="all", enable_idempotence=True, linger_ms=20)
    start = time.perf_counter()
    for number, body in enumerate(bodies):
        producer.send(topic, body, key=b"user-%d" % (number % 10_000))
    producer.flush()
    rate = len(bodies) / (time.perf_counter() - start)
    producer.close()
    return rate


def consumed(servers: str, topic: str, partitions: int, count: int) -> Iterator[list[bytes]]:
    """All bodies of the topic by one bare consumer, in chunks."""
    consumer = KafkaConsumer(
        bootstrap_servers=servers,
        max_poll_records=CHUNK,
        fetch_max_bytes=1 << 26,
        max_partition_fetch_bytes=1 << 23,
    )
    consumer.assign([TopicPartition(topic, p) for p in range(partitions)])
    consumer.seek_to_beginning()
    read = 0
    while read < count:
        records = [record for found in consumer.poll(timeout_ms=1000).values() for record in found]
        read += len(records)
        yield [record.value for record in records]
    consumer.close()


def plain_loop(chunks: Iterator[list[bytes]], folder: Path, *, decode: bool) -> int:
    """Writes the chunks as Parquet files of some 500,000 rows; rows written."""
    schema = fastavro.parse_schema(event_schema())
    held: list[pa.Table] = []
    written = 0

    def write() -> None:
        nonlocal written
        table = pa.concat_tables(held)
        pq.write_table(table, folder / f"{written}.parquet", compression="zstd")
        written += len(table)
        held.clear()

    for bodies in chunks:
        if decode:
            rows = [fastavro.schemaless_reader(io.BytesIO(body[10:]), schema, None) for body in bodies]
            held.append(pa.Table.from_pylist(rows, schema=EVENT_SCHEMA))
        else:
            held.append(pa.table({"body": pa.array(bodies, pa.binary())}))
        if sum(len(table) for table in held) >= 500_000:
            write()
    if held:
        write()
    return written


class Memory:
    """Private and shared memory of this process and all that it started, sampled: whether it grows."""

    def __init__(self) -> None:
        self.samples: list[float] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            self.samples.append(family_kb(without="java") / 1024)  # the broker is not ours

    def at(self, share: float) -> float:
        """MB at this share of the time; the largest of the five samples around it."""
        place = int(share * (len(self.samples) - 1))
        return max(self.samples[max(0, place - 2) : place + 3], default=0.0)


def lag(settings: BusSettings, folder: Path, seconds: int) -> dict[str, Any]:
    """Continuous ingestion at RATE events/s: the longest lag of each commit, from the bus's append."""
    bus = open_bus(settings)
    done = threading.Event()
    statuses: dict[int, Status] = {}

    def produce() -> None:
        begin, sent = time.monotonic(), 0
        while (passed := time.monotonic() - begin) < seconds:
            if due := int(passed * RATE) - sent:
                bus.publish(events_of(due, first=10_000_000 + sent))
                sent += due
            time.sleep(0.02)
        done.set()

    following = Following(
        settings, ValidationSettings(), IngestionSettings(commit_s=2.0), {"uri": str(folder / "followed")}
    )
    thread = threading.Thread(target=produce)
    started = False

    def told(status: Status) -> None:
        nonlocal started
        if status.pids and not started:
            started = True
            thread.start()
        if status.last is not None:
            statuses[status.commits] = status

    follow(following, stop=done.is_set, report=told)
    thread.join()
    found = audit(EventStore(str(folder / "followed")), bus)
    bus.close()
    read = np.array([s.last.read_lag_ms for s in statuses.values() if s.last])
    commit = np.array([s.last.commit_lag_ms for s in statuses.values() if s.last])
    return {
        "events": sum(line.stored for line in found.partitions),
        "adds_up": found.adds_up,
        "read_ms": (float(np.median(read)), float(read.max())),
        "commit_ms": (float(np.median(commit)), float(commit.max())),
    }


def collector(bus: BusSettings, folder: Path, *, seconds: float, clients: int = 16) -> float:
    """Events/s that the service takes over HTTP in batches of 100, in the laptop placement."""
    made = world()
    release = write_release(
        folder / "artifacts", release_parts(made.parts, folder / "index"), as_of=NOW, items=ITEMS
    )
    settings = Settings(workdir=str(folder), serving=Serving(port=free_port()), bus=bus)
    bodies = [
        json.dumps(
            [
                {
                    "event_id": uuid.uuid4().hex,
                    "user_id": f"u{n}",
                    "item_id": f"item-{n}",
                    "event_type": "view",
                }
                | {"context": {"device": "mobile", "page": "home", "position": n % 40 + 1, "country": "GB"}}
                for n in range(100)
            ]
        )
        for _ in range(200)
    ]
    taken, done = [0] * clients, threading.Event()

    def post(client: int, port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        while not done.is_set():
            connection.request("POST", "/v1/events", random.choice(bodies))
            answer = connection.getresponse()
            if answer.status == 200:
                taken[client] += json.loads(answer.read())["accepted"]
            else:
                answer.read()

    with start("laptop", settings=settings, release=release.uri):
        threads = [threading.Thread(target=post, args=(n, settings.serving.port)) for n in range(clients)]
        for thread in threads:
            thread.start()
        time.sleep(2)
        before = sum(taken)
        time.sleep(seconds)
        rate = (sum(taken) - before) / seconds
        done.set()
        for thread in threads:
            thread.join()
    return rate


def main() -> None:
    parser = arguments(__doc__)
    options = parser.parse_args()
    count = 1_500_000 if options.quick else 5_000_000
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}

    def add(what: str, rate: float, note: str = "") -> None:
        rows.append({"what": what, "events/s": float(rate), "note": note})
        print(f"{what}: {rate:,.0f} events/s {note}", flush=True)

    with ExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="recsys-bench-")))
        kafka = ends.enter_context(new_kafka(folder / "kafka"))
        servers = kafka.url.removeprefix("kafka://")
        settings = BusSettings(url=kafka.url, topic=f"bench-{uuid.uuid4().hex[:8]}")
        bus = open_bus(settings)
        ends.callback(bus.close)
        sample = encode(events_of(50_000))
        print(f"bytes of an event on the bus: {np.mean([len(b) for b in sample]):.0f}")
        other = open_bus(BusSettings(url=kafka.url, topic="bare"))
        add("bare kafka-python producer, bodies ready", bare_producer(servers, "bare", sample))
        other.close()
        add("bus.publish, from Arrow", fill(bus, count))
        for decode, name in ((False, "plain loop, bodies as they are"), (True, "plain loop, decoded")):
            into = folder / "plain"
            into.mkdir()
            start = time.perf_counter()
            written = plain_loop(
                consumed(servers, settings.topic, bus.partitions, count), into, decode=decode
            )
            assert written == count
            add(name, count / (time.perf_counter() - start))
            shutil.rmtree(into)
        prepare()  # Serve reads its environment from the Ray that it runs on
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        ends.callback(ray.shutdown)
        store = EventStore(str(folder / "store"))
        with Memory() as memory:
            start = time.perf_counter()
            done = ingest_bus(
                bus,
                bus_settings=settings,
                store=store,
                settings=IngestionSettings(),
                validation=ValidationSettings(),
            )
            seconds = time.perf_counter() - start
        found = audit(store, bus)
        assert found.adds_up
        assert done.stored == count
        told = ", ".join(f"{memory.at(share):,.0f}" for share in (0.2, 0.4, 0.6, 0.8, 1.0))
        add("bus -> Delta (bounded, Ray Data)", count / seconds, f"MB at 20, 40, ... 100 %: {told}")
        ratios["bus_to_delta_vs_plain_loop"] = rows[-1]["events/s"] / rows[-3]["events/s"]
        ratios["bus_to_delta_vs_decoding_loop"] = rows[-1]["events/s"] / rows[-2]["events/s"]
        ratios["memory_at_the_end_vs_at_40_percent"] = memory.at(1.0) / memory.at(0.4)
        late = lag(
            BusSettings(url=kafka.url, topic=f"lag-{uuid.uuid4().hex[:8]}"),
            folder,
            15 if options.quick else 60,
        )
        note = (
            "append to read ms, longest of a commit: "
            f"median {late['read_ms'][0]:.0f}, max {late['read_ms'][1]:.0f}; "
            f"to commit {late['commit_ms'][0]:.0f}, {late['commit_ms'][1]:.0f}; adds up: {late['adds_up']}"
        )
        add(f"continuous, {RATE} events/s offered", late["events"] / (15 if options.quick else 60), note)
        for name, url in (("Redis Streams", None), ("Kafka", kafka.url)):
            where = BusSettings(url=url, topic=f"http-{uuid.uuid4().hex[:8]}")
            rate = collector(where, folder / name, seconds=5 if options.quick else 20)
            add(f"collector over HTTP, 100 events a request, {name}", rate, "16 clients on the same cores")
    report(rows, ratios, path=options.json)


if __name__ == "__main__":
    main()
