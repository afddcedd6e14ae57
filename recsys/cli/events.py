"""`recsys events`: from the bus to the event store, and what keeps the store right."""

from contextlib import closing
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

app = typer.Typer(no_args_is_help=True, help="The bus and the event store: ingest, audit, tidy, erase.")

CONFIG = typer.Option(None, help="A settings file; without it, the defaults.")


@app.command()
def ingest(
    follow: bool = typer.Option(False, "--follow", help="Go on with what the bus gets, until Ctrl-C."),
    begin: str = typer.Option(
        None, "--from", help="Where an empty store begins: a time, or offsets like 0=1200,1=900."
    ),
    end: str = typer.Option(None, "--to", help="Where to end: a time or offsets. Default: the present end."),
    into: str = typer.Option(None, help="Another store, for a replay: a folder or s3://..."),
    accept_loss: bool = typer.Option(
        False, "--accept-loss", help="Record events that left the bus before they were ingested as lost."
    ),
    config: Path = CONFIG,
) -> None:
    """Ingest what the bus holds and the store does not. Prints what became of it."""
    from jobs.ingest import follow_bus, ingest_range, until_signal
    from jobs.session import ray_session
    from recsys.cli.steps import describe, terminal
    from recsys.errors import DataError

    if follow and (begin or end or into or accept_loss):
        raise DataError(
            "--follow goes on where the store ends: --from, --to, --into and --accept-loss are for a range"
        )
    console, settings = terminal(), _settings(config)
    with ray_session(settings), console.status("starting") as line:
        if follow:
            stop = until_signal()
            done = follow_bus(settings, stop=stop, report=lambda status: line.update(_told(status)))
        else:
            done = ingest_range(
                settings,
                begin=begin,
                end=end,
                into=into,
                accept_loss=accept_loss,
                progress=lambda share, doing: line.update(f"{share:.0%} {doing}"),
            )
    console.print(describe(done), highlight=False)


@app.command()
def audit(config: Path = CONFIG) -> None:
    """Produced = stored + duplicate + rejected, for each partition; exit code 1 if it is not so."""
    from jobs.session import bus_session
    from jobs.workspace import open_store
    from recsys.events.audit import audit as audited
    from recsys.events.bus import open_bus

    settings = _settings(config)
    with bus_session(settings) as where, closing(open_bus(where)) as bus:
        found = audited(open_store(settings), bus)
    table = Table(header_style="bold", box=None, pad_edge=False)
    columns = (
        "produced",
        "stored",
        "duplicate",
        "rejected",
        "missing",
        "doubled",
        "lost",
        "begin",
        "committed",
    )
    for name in ("partition", *columns, "lag", "lag s", ""):
        table.add_column(name, justify="right")
    for one in found.partitions:
        counts = [f"{getattr(one, name):,}" for name in columns]
        verdict = "[green]adds up[/green]" if one.adds_up else "[bold red]does not add up[/bold red]"
        table.add_row(str(one.partition), *counts, f"{one.lag_messages:,}", f"{one.lag_s:.1f}", verdict)
    console = Console()
    console = Console(width=max(console.width, 120))  # a narrow window wraps lines, it must not cut numbers
    console.print(f"topic {found.topic} → {settings.store_uri}", highlight=False)
    console.print(table, highlight=False)
    if found.reasons:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in found.reasons.items())
        console.print(f"rejected: {reasons}", highlight=False)
    if commit := found.last_commit:
        console.print("last commit: " + ", ".join(f"{k} {v}" for k, v in commit.items()), highlight=False)
    if not found.adds_up:
        raise typer.Exit(1)


@app.command("retry-rejected")
def retry_rejected(config: Path = CONFIG) -> None:
    """Judge rejected events again, after a setting, a validator or a schema was corrected."""
    from jobs.workspace import open_store
    from recsys.cli.steps import describe
    from recsys.events.retrying import retry_rejected as retry
    from recsys.events.wire import Decoder

    settings = _settings(config)
    store = open_store(settings)
    done = retry(
        store,
        topic=settings.bus.topic,
        partitions=settings.bus.partitions,
        decoder=Decoder(settings.bus.schemas),
        validation=settings.events,
    )
    Console().print(describe(done), highlight=False)


@app.command()
def tidy(
    keep_hours: int = typer.Option(168, help="How long replaced files stay, for readers of old versions."),
    config: Path = CONFIG,
) -> None:
    """Merge small files and delete replaced ones; safe beside a running ingestion."""
    from jobs.tidy_events import run
    from recsys.cli.steps import describe

    Console().print(describe(run(_settings(config), keep_hours=keep_hours)), highlight=False)


@app.command()
def archive(
    before: str = typer.Option(..., help="A date: events before it move to the cold table."),
    config: Path = CONFIG,
) -> None:
    """Move old events to the cold table (`store.cold_uri`); both are read as one."""
    from datetime import date

    from jobs.workspace import open_store
    from recsys.cli.steps import describe
    from recsys.errors import DataError
    from recsys.events.maintenance import archive as move

    try:
        boundary = date.fromisoformat(before)
    except ValueError as error:
        raise DataError(f"--before {before!r} is no date like 2026-01-31") from error
    moved = move(open_store(_settings(config)), before=boundary)
    Console().print(describe({"moved": moved, "before": before}), highlight=False)


@app.command()
def erase(
    user_ids: list[str] = typer.Argument(..., help="Users whose events must go."),
    config: Path = CONFIG,
) -> None:
    """Erase users: their events go from the store and the online store, and no replay brings them back."""
    from jobs.erase_users import erase_users
    from recsys.cli.steps import describe

    done = erase_users(_settings(config), user_ids)
    Console().print(describe(done), highlight=False)


def _settings(config: Path | None) -> Any:
    from recsys.settings import load_settings

    return load_settings(config)


def _told(status: Any) -> str:
    counts = status.counts
    rejected = sum(counts.rejected.values())
    told = f"stored {counts.stored:,} · duplicate {counts.duplicate:,} · rejected {rejected:,}"
    if status.last:
        told += f" · lag to read {status.last.read_lag_ms} ms, to commit {status.last.commit_lag_ms} ms"
    return f"[yellow]waits: {escape(status.trouble)}[/yellow]" if status.trouble else told
