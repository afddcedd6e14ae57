"""A single stage from a file of a few lines to a release: whatever the data is, something is served."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from jobs import build_index, build_release, evaluate, train_ranker, train_retrieval
from jobs.ingest import ingest, read
from jobs.workspace import Workspace
from recsys.models.blend import FittedBlend
from recsys.pipeline.offline import PointInTimeUsers, batch_of
from recsys.pipeline.wiring import recommender
from recsys.releases.parts import load_parts, local_shards
from recsys.releases.registry import resolve
from recsys.settings import Settings, Training


def shop(folder: Path, *, users: int, days: int, model: str) -> Settings:
    """`users` who buy every day, and one lamp that is new on the last; as an ingested work directory."""
    rng = np.random.default_rng(0)
    start = np.datetime64("2024-01-01")
    lines = [
        f"u{user},i{rng.integers(0, 5) * 4 + user % 4},{start + day},9.5,kind{user % 4} thing"
        for user in range(users)
        for day in range(days)
    ]
    (folder / "own.csv").write_text("\n".join(["u,i,t,v,title", *lines, f"u0,i99,{start + days},9.5,lamp"]))
    made = Settings(workdir=str(folder / "work"), training=Training(model=model))
    read(made, path=str(folder / "own.csv"), map="user=u,item=i,time=t,value=v,title=title,type==purchase")
    ingest(made)
    return made


@pytest.mark.parametrize(
    ("users", "days", "model", "parts", "judged"),
    [
        (30, 20, "auto models=[popularity,covisitation]", {"popularity", "covisitation"}, True),
        (10, 3, "auto", {"popularity"}, True),
        (2, 1, "normalized-ease", {"normalized_ease"}, False),  # the lamp is not known yet
    ],
)
def test_small_data_is_trained_judged_and_released(ray_cluster, tmp_path, users, days, model, parts, judged):
    settings = shop(tmp_path, users=users, days=days, model=model)
    stale = settings.folder / "models" / str(Workspace(settings).windows.held_out) / "two_tower.npz"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of an earlier run in two stages")
    figures = train_retrieval.run(settings)
    assert set(figures["models"]) <= parts
    assert not stale.exists()
    assert train_ranker.run(settings) == {"rankers": "none: a single stage keeps the order of its model"}
    assert build_index.run(settings)["shards"] == 2
    found = evaluate.run(settings)
    report = json.loads((settings.folder / "evaluation" / "report.json").read_bytes())
    assert (report["all"]["users"] > 0) is judged
    assert (found["all"] == "nobody to judge by") is not judged
    assert build_release.run(settings)["alias"] == "champion"

    workspace = Workspace(settings)
    release = resolve("champion", registry=settings.registry_uri, model=settings.registry.model)
    served = load_parts(release)
    assert isinstance(served.snapshot.models, FittedBlend)
    users_then = PointInTimeUsers(workspace.interactions, workspace.windows.held_out)
    path = recommender(served, users=users_then, shards=local_shards(release))
    batch = batch_of(["u0", "stranger"], scene="home", now=workspace.windows.held_out, n=3)
    for slate in asyncio.run(path.recommend(batch)).slates:
        assert len(slate.items) == min(3, len(served.snapshot))
