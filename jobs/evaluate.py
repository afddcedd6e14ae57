"""Evaluates the pipeline that is served on the held-out window: report, slates and plot.

    python -m jobs.evaluate

A scene in which nobody can be judged, since no user with a past came back, is served all the same.
"""

import json
from typing import Any

import numpy as np
import ray

from jobs.session import run_job
from jobs.workspace import Progress, Workspace, silent, write_atomically
from recsys.evaluation.pipeline import PIPELINE, Evaluation, evaluate
from recsys.evaluation.plot import plot_evaluation
from recsys.index.shard import shards_in
from recsys.index.vectors import VectorArray
from recsys.pipeline.offline import PointInTimeUsers, relevant_items
from recsys.pipeline.wiring import recommender
from recsys.settings import Settings

# Names of the report's two protocols: all that is relevant, and only what is new to the user.
PROTOCOLS = {False: "all", True: "new"}


def run(settings: Settings, *, progress: Progress = silent) -> dict[str, Any]:
    workspace = Workspace(settings)
    score: Any = ray.remote(num_cpus=1)(evaluate_scene)
    waiting = {score.remote(settings, name): name for name in settings.pipeline.scenes}
    found: dict[str, Evaluation] = {}
    while waiting:
        progress(len(found) / len(settings.pipeline.scenes), f"replaying {', '.join(waiting.values())}")
        (ready,), _ = ray.wait(list(waiting))
        found[waiting.pop(ready)] = ray.get(ready)
    folder = workspace.folder / "evaluation"
    report: dict[str, dict[str, Any]] = {}
    for name, scene in settings.pipeline.scenes.items():
        protocol = PROTOCOLS[scene.hide_consumed]
        # A further scene of the same protocol goes by its own name.
        report[name if protocol in report else protocol] = {
            "scene": name,
            "users": found[name].users,
            "lines": found[name].lines,
        }
    judged = {protocol: part for protocol, part in report.items() if part["users"]}
    slates = {name: found[name].slates for name in found}
    write_atomically(folder / "report.json", json.dumps(report, indent=1).encode())
    write_atomically(folder / "slates.json", json.dumps(slates).encode())
    figures: dict[str, Any] = dict.fromkeys(report, "nobody to judge by")
    if judged:
        plot_evaluation(judged, folder / "evaluation.png")
        figures = {"plot": str(folder / "evaluation.png")} | figures
    for protocol, part in judged.items():
        line = part["lines"][PIPELINE]
        figures[protocol] = {m: round(line[m], 4) for m in ("recall@20", "recall@100", "ndcg@10")}
    return figures


def evaluate_scene(settings: Settings, scene: str) -> Evaluation:
    workspace = Workspace(settings)
    windows, log = workspace.windows, workspace.interactions
    now = windows.held_out
    parts = workspace.parts(now, rankers=workspace.rankers)
    return evaluate(
        recommender(
            parts,
            users=PointInTimeUsers(log, now),
            shards=shards_in(workspace.folder / "index", of=VectorArray(parts.snapshot.vectors)),
        ),
        relevant_items(
            log,
            start=now,
            end=windows.end,
            items=len(parts.snapshot),
            new_only=settings.pipeline.scenes[scene].hide_consumed,
        ),
        scene=scene,
        now=now,
        category=parts.snapshot.category,
        rng=np.random.default_rng(settings.seed),
    )


if __name__ == "__main__":
    run_job(run, description=__doc__)
