"""`recsys demo`: the whole platform on this machine, from raw events to a served slate."""

import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from recsys.cli.service import until_stopped
from recsys.cli.steps import Step, run_steps, say, terminal

SOURCE = "source"  # in data/: the fingerprint of what was read


def demo(
    dataset: str = typer.Option(
        "online-retail", help="online-retail, movielens-100k or movielens-latest-small."
    ),
    path: str = typer.Option(None, help="Where its files are; online-retail is shipped and needs none."),
    workdir: Path = typer.Option(None, help="Where everything is kept; default work/<dataset>."),
    stop: bool = typer.Option(False, "--stop", help="Exit after the last step instead of serving on."),
    report: Path = typer.Option(None, help="Write seconds, memory, counts, metrics and slates as JSON."),
    config: Path = typer.Option(None, help="A settings file; without it, the defaults."),
    port: int = typer.Option(None, help="Port of the service; default serving.port."),
) -> None:
    """Ingest, materialize, train, evaluate, release and serve a data set; finished steps are not redone."""
    from deployments.server import check_port, prepare
    from jobs.session import ray_session
    from recsys.datasets.sources import check_dataset, fingerprint
    from recsys.errors import DataError
    from recsys.events.redis_server import start_redis
    from recsys.memory import PeakMemory
    from recsys.settings import load_settings

    console = terminal()
    settings = load_settings(config, overrides={} if port is None else {"serving.port": port})
    folder = (workdir or Path("work") / dataset).absolute()
    settings = replace(settings, workdir=str(folder))
    check_dataset(dataset, path)
    _check_workdir(folder, fingerprint(dataset, path))
    if report and not report.absolute().parent.is_dir():
        raise DataError(f"can't write {report}: there is no folder {report.absolute().parent}")
    if settings.ray.address is None:
        check_port(settings.serving.host, settings.serving.port)
        prepare()  # Serve reads its environment from the Ray that it runs on
    folder.mkdir(parents=True, exist_ok=True)
    console.print(f"[dim]work directory {folder}[/dim]", highlight=False)
    with ExitStack() as ends, PeakMemory() as memory:
        embedded = settings.online_store.url is None
        if embedded:
            redis = ends.enter_context(start_redis(folder / "redis"))
            settings = replace(settings, online_store=replace(settings.online_store, url=redis.url))
        ends.enter_context(ray_session(settings))
        done = run_steps(_steps(settings, dataset=dataset, path=path), folder=folder, console=console)
        settings = _at_the_releases_moment(settings)
        _leave_settings(settings, folder / "recsys.yaml", embedded=embedded)
        evaluation = json.loads((folder / "evaluation" / "report.json").read_bytes())
        url, slates, seconds = _serve(settings, ends, console, evaluation)
        if report:
            report.write_text(
                json.dumps(
                    {
                        "seconds": {name: step["seconds"] for name, step in done.items()}
                        | {"serve": seconds},
                        "cached": [name for name, step in done.items() if step["cached"]],
                        "peak_memory_mb": memory.peak_mb(),
                        "ingest": done["ingest"]["figures"],
                        "evaluation": {p: part["lines"] for p, part in evaluation.items()},
                        "release": done["release"]["figures"],
                        "slates": slates,
                    },
                    indent=1,
                )
            )
        if not stop:
            _stay(url, folder, console)


def _at_the_releases_moment(settings: Any) -> Any:
    """Settings whose clock stands still where the data's past ends, so that what is served is what was
    evaluated."""
    from jobs.workspace import Workspace

    clock = Workspace(settings).windows.held_out
    return replace(settings, serving=replace(settings.serving, clock=clock))


def _leave_settings(settings: Any, path: Path, *, embedded: bool) -> None:
    """For other commands on this work directory, while the demo serves and afterwards."""
    import yaml
    from pydantic import TypeAdapter

    from recsys.settings import Settings

    if embedded:  # each command finds the Redis of the work directory, or starts it there
        settings = replace(settings, online_store=replace(settings.online_store, url=None))
    tree = TypeAdapter(Settings).dump_python(settings, mode="json")
    path.write_text(yaml.safe_dump(tree, sort_keys=False))


def _serve(
    settings: Any, ends: ExitStack, console: Console, evaluation: Mapping[str, Any]
) -> tuple[str, list[dict[str, Any]], float]:
    """(URL, the slates that were shown, seconds until the first): the service, up until `ends` closes."""
    from deployments.server import start
    from recsys.cli.show import evaluation_table, show_slates

    console.print()
    for protocol, part in evaluation.items():
        evaluation_table(console, protocol, part)
    begun = time.perf_counter()
    with console.status("serve: starting") as status:
        server = start(
            "laptop",
            settings=settings,
            progress=lambda doing: status.update(f"serve: {doing}"),
            ray_ends_too=settings.ray.address is None,
        )
    ends.callback(server.stop)
    seconds = time.perf_counter() - begun
    say(console, "serve", seconds, {"url": server.url, "release": server.release})
    scenes = settings.pipeline.scenes
    open_scene = next((name for name, scene in scenes.items() if not scene.hide_consumed), next(iter(scenes)))
    hiding = next((name for name, scene in scenes.items() if scene.hide_consumed), None)
    slates = json.loads((settings.folder / "evaluation" / "slates.json").read_bytes())
    users = sorted(set.intersection(*(set(of) for of in slates.values())))
    picked = [users[len(users) * i // 3] for i in range(3)]
    shown = show_slates(console, server.url, picked, scene=open_scene, hiding_scene=hiding)
    return server.url, shown, round(seconds, 2)


def _stay(url: str, folder: Path, console: Console) -> None:
    """Until Ctrl-C."""
    console.print(
        f"\nserving at [bold]{url}[/bold]  (docs {url}/docs, metrics {url}/metrics); Ctrl-C stops it\n"
        f"[dim]in another terminal: recsys recommend USER --config {folder / 'recsys.yaml'}[/dim]",
        highlight=False,
        soft_wrap=True,
    )
    until_stopped()
    console.print("stopping")


def _check_workdir(folder: Path, source: str) -> None:
    """A work directory holds one data set: events of two would be trained on together. Raises DataError."""
    from recsys.errors import DataError

    mark = folder / "data" / SOURCE
    if mark.exists() and mark.read_text() != source:
        raise DataError(f"{folder} holds another data set: choose another --workdir, or delete this one")


def _steps(settings: Any, *, dataset: str, path: str | None) -> list[Step]:
    from pydantic import TypeAdapter

    from jobs import build_features, build_release, evaluate, ingest, train_ranker, train_retrieval
    from recsys.datasets.sources import fingerprint
    from recsys.events.redis_server import connect
    from recsys.features.online import OnlineStore
    from recsys.settings import Settings

    tree = TypeAdapter(Settings).dump_python(settings, mode="json")
    training = dict(tree["training"])
    rankers = training.pop("rankers")
    files = [Path(f).read_text() for f in (settings.rules, settings.experiments) if f]
    store = OnlineStore(connect(settings.online_store.url))

    def of(job: Any) -> Any:
        return lambda progress: job(settings, progress=progress)

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
            of(ingest.ingest),
            ["recsys/events", "recsys/catalog.py", "recsys/types.py", "recsys/hashing.py", "jobs/ingest.py"],
            tree["events"],
        ),
        Step(
            "features",
            of(build_features.run),
            ["recsys/features", "recsys/evaluation/windows.py", "jobs/build_features.py"],
            [
                training["event_types"],
                training["window_days"],
                training["slices"],
                tree["online_store"]["time_to_live_days"],
            ],
            holds=lambda: store.is_filled("events"),
        ),
        Step(
            "retrieval",
            of(train_retrieval.run),
            ["recsys/models", "recsys/training", "jobs/train_retrieval.py", "jobs/workspace.py"],
            [training, tree["seed"]],
        ),
        Step(
            "ranker",
            of(train_ranker.run),
            ["recsys/pipeline", "recsys/index", "jobs/train_ranker.py"],
            [rankers, tree["pipeline"], tree["index"]],
        ),
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
