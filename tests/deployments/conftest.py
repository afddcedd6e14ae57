"""One service on a real Ray, Serve, HAProxy and Redis for the whole folder."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from deployments.server import free_port, start
from recsys.pipeline.diversity import DiversitySettings
from recsys.releases.manifest import write_release
from recsys.settings import Collector, OnlineStore, Serving, Settings
from tests.deployments.service import Service, put_users
from tests.world import ITEMS, NOW, World, release_parts, world


@pytest.fixture(scope="package")
def service(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    made = world()
    folder = tmp_path_factory.mktemp("service")
    release, other = (
        write_release(folder / "artifacts", release_parts(parts, folder / "index"), as_of=NOW, items=ITEMS)
        for parts in (made.parts, _other(made))
    )
    settings = Settings(
        workdir=str(folder),
        serving=Serving(port=free_port(), clock=NOW, max_n=50),
        collector=Collector(wait_s=15.0),  # a Redis that is slow on a busy machine is no outage
    )
    with start("laptop", settings=settings, release=release.uri) as server:
        settings = replace(settings, online_store=OnlineStore(url=server.redis_url))
        service = Service(server, settings, made, release, other)
        put_users(server.redis_url, made)
        yield service


def _other(made: World) -> Any:
    """Another release: the same models, more diversity."""
    diversity = DiversitySettings(relevance_weight=0.3, pool=60)
    return replace(made.parts, settings=replace(made.parts.settings, diversity=diversity))
