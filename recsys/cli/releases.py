"""`recsys releases`: which exist, which serves, and moving the alias."""

from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(no_args_is_help=True, help="List releases, promote one, roll back.")
CONFIG = typer.Option(None, help="A settings file; the demo leaves one in its work directory.")


@app.command("list")
def list_releases(config: Path = CONFIG) -> None:
    """All registered releases, newest first."""
    import datetime

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("version", "release", "aliases", "registered", "home recall@20", "ndcg@10"):
        table.add_column(name)
    for one in _registry(config).versions():
        when = datetime.datetime.fromtimestamp(one.created, datetime.UTC).strftime("%Y-%m-%d %H:%M")
        quality = [one.metrics.get(f"all.{metric}") for metric in ("recall@20", "ndcg@10")]
        table.add_row(
            str(one.version),
            one.release_id,
            ", ".join(one.aliases),
            when,
            *("" if q is None else f"{q:.4f}" for q in quality),
        )
    Console().print(table)


@app.command()
def promote(
    version: int = typer.Argument(help="A version of `recsys releases list`."), config: Path = CONFIG
) -> None:
    """Make VERSION the champion; the old one can be rolled back to. Reload the service to serve it."""
    _say("champion is", _registry(config).promote(version))


@app.command()
def rollback(config: Path = CONFIG) -> None:
    """Make the previous champion the champion again. Reload the service to serve it."""
    _say("rolled back to", _registry(config).rollback())


def _registry(config: Path | None) -> Any:
    from recsys.releases.registry import Registry
    from recsys.settings import load_settings

    settings = load_settings(config)
    return Registry(settings.registry_uri, name=settings.registry.model)


def _say(what: str, one: Any) -> None:
    Console().print(f"{what} version {one.version}, release {one.release_id}", highlight=False)
