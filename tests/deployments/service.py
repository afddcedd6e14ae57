"""A running service as the tests of this folder see it: asked over HTTP, deployed anew for each placement."""

import json
import os
import pickle
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.serve._private.common import RequestMetadata

from deployments.server import Server, deploy_release, read_config
from recsys.events.redis_server import connect
from recsys.features.online import OnlineStore
from recsys.releases.manifest import Release
from recsys.settings import Settings
from tests.world import NOW, World

PATIENCE_S = 30.0  # of steps elsewhere: two busy cores are no failure


@dataclass(frozen=True)
class Reply:
    status: int
    body: Any
    headers: dict[str, str]


@dataclass
class Service:
    server: Server
    settings: Settings
    world: World
    release: Release
    other_release: Release
    placement: str = "laptop"

    def use(self, placement: str) -> "Service":
        """The service in this placement, with the release that it has."""
        if placement != self.placement:
            self.deploy(placement, self.release)
        return self

    def deploy(self, placement: str, release: Release, **replicas: int) -> None:
        """`replicas`: of deployments, where others are wanted than the placement has."""
        tree = read_config(placement)
        application = tree["applications"][0]
        application["args"]["step_timeout_s"] = PATIENCE_S
        for deployment in application["deployments"]:
            if deployment["name"] in replicas:
                deployment.pop("autoscaling_config", None)
                deployment["num_replicas"] = replicas[deployment["name"]]
        deploy_release(tree, settings=self.settings, release=release.uri)
        self.placement, self.release = placement, release

    def deploy_champion(self) -> None:
        """What `recsys serve --reload` does after the alias has moved."""
        deploy_release(self.placement, settings=self.settings, release="champion")

    def ask(
        self, path: str, body: Any = None, *, raw: bytes | None = None, method: str | None = None
    ) -> Reply:
        data = raw if raw is not None else json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(
            self.server.url + path, data, {"content-type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return Reply(answer.status, _parsed(answer.read()), _lower(answer.headers))
        except urllib.error.HTTPError as error:
            return Reply(error.code, _parsed(error.read()), _lower(error.headers))

    def slates(self, bodies: list[dict[str, Any]], *, clients: int = 16) -> list[Reply]:
        """The replies to all bodies, asked at once, in order."""
        with ThreadPoolExecutor(clients) as pool:
            return list(pool.map(lambda body: self.ask("/v1/recommendations", body), bodies))

    @contextmanager
    def asking(self, body: dict[str, Any], *, clients: int = 2) -> Iterator[list[Reply]]:
        """Clients that ask all the while; the list of replies grows."""
        replies: list[Reply] = []
        done = threading.Event()

        def ask() -> None:
            while not done.is_set():
                replies.append(self.ask("/v1/recommendations", body))
                time.sleep(0.02)  # the replicas that start need the cores more

        with ThreadPoolExecutor(clients) as pool:
            asked = [pool.submit(ask) for _ in range(clients)]
            try:
                yield replies
            finally:
                done.set()
        for one in asked:
            one.result()


def _lower(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content.decode()


def put_users(url: str, made: World) -> None:
    log = made.interactions.before(NOW)
    store = OnlineStore(connect(url))
    store.put([str(u) for u in log.user_ids], histories=log.histories, as_of=NOW)


def ask_each(deployment: str, *arguments: Any) -> list[Any]:
    """What each replica of a deployment answers, asked directly and not through Serve's router."""
    metadata = pickle.dumps(RequestMetadata(request_id="test", internal_request_id="test"))
    names = [found["name"] for found in ray.util.list_named_actors(all_namespaces=True)]
    replicas = [name for name in names if name.startswith(f"SERVE_REPLICA::recsys#{deployment}#")]
    actors = [ray.get_actor(name, namespace="serve") for name in replicas]
    return ray.get([actor.handle_request.remote(metadata, *arguments) for actor in actors], timeout=30)


def replica_pids(deployment: str) -> list[int]:
    """Processes of the replicas of this deployment that this test session started."""
    mine = f"recsys-metrics-{os.getpid()}".encode()
    found = []
    for process in Path("/proc").iterdir():
        try:
            title = (process / "cmdline").read_bytes()
            if (
                f"ServeReplica:recsys:{deployment}".encode() in title
                and mine in (process / "environ").read_bytes()
            ):
                found.append(int(process.name))
        except (OSError, ValueError):
            continue
    return sorted(found)


def until(condition: Any, *, within_s: float, what: str) -> float:
    """Seconds until `condition()` holds."""
    start_ = time.monotonic()
    while not condition():
        assert time.monotonic() - start_ < within_s, f"not within {within_s:g} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - start_
