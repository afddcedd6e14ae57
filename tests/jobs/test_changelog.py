"""The jobs and the catalog's changelog: it is folded in, written to, and taken into a rebuilt index."""

from contextlib import closing

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import build_index, build_release, evaluate, train_ranker, train_retrieval
from jobs.ingest import ingest, read, run
from jobs.session import bus_session
from jobs.workspace import Workspace
from recsys.catalog.changelog import Change, Claim, encode_change
from recsys.errors import UnavailableError
from recsys.events.bus import open_bus
from recsys.events.redis_server import connect
from recsys.releases.live import LiveCatalog, space_of, watermark
from recsys.releases.parts import index_manifest, load_parts
from recsys.releases.registry import resolve
from recsys.settings import Settings
from tests.jobs.test_single_stage import shop


def catalog_file(folder, *lines: str) -> str:
    path = folder / "catalog.csv"
    path.write_text("\n".join(["sku,name,price", *lines]))
    return str(path)


def add(settings: Settings, path: str) -> list[str]:
    read(settings, items=path, item_map="item=sku,title=name,price=price")
    ingest(settings)
    return Workspace(settings).catalog.ids.tolist()


def log_of(settings: Settings, bus):
    return closing(open_bus(bus.of_changelog(Workspace(settings).catalog.position.log)))


def test_a_second_file_is_written_to_the_changelog_and_rows_of_others_are_kept(tmp_path):
    settings = Settings(workdir=str(tmp_path / "work"))
    assert add(settings, catalog_file(tmp_path, "a,A,1", "b,B,2")) == ["a", "b"]
    with bus_session(settings) as bus, log_of(settings, bus) as log:
        change = Change("of the service", 2, Claim("x", 2), "upsert", {"title": "S"})
        log.append([encode_change(change)], partition=0)
        ids = add(settings, catalog_file(tmp_path, "b,B,3", "c,C,1"))
        assert ids == ["a", "b", "of the service", "c"]
        assert log.end_offsets() == {0: 3}
        assert add(settings, catalog_file(tmp_path, "b,B,3", "c,C,1")) == ids
        assert log.end_offsets() == {0: 3}
        log.append([encode_change(Change("a", 0, None, "delete"))], partition=0)
        run(settings, bus=True)  # events of new items need their rows
        assert Workspace(settings).catalog.available.tolist() == [False, True, True, True]
        connect(bus.url).flushall()
        with pytest.raises(UnavailableError, match="--new-changelog"):
            add(settings, catalog_file(tmp_path, "d,D,1"))
    assert pq.read_table(settings.folder / "catalog.parquet")["item_id"].to_pylist() == ids  # nothing is lost
    figures = run(settings, new_changelog=True)
    assert figures["items"] == 4
    assert add(settings, catalog_file(tmp_path, "d,D,1")) == [*ids, "d"]


def test_a_rebuilt_index_is_a_release_that_takes_the_changes_in(ray_cluster, tmp_path):
    settings = shop(tmp_path, users=30, days=20, model="normalized-ease")
    for job in (train_retrieval, train_ranker, build_index, evaluate, build_release):
        job.run(settings)
    release = resolve("champion", registry=settings.registry_uri, model=settings.registry.model)
    start, before = watermark(release), index_manifest(release)
    assert start == Workspace(settings).catalog.position
    vector = np.eye(1, before.dimensions, dtype=np.float32)[0]
    changes = [
        Change("new", start.rows, Claim("x", start.rows), "upsert", {}, {space_of(release): vector}),
        Change("of another space", start.rows + 1, Claim("x", start.rows), "upsert", {}, {"s": vector}),
        Change(Workspace(settings).catalog.ids[0], 0, None, "delete"),
    ]
    with bus_session(settings) as bus, log_of(settings, bus) as log:
        log.append([encode_change(change) for change in changes], partition=0)
        figures = build_index.run(settings, release="champion")
    made = resolve("champion", registry=settings.registry_uri, model=settings.registry.model)
    assert made.manifest.id == figures["release"] != release.manifest.id
    assert figures["alias"] == "champion"
    assert {n for n, h in made.manifest.parts.items() if release.manifest.parts[n] != h} <= {
        name for name in made.manifest.parts if name.startswith("index/")
    }
    # One came; the deleted one may come back.
    assert (figures["items"], index_manifest(made).built_at) == (before.items + 1, 3)
    assert watermark(made) == start
    live = LiveCatalog.of_path(made, load_parts(made), shards=True)
    live.apply(list(enumerate(changes)))
    found = {row for s in live.shards for row in s.shard.search(vector[None], 100)[0][0].tolist()}
    assert start.rows in found
    assert not found & {0, start.rows + 1}
    assert sum(shard.shard.fresh.alive for shard in live.shards) == 0
