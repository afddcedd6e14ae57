"""Steps that are not redone: each is keyed by the hash of its inputs, its settings and its code.

A step's inputs are the steps before it, so its key contains theirs. What is kept of a finished step
is its key, its figures and its seconds, in `<workdir>/steps/<name>.json`, written when it is done: a
killed step is redone, a finished one is not.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from recsys.errors import DataError

CODE = (".py", ".yaml")
ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True, slots=True)
class Step:
    name: str
    run: Callable[..., dict[str, Any]]  # (progress=) -> figures
    code: Sequence[str]  # folders and files whose change redoes it, from the project's root
    settings: Any  # JSON of what configures it
    holds: Callable[[], bool] = lambda: True  # whether its results are still there


def terminal() -> Console:
    """Standard output; a file or pipe gets lines of 120 columns instead of 80."""
    console = Console()
    return console if console.is_terminal else Console(width=120)


def run_steps(
    steps: Sequence[Step], *, folder: Path, console: Console, after: str = ""
) -> dict[str, dict[str, Any]]:
    """Name -> {"key", "figures", "seconds", "cached"} of each step, run in order where needed; `after` is the
    key of the step before them."""
    done, key = {}, after
    for step in steps:
        key = _key(step, key)
        path = folder / "steps" / f"{step.name}.json"
        kept = _kept(path)
        cached = kept.get("key") == key and step.holds()
        if not cached:
            # No marker while it runs: a step that is killed midway has already overwritten what the marker
            # of an earlier run, with other settings, vouches for.
            _write(path, None)
            start = time.perf_counter()
            figures = _with_bar(step, console)
            kept = {"key": key, "figures": figures, "seconds": round(time.perf_counter() - start, 2)}
            _write(path, kept)
        done[step.name] = {**kept, "cached": cached}
        say(console, step.name, 0.0 if cached else kept["seconds"], kept["figures"], cached=cached)
    return done


def say(
    console: Console, name: str, seconds: float, figures: Mapping[str, Any], *, cached: bool = False
) -> None:
    """The line of a finished step."""
    took = "  done " if cached else f"{seconds:5.1f} s"
    line = f"[bold]{name:<11}[/bold][dim]{took}[/dim]  {describe(figures)}"
    console.print(line, highlight=False, soft_wrap=True)


def describe(figures: Mapping[str, Any]) -> str:
    """One line of figures."""

    def text(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{k} {text(v)}" for k, v in value.items()) or "none"
        if isinstance(value, list):
            return " ".join(map(str, value))
        return f"{value:,}" if isinstance(value, int) else str(value)

    return " · ".join(f"{name.replace('_', ' ')} {text(value)}" for name, value in figures.items())


def _with_bar(step: Step, console: Console) -> dict[str, Any]:
    columns = (SpinnerColumn(), TextColumn("{task.fields[step]:<11}"), BarColumn(30), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=console, transient=True) as bars:
        task = bars.add_task("starting", total=1.0, step=step.name)
        return step.run(progress=lambda share, doing: bars.update(task, completed=share, description=doing))


def _write(path: Path, kept: dict[str, Any] | None) -> None:
    """The marker of a finished step; None = there is none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if kept is None:
            path.unlink(missing_ok=True)
        else:
            path.write_text(json.dumps(kept))
    except OSError as error:
        raise DataError(f"can't write {path} ({error.strerror}): free some space there") from error


def _kept(path: Path) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_text())
        return kept if isinstance(kept, dict) else {}
    except (OSError, ValueError):
        return {}


def _key(step: Step, before: str) -> str:
    digest = hashlib.sha256(
        json.dumps([before, step.name, step.settings], sort_keys=True, default=str).encode()
    )
    for place in step.code:
        path = ROOT / place
        for file in sorted(f for f in path.rglob("*") if f.suffix in CODE) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()
