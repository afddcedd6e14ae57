"""What Kafka's clients are given: the settings of `bus.kafka` over our defaults.

What the bus promises rests on some settings; those can't be given. Every wait has the same bound,
`request_timeout_ms`.
"""

from typing import Any

from kafka import KafkaConsumer, KafkaProducer
from kafka.admin import KafkaAdminClient

from recsys.errors import SettingsError
from recsys.events.bus import BusSettings

SILENCE_MS = 5000  # kafka-python's own 30 s are too long for a request over HTTP to wait
POLL_MS = 100  # how long the server holds a fetch that finds nothing, and so what a seek may have to wait

_DEFAULTS: dict[Any, dict[str, Any]] = {
    KafkaAdminClient: {},
    KafkaProducer: {
        "acks": "all",
        "enable_idempotence": True,
        "allow_auto_create_topics": False,
        "compression_type": "lz4",
        "batch_size": 262_144,
        "linger_ms": 5,
        "metrics_enabled": False,
    },
    KafkaConsumer: {
        "isolation_level": "read_committed",
        "auto_offset_reset": "none",
        "enable_auto_commit": False,
        "allow_auto_create_topics": False,
        "max_partition_fetch_bytes": 8 << 20,
        "fetch_max_wait_ms": POLL_MS,
        "metrics_enabled": False,
    },
}
_DECIDED = {
    *("bootstrap_servers", "acks", "enable_idempotence", "transactional_id", "partitioner"),
    *("isolation_level", "auto_offset_reset", "enable_auto_commit", "group_id", "group_instance_id"),
    *("allow_auto_create_topics", "key_serializer", "value_serializer"),
    *("key_deserializer", "value_deserializer", "kafka_client"),
}
_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")


def client_settings(settings: BusSettings) -> dict[Any, dict[str, Any]]:
    """The arguments of each of the three clients. Raises SettingsError for a key that none of them has."""
    for key in settings.kafka:
        if key in _DECIDED:
            raise SettingsError(f"bus.kafka.{key} is not for settings: the bus decides it; remove it")
        if not any(key in client.DEFAULT_CONFIG for client in _DEFAULTS):
            raise SettingsError(f"bus.kafka.{key}: kafka-python has no such setting; correct or remove it")
    protocol = settings.kafka.get("security_protocol", "PLAINTEXT")
    if protocol not in _PROTOCOLS:  # kafka-python would take it for PLAINTEXT
        raise SettingsError(f"bus.kafka.security_protocol = {protocol!r}: give {', '.join(_PROTOCOLS)}")
    if protocol.startswith("SASL") and "sasl_mechanism" not in settings.kafka:
        raise SettingsError(f"bus.kafka.security_protocol = {protocol!r} needs bus.kafka.sasl_mechanism too")
    silence = settings.kafka.get("request_timeout_ms", SILENCE_MS)
    every = {
        "bootstrap_servers": (settings.url or "").removeprefix("kafka://").rstrip("/").split(","),
        "request_timeout_ms": silence,
        "bootstrap_timeout_ms": silence,
        "delivery_timeout_ms": silence + 1000,  # kafka-python wants it above request_timeout_ms + linger_ms
        "max_block_ms": silence,
        "reconnect_backoff_max_ms": 1000,
    }
    return {
        client: {
            key: value
            for key, value in {**every, **defaults, **settings.kafka}.items()
            if key in client.DEFAULT_CONFIG
        }
        for client, defaults in _DEFAULTS.items()
    }
