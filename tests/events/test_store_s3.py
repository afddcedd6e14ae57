"""The store in S3, against a server that speaks it."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from datetime import date

import boto3
import pyarrow as pa
import pytest

from recsys.errors import UnavailableError
from recsys.events.codec import decode_events
from recsys.events.erasure import erase
from recsys.events.maintenance import archive, compact
from recsys.events.schema import STORED_SCHEMA, TIMESTAMP
from recsys.events.store import EventStore

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


def rows(offsets, month="2026-01"):
    one = {"user_id": "u", "item_id": "i", "event_type": "view", "timestamp": month + "-10T00:00:00Z"}
    events = decode_events([{**one, "event_id": f"e{offset}"} for offset in offsets])
    at = [
        pa.array([0] * len(events), pa.int32()),
        pa.array(list(offsets), pa.int64()),
        pa.array([1_790_000_000_000_000] * len(events), pa.int64()).cast(TIMESTAMP),
    ]
    return pa.Table.from_arrays([*events.columns, *at], schema=STORED_SCHEMA)


def refused(offsets):
    return rows(offsets).append_column("reason", pa.array(["duplicate"] * len(offsets)))


def commit(store, size, times):
    won = 0
    for _ in range(times):
        start = store.committed("events", 1).get(0, 0)
        end = start + size + 1
        try:
            batch = rows(range(start, end - 1))
            store.append(batch, rejected=refused([end - 1]), offsets={0: (start, end)})
            won += 1
        except UnavailableError as error:
            if "another committer" not in str(error):
                raise
    return won


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(url, timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, "the S3 server ended"
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture
def options(server, request) -> dict[str, str]:
    bucket = "b" + str(abs(hash(request.node.name)))
    boto3.client("s3", endpoint_url=server, aws_access_key_id="test", aws_secret_access_key="test",
                 region_name="us-east-1").create_bucket(Bucket=bucket)  # fmt: skip
    request.node.uri = f"s3://{bucket}/events"
    return {**KEYS, "AWS_ENDPOINT_URL": server, "AWS_ALLOW_HTTP": "true"}


def offsets_of(table):
    return sorted(table["offset"].to_pylist())


def test_events_live_in_s3(options, request):
    uri = request.node.uri
    store = EventStore(uri, storage_options=options)
    assert (store.version(), store.committed("events", 1), store.count()) == (-1, {}, 0)
    store.append(rows([0, 1]), rejected=refused([2]), offsets={0: (0, 3)})
    store.append(rows([3], "2026-02"), offsets={0: (3, 4)})
    assert store.committed("events", 1) == {0: 4}
    assert offsets_of(store.read(columns=["offset"])) == [0, 1, 3]
    earlier, now = store.events.open(0), store.events.open()
    assert offsets_of(store.read_added(now, after=earlier, columns=["offset"])) == [3]
    assert offsets_of(store.read_rejected(columns=["offset"])) == [2]
    assert archive(store, before=date(2026, 2, 1)) == 2
    assert compact(store).files_after == 3
    assert offsets_of(store.read(columns=["offset"])) == [0, 1, 3]
    assert store.duckdb().sql("select count(*) from events").fetchall() == [(3,)]
    assert erase(store, ["u"], now_ms=1_790_000_000_000).events == 3
    assert offsets_of(store.read_rejected(columns=["offset"])) == [0, 1, 2, 3]


def test_hot_on_disk_and_cold_in_s3(options, request, tmp_path):
    store = EventStore(tmp_path, cold_uri=request.node.uri, cold_options=options)
    store.append(rows([0, 1]), offsets={0: (0, 2)})
    assert archive(store, before=date(2026, 2, 1)) == 2
    assert (store.events.open().count(), offsets_of(store.read(columns=["offset"]))) == (0, [0, 1])


def test_two_processes_commit_at_once_and_exactly_one_wins_each_offset(options, request, tmp_path):
    uri = request.node.uri
    environment = {**os.environ, **options, "PYTHONPATH": os.getcwd()}  # as an operator would give them
    processes = [
        subprocess.Popen([sys.executable, __file__, uri, size], stdout=subprocess.PIPE, env=environment)
        for size in ("2", "4")
    ]
    won = [int(process.communicate(timeout=100)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    store = EventStore(uri, storage_options=options)
    end = store.committed("events", 1)[0]
    assert end == 3 * won[0] + 5 * won[1]
    rejected = [offset for offset in offsets_of(store.read_rejected()) if offset < end]
    assert sorted(offsets_of(store.read(columns=["offset"])) + rejected) == list(range(end))


def test_a_server_that_is_gone_is_one_line(options, request):
    gone = {**options, "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "max_retries": "0"}
    with pytest.raises(UnavailableError, match=r"can't open s3://.*; check") as caught:
        EventStore(request.node.uri, storage_options=gone).count()
    assert "\n" not in str(caught.value)


if __name__ == "__main__":  # one of the two processes
    print(commit(EventStore(sys.argv[1]), int(sys.argv[2]), 6))
