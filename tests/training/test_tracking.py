"""Runs in a real MLflow store."""

import pytest
from mlflow import MlflowClient

from recsys.errors import UnavailableError
from recsys.training.tracking import track_run


def test_a_run_is_kept_with_its_settings_and_metrics(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    given = {"experiment": "retrieval", "name": "ease", "parameters": {"regularization": 300}}
    first = track_run(uri, **given, metrics={"ndcg@10": 0.5, "rmse": None}, tags={"path": "p"})
    second = track_run(uri, **given, metrics={"ndcg@10": 0.6})
    client = MlflowClient(tracking_uri=uri)
    run = client.get_run(first)
    assert run.data.metrics == {"ndcg_at_10": 0.5}
    assert run.data.params == {"regularization": "300"}
    assert run.info.status == "FINISHED"
    assert client.get_run(second).info.experiment_id == run.info.experiment_id


def test_a_run_that_is_not_taken_whole_is_marked_as_failed(tmp_path):
    """It stood there as running for ever."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    given = {"experiment": "retrieval", "name": "ease", "metrics": {}}
    with pytest.raises(UnavailableError, match="Names may only contain"):
        track_run(uri, **given, parameters={"no name?": 1})
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("retrieval").experiment_id])
    assert run.info.status == "FAILED"


def test_a_store_that_is_away_is_a_typed_error():
    with pytest.raises(UnavailableError, match="check the URI"):
        track_run("http://127.0.0.1:9", experiment="e", name="n", parameters={}, metrics={})
