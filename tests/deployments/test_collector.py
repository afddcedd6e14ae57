"""The collector on real buses: what it accepts is on the bus, whatever ends, hangs or is sent."""

import asyncio
import http.client
import json
import os
import signal
import subprocess
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from deployments.collector import Collector, Posted, events_of, judge
from deployments.metrics import FOLDER, CollectorMetrics
from recsys.errors import RequestError, SettingsError, UnavailableError
from recsys.events.batch import judge as judge_records
from recsys.events.bus import Bus, BusSettings, open_bus
from recsys.events.redis_server import find_binary, start_redis
from recsys.events.schema import EVENT_TYPES, STORED_SCHEMA
from recsys.events.validation import DEFAULT_SETTINGS
from recsys.events.wire import Decoder
from tests.deployments.service import Service, replica_pids, until
from tests.kafka_server import need_kafka, new_kafka
from tests.world import NOW

EVENTS = "/v1/events"
VIEW = {"user_id": "u1", "item_id": "i1", "event_type": "view"}


@dataclass
class RedisBus:
    """A bus whose server can be killed and started again."""

    folder: Path
    url: str
    process: subprocess.Popen

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def start(self) -> None:
        port = self.url.rpartition(":")[2].partition("/")[0]
        options = ["--port", port, "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]
        self.process = subprocess.Popen(
            [find_binary(), *options, "--appendonly", "yes"], stdout=subprocess.DEVNULL
        )


@dataclass
class KafkaBus:
    url: str
    kill: Callable[[], None]
    start: Callable[[], None]


@pytest.fixture(params=["redis", "kafka"])
def mortal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisBus | KafkaBus]:
    """A bus on the only server, which the test kills with kill -9 and starts again."""
    if request.param == "kafka":
        need_kafka()
        with new_kafka(tmp_path) as kafka:
            yield KafkaBus(kafka.url, kafka.brokers[0].kill, kafka.brokers[0].start)
        return
    with start_redis(tmp_path) as server:
        assert server.process
        redis = RedisBus(tmp_path, server.url, server.process)
        yield redis
        redis.kill()


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CollectorMetrics:
    monkeypatch.setenv(FOLDER, str(tmp_path / "metrics"))
    return CollectorMetrics()


def collector_of(url: str, metrics: CollectorMetrics, **changed: Any) -> Collector:
    arguments: dict[str, Any] = {"queue_events": 1000, "wait_s": 30.0} | changed
    bus = BusSettings(url, topic=uuid.uuid4().hex, partitions=2)
    return Collector(bus, validation=DEFAULT_SETTINGS, metrics=metrics, **arguments)


def view(**changed: Any) -> dict[str, Any]:
    return VIEW | {"event_id": uuid.uuid4().hex} | changed


async def post(collector: Collector, events: Any) -> list[str]:
    """The ids of the accepted events."""
    results = await collector.take(json.dumps(events).encode(), now=int(time.time()))
    return [result["event_id"] for result in results if result["status"] == "accepted"]


def on_bus(bus: Bus, begins: dict[int, int] | None = None) -> pa.Table:
    """All its events from these offsets on, as a reader judges them, which finds no fault."""
    tables = [STORED_SCHEMA.empty_table()]
    for partition, end in bus.end_offsets().items():
        start = (begins or {}).get(partition, 0)
        while start < end:
            records = bus.read(partition, start=start, limit=10_000)
            batch = judge_records(
                records, start=start, topic=bus.topic, decoder=Decoder(), validation=DEFAULT_SETTINGS
            )
            assert batch.reason.null_count == len(batch.reason), batch.reason.unique()
            tables.append(batch.events)
            start = records.end
    return pa.concat_tables(tables)


def sample(metric: Any, suffix: str) -> float:
    return sum(s.value for family in metric.collect() for s in family.samples if s.name.endswith(suffix))


def test_an_outage_is_waited_out_in_a_bounded_queue(
    mortal: RedisBus | KafkaBus, metrics: CollectorMetrics
) -> None:
    collector, accepted = collector_of(mortal.url, metrics), []

    async def run() -> None:
        accepted.extend(await post(collector, [view() for _ in range(5)]))
        mortal.kill()
        collector.wait_s = 0.3
        with pytest.raises(UnavailableError, match=r"not take the events within 0\.3 s.* the same event ids"):
            await post(collector, view())
        assert collector._events == 0, "who was refused waits no more"
        collector.wait_s = 120.0
        sizes = (300, 300, 300, 100)
        *waiting, gone = [asyncio.create_task(post(collector, [view() for _ in range(n)])) for n in sizes]
        while collector._events < 1000:
            await asyncio.sleep(0.01)
        with pytest.raises(UnavailableError, match="1,000 events wait already"):
            await post(collector, view())
        gone.cancel()  # its client hung up
        with suppress(asyncio.CancelledError):
            await gone
        assert collector._events == 900
        assert not any(task.done() for task in waiting)
        mortal.start()
        for ids in await asyncio.gather(*waiting):
            accepted.extend(ids)
        accepted.extend(await post(collector, view()))
        assert collector._events == sample(metrics.waiting, "waiting") == 0

    asyncio.run(run())
    assert len(set(accepted)) == 5 + 900 + 1
    assert sample(metrics.outages, "_total") in (0, 1)  # Kafka's client may have sat it out
    bus = open_bus(collector.bus_settings)
    assert set(accepted) <= set(on_bus(bus)["event_id"].to_pylist())


def test_requests_that_meet_are_published_together(redis_url: str, metrics: CollectorMetrics) -> None:
    collector = collector_of(redis_url, metrics)

    async def run() -> list[list[str]]:
        return await asyncio.gather(*(post(collector, [view(user_id=f"u{n}")] * 2) for n in range(200)))

    accepted = asyncio.run(run())
    assert [len(ids) for ids in accepted] == [2] * 200
    assert sample(metrics.publish_seconds, "_count") < 100
    assert sample(metrics.events, "_total") == 400
    events = on_bus(open_bus(collector.bus_settings))
    assert sorted(events["event_id"].to_pylist()) == sorted(i for ids in accepted for i in ids)


def test_what_was_judged_is_published_before_the_rest_is_judged(
    redis_url: str, metrics: CollectorMetrics
) -> None:
    """Publishing waited behind every judgment that had been asked for before it."""
    collector, done = collector_of(redis_url, metrics, queue_events=40_000), list[str]()

    async def run() -> None:
        await post(collector, view())  # the bus is open

        async def noted(name: str, events: Any) -> None:
            await post(collector, events)
            done.append(name)

        many = [VIEW | {"event_type": "nonsense"}] * 1000  # no more than judged
        await asyncio.gather(noted("published", view()), *(noted("judged", many) for _ in range(39)))

    asyncio.run(run())
    assert done.index("published") < 20


def test_events_count_before_they_are_judged(redis_url: str, metrics: CollectorMetrics) -> None:
    """Any number of requests waited for their judgment, and were all held in memory."""
    collector = collector_of(redis_url, metrics)

    async def run() -> list[Any]:
        many = [VIEW | {"event_type": "nonsense"}] * 400
        return await asyncio.gather(*(post(collector, many) for _ in range(4)), return_exceptions=True)

    taken = [answer for answer in asyncio.run(run()) if not isinstance(answer, UnavailableError)]
    assert taken == [[], []]
    assert collector._events == 0


def test_an_event_too_large_for_the_bus_is_rejected_alone(kafka_url: str, metrics: CollectorMetrics) -> None:
    """It made the requests that were published with it fail with 500, its batch-mates among them."""
    collector = collector_of(kafka_url, metrics)
    collector.bus_settings = replace(collector.bus_settings, kafka={"max_request_size": 4000})
    large = view(attributes={"text": "x" * 5000})

    async def run() -> list[list[dict[str, Any]]]:
        requests = [[view(), large, view()], [view()], [large | {"event_id": "again"}], [view(), {}]]
        return await asyncio.gather(
            *(collector.take(json.dumps(r).encode(), now=int(time.time())) for r in requests)
        )

    answers = asyncio.run(run())
    statuses = [[result["status"] for result in answer] for answer in answers]
    assert statuses == [
        ["accepted", "rejected", "accepted"],
        ["accepted"],
        ["rejected"],
        ["accepted", "rejected"],
    ]
    assert "too large" in answers[0][1]["reason"]
    assert sample(metrics.events.labels("rejected", "refused"), "_total") == 2
    accepted = {r["event_id"] for answer in answers for r in answer if r["status"] == "accepted"}
    assert set(on_bus(open_bus(collector.bus_settings))["event_id"].to_pylist()) == accepted


def test_a_wrong_setting_is_told_and_nobody_waits(redis_url: str, metrics: CollectorMetrics) -> None:
    open_bus(BusSettings(redis_url, topic="other", partitions=3))
    collector = collector_of(redis_url, metrics)
    collector.bus_settings = BusSettings(redis_url, topic="other", partitions=2)
    with pytest.raises(SettingsError, match="3 partitions"):
        asyncio.run(post(collector, view()))
    assert collector._events == 0


def test_an_event_is_completed_and_its_answer_is_text() -> None:
    def judged(event: Any) -> Any:
        posted = Posted(events_of(json.dumps(event).encode()), NOW)
        mate = Posted([VIEW, 7, VIEW], NOW)
        return judge([mate, posted, mate], validation=DEFAULT_SETTINGS)[1]

    for blank in (None, "", " "):
        one = judged(VIEW | {"event_id": blank})
        assert one.events["event_id"].to_pylist() == one.ids
        assert len(one.ids[0]) == 32
    deep: Any = []
    for _ in range(500):  # the parser takes it, but the writer of the answer would not
        deep = [deep]
    one = judged([VIEW | {"event_id": deep}, VIEW | {"event_id": 0}, 7])
    assert (one.ids, one.reason) == ([None] * 3, ["malformed"] * 3)
    with pytest.raises(RequestError, match="0 events"):
        judged([])


# What the whole service does -------------------------------------------------------------------------


@pytest.fixture
def laptop(service: Service) -> Service:
    return service.use("laptop")


def bus_of(service: Service) -> Bus:
    return open_bus(BusSettings(service.server.redis_url))


TEXTS = st.text(max_size=8) | st.sampled_from(
    ["", " ", "\x00", "a\nb", "\ud800", "\u202e", "x" * 300, "é" * 200, "NaN", "2026-13-01", "' OR 1=1 --"]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**66), 2**66)
    | st.floats()
    | st.sampled_from([0, -1, 2**31, 2**63, 10**400, 1e308])
    | TEXTS
)
JSON = SCALARS | st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
FIELDS = {
    "event_id": TEXTS,
    "user_id": st.sampled_from(["u1", "u2"]) | TEXTS,
    "item_id": st.just("i1") | TEXTS,
    "event_type": st.sampled_from(EVENT_TYPES),
    "timestamp": st.datetimes().map(lambda t: t.isoformat()) | st.sampled_from(["0001-01-01T00:00+23:59"]),
    "value": st.floats() | st.integers(-5, 2**64),
    "quantity": st.integers(-2, 2**31),
    "order_id": TEXTS,
    "currency": TEXTS,
    "context": st.dictionaries(
        st.sampled_from(["page", "position", "country", "place"]), SCALARS, max_size=2
    ),
    "attributes": st.dictionaries(TEXTS, TEXTS, max_size=2),
}
NEARLY = st.tuples(
    st.fixed_dictionaries({}, optional=FIELDS),
    st.dictionaries(st.sampled_from([*FIELDS, "price", ""]), JSON, max_size=1),
).map(lambda pair: VIEW | pair[0] | pair[1])
RIGHT = st.fixed_dictionaries({"user_id": TEXTS, "attributes": FIELDS["attributes"]}).map(lambda e: VIEW | e)
CONTENT = RIGHT | NEARLY | st.lists(NEARLY | JSON, max_size=3) | JSON
BODIES = CONTENT.map(lambda content: json.dumps(content).encode()) | st.one_of(
    st.binary(max_size=30),
    CONTENT.map(lambda content: json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")),
    st.tuples(NEARLY, st.integers(0, 300), st.binary(max_size=3)).map(
        lambda t: (raw := json.dumps(t[0]).encode())[: t[1]] + t[2] + raw[t[1] + 1 :]
    ),
    st.integers(1, 3000).map(lambda depth: b"[" * depth + b"]" * depth),
    st.integers(900, 1100).map(lambda count: json.dumps([{}] * count).encode()),
)
EXAMPLES, OF_EACH = 500, 20


def test_ten_thousand_fuzzed_bodies_are_answered_and_what_is_accepted_is_on_the_bus(laptop: Service) -> None:
    bus = bus_of(laptop)
    begins, accepted, statuses = bus.end_offsets(), list[str](), dict[int, int]()
    local = threading.local()
    port = int(laptop.server.url.rpartition(":")[2])

    def send(body: bytes) -> tuple[int, Any]:
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        local.connection.request("POST", EVENTS, body, {"content-type": "application/json"})
        answer = local.connection.getresponse()
        return answer.status, json.loads(answer.read())

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(BODIES, min_size=OF_EACH, max_size=OF_EACH))
    def post_all(bodies: list[bytes]) -> None:
        for body, (status, answer) in zip(bodies, pool.map(send, bodies), strict=True):
            statuses[status] = statuses.get(status, 0) + 1
            if status != 200:
                assert status in (400, 413, 422), (body, answer)
                assert set(answer) == {"error"}
                continue
            ids = [r["event_id"] for r in answer["results"] if r["status"] == "accepted"]
            assert answer["accepted"] == len(ids)
            assert answer["rejected"] == sum(bool(r["reason"]) for r in answer["results"])
            assert len(answer["results"]) == answer["accepted"] + answer["rejected"]
            accepted.extend(ids)

    with ThreadPoolExecutor(6) as pool, warnings.catch_warnings(action="ignore"):  # of a strategy's long repr
        post_all()
    assert sum(statuses.values()) >= 10_000
    assert min(statuses[200], statuses[400], statuses[422], len(accepted)) > 200, statuses
    events = on_bus(bus, begins)
    assert sorted(events["event_id"].to_pylist()) == sorted(accepted)
    wrong = duckdb.sql(
        f"""SELECT * FROM events WHERE user_id IS NULL OR trim(user_id) = '' OR item_id IS NULL
        OR octet_length(encode(user_id)) > 256 OR octet_length(encode(event_id)) > 256
        OR event_type NOT IN {EVENT_TYPES} OR timestamp <= '1970-01-01'::TIMESTAMPTZ
        OR timestamp > appended_at + INTERVAL 5 MINUTE OR NOT isfinite(coalesce(value, 0))
        OR (event_type = 'purchase' AND value <= 0) OR quantity <= 0 OR context.position < 1
        OR regexp_matches(user_id || item_id || event_id, '[\\x00-\\x1f\\x7f]')"""
    )
    assert len(wrong) == 0, wrong


def test_a_silent_bus_is_503_with_retry_after_and_then_all_goes_on(laptop: Service) -> None:
    pid = json.loads((Path(laptop.settings.workdir) / "redis" / "redis.json").read_text())["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        refused = laptop.ask(EVENTS, view())
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (refused.status, refused.body["error"]["code"]) == (503, "unavailable")
    assert "the same event ids" in refused.body["error"]["message"]
    assert refused.headers["retry-after"] == "1"
    taken = laptop.ask(EVENTS, view())
    assert (taken.status, taken.body["accepted"]) == (200, 1)
    assert taken.body["results"][0]["event_id"] in on_bus(bus_of(laptop))["event_id"].to_pylist()


def test_a_killed_gateway_loses_nothing_that_it_accepted(laptop: Service) -> None:
    bus = bus_of(laptop)
    begins, accepted, done = bus.end_offsets(), set[str](), threading.Event()

    def post_on() -> None:
        while not done.is_set():
            with suppress(OSError, http.client.HTTPException):  # the connection ended with the replica
                reply = laptop.ask(EVENTS, [view() for _ in range(20)])
                if reply.status == 200:
                    accepted.update(r["event_id"] for r in reply.body["results"])

    before = replica_pids("Gateway")
    with ThreadPoolExecutor(4) as pool:
        posting = [pool.submit(post_on) for _ in range(4)]
        try:
            until(lambda: len(accepted) > 200, within_s=30, what="events before the kill")
            os.kill(before[0], signal.SIGKILL)
            so_far = len(accepted)
            until(lambda: len(accepted) > so_far + 200, within_s=60, what="events after the kill")
        finally:
            done.set()
    for one in posting:
        one.result()
    assert accepted <= set(on_bus(bus, begins)["event_id"].to_pylist())
    until(
        lambda: len(set(replica_pids("Gateway")) - {before[0]}) >= len(before),
        within_s=60,
        what="the lost replica is back",
    )
    assert "recsys_events_waiting 0.0" in str(laptop.ask("/metrics").body)  # not what waited in the dead one
