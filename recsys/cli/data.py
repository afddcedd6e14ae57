"""`recsys ingest`: one's own events and items, into the work directory."""

from pathlib import Path

import typer
from rich.console import Console


def ingest(
    path: Path = typer.Option(None, help="A file of events: Parquet, CSV or JSON lines."),
    map_: str = typer.Option(
        None, "--map", help="Its columns: user=...,item=...,time=...,type=... (type==click: all)"
    ),
    items: Path = typer.Option(None, help="A catalog file, with or without events beside it."),
    item_map: str = typer.Option(None, help="Its columns: item=...,title=...,category=...,price=..."),
    dataset: str = typer.Option(None, help="Or a data set by name: online-retail, movielens-100k, ..."),
    workdir: Path = typer.Option(None, help="Where everything is kept; default: the setting `workdir`."),
    config: Path = typer.Option(None, help="A settings file; without it, the defaults."),
) -> None:
    """Validate, deduplicate and store events; add items to the catalog. Prints each count."""
    from jobs import ingest as job
    from jobs.session import ray_session
    from recsys.cli.steps import describe
    from recsys.settings import load_settings

    console = Console()
    settings = load_settings(config, overrides={"workdir": str(workdir)} if workdir else {})
    read = job.read(
        settings,
        dataset=dataset,
        path=str(path) if path else None,
        map=map_,
        items=str(items) if items else None,
        item_map=item_map,
    )
    console.print(describe(read), highlight=False)
    with ray_session(settings), console.status("ingesting"):
        stored = job.ingest(settings)
    console.print(describe(stored), highlight=False)
    console.print(f"[dim]in {settings.folder}[/dim]", highlight=False)
