"""`recsys evaluate`: a retrieval model on a data set, by full ranking; a table, and one line of JSON last."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from recsys.errors import SettingsError
from recsys.training.retrieval_models import MODELS

if TYPE_CHECKING:
    from recsys.datasets.problem import Problem
    from recsys.evaluation.retrieval import Compared, Run, Summary
    from recsys.models.retrieval import RetrievalModel

MOST = 2**31 - 1  # of a seed and of a cutoff: torch and NumPy take no larger ones
_LOG_SECONDS = 30.0  # between lines that say how far a fit is, where no terminal shows a bar


def evaluate(
    format_: str = typer.Option(..., "--format", help="adjacency, sequences, prefixes, atomic or events"),
    path: Path = typer.Option(..., help="The data; what it must be depends on the format."),
    model: str = typer.Option(..., help=f"{', '.join(MODELS)}; settings may follow the name."),
    against: str = typer.Option(None, help="A second model; the difference is tested, user by user."),
    seed: str = typer.Option("0", help="Of the split and the model; several (1,2,3) are averaged."),
    at: str = typer.Option(None, help="Cutoffs of the metrics: 10,20."),
    metric: str = typer.Option(None, help="recall, ndcg, hr, mrr, precision, p; default: the format's."),
    split: str = typer.Option(None, help="given, temporal, random or leave-last-out; default: the format's."),
    folds: int = typer.Option(None, help="Cross-validation over so many random parts instead of one split."),
    min_rating: float = typer.Option(None, help="Leave out what was rated lower."),
    k_core: int = typer.Option(None, help="Keep users and items with so many interactions, again and again."),
    repeats: bool = typer.Option(False, help="Also rank, and ask for, what the user took before."),
    set_: list[str] = typer.Option([], "--set", metavar="KEY=VALUE", help="A setting of --model alone."),
    memory_gb: float = typer.Option(None, help="Refuse what would need more; default: what is free now."),
    track: str = typer.Option(None, help="URI of an MLflow store that keeps the run: sqlite:///mlflow.db"),
) -> None:
    """Fit on the training part, rank all items for everyone in the test part, compare with what they took."""
    from recsys.datasets.formats import read_problems
    from recsys.evaluation.retrieval import compare, figure, metrics_of, summarize
    from recsys.memory import own_peak_mb
    from recsys.settings import model_of

    names = [name for name in (model, against) if name is not None]
    models = [model_of(model, overrides=set_), *map(model_of, names[1:])]
    seeds, cutoffs, metrics = _numbers(seed, "--seed"), _numbers(at, "--at"), _metrics(metric)
    if memory_gb is not None and not memory_gb > 0:
        raise SettingsError(f"--memory-gb {memory_gb:g}: give more than 0")
    errors = Console(stderr=True)
    runs: list[list[Run]] = [[] for _ in models]
    with _bars(errors) as bars:
        bar = bars.add_task("")
        for s in seeds:
            bars.update(bar, description=f"reading {path}", completed=0, total=1)
            problems = read_problems(
                format_,
                path,
                split=split,
                seed=s,
                folds=folds,
                min_rating=min_rating,
                k_core=k_core,
                repeats=repeats,
            )
            if s == seeds[0]:
                errors.print(_what(problems[0]), highlight=False)
            for fold, problem in enumerate(problems):
                if metrics or cutoffs:
                    problem = replace(problem, metrics=metrics or problem.metrics, at=cutoffs or problem.at)
                for name, one, done in zip(names, models, runs):
                    title = f"{name}, seed {s}" + (f", fold {fold + 1} of {len(problems)}" if folds else "")
                    done.append(_run(one, problem, seed=s, title=title, bars=bars, memory_gb=memory_gb))
    summaries = [summarize(each) for each in runs]
    console = Console() if Console().is_terminal else Console(width=160)
    for name, summary in zip(names, summaries):
        _print_summary(console, name, summary)
    line: dict[str, Any] = {
        "model": model.split()[0],
        "metrics": metrics_of(summaries[0]),
        "seconds": round(summaries[0].seconds, 2),
        "peak_memory_mb": own_peak_mb(),
        "seed": seeds[0] if len(seeds) == 1 else list(seeds),
    }
    if against is not None:
        difference = compare(*runs)
        _print_difference(console, f"{model} minus {against}", difference)
        told = {g: {m: list(map(figure, each)) for m, each in of.items()} for g, of in difference.items()}
        line["against"] = {"model": against, "metrics": metrics_of(summaries[1]), "difference": told}
    if track:
        from recsys.training.tracking import track_run

        track_run(
            track,
            experiment="evaluate",
            name=model,
            parameters={"format": format_, "path": path, "seed": seed, "settings": models[0]},
            metrics=metrics_of(summaries[0]),
        )
    print(json.dumps(line))


def _run(
    model: RetrievalModel, problem: Problem, *, seed: int, title: str, bars: Progress, memory_gb: float | None
) -> Run:
    """One run with its bar; refused before it begins when its estimate exceeds the memory."""
    from recsys.advisor.auto import Auto
    from recsys.evaluation.retrieval import run_model
    from recsys.memory import free_mb
    from recsys.models.retrieval import check_capacity

    if isinstance(model, Auto) and memory_gb and model.memory_gb is None:
        model = replace(model, memory_gb=memory_gb)  # what it trains must fit, too
    estimate = model.estimate(problem.train)
    needs = f"about {estimate.memory_mb:,.0f} MB and {estimate.seconds:,.0f} s to fit"
    bars.console.print(f"{title}: {needs}", highlight=False, markup=False)
    check_capacity(estimate, what=title, available_mb=1000 * memory_gb if memory_gb else free_mb())
    bar, told = bars.task_ids[-1], time.monotonic()

    def tell(share: float, doing: str) -> None:
        nonlocal told
        bars.update(bar, description=f"{title}: {doing}", completed=share, total=1)
        if not bars.console.is_terminal and time.monotonic() > told + _LOG_SECONDS:
            told = time.monotonic()
            bars.console.print(f"{title}: {doing}, {share:.0%}", highlight=False, markup=False)

    from recsys.cli.advise import print_choice

    return run_model(
        model, problem, seed=seed, progress=tell, look=lambda fitted: print_choice(bars.console, fitted)
    )


def _bars(console: Console) -> Progress:
    told = TextColumn("{task.description}", markup=False)  # a path may have brackets
    return Progress(told, BarColumn(), TimeElapsedColumn(), console=console, transient=True)


def _numbers(text: str | None, option: str) -> tuple[int, ...]:
    least = 1 if option == "--at" else 0
    try:
        numbers = tuple(int(part) for part in text.split(",")) if text is not None else ()
    except ValueError as error:
        raise SettingsError(f"{option} {text!r} is no list of whole numbers: write 10,20") from error
    if len(set(numbers)) < len(numbers) or not all(least <= number <= MOST for number in numbers):
        raise SettingsError(f"{option} {text!r}: give different numbers from {least} to {MOST:,}")
    return numbers


def _metrics(text: str | None) -> tuple[str, ...]:
    from recsys.evaluation.full_ranking import METRICS

    names = tuple(dict.fromkeys(text.replace(" ", "").split(","))) if text is not None else ()
    if unknown := [name for name in names if name not in METRICS]:
        raise SettingsError(f"--metric {unknown[0]!r}: there are {', '.join(METRICS)}")
    return names


def _what(problem: Problem) -> str:
    train = problem.train
    return (
        f"{len(train):,} interactions of {train.users:,} users with {train.items:,} items to learn from; "
        f"{len(problem.test):,} queries, {len(problem.test.target):,} targets"
    )


def _print_summary(console: Console, name: str, summary: Summary) -> None:
    metrics = list(next(iter(summary.groups.values())))
    table = Table(title=escape(name), title_justify="left", header_style="bold", box=None, pad_edge=False)
    table.add_column("")
    for metric in metrics:
        table.add_column(metric, justify="right")
    for group, line in summary.groups.items():
        table.add_row(group, *(_cell(line.get(metric)) for metric in metrics))
    console.print(table)


def _cell(value: tuple[float, float, float] | None) -> str:
    if value is None or math.isnan(value[0]):
        return ""
    mean, low, high = value
    return f"{mean:.4f} [dim]±{(high - low) / 2:.4f}[/dim]" if mean < 10 else f"{mean:.2f}"


def _print_difference(console: Console, name: str, difference: dict[str, dict[str, Compared]]) -> None:
    table = Table(title=escape(name), title_justify="left", header_style="bold", box=None, pad_edge=False)
    for column in ("", "metric", "difference", "95 % interval", "p"):
        table.add_column(column, justify="left" if column in ("", "metric") else "right")
    for group, line in difference.items():
        for metric, (mean, low, high, p) in line.items():
            if math.isnan(mean):
                continue
            table.add_row(group, metric, f"{mean:+.4f}", f"{low:+.4f} to {high:+.4f}", f"{p:.4f}")
    console.print(table)
