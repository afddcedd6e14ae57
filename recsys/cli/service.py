"""`recsys serve`: a release in a placement, until Ctrl-C. It imports ray, to reload a service that runs."""

import logging
import os
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer
from rich.console import Console


def serve(
    placement: str = typer.Option("laptop", help="laptop, cluster or staged, or a Ray Serve config file."),
    release: str = typer.Option("champion", help="An alias of the registry, or the path of a manifest."),
    reload: bool = typer.Option(False, "--reload", help="Roll the service that runs to RELEASE, and exit."),
    config: Path = typer.Option(None, help="A settings file; the demo leaves one in its work directory."),
) -> None:
    """Serve over HTTP. With --reload: after `recsys releases promote` or `rollback`."""
    from recsys.settings import load_settings

    console = Console()
    settings = load_settings(config)
    with console.status("starting") as status:
        if reload:
            _connect(settings)
            from deployments.server import deploy_release
            from recsys.events.redis_server import start_redis

            if settings.online_store.url is None:
                running = start_redis(settings.folder / "redis")  # the service's own, which runs
                settings = replace(settings, online_store=replace(settings.online_store, url=running.url))
            served = deploy_release(placement, settings=settings, release=release, progress=status.update)
            console.print(f"serving release {served}", highlight=False)
            return
        from deployments.server import start

        server = start(placement, settings=settings, release=release, progress=status.update)
    with server:
        console.print(f"serving release {server.release} at {server.url}; Ctrl-C stops it", highlight=False)
        until_stopped()


def _connect(settings: Any) -> None:
    """To the Ray that serves this work directory: another one may be the newest on the machine."""
    # A Ray that was started here asks for its token, which lies in ~/.ray; "disabled" can be set by hand.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    from deployments.server import RUNNING
    from recsys.errors import UnavailableError

    note = settings.folder / RUNNING
    address = settings.ray.address or (note.read_text() if note.exists() else None)
    if address is None:
        raise UnavailableError(f"nothing serves {settings.folder} to reload: start it with `recsys serve`")
    try:
        ray.init(address=address, namespace="serve", log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError) as error:
        raise UnavailableError(f"no Ray at {address} ({error}): start it with `recsys serve`") from error


def until_stopped() -> None:
    """Waits for Ctrl-C or a TERM signal, either of which then lets everything end in order."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with suppress(KeyboardInterrupt):
        signal.pause()
