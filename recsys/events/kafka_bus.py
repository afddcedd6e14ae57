"""The bus on Kafka: events keyed by user, with the partitioner that every Kafka client has by default.

The producer is idempotent and waits for all in-sync replicas; readers see committed records only, and
where records are missing they say so and never jump. A server may be silent for `request_timeout_ms`
(5 s), then it is unavailable; the same object works again once the server does.
`publish` may be called by many threads; the other methods by one thread at a time.
"""

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import KafkaAdminClient
from kafka.net.compat import KafkaNetClient
from kafka.partitioner import murmur2
from kafka.structs import OffsetAndMetadata

from recsys.errors import DataError, SettingsError, UnavailableError
from recsys.events.bus import BusSettings, Published, Records, check_held, ids_given
from recsys.events.kafka_clients import POLL_MS, client_settings
from recsys.events.wire import encode

_LOG_APPEND_TIME = 1  # the other type of a record's time is 0, the producer's


class KafkaBus:
    """A topic of Kafka, made if it is absent."""

    def __init__(self, settings: BusSettings) -> None:
        """Raises SettingsError if the topic has another count of partitions."""
        self.topic = settings.topic
        self.partitions = settings.partitions
        self._settings = client_settings(settings)
        self._servers = ",".join(self._settings[KafkaAdminClient]["bootstrap_servers"])
        self._silence_ms = int(self._settings[KafkaAdminClient]["request_timeout_ms"])
        self._clients: dict[Any, Any] = {}
        self._lock = Lock()
        self._positions: dict[int, int] = {}  # what the consumer reads next, of the partitions it is given
        self._ends: dict[int, int] = {}  # as last heard
        self._heard = 0.0  # when the server last answered a reader
        logger = logging.getLogger("kafka")
        if logger.level == logging.NOTSET:
            # It tells of each attempt to connect; at DEBUG the admin client writes down its password.
            logger.setLevel(logging.CRITICAL)
        try:
            self._make_topic(settings)
        except Exception:
            self.close()
            raise

    def publish(self, events: pa.Table) -> Published:
        ids_given(events)
        users = events["user_id"].combine_chunks().dictionary_encode()
        keys = [user.encode() for user in users.dictionary.to_pylist()]
        of_key = [(murmur2(key) & 0x7FFFFFFF) % self.partitions for key in keys]
        rows = users.indices.to_pylist()
        partition = [of_key[row] for row in rows]
        offsets = self._put(encode(events), [keys[row] for row in rows], partition)
        return Published(np.array(partition, np.int32), offsets)

    def append(self, bodies: Sequence[bytes], *, partition: int) -> np.ndarray:
        return self._put(bodies, [None] * len(bodies), [partition] * len(bodies))

    def _put(
        self, bodies: Sequence[bytes], keys: Sequence[bytes | None], partition: Sequence[int]
    ) -> np.ndarray:
        """The offsets of `bodies` in the partitions that they go to, int64 [N]."""
        with self._errors():
            producer = self._client(KafkaProducer)
            try:
                sent = [
                    producer.send(self.topic, body, key, partition=number)
                    for body, key, number in zip(bodies, keys, partition)
                ]
            except kafka_errors.MessageSizeTooLargeError as error:
                raise DataError(f"a record is too large for the bus: {_line(error)}") from error
            producer.flush(producer.config["delivery_timeout_ms"] / 1000 + 1)
            try:
                offsets = [future.get(0).offset for future in sent]
            except kafka_errors.MessageSizeTooLargeError as error:
                with self._lock:  # a producer that the server has refused a record refuses all that follow
                    self._clients.pop(KafkaProducer, producer).close(timeout=0)
                raise DataError(f"a record is too large for the bus's server: {_line(error)}") from error
        return np.array(offsets, np.int64)

    def read(self, partition: int, *, start: int, limit: int) -> Records:
        with self._errors():
            if start >= self._ends.get(partition, 0) and start >= self.end_offsets()[partition]:
                check_held(self, {partition: start}, where=self._servers)
                return _records(partition, [], start)
            deadline = time.monotonic() + self._silence_ms / 1000
            while time.monotonic() < deadline:
                for records in self._poll({partition: start}, limit=limit, wait_ms=POLL_MS):
                    return records
        raise UnavailableError(
            f"Kafka at {self._servers} sends no records of partition {partition} of {self.topic!r} from "
            f"offset {start} on; see to its brokers"
        )

    def tail(
        self, partitions: Sequence[int], *, offsets: Mapping[int, int], block_ms: int = 500, limit: int = 1000
    ) -> list[Records]:
        with self._errors():
            starts = {partition: offsets.get(partition, 0) for partition in partitions}
            found = self._poll(starts, limit=limit, wait_ms=block_ms)
            if not found and (time.monotonic() - self._heard) * 1000 > self._silence_ms / 2:
                self.end_offsets()  # an empty poll and a lost server look alike
            return found

    def begin_offsets(self) -> dict[int, int]:
        with self._errors():
            found = self._client(KafkaConsumer).beginning_offsets(self._all(), timeout_ms=self._silence_ms)
            return {tp.partition: offset for tp, offset in found.items()}

    def end_offsets(self) -> dict[int, int]:
        """Below a transaction that is still open: readers wait for it."""
        with self._errors():
            found = self._client(KafkaConsumer).end_offsets(self._all(), timeout_ms=self._silence_ms)
        self._heard = time.monotonic()
        self._ends = {tp.partition: offset for tp, offset in found.items()}
        return dict(self._ends)

    def offsets_at(self, time_ms: int) -> dict[int, int]:
        with self._errors():
            times = dict.fromkeys(self._all(), max(0, time_ms))
            found = self._client(KafkaConsumer).offsets_for_times(times, timeout_ms=self._silence_ms)
            return self.end_offsets() | {tp.partition: at.offset for tp, at in found.items() if at}

    def note_positions(self, reader: str, offsets: Mapping[int, int]) -> None:
        """As the offsets of the consumer group `recsys-<reader>`."""
        positions = {
            TopicPartition(self.topic, partition): OffsetAndMetadata(offset, "", -1)
            for partition, offset in offsets.items()
        }

        def note(admin: KafkaAdminClient) -> None:
            for error in admin.alter_group_offsets(f"recsys-{reader}", positions).values():
                if error is not kafka_errors.NoError:
                    raise error

        with self._errors():
            self._patiently(note)

    def close(self) -> None:
        clients, self._clients = self._clients, {}
        for client in clients.values():
            with suppress(kafka_errors.KafkaError):  # what can't be said to a lost server
                client.close()

    def _make_topic(self, settings: BusSettings) -> None:
        wanted = {
            "num_partitions": self.partitions,
            "replication_factor": settings.replication,
            "configs": {
                "min.insync.replicas": str(max(1, settings.replication - 1)),
                "retention.ms": str(
                    -1 if math.isinf(settings.retention_hours) else int(settings.retention_hours * 3_600_000)
                ),
                "message.timestamp.type": "LogAppendTime",
            },
        }
        with self._errors():
            found = self._patiently(lambda admin: admin.describe_topics([self.topic]))[0]
            if found["error_code"]:
                try:
                    self._client(KafkaAdminClient).create_topics({self.topic: wanted})
                except kafka_errors.TopicAlreadyExistsError:
                    pass  # another one was quicker
                except (
                    kafka_errors.InvalidTopicError,
                    kafka_errors.InvalidReplicationFactorError,
                    kafka_errors.PolicyViolationError,
                ) as error:
                    raise SettingsError(
                        f"Kafka at {self._servers} does not make topic {self.topic!r} with bus.replication "
                        f"{settings.replication} ({type(error).__name__}): correct one of them"
                    ) from error
                admin = self._client(KafkaAdminClient)
                admin.wait_for_topics([self.topic], timeout_ms=self._silence_ms)
                found = admin.describe_topics([self.topic])[0]
        if len(found["partitions"]) != self.partitions:
            count = len(found["partitions"])
            raise SettingsError(
                f"topic {self.topic!r} at {self._servers} has {count} partitions, not {self.partitions}: "
                f"set bus.partitions to {count}, or publish to a new topic and ingest into a new store.uri"
            )

    def _poll(self, starts: Mapping[int, int], *, limit: int, wait_ms: int) -> list[Records]:
        """What follows `starts`; nothing of a partition only if nothing came of it, not even a marker."""
        consumer = self._client(KafkaConsumer)
        places = {partition: TopicPartition(self.topic, partition) for partition in starts}
        if self._positions.keys() != starts.keys():
            self._positions = {}
            consumer.assign(list(places.values()))
        for partition, start in starts.items():
            if self._positions.get(partition) != start:
                consumer.seek(places[partition], start)
        self._positions = dict.fromkeys(starts, -1)  # unknown, should the poll fail
        try:
            polled = consumer.poll(timeout_ms=wait_ms, max_records=limit)
        except kafka_errors.OffsetOutOfRangeError as error:
            check_held(self, starts, where=self._servers)
            raise UnavailableError(f"{self.topic!r} at {self._servers}: {_line(error)}") from error
        found = []
        for partition, place in places.items():
            end = consumer.position(place, timeout_ms=self._silence_ms)
            self._positions[partition] = end
            if end != starts[partition]:
                found.append(_records(partition, polled.get(place, []), end))
        if found:
            self._heard = time.monotonic()
        return sorted(found, key=lambda records: records.partition)

    def _client(self, kind: Any) -> Any:
        networks: list[KafkaNetClient] = []

        def connect(**settings: Any) -> KafkaNetClient:
            networks.append(KafkaNetClient(**settings))
            return networks[0]

        with self._lock:
            if kind not in self._clients:
                try:
                    self._clients[kind] = kind(**self._settings[kind], kafka_client=connect)
                except Exception as error:
                    for network in networks:  # a client that did not come to be leaves its thread behind
                        network.close()
                    if isinstance(error, kafka_errors.KafkaError):
                        raise
                    raise SettingsError(f"bus.kafka does not fit ({_line(error)}); correct it") from error
            return self._clients[kind]

    def _patiently(self, ask: Any) -> Any:
        """Asks the admin client, again while the cluster elects somebody."""
        deadline = time.monotonic() + self._silence_ms / 1000
        while True:
            try:
                return ask(self._client(KafkaAdminClient))
            except kafka_errors.RetriableError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def _all(self) -> list[TopicPartition]:
        return [TopicPartition(self.topic, partition) for partition in range(self.partitions)]

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """The border at which errors of the Kafka clients become ours."""
        try:
            yield
        except (
            kafka_errors.AuthorizationError,
            kafka_errors.SaslAuthenticationFailedError,
            kafka_errors.UnsupportedSaslMechanismError,
            kafka_errors.KafkaConfigurationError,
        ) as error:
            raise SettingsError(f"Kafka at {self._servers}: {_line(error)}; correct bus.kafka") from error
        except kafka_errors.KafkaError as error:
            raise UnavailableError(
                f"Kafka at {self._servers} does not answer ({_line(error)}); "
                "start it, or correct bus.url or bus.kafka"
            ) from error


def _records(partition: int, polled: Sequence[Any], end: int) -> Records:
    now_ms = int(time.time() * 1000)
    return Records(
        partition,
        np.array([record.offset for record in polled], np.int64),
        np.array([_append_ms(record, now_ms) for record in polled], np.int64),
        [record.value or b"" for record in polled],
        end,
    )


def _append_ms(record: Any, now_ms: int) -> int:
    """When the broker took a record; in a topic of others it may be the producer's word for it."""
    if record.timestamp_type == _LOG_APPEND_TIME:
        return int(record.timestamp)
    # Nothing is appended after it is read; without any time (-1) the reader's is the nearest that is known.
    return min(int(record.timestamp), now_ms) if record.timestamp >= 0 else now_ms


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
