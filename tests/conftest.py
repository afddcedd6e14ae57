"""Servers that tests share: a real Redis, Kafka and a local Ray, started once and stopped at the end."""

from collections.abc import Iterator

import pytest

from recsys.events.redis_server import connect, start_redis
from tests.kafka_server import need_kafka, new_kafka


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with start_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture
def redis_client(redis_url: str):
    """A client of an empty Redis."""
    client = connect(redis_url)
    client.flushall()
    yield client
    client.close()


@pytest.fixture(scope="session")
def kafka_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One broker, for all tests that don't kill it: each takes a topic of its own."""
    need_kafka()
    with new_kafka(tmp_path_factory.mktemp("kafka")) as kafka:
        yield kafka.url


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    import ray

    from deployments.server import prepare

    prepare()  # so that Serve can run on it too
    # "local": never join a cluster that somebody else started on this machine. Four CPUs, whatever the
    # machine has: beside the service of tests/deployments Ray Data waits for one.
    ray.init("local", num_cpus=4, include_dashboard=False, object_store_memory=300_000_000)
    yield
    ray.shutdown()
