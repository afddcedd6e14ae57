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

from recsys.cli.demo_steps import SOURCE, as_json, steps_of_data, steps_of_models
from recsys.cli.service import until_stopped
from recsys.cli.steps import run_steps, say, terminal

TWO_STAGE = "two-stage"


def demo(
    dataset: str = typer.Option(
        "online-retail", help="online-retail, movielens-100k or movielens-latest-small."
    ),
    path: str = typer.Option(None, help="Where its files are; online-retail is shipped and needs none."),
    workdir: Path = typer.Option(None, help="Where everything is kept; default work/<dataset>."),
    stop: bool = typer.Option(False, "--stop", help="Exit after the last step instead of serving on."),
    report: Path = typer.Option(None, help="Write seconds, memory, counts, metrics and slates as JSON."),
    model: str = typer.Option(
        None,
        help="two-stage, auto, or a model that serves in a single stage; default: two-stage where enough "
        "users come back, else auto.",
    ),
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
    overrides: dict[str, Any] = {} if port is None else {"serving.port": port}
    if model:
        overrides["training.model"] = None if model == TWO_STAGE else model
    settings = load_settings(config, overrides=overrides)
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
        read = steps_of_data(settings, dataset=dataset, path=path)
        done = run_steps(read, folder=folder, console=console)
        if not model and settings.training.model is None:
            settings = _with_a_model(settings, console)
        done |= run_steps(
            steps_of_models(settings), folder=folder, console=console, after=done["ingest"]["key"]
        )
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


def _with_a_model(settings: Any, console: Console) -> Any:
    """Two stages where the data can teach them, else a single one of what `auto` chooses; says why."""
    from jobs.workspace import Workspace
    from recsys.errors import DataError
    from recsys.evaluation.windows import ENOUGH_USERS, choose_windows

    training, log = settings.training, Workspace(settings).interactions
    windows = f"{training.slices + 1} windows of {training.window_days} days or more"
    try:
        choose_windows(log, days=training.window_days, slices=training.slices)
    except DataError:
        said = {"auto": f"in a single stage, since fewer than {ENOUGH_USERS} users come back in {windows}"}
        settings = replace(settings, training=replace(training, model="auto"))
    else:
        said = {TWO_STAGE: f"since {ENOUGH_USERS} users or more come back in each of {windows}"}
    say(console, "model", 0.0, said)
    return settings


def _at_the_releases_moment(settings: Any) -> Any:
    """Settings whose clock stands still where the data's past ends, so that what is served is what was
    evaluated."""
    from jobs.workspace import Workspace

    clock = Workspace(settings).windows.held_out
    return replace(settings, serving=replace(settings.serving, clock=clock))


def _leave_settings(settings: Any, path: Path, *, embedded: bool) -> None:
    """For other commands on this work directory, while the demo serves and afterwards."""
    import yaml

    if embedded:  # each command finds the Redis of the work directory, or starts it there
        settings = replace(settings, online_store=replace(settings.online_store, url=None))
    path.write_text(yaml.safe_dump(as_json(settings), sort_keys=False))


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
    users = _evaluated_users(settings)
    picked = list(dict.fromkeys(users[len(users) * i // 3] for i in range(3)))
    shown = show_slates(console, server.url, picked, scene=open_scene, hiding_scene=hiding)
    return server.url, shown, round(seconds, 2)


def _evaluated_users(settings: Any) -> list[str]:
    """Those with a slate in every scene; all users where nobody has one."""
    from jobs.workspace import Workspace

    slates = json.loads((settings.folder / "evaluation" / "slates.json").read_bytes())
    both = sorted(set.intersection(*(set(of) for of in slates.values())))
    return both or [str(user) for user in Workspace(settings).interactions.user_ids]


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
