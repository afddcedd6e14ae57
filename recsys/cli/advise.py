"""`recsys advise`: what a data set is, which architecture and models suit it, and why."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from recsys.advisor.decision import Decision
    from recsys.advisor.profile import Profile


def advise(
    format_: str = typer.Option(..., "--format", help="adjacency, sequences, prefixes, atomic or events"),
    path: Path = typer.Option(..., help="The data; what it must be depends on the format."),
    latency_ms: float = typer.Option(100.0, help="What a request may take."),
    real_time: bool = typer.Option(False, help="What somebody did a moment ago must count."),
    split: str = typer.Option(None, help="given, temporal, random or leave-last-out; default: the format's."),
    repeats: bool = typer.Option(False, help="What the user took before is asked for, too."),
) -> None:
    """Profile the training part, walk the decision tree, and say which models to try. Trains nothing."""
    from recsys.advisor.decision import decide
    from recsys.advisor.profile import profile
    from recsys.datasets.formats import read_problems
    from recsys.errors import SettingsError

    if not latency_ms > 0:
        raise SettingsError(f"--latency-ms {latency_ms:g}: give more than 0")
    found = profile(read_problems(format_, path, split=split, repeats=repeats)[0].train)
    decision = decide(found, latency_ms=latency_ms, real_time=real_time)
    console = Console() if Console().is_terminal else Console(width=160)
    _print_profile(console, found)
    print_decision(console, decision)
    given = f" --split {split}" * bool(split) + " --repeats" * repeats
    given += f" --set latency_ms={latency_ms:g}" * (latency_ms != 100) + " --set real_time=true" * real_time
    command = f"recsys evaluate --format {format_} --path {shlex.quote(str(path))} --model auto{given}"
    console.print(f"\ntry them: [bold]{escape(command)}[/bold]", highlight=False, soft_wrap=True)
    plain = {k: getattr(v, "value", v) for k, v in asdict(found).items()}
    told = {k: getattr(v, "value", v) for k, v in asdict(decision).items()}
    print(json.dumps({"profile": plain, "decision": told}))


def _print_profile(console: Console, found: Profile) -> None:
    table = Table(title="profile of the training part", title_justify="left", box=None, show_header=False)
    for name, value in {
        "users": f"{found.users:,}",
        "items": f"{found.items:,}, {found.described:.0%} described, {found.cold_items:.0%} cold",
        "events": f"{found.events:,}, {found.median_history:g} a user (median), {found.repeats:.0%} repeats",
        "density": f"{found.density:.3%}",
        "ratings": f"{found.explicit:.0%} of the events",
        "time": found.timing.value,
        "asked": found.asked.value,
    }.items():
        table.add_row(name, value)
    console.print(table)


def print_decision(console: Console, decision: Decision) -> None:
    stages = "retrieval, then ranking" if decision.ranked else "a single stage"
    console.print(
        f"\n[bold]{decision.leaf.value}[/bold]: {stages}, answers {decision.answers}, "
        f"learns {decision.refresh}",
        highlight=False,
    )
    for reason in decision.reasons:
        console.print(f"  - {reason}", highlight=False)
    console.print(f"  models, by promise: {', '.join(decision.models)}", highlight=False)


def print_choice(console: Console, fitted: Any) -> None:
    """What `auto` tried and chose; nothing of another model's fit."""
    from recsys.advisor.auto import FittedAuto

    if not isinstance(fitted, FittedAuto) or fitted.decision is None:
        return
    print_decision(console, fitted.decision)
    table = Table(title="tried on a slice of the training part", title_justify="left", box=None)
    for column in ("model", "NDCG@10", "seconds", "weight", ""):
        table.add_column(column, justify="left" if column in ("model", "") else "right")
    for one in sorted(fitted.tried, key=lambda one: (one.why != "", -one.ndcg)):
        figures = (f"{one.ndcg:.4f}", f"{one.seconds:.0f}") if not one.why else ("", "")
        table.add_row(one.model, *figures, f"{one.weight:.1f}" if one.weight else "", escape(one.why))
    console.print(table)
    kind = "blend" if len(fitted.parts) > 1 else "single model"
    seen = "unseen" if math.isnan(fitted.ndcg) else f"{fitted.ndcg:.4f} on the slice"
    console.print(f"chosen: {' + '.join(fitted.parts)} ({kind}, {seen})", highlight=False)
