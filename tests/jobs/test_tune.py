"""The search as a job: on a work directory's own events and on other data, each trial a run in MLflow."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from jobs.ingest import ingest, read
from jobs.tune import run
from jobs.workspace import Workspace
from recsys.errors import DataError, SettingsError
from recsys.settings import Settings, model_of

USERS, ITEMS, DAYS = 90, 40, 120


@pytest.fixture(scope="module")
def settings(ray_cluster: None, tmp_path_factory) -> Settings:
    """A shop where users come every week and buy what is of their kind."""
    folder = tmp_path_factory.mktemp("shop")
    rng = np.random.default_rng(0)
    lines = ["u,i,t"]
    for user in range(USERS):
        for day in range(user % 7, DAYS, 7):
            item = rng.integers(0, ITEMS // 4) * 4 + user % 4
            lines.append(f"u{user},i{item},{np.datetime64('2024-01-01') + day}")
    (folder / "own.csv").write_text("\n".join(lines))
    found = Settings(workdir=str(folder / "work"))
    read(found, path=str(folder / "own.csv"), map="user=u,item=i,time=t,type==purchase")
    ingest(found)
    return found


def test_what_is_given_stays_and_each_trial_is_a_run(settings: Settings) -> None:
    told: list[str] = []
    model = "covisitation window=3 neighbors=1"
    figures = run(settings, model=model, trials=3, progress=lambda share, text: told.append(text))
    assert figures["trials"] == 3
    assert figures["ndcg@10"] >= figures["defaults"]
    found = model_of(figures["model"])
    assert (found.window, found.neighbors) == (3, 1)
    assert len(told) == 3
    assert all("window" not in text and "ndcg@10 0." in text for text in told)
    client = MlflowClient(tracking_uri=settings.registry_uri)
    runs = client.search_runs([client.get_experiment_by_name("recsys-tuning").experiment_id])
    assert {one.info.run_name for one in runs} == {f"covisitation {n}" for n in range(3)}
    (first,) = [one for one in runs if one.info.run_name == "covisitation 0"]
    assert first.data.params["model"] == model
    assert first.data.metrics["ndcg_at_10 at 9 of 9"] == pytest.approx(figures["defaults"])
    assert run(settings, model=model, trials=3) == figures  # nothing is run again
    with pytest.raises(SettingsError, match="another name, or delete the folder"):
        run(settings, model="covisitation window=3", trials=4)


def test_a_release_is_asked_for_repeats_where_a_scene_shows_them(settings: Settings) -> None:
    assert Workspace.of_model(settings, "ease").taught.repeats  # home does
    scenes = {name: replace(one, hide_consumed=True) for name, one in settings.pipeline.scenes.items()}
    hidden = replace(settings, pipeline=replace(settings.pipeline, scenes=scenes))
    assert not Workspace.of_model(hidden, "ease").taught.repeats


def test_other_data_than_the_work_directorys(settings: Settings, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = ["user_id:token\titem_id:token\trating:float"]
    lines += [f"{u}\t{i}\t{1 + (u * i) % 5}" for u in range(30) for i in rng.choice(20, 8, replace=False)]
    (tmp_path / "own.inter").write_text("\n".join(lines))
    given = {"format": "atomic", "path": str(tmp_path), "trials": 1}
    figures = run(settings, model="svd samples=4 warmup=2", name="ratings", **given)
    assert figures["model"] == "svd samples=4 warmup=2"
    assert figures["rmse"] == figures["defaults"] > 0
    journal = settings.folder / "tuning" / "ratings" / "trials.jsonl"
    assert [json.loads(line)["number"] for line in journal.read_text().splitlines()[1:]] == [0]


def test_what_cannot_be_done_is_said(settings: Settings, tmp_path: Path) -> None:
    for given, text in (
        ({}, "give --model"),
        ({"model": "teo_tower"}, "did you mean 'two_tower'"),
        ({"model": "ease regularization=3"}, "Ease has no setting left to tune"),
        ({"model": "ease", "path": "p"}, "--format and --path go together"),
        ({"model": "ease", "trials": 0}, "trials = 0"),
    ):
        with pytest.raises(SettingsError, match=text):
            run(settings, **given)
    with pytest.raises(DataError, match="nothing at"):
        run(settings, model="ease", format="atomic", path=str(tmp_path / "none"))
