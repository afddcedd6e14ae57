"""Runs in MLflow: what was fitted, with which settings, how good it was. MLflow is imported when used.

SQLite on a laptop and a tracking server in production differ by the URI only. A run is written when
it is over: a fit that failed leaves none. One that the store doesn't take whole is marked as failed there.
"""

import logging
import os
import re
from collections.abc import Mapping
from contextlib import suppress

from recsys.errors import UnavailableError


def track_run(
    uri: str,
    *,
    experiment: str,
    name: str,
    parameters: Mapping[str, object],
    metrics: Mapping[str, float | None],
    tags: Mapping[str, str] | None = None,
) -> str:
    """The id of the new run. A metric of None is left out; `ndcg@10` is stored as `ndcg_at_10`, since
    MLflow allows no @ in a name.

    Raises UnavailableError when the store can't be reached.
    """
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # else two INFO lines for each new database
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # 7 by default: minutes of silence
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    for logger in ("mlflow", "alembic"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    try:
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else client.create_experiment(experiment)
        run = client.create_run(number, run_name=name, tags=dict(tags or {}))
        try:
            client.log_batch(
                run.info.run_id,
                params=[Param(key, str(value)[:6000]) for key, value in parameters.items()],
                metrics=[
                    Metric(re.sub(r"[^\w ./-]", "_at_", key), value, run.info.start_time, 0)
                    for key, value in metrics.items()
                    if value is not None
                ],
            )
        except BaseException:
            with suppress(MlflowException, SQLAlchemyError, OSError):  # what came first is what is told
                client.set_terminated(run.info.run_id, "FAILED")
            raise
        client.set_terminated(run.info.run_id)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        text = next((line for line in str(error).splitlines() if line.strip()), "no message")[:200]
        raise UnavailableError(
            f"MLflow at {uri} does not keep the run ({text}); check the URI and the server"
        ) from error
    return str(run.info.run_id)
