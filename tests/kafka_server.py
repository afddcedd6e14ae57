"""Apache Kafka for tests and benchmarks: one broker or several (KRaft), on free ports of 127.0.0.1.

The jars come from `make kafka`. A broker is controller too, keeps its data in a folder, and can be
killed and started again on the same ports and data. It ends with the thread that started it.
"""

import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
JARS = CACHE / "recsys" / "kafka-4.3.1"
PORTS = range(20_000, 32_000)  # as of recsys.events.redis_server

# Small and quick to start: no second compiler, no threads of a collector.
JAVA = ["-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"]

# A lost broker is noticed within 2 s (9 s by default), so that a test of it is short.
PROPERTIES = """
process.roles=broker,controller
node.id={node}
controller.quorum.voters={voters}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
log.dirs={data}
auto.create.topics.enable=false
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=400
controller.quorum.election.timeout.ms=400
controller.quorum.fetch.timeout.ms=1000
offsets.topic.num.partitions=1
offsets.topic.replication.factor={replication}
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor={replication}
transaction.state.log.min.isr=1
log.retention.check.interval.ms=500
log.initial.task.delay.ms=500
num.network.threads=2
num.io.threads=2
"""


def need_kafka() -> None:
    """Skips the test where Kafka can't run; fails it where RECSYS_REQUIRE_KAFKA is set."""
    if (JARS / ".complete").exists() and shutil.which("java"):
        return
    reason = "Apache Kafka is not here: run `make kafka` (it needs Java 17 and Maven)"
    if os.environ.get("RECSYS_REQUIRE_KAFKA"):
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass
class Broker:
    node: int
    port: int
    controller_port: int
    folder: Path
    process: subprocess.Popen | None = field(default=None, repr=False)

    def start(self) -> None:
        """Starts it, and does not wait until it is ready."""
        with (self.folder / "kafka.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["java", *JAVA, "-cp", f"{JARS}/*", "kafka.Kafka", str(self.folder / "server.properties")],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=_end_with_parent(),
                cwd=self.folder,
            )

    def kill(self) -> None:
        """kill -9."""
        if self.process:
            self.process.kill()
            self.process.wait()

    def wait(self, *, seconds: float = 60.0) -> None:
        """Returns when it takes connections."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process and self.process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise RuntimeError(f"Kafka did not start, see {self.folder / 'kafka.log'}")


@dataclass
class Kafka:
    brokers: list[Broker]

    @property
    def url(self) -> str:
        return "kafka://" + ",".join(f"127.0.0.1:{broker.port}" for broker in self.brokers)

    def __enter__(self) -> "Kafka":
        for broker in self.brokers:
            broker.start()
        try:
            for broker in self.brokers:
                broker.wait()
        except RuntimeError:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        for broker in self.brokers:
            broker.kill()  # the data is thrown away, and stopping in order takes seconds


def new_kafka(folder: Path, *, brokers: int = 1) -> Kafka:
    """A cluster with its data in `folder`, not yet started: `with new_kafka(folder) as kafka:`."""
    ports = iter(_free_ports(2 * brokers))
    nodes = [Broker(n, next(ports), next(ports), folder / f"broker-{n}") for n in range(1, brokers + 1)]
    voters = ",".join(f"{n.node}@127.0.0.1:{n.controller_port}" for n in nodes)
    cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    for n in nodes:
        data = n.folder / "data"
        data.mkdir(parents=True)
        # What StorageTool's `format` writes, without starting a Java for it.
        (data / "meta.properties").write_text(f"version=1\ncluster.id={cluster}\nnode.id={n.node}\n")
        text = PROPERTIES.format(
            node=n.node,
            port=n.port,
            controller_port=n.controller_port,
            voters=voters,
            data=data,
            replication=min(3, brokers),
        )
        (n.folder / "server.properties").write_text(text)
    return Kafka(nodes)


def _free_ports(count: int) -> list[int]:
    found = []
    for port in random.sample(PORTS, 500):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"no {count} free ports in {PORTS}")


def _end_with_parent():
    if sys.platform != "linux":
        return None
    call = ctypes.CDLL(None).prctl  # loaded here, before the fork
    return lambda: call(1, signal.SIGKILL)  # 1 = PR_SET_PDEATHSIG
