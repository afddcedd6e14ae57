"""Data-parallel training on a Ray cluster; this file imports ray, and is the only one that knows Ray Train.

Decides how a loop's snapshots become checkpoints, what a lost worker costs (the work since its last
snapshot) and how Ray Train's failures read. A loop is a module-level generator function of plain torch
or xgboost: it runs on every rank and yields snapshots (name -> array). Each is saved as it comes, and
a loop that is started anew gets those saved before it as `done`. The caller has called `ray.init`.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs
import ray
import ray.exceptions
import xgboost
from ray import train
from ray.train.torch import TorchConfig
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.torch.torch_trainer import TorchTrainer
from ray.train.v2.xgboost.xgboost_trainer import XGBoostTrainer
from torch import distributed

from recsys.errors import RecsysError, UnavailableError
from recsys.models.ranker import RankingRows
from recsys.training.driver import environment, fingerprint
from recsys.training.loop import RESUME
from recsys.types import offsets_of

Arrays = Mapping[str, np.ndarray]
# loop(data, done): `data` is read only (it lies in shared memory); `done` are the snapshots saved so far.
Loop = Callable[[Mapping[str, Any], Sequence[Arrays]], Iterator[Arrays]]

# Ray Train looks after its workers every 2 s by default: a report would take 2 s, and so would the end.
_POLL_SECONDS = "0.1"
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def train_data_parallel(
    loop: Loop, *, data: Mapping[str, Any], workers: int, storage: str, name: str, retries: int = 2
) -> list[dict[str, np.ndarray]]:
    """All snapshots that `loop` yields, in order; it runs on `workers` ranks of a `torch.distributed`
    group: nccl with a GPU each where there are as many, else gloo.

    Every rank must yield the same number of snapshots; those of rank 0 are kept. `storage` is a folder
    or URI that every node can reach. The run's folder there is deleted at the end; after a lost driver
    the same `name` with the same data goes on where it was.

    Raises what the loop raised where it is a RecsysError, else RecsysError; UnavailableError when
    workers were lost more than `retries` times or can't be placed.
    """
    # A torch made for CPUs can't use the GPUs that Ray sees.
    gpu = distributed.is_nccl_available() and gpu_for_each(ray.cluster_resources(), workers=workers)
    trainer = partial(_Torch, torch_config=TorchConfig(backend="nccl" if gpu else "gloo"))
    return _fit(
        trainer, loop, data=data, workers=workers, storage=storage, name=name, retries=retries, gpu=gpu
    )


def gpu_for_each(resources: Mapping[str, float], *, workers: int) -> bool:
    """Whether the cluster has a GPU for each worker. Some with and some without would wait for each other
    at every step, and can't be in one group."""
    return resources.get("GPU", 0) >= workers


def train_xgboost(
    train_booster: Callable[[RankingRows], xgboost.Booster],
    *,
    rows: Mapping[str, RankingRows],
    workers: int,
    storage: str,
    name: str,
    retries: int = 2,
) -> dict[str, bytes]:
    """A booster (UBJ bytes) for each entry of `rows`, all in one run, since starting one is dear.

    `train_booster` (module-level, or a partial of one) is called on every worker with whole requests,
    about as many candidates each, inside xgboost's communicator. No more workers than requests are
    used. Errors as in `train_data_parallel`.
    """
    if not rows:
        return {}
    workers = max(1, min(workers, *(len(r) for r in rows.values())))
    data = {"rows": dict(rows), "train": train_booster}
    found = _fit(
        _XGBoost, _booster_loop, data=data, workers=workers, storage=storage, name=name, retries=retries
    )
    return {scene: arrays["booster"].tobytes() for scene, arrays in zip(rows, found, strict=True)}


def _booster_loop(data: Mapping[str, Any], done: Sequence[Arrays]) -> Iterator[Arrays]:
    context = train.get_context()
    for rows in list(data["rows"].values())[len(done) :]:
        mine = share_of_requests(rows, rank=context.get_world_rank(), ranks=context.get_world_size())
        booster = data["train"](mine)
        yield {"booster": np.frombuffer(booster.save_raw("ubj"), np.uint8)}


def share_of_requests(rows: RankingRows, *, rank: int, ranks: int) -> RankingRows:
    """One rank's requests: a run of whole ones, views of the same memory. All ranks together hold each
    request once, no rank is empty (there are at least as many requests as ranks)."""
    cuts = np.searchsorted(rows.offsets, np.arange(1, ranks) * rows.offsets[-1] / ranks)
    bounds = np.concatenate(([0], cuts, [len(rows)]))
    for r in range(1, ranks):  # one request at least, for this rank and for each that follows
        bounds[r] = np.clip(bounds[r], bounds[r - 1] + 1, len(rows) - (ranks - r))
    start, end = bounds[rank], bounds[rank + 1]
    lines = slice(rows.offsets[start], rows.offsets[end])
    counts = np.diff(rows.offsets)[start:end]
    return RankingRows(offsets_of(counts), rows.features[lines], rows.label[lines])


def _fit(
    trainer: Callable[..., DataParallelTrainer],
    loop: Loop,
    *,
    data: Mapping[str, Any],
    workers: int,
    storage: str,
    name: str,
    retries: int,
    gpu: bool = False,
) -> list[dict[str, np.ndarray]]:
    storage = storage if "://" in storage else str(Path(storage).resolve())
    cpus = ray.cluster_resources().get("CPU", 0)
    if len(_nodes()) == 1 and cpus < workers:
        raise UnavailableError(f"training {name!r} needs {workers} CPUs, Ray has {cpus:g}; set fewer workers")
    folder = f"{name}-{fingerprint(data)}"
    references = {key: ray.put(value) for key, value in data.items()}
    with environment(_train_variables()):
        run = trainer(
            _on_worker,
            train_loop_config={"loop": loop, "data": references},
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=gpu,
                resources_per_worker={"CPU": 1, "GPU": 1} if gpu else {"CPU": 1},
            ),
            run_config=RunConfig(
                name=folder,
                storage_path=storage,
                failure_config=FailureConfig(max_failures=retries, controller_failure_limit=2),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
                worker_runtime_env={"env_vars": _ONE_THREAD},
                logging_config=LoggingConfig(log_level="WARNING"),
            ),
        )
        try:
            result = run.fit()
        except (train.TrainingFailedError, ray.exceptions.RayError, OSError) as error:
            raise _in_our_words(error, name=name, workers=workers) from error
    if result.checkpoint is None:
        return []
    with result.checkpoint.as_directory() as newest:
        snapshots = _read(newest)
    filesystem, path = pyarrow.fs.FileSystem.from_uri(storage)
    filesystem.delete_dir(f"{path}/{folder}")
    return snapshots


def _on_worker(config: Mapping[str, Any]) -> None:
    """Runs the loop on one rank. A checkpoint holds all snapshots so far, so that a resumed run needs the
    newest only; what a loop needs to go on is kept of the last snapshot alone."""
    logging.getLogger().setLevel(logging.WARNING)  # Ray names a logger after a file: LoggingConfig misses it
    last = train.get_checkpoint()
    done: list[dict[str, np.ndarray]] = []
    if last is not None:
        with last.as_directory() as folder:
            done = _read(folder)
    data = {key: ray.get(reference) for key, reference in config["data"].items()}
    first = train.get_context().get_world_rank() == 0
    for arrays in config["loop"](data, tuple(done)):
        if done:
            done[-1] = {key: array for key, array in done[-1].items() if not key.startswith(RESUME)}
        done.append(dict(arrays))
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if first:
                for number, snapshot in enumerate(done):
                    np.savez(Path(folder) / f"{number:04}.npz", allow_pickle=False, **snapshot)
                checkpoint = train.Checkpoint.from_directory(folder)
            train.report({"snapshots": len(done)}, checkpoint=checkpoint)


def _read(folder: str) -> list[dict[str, np.ndarray]]:
    snapshots = []
    for path in sorted(Path(folder).glob("*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            snapshots.append(dict(arrays))
    return snapshots


class _OneNode(DataParallelTrainer):
    """Leaves out, on one node, an actor whose start takes 2 s and whose work Ray does when the job ends:
    it asks the dashboard every second whether the controller lives, and complains where there is none."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        if len(_nodes()) > 1:
            return callbacks
        return [c for c in callbacks if type(c).__name__ != "PlacementGroupCleanerCallback"]


class _Torch(_OneNode, TorchTrainer): ...


class _XGBoost(_OneNode, XGBoostTrainer): ...


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _train_variables() -> dict[str, str]:
    wanted = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": _POLL_SECONDS}
    if len(_nodes()) == 1:  # nothing to move to when the only node goes
        wanted["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    return wanted


def _in_our_words(error: BaseException, *, name: str, workers: int) -> RecsysError:
    failures = getattr(error, "worker_failures", None)
    if failures:
        # Of a group that failed together, the one that raised tells more than those who lost a peer.
        causes = [(rank, _cause(failure)) for rank, failure in sorted(failures.items())]
        for _, cause in causes:
            if isinstance(cause, RecsysError):
                return type(cause)(str(cause))
        lost = [rank for rank, cause in causes if isinstance(cause, ray.exceptions.RayError)]
        if lost:
            return UnavailableError(
                f"training {name!r} lost worker {lost[0]} of {workers} too often: "
                f"{_one_line(dict(causes)[lost[0]])}; look at the node's memory, or allow more retries"
            )
        rank, cause = causes[0]
        return RecsysError(
            f"training {name!r} failed on worker {rank}: {type(cause).__name__}: {_one_line(cause)}"
        )
    cause = getattr(error, "controller_failure", error)
    return UnavailableError(
        f"training {name!r} could not run on {workers} workers: {type(cause).__name__}: {_one_line(cause)}"
    )


def _cause(failure: BaseException) -> BaseException:
    """The exception under Ray Train's wrappers."""
    for wrapped in ("_base_exc", "health_check_failure"):
        if isinstance(inner := getattr(failure, wrapped, None), BaseException):
            return _cause(inner)
    return failure


def _one_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")[:300]
