import random
import threading
import time
import uuid
from dataclasses import replace

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient
from kafka.partitioner import DefaultPartitioner

from recsys.errors import DataError, SettingsError, UnavailableError
from recsys.events.bus import BusSettings, open_bus
from recsys.events.codec import decode_events
from recsys.events.kafka_clients import client_settings
from recsys.events.wire import Decoder
from tests.contracts.bus import BusContract, read_all, some_events
from tests.kafka_server import need_kafka, new_kafka


def servers(settings: BusSettings) -> str:
    return settings.url.removeprefix("kafka://")


class TestKafkaBus(BusContract):
    @pytest.fixture
    def settings(self, kafka_url):
        return BusSettings(url=kafka_url, topic=f"t-{uuid.uuid4().hex}", partitions=3)

    def trim(self, bus, settings, *, below):
        with KafkaAdminClient(bootstrap_servers=servers(settings)) as admin:
            admin.delete_records({TopicPartition(settings.topic, 0): below})

    def noted(self, settings, reader):
        group = f"recsys-{reader}"
        with KafkaAdminClient(bootstrap_servers=servers(settings)) as admin:
            found = admin.list_group_offsets({group: None})[group]
        return {place.partition: at.offset for place, at in found.items() if place.topic == settings.topic}

    def test_a_topic_is_made_as_the_settings_say(self, settings):
        open_bus(replace(settings, retention_hours=2.0)).close()
        with KafkaAdminClient(bootstrap_servers=servers(settings)) as admin:
            asked = ConfigResource(ConfigResourceType.TOPIC, settings.topic)
            found = admin.describe_configs([asked], config_filter="all")
        text = repr(found)
        assert "'retention.ms'" in text
        assert "7200000" in text
        assert "LogAppendTime" in text

    def test_more_copies_than_brokers_are_refused(self, settings):
        with pytest.raises(SettingsError, match=r"with bus\.replication 3"):
            open_bus(replace(settings, replication=3))

    def test_events_are_where_other_clients_look_for_them(self, bus, settings):
        """Java's default partitioner, which kafka-python has too: else one user were in two partitions."""
        users = ["u1", "名前", "", "a-long-user-id-of-which-there-are-many"]
        events = some_events(4)
        index = events.schema.get_field_index("user_id")
        published = bus.publish(events.set_column(index, "user_id", [users]))
        producer = KafkaProducer(bootstrap_servers=servers(settings))
        for user, partition in zip(users, published.partition):
            assert isinstance(producer.config["partitioner"], DefaultPartitioner)
            assert producer.send(settings.topic, b"{}", key=user.encode()).get(5).partition == partition
        producer.close()

    @pytest.mark.parametrize("compression", [None, "gzip", "lz4", "zstd", "snappy"])
    def test_what_others_write_is_read(self, bus, settings, compression):
        producer = KafkaProducer(bootstrap_servers=servers(settings), compression_type=compression)
        body = b'{"event_id": "e", "user_id": "u", "item_id": "i", "event_type": "click"}' + b" " * 500
        for _ in range(20):
            producer.send(settings.topic, body, partition=1)
        producer.send(settings.topic, None, key=b"tombstone", partition=1).get(5)
        producer.close()
        records = bus.read(1, start=0, limit=1000)
        assert records.offsets.tolist() == list(range(21))
        events, errors = Decoder()(records.bodies)
        assert events["event_id"].to_pylist()[:20] == ["e"] * 20
        assert [error is None for error in errors] == [True] * 20 + [False]

    def test_an_event_that_the_server_finds_too_large_is_not_an_outage(self, settings):
        """It was: the collector tried it again and again, and whoever waited behind it was refused."""
        with KafkaAdminClient(bootstrap_servers=servers(settings)) as admin:
            made = {"num_partitions": 3, "replication_factor": 1, "configs": {"max.message.bytes": "1000"}}
            admin.create_topics({settings.topic: made})
            admin.wait_for_topics([settings.topic])
        bus = open_bus(settings)
        large = decode_events(
            [{"event_id": "e", "user_id": "u", "attributes": {"k": random.Random(1).randbytes(2000).hex()}}]
        )
        with pytest.raises(DataError, match="too large"):
            bus.publish(large)
        assert len(bus.publish(some_events(2)).offset) == 2
        bus.close()

    def test_no_record_was_appended_after_it_was_read(self, settings):
        """A topic that others made takes the producer's word for the time."""
        with KafkaAdminClient(bootstrap_servers=servers(settings)) as admin:
            configs = {"message.timestamp.type": "CreateTime"}
            made = {"num_partitions": 3, "replication_factor": 1, "configs": configs}
            admin.create_topics({settings.topic: made})
            admin.wait_for_topics([settings.topic])
        bus = open_bus(settings)
        producer = KafkaProducer(bootstrap_servers=servers(settings))
        now = int(time.time() * 1000)
        for at in (now - 10_000, now + 1_800_000):
            producer.send(settings.topic, b"{}", partition=0, timestamp_ms=at).get(5)
        producer.close()
        old, ahead = bus.read(0, start=0, limit=10).append_time_ms.tolist()
        bus.close()
        assert old == now - 10_000
        assert now <= ahead <= int(time.time() * 1000)

    def test_markers_of_transactions_are_passed_over(self, bus, settings):
        producer = KafkaProducer(bootstrap_servers=servers(settings), transactional_id=uuid.uuid4().hex)
        producer.init_transactions()
        for finish in (producer.commit_transaction, producer.abort_transaction, producer.commit_transaction):
            producer.begin_transaction()
            for _ in range(2):
                producer.send(settings.topic, b"{}", partition=0).get(5)
            finish()
        # 0 1 and a marker, 3 4 taken back and a marker, 6 7 and a marker
        records = bus.read(0, start=0, limit=1000)
        assert records.offsets.tolist()[:2] == [0, 1]
        assert read_all(bus, 0)[0] == [0, 1, 6, 7]
        assert bus.end_offsets()[0] == 9
        for start, offsets in ((2, [6, 7]), (3, [6, 7]), (7, [7])):
            assert bus.read(0, start=start, limit=1000).offsets.tolist() == offsets
        last = bus.read(0, start=8, limit=1000)
        assert (len(last), last.end) == (0, 9)
        followed, end = [], 0
        while end < 9:
            for records in bus.tail([0], offsets={0: end}, block_ms=300):
                followed += records.offsets.tolist()
                end = records.end
        assert followed == [0, 1, 6, 7]
        assert bus.tail([0], offsets={0: 9}, block_ms=200) == []
        producer.begin_transaction()
        producer.send(settings.topic, b"{}", partition=0).get(5)
        assert bus.end_offsets()[0] == 9  # readers wait for the transaction
        assert len(bus.read(0, start=9, limit=10)) == 0
        producer.commit_transaction()
        assert read_all(bus, 0)[0] == [0, 1, 6, 7, 9]
        producer.close()


def test_settings_reach_the_clients():
    given = {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "recsys",
        "sasl_plain_password": "secret",
        "ssl_check_hostname": False,
        "ssl_cafile": None,
        "client_id": "shop",
        "request_timeout_ms": 9000,
        "compression_type": "gzip",
        "max_partition_fetch_bytes": 1000,
    }
    settings = BusSettings(url="kafka://a:1,b:2", kafka=given)
    assert "secret" not in repr(settings)
    found = client_settings(settings)
    for client in (KafkaProducer, KafkaConsumer, KafkaAdminClient):
        for key, value in given.items():
            if key in client.DEFAULT_CONFIG:
                assert found[client][key] == value
        assert found[client]["bootstrap_servers"] == ["a:1", "b:2"]
    assert found[KafkaProducer]["compression_type"] == "gzip"
    assert "compression_type" not in found[KafkaConsumer]
    assert found[KafkaProducer]["delivery_timeout_ms"] == 10000
    # A client that is told the broker's version does not ask for it: none is there.
    consumer = KafkaConsumer(**found[KafkaConsumer], api_version=(3, 9))
    assert consumer._manager.config["security_protocol"] == "SASL_SSL"
    assert consumer._manager.config["sasl_plain_password"] == "secret"
    assert consumer._manager.config["ssl_check_hostname"] is False
    consumer.close()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"sasl_user": "x"}, r"bus\.kafka\.sasl_user: kafka-python has no such setting"),
        ({"acks": 1}, r"bus\.kafka\.acks is not for settings"),
        ({"security_protocol": "TLS"}, r"security_protocol = 'TLS': give PLAINTEXT, SSL"),
        ({"security_protocol": "SASL_SSL"}, r"needs bus\.kafka\.sasl_mechanism"),
    ],
)
def test_settings_that_can_not_be_are_refused(given, told):
    with pytest.raises(SettingsError, match=told):
        open_bus(BusSettings(url="kafka://127.0.0.1:1", kafka=given))


def test_a_server_that_is_not_there_is_told_and_leaves_nothing_behind():
    before = threading.active_count()
    with pytest.raises(
        UnavailableError, match=r"127\.0\.0\.1:1 does not answer .*start it, or correct bus\.url"
    ):
        open_bus(BusSettings(url="kafka://127.0.0.1:1", kafka={"request_timeout_ms": 1000}))
    assert threading.active_count() == before, "a reader that tries for hours must not gather threads"


def patiently(ask):
    """The answer of a server that has just come back, asked again as a caller does."""
    for _ in range(30):
        try:
            return ask()
        except UnavailableError:
            continue
    return ask()


def test_the_only_broker_is_killed_and_comes_back(tmp_path):
    need_kafka()
    with new_kafka(tmp_path) as kafka:
        settings = BusSettings(url=kafka.url, partitions=2, kafka={"request_timeout_ms": 1000})
        bus = open_bus(settings)
        bus.publish(some_events(100))
        bus.tail([0, 1], offsets={}, block_ms=500)
        kafka.brokers[0].kill()

        def follow():
            for _ in range(200):
                bus.tail([0, 1], offsets=dict(ends), block_ms=100)

        ends = {0: 0, 1: 0}
        for ask in (
            lambda: bus.publish(some_events(100, first=100)),
            follow,
            lambda: bus.read(0, start=90, limit=10),
            bus.begin_offsets,
            bus.end_offsets,
            lambda: bus.offsets_at(0),
            lambda: bus.note_positions("store", {0: 1}),
            lambda: open_bus(settings),
        ):
            with pytest.raises(UnavailableError, match=r"127\.0\.0\.1"):
                ask()
        kafka.brokers[0].start()
        kafka.brokers[0].wait()
        patiently(lambda: bus.publish(some_events(100, first=200)))
        found = []
        for partition in (0, 1):
            # The consumer's client waits up to a second before it connects again: as long as it is given.
            offsets, bodies = patiently(lambda partition=partition: read_all(bus, partition))
            assert offsets == list(range(len(offsets)))
            found += Decoder()(bodies)[0]["event_id"].to_pylist()
        assert {f"e{n}" for n in [*range(100), *range(200, 300)]} <= set(found)
        patiently(lambda: bus.note_positions("store", {0: 1}))
        bus.close()


def test_one_of_three_brokers_is_killed_under_load(tmp_path):
    need_kafka()
    with new_kafka(tmp_path, brokers=3) as kafka:
        settings = BusSettings(url=kafka.url, partitions=3, replication=3, kafka={"request_timeout_ms": 4000})
        bus = open_bus(settings)
        done = threading.Event()
        acknowledged: list[str] = []

        def publish(number: int) -> None:
            own, sent = open_bus(settings), 0
            while not done.is_set():
                events = some_events(20, first=number * 1_000_000 + sent)
                try:
                    own.publish(events)
                except UnavailableError:
                    continue  # the same ones again, as the collector does
                acknowledged.extend(events["event_id"].to_pylist())
                sent += 20
                time.sleep(0.02)
            own.close()

        threads = [threading.Thread(target=publish, args=(number,)) for number in (1, 2)]
        for thread in threads:
            thread.start()
        while len(acknowledged) < 400:
            time.sleep(0.05)
        kafka.brokers[0].kill()
        at_death = len(acknowledged)
        deadline = time.monotonic() + 40
        while len(acknowledged) < at_death + 600 and time.monotonic() < deadline:
            time.sleep(0.05)
        done.set()
        for thread in threads:
            thread.join()
        assert len(acknowledged) >= at_death + 600, "it must go on with two brokers"
        found: list[str] = []
        offsets = dict.fromkeys(range(3), 0)
        while offsets != bus.end_offsets():
            for records in bus.tail(range(3), offsets=offsets, block_ms=200):
                assert records.offsets.tolist() == list(range(offsets[records.partition], records.end))
                offsets[records.partition] = records.end
                found += Decoder()(records.bodies)[0]["event_id"].to_pylist()
        assert set(acknowledged) <= set(found)
        bus.close()
