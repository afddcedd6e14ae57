"""`recsys recommend` and `recsys similar`: a release asked in this terminal, without a service."""

import asyncio
import time
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

CONFIG = typer.Option(None, help="A settings file; the demo leaves one in its work directory.")
N = typer.Option(10, "--n", min=1, max=100, help="How many items.")
RELEASE = typer.Option("champion", help="An alias of the registry, or the path of a manifest.")


def recommend(
    user: str = typer.Argument(help="A user id."),
    scene: str = typer.Option("home", help="A scene of the settings."),
    n: int = N,
    release: str = RELEASE,
    config: Path = CONFIG,
) -> None:
    """The slate that USER would see now, with scores and sources."""
    from contextlib import ExitStack

    from deployments.online_users import OnlineUsers
    from recsys.events.redis_server import start_redis
    from recsys.pipeline.offline import batch_of
    from recsys.pipeline.wiring import recommender
    from recsys.releases.parts import load_parts, local_shards
    from recsys.settings import load_settings

    settings = load_settings(config)
    opened = _opened(settings, release)
    parts = load_parts(opened)
    now = settings.serving.clock or int(time.time())
    with ExitStack() as ends:
        url = settings.online_store.url
        if url is None:
            url = ends.enter_context(start_redis(settings.folder / "redis")).url
        made = recommender(parts, users=OnlineUsers(url, clock=now), shards=local_shards(opened))
        answer = asyncio.run(made.recommend(batch_of([user], scene=scene, now=now, n=n)))
    slate = answer.slates[0]
    console = Console()
    admits = f", degraded: {', '.join(slate.degraded)}" if slate.degraded else ""
    _print(
        console,
        f"{scene} for {user} (release {opened.manifest.id}{admits})",
        [(item.item, item.score, ", ".join(source.label for source in item.sources)) for item in slate.items],
        parts.items,
    )
    took = ", ".join(f"{step} {1000 * s:.1f}" for step, s in answer.trace.seconds.items())
    proposed = int(sum(n.sum() for n in answer.candidates.proposed.values()))
    console.print(
        f"[dim]{proposed:,} proposals, {len(answer.candidates):,} candidates; ms: {took}[/dim]",
        highlight=False,
    )


def similar(
    item: str = typer.Argument(help="An item id."),
    n: int = N,
    release: str = RELEASE,
    config: Path = CONFIG,
) -> None:
    """The items nearest to ITEM, by the release's vectors."""
    from recsys.errors import RequestError
    from recsys.pipeline.rules import Rules
    from recsys.pipeline.similar import Similar
    from recsys.pipeline.wiring import live_items
    from recsys.releases.parts import load_parts, local_shards
    from recsys.settings import load_settings

    settings = load_settings(config)
    opened = _opened(settings, release)
    parts = load_parts(opened)
    ids = parts.items["item_id"].to_list()
    if item not in ids:
        raise RequestError(f"no item {item!r} in release {opened.manifest.id}: an id looks like {ids[0]!r}")
    known = live_items(parts)
    find = Similar(known.vectors, local_shards(opened), Rules(known, parts.rules))
    now = settings.serving.clock or int(time.time())
    rows, scores, _ = asyncio.run(find(ids.index(item), n=n, now=now))
    title = parts.items["title"][ids.index(item)]
    _print(
        Console(),
        f"similar to {item} {title}",
        [(r, s, "") for r, s in zip(rows, scores, strict=True)],
        parts.items,
    )


def _opened(settings: Any, release: str) -> Any:
    from recsys.releases.registry import resolve

    return resolve(release, registry=settings.registry_uri, model=settings.registry.model)


def _print(console: Console, title: str, rows: list[tuple[int, float, str]], items: Any) -> None:
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for name in ("", "item", "title", "category", "score", "sources"):
        table.add_column(name, justify="right" if name in ("", "score") else "left")
    for place, (row, score, sources) in enumerate(rows, 1):
        of = items.row(int(row), named=True)
        shown = "" if score != score else f"{score:.3f}"
        table.add_row(str(place), of["item_id"], of["title"], of["category"], shown, f"[dim]{sources}[/dim]")
    console.print(table)
