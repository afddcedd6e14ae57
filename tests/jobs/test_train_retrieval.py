"""One model by name on a work directory's own events: spread, judged, stored, tracked, gone on from."""

from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from jobs.ingest import ingest, read
from jobs.train_retrieval import run
from recsys.errors import CapacityError, SettingsError
from recsys.settings import Settings
from recsys.training.stored import load_fitted

USERS, ITEMS, DAYS = 90, 40, 120
TOWERS = "two_tower dimensions=16 passes=2 epochs=2 uniform=32"


@pytest.fixture(scope="module")
def settings(ray_cluster: None, tmp_path_factory) -> Settings:
    """A shop where users come every week and buy what is of their kind."""
    folder = tmp_path_factory.mktemp("shop")
    rng = np.random.default_rng(0)
    lines = ["u,i,t,title"]
    for user in range(USERS):
        for day in range(user % 7, DAYS, 7):
            item = rng.integers(0, ITEMS // 4) * 4 + user % 4
            date = np.datetime64("2024-01-01") + day
            lines.append(f"u{user},i{item},{date},kind{item % 4} thing{item}")
    (folder / "own.csv").write_text("\n".join(lines))
    found = Settings(workdir=str(folder / "work"))
    read(found, path=str(folder / "own.csv"), map="user=u,item=i,time=t,title=title,type==purchase")
    ingest(found)
    return found


def test_a_two_tower_is_spread_stored_tracked_and_gone_on_from(settings: Settings) -> None:
    figures = run(settings, model=TOWERS)
    fitted = load_fitted(Path(figures["stored"]))
    assert fitted.arrays()["items"].shape == (ITEMS, 16)
    kept = MlflowClient(tracking_uri=settings.registry_uri).get_run(figures["run"])
    assert kept.data.metrics["recall_at_20"] == pytest.approx(figures["recall@20"])
    again = run(settings, model=TOWERS, start=figures["stored"])
    assert again["stored"] != figures["stored"]
    assert again["ndcg@20"] > figures["ndcg@20"] - 0.05
    assert not list((settings.folder / "training").glob("*")), "a finished run leaves no checkpoint"


def test_a_sequence_model_is_spread_and_stored(settings: Settings) -> None:
    figures = run(settings, model="sasrec dimensions=16 window=10 passes=2")
    assert load_fitted(Path(figures["stored"])).arrays()["items"].shape == (ITEMS, 16)


def test_ials_is_spread_and_others_are_fitted_here(settings: Settings) -> None:
    for model in ("ials factors=8", "ease"):
        figures = run(settings, model=model)
        assert Path(figures["stored"]).is_file()
        assert figures["recall@20"] > 0.4, model  # half of all items are shown: chance is about that


def test_events_without_an_order_leave_nothing_to_judge_by(ray_cluster: None, tmp_path: Path) -> None:
    lines = ["u,i,t", *(f"u{user},i{item},2024-01-01" for user in range(9) for item in range(user % 3, 9, 3))]
    (tmp_path / "own.csv").write_text("\n".join(lines))
    settings = Settings(workdir=str(tmp_path / "work"))
    read(settings, path=str(tmp_path / "own.csv"), map="user=u,item=i,time=t,type==purchase")
    ingest(settings)
    figures = run(settings, model="ease")
    assert Path(figures["stored"]).is_file()


def test_what_cannot_be_done_is_said(settings: Settings, monkeypatch) -> None:
    with pytest.raises(SettingsError, match="only two_tower goes on"):
        run(settings, model="ease", start="some.npz")
    with pytest.raises(SettingsError, match="only two_tower goes on"):
        run(settings, model="sasrec", start="some.npz")
    with pytest.raises(SettingsError, match="--start needs a --model"):
        run(settings, start="some.npz")
    with pytest.raises(SettingsError, match=r"^no model 'teo_tower'; did you mean 'two_tower'"):
        run(settings, model="teo_tower")
    monkeypatch.setattr("jobs.train_retrieval.free_mb", lambda: 10.0)
    with pytest.raises(CapacityError, match="ease"):
        run(settings, model="ease")
