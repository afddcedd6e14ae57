"""The steps of the demo: which jobs in which order, and what each depends on.

Two halves, since what is trained may be chosen by what was read.
"""

from pathlib import Path
from typing import Any

from recsys.cli.steps import Step

SOURCE = "source"  # in data/: the fingerprint of what was read


def steps_of_data(settings: Any, *, dataset: str, path: str | None) -> list[Step]:
    from jobs import ingest
    from recsys.datasets.sources import fingerprint

    source = fingerprint(dataset, path)

    def read(progress: Any) -> dict[str, Any]:
        figures = ingest.read(settings, dataset=dataset, path=path, progress=progress)
        (settings.folder / "data" / SOURCE).write_text(source)
        return figures

    return [
        Step(
            "data",
            read,
            ["recsys/datasets"],
            source,
        ),
        Step(
            "ingest",
            lambda progress: ingest.ingest(settings, progress=progress),
            ["recsys/events", "recsys/catalog", "recsys/types.py", "recsys/hashing.py", "jobs/ingest.py"],
            as_json(settings)["events"],
        ),
    ]


def steps_of_models(settings: Any) -> list[Step]:
    from jobs import build_features, build_index, build_release, evaluate, train_ranker, train_retrieval
    from recsys.events.redis_server import connect
    from recsys.features.online import OnlineStore

    tree = as_json(settings)
    training = dict(tree["training"])
    rankers = training.pop("rankers")
    files = [Path(f).read_text() for f in (settings.rules, settings.experiments) if f]
    store = OnlineStore(connect(settings.online_store.url))

    def of(job: Any) -> Any:
        return lambda progress: job(settings, progress=progress)

    return [
        Step(
            "features",
            of(build_features.run),
            [
                "recsys/features",
                "recsys/interactions.py",
                "recsys/evaluation/windows.py",
                "jobs/build_features.py",
            ],
            [
                training["event_types"],
                training["window_days"],
                training["slices"],
                training["model"] is None,
                tree["online_store"]["time_to_live_days"],
            ],
            holds=lambda: store.is_filled("events"),
        ),
        Step(
            "retrieval",
            of(train_retrieval.run),
            [
                "recsys/models",
                "recsys/training",
                "recsys/advisor",
                "jobs/train_retrieval.py",
                "jobs/workspace.py",
            ],
            [training, tree["seed"], training["model"] and tree["pipeline"]["scenes"]],
        ),
        Step(
            "ranker",
            of(train_ranker.run),
            ["recsys/pipeline", "recsys/index", "jobs/train_ranker.py"],
            [rankers, tree["pipeline"]],
        ),
        Step("index", of(build_index.run), ["jobs/build_index.py"], tree["index"]),
        Step(
            "evaluation",
            of(evaluate.run),
            [
                "recsys/evaluation",
                "recsys/experiments",
                "recsys/metrics.py",
                "jobs/evaluate.py",
                "configs/rules",
                "configs/experiments",
            ],
            files,
        ),
        Step(
            "release", of(build_release.run), ["recsys/releases", "jobs/build_release.py"], tree["registry"]
        ),
    ]


def as_json(settings: Any) -> dict[str, Any]:
    from pydantic import TypeAdapter

    from recsys.settings import Settings

    tree: dict[str, Any] = TypeAdapter(Settings).dump_python(settings, mode="json")
    return tree
