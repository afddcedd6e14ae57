"""`recsys index`: what an index is, and how many shards it should have."""

from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(no_args_is_help=True, help="Look at an index, and size one.")
CONFIG = typer.Option(None, help="A settings file; the demo leaves one in its work directory.")


@app.command()
def inspect(
    release: str = typer.Argument("champion", help="An alias of the registry, or the path of a manifest."),
    config: Path = CONFIG,
    plot: Path = typer.Option(None, help="Draw recall against time there, as PNG."),
) -> None:
    """Type, shards, bytes, what came since, and what each setting finds in what time."""
    from jobs.session import changelog_session
    from recsys.evaluation.plot import plot_recall_curve
    from recsys.index.dials import told
    from recsys.index.manifest import curve_of
    from recsys.releases.live import index_today, watermark
    from recsys.releases.parts import index_manifest
    from recsys.releases.registry import resolve
    from recsys.settings import load_settings

    settings = load_settings(config)
    opened = resolve(release, registry=settings.registry_uri, model=settings.registry.model)
    index, curve = index_manifest(opened), curve_of(opened.manifest.index_curve)
    with changelog_session(settings, watermark(opened).log) as log:
        today = index_today(opened, log)
    console = Console()
    console.print(
        f"[bold]{index.factory}[/bold] of release {opened.manifest.id}: {index.items:,} of "
        f"{today.rows:,} items have a vector of {index.dimensions} dimensions in it\n"
        f"searched with {told(index.setting)}: recall@{index.at} {index.recall:.4f} of held-out queries "
        f"({index.asked:g} was asked)",
        highlight=False,
    )
    shards = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("shard", "items", "MB", "bytes a vector", "fresh items", "tombstones"):
        shards.add_column(name, justify="right")
    for number, shard in enumerate(index.shards):
        each = f"{shard.bytes / shard.items:,.0f}" if shard.items else ""
        now = today.shards[number]
        dead = f"{now.tombstones:,} ({now.tombstones / max(shard.items, 1):.1%})"
        shards.add_row(
            str(number), f"{shard.items:,}", f"{shard.bytes / 1e6:,.1f}", each, f"{now.fresh:,}", dead
        )
    console.print(shards)
    if today.changes:
        console.print(
            f"{today.changes:,} changes of the catalog are not in it yet; a rebuild takes them in: "
            "python -m jobs.build_index --release champion",
            highlight=False,
        )
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in (*(index.setting or ["setting"]), f"recall@{index.at}", "ms a query and shard", ""):
        table.add_column(name, justify="right")
    for point in curve:
        chosen = point.setting == index.setting
        values = [f"{point.setting.get(name, 0):g}" for name in index.setting] or ["exact"]
        table.add_row(
            *values,
            f"{point.held_out:.4f}",
            f"{point.ms:.3f}",
            "chosen" if chosen else "",
            style="bold" if chosen else None,
        )
    console.print(table)
    if plot:
        plot_recall_curve(index, curve, plot)
        console.print(f"drawn to {plot}", highlight=False)


@app.command()
def advise(
    items: int = typer.Argument(help="Items with a vector."),
    dimensions: int = typer.Option(64, help="Of a vector."),
    memory_mb: float = typer.Option(2048, help="What one replica of a shard may take."),
) -> None:
    """How many shards, and of which type."""
    from recsys.index.advice import advise as advice_for

    found = advice_for(items, dimensions=dimensions, memory_mb=memory_mb)
    Console().print(
        f"index.shards: {found.shards}  ({found.why})\n"
        f"index.factory: auto, which makes it {found.kind}: {found.shard_mb:,.0f} MB in each replica",
        highlight=False,
    )
