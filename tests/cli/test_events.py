"""`recsys events` as a person uses it: on a work directory, with its embedded Redis."""

import json
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace

import pytest
import yaml
from typer.testing import CliRunner

from deployments.server import free_port
from jobs.ingest import offsets_of
from jobs.session import bus_session
from jobs.workspace import open_store
from recsys.cli import app
from recsys.errors import DataError
from recsys.events.bus import open_bus
from recsys.events.codec import decode_events
from recsys.events.redis_server import start_redis
from recsys.settings import Settings, load_settings
from tests.events_on_bus import body


@pytest.fixture
def config(tmp_path):
    """A settings file; the Redis of its work directory runs."""
    path = tmp_path / "recsys.yaml"
    path.write_text(yaml.safe_dump({"workdir": str(tmp_path / "work"), "ingestion": {"commit_s": 0.2}}))
    with start_redis(tmp_path / "work" / "redis"):
        yield str(path)


def publish(settings: Settings, bodies) -> None:
    with bus_session(settings) as bus:
        open_bus(bus).publish(decode_events(bodies))


def recsys(*arguments: str):
    return CliRunner().invoke(app, ["events", *arguments], terminal_width=200)


def test_from_the_bus_to_the_store_and_what_keeps_it_right(ray_cluster, config, tmp_path):
    settings = load_settings(config)
    publish(settings, [*(body(n) for n in range(30)), body(1), body(50, event_type="nonsense")])
    done = recsys("ingest", "--config", config)
    assert (done.exit_code, "stored 30" in done.output, "duplicate 1" in done.output) == (0, True, True)
    found = recsys("audit", "--config", config)
    assert found.exit_code == 0, found.output
    assert found.output.count("adds up") == settings.bus.partitions
    assert "unknown_type 1" in found.output
    assert "last commit" in found.output
    into = str(tmp_path / "again")
    assert "stored 30" in recsys("ingest", "--from", "2020-01-01", "--into", into, "--config", config).output
    retried = recsys("retry-rejected", "--config", config)
    assert "retried 1" in retried.output
    erased = recsys("erase", "u1", "u2", "--config", config)
    assert erased.exit_code == 0, erased.output
    assert open_store(settings).count() == 18
    assert "erased" in recsys("audit", "--config", config).output
    assert recsys("tidy", "--keep-hours", "0", "--config", config).exit_code == 0
    moved = recsys("archive", "--before", "2026-02-01", "--config", config)
    assert "moved 18" in moved.output
    assert open_store(settings).count() == 18
    publish(settings, [body(60)])
    assert "stored 1" in recsys("ingest", "--config", config).output
    open_store(settings).events.open().delete("true")  # somebody's hand
    broken = recsys("audit", "--config", config)
    assert (broken.exit_code, "does not add up" in broken.output) == (1, True)


def test_errors_name_value_and_remedy(config):
    for arguments, message in [
        (["ingest", "--follow", "--to", "2026-01-01"], "are for a range"),
        (["archive", "--before", "soon"], "no date like"),
    ]:
        failed = recsys(*arguments, "--config", config)
        assert isinstance(failed.exception, DataError)
        assert message in str(failed.exception)


def test_offsets_are_given_by_time_or_number(config):
    settings = load_settings(config)
    with bus_session(settings) as where:
        bus = open_bus(where)
        bus.publish(decode_events([body(n) for n in range(8)]))
        assert offsets_of("0=2,3=0", bus) == {0: 2, 3: 0}
        assert offsets_of("1970-01-01", bus) == bus.begin_offsets()
        assert offsets_of("2100-01-01", bus) == bus.end_offsets()
        for wrong in ("yesterday", "0=x", "9=1", ""):
            with pytest.raises(DataError):
                offsets_of(wrong, bus)


def test_the_job_follows_shows_metrics_and_ends_on_term(config, tmp_path):
    settings = load_settings(config)
    port = free_port()
    command = ["--follow", "--config", config, "--set", f"ingestion.metrics_port={port}"]
    with (tmp_path / "log").open("wb") as log:
        job = subprocess.Popen([sys.executable, "-m", "jobs.ingest", *command], stdout=log, stderr=log)
    try:
        publish(settings, [body(n) for n in range(20)])
        deadline = time.monotonic() + 240  # Ray starts slowly on a busy machine
        scraped = ""
        wanted = ("recsys_ingestion_stored{", 'recsys_ingestion_lag_seconds{until="read"}')
        while not all(name in scraped for name in wanted) or open_store(settings).count() < 20:
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            assert job.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.2)
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                    scraped = answer.read().decode()
            except OSError:
                continue
        publish(settings, [body(99)])  # and what came last is committed at the end
        time.sleep(0.5)
    finally:
        job.send_signal(signal.SIGTERM)
        job.wait(timeout=60)
    printed = (tmp_path / "log").read_text().strip().splitlines()[-1]
    assert json.loads(printed)["stored"] == 21
    assert job.returncode == 0


def test_settings_of_an_object_store_reach_the_store(tmp_path):
    settings = Settings(workdir=str(tmp_path))
    assert open_store(settings).uri == str(tmp_path / "events")
    s3 = replace(
        settings.store, uri="s3://bucket/events", options={"AWS_REGION": "eu-west-1"}, partition_by="day"
    )
    assert open_store(replace(settings, store=s3)).uri == "s3://bucket/events"
