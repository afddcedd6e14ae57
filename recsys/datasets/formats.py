"""The formats that an evaluation reads, by name: how files become problems, and which split is usual.

Decides by the format alone, never by the data set's name. A path that isn't of its format is refused
with what the format expects, and with the format that it looks like. Options that can't hold for
the format or the split are refused before anything long is done.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from recsys.datasets import adjacency, prefixes, sequences
from recsys.datasets.adjacency import read_adjacency
from recsys.datasets.atomic import INTERACTIONS, read_atomic
from recsys.datasets.event_log import read_event_log, store_of
from recsys.datasets.prefixes import read_prefixes
from recsys.datasets.problem import Judged, Problem
from recsys.datasets.sequences import read_sequences
from recsys.datasets.splits import (
    SPLITS,
    core,
    fold_splits,
    leave_last_out,
    possible_splits,
    random_split,
    temporal_split,
)
from recsys.datasets.tables import FORMATS as TABLES
from recsys.errors import DataError
from recsys.interactions import Interactions


@dataclass(frozen=True, slots=True)
class Format:
    """What a format is, and how it is usually judged."""

    expects: str  # what stands at the path
    missing: Callable[[Path], str | None]  # what the path lacks to be of this format; None = nothing
    split: str  # the usual one
    metrics: tuple[str, ...]
    at: int
    given: bool = False  # the files give a split
    rated: bool = False  # values may be ratings


def read_problems(
    format: str,
    path: str | Path,
    *,
    split: str | None = None,
    seed: int = 0,
    folds: int | None = None,
    min_rating: float | None = None,
    k_core: int | None = None,
    repeats: bool = False,
) -> list[Problem]:
    """The problem that the files at `path` pose; with `folds`, one for each fold.

    `split` instead of the format's usual one; `min_rating` leaves out what is rated lower; `k_core` leaves
    users and items with so many interactions; with `repeats` what a user took before may be wanted again,
    and is ranked. Raises DataError for a path, file or line that is not of the format, for options that
    it can't have, and where nothing is left to train on or to ask.
    """
    kind = _checked(format, Path(path), split, folds, min_rating, k_core)
    split = split or ("random" if folds else kind.split)
    log, given = _read(format, Path(path), min_rating, repeats)
    possible = possible_splits(log.timing, given=given is not None)
    if split not in possible:
        raise DataError(
            f"{path} can't be split {split!r}: {_reason(split)}; {format} can be split {', '.join(possible)}"
        )
    if k_core:
        log = core(log, k_core)
    if not len(log):
        raise DataError(f"{path} has no interaction; give a file with data")
    problems = _split(log, given, split, seed=seed, folds=folds)
    for problem in problems:
        _check_filled(problem, path, split)
    return [replace(problem, metrics=kind.metrics, at=(kind.at,)) for problem in problems]


def looks_like(path: str | Path) -> str | None:
    """The format of what stands at `path`, by the names of files; None if it is like none."""
    path = Path(path)
    fitting = [name for name, kind in FORMATS.items() if kind.missing(path) is None]
    return fitting[0] if fitting else None


def _checked(
    format: str, path: Path, split: str | None, folds: int | None, rated: float | None, k: int | None
) -> Format:
    """The format, if the options hold for it and the path looks like it."""
    if format not in FORMATS:
        raise DataError(f"no format {format!r}; known: {', '.join(FORMATS)}")
    kind = FORMATS[format]
    if split is not None and split not in SPLITS:
        raise DataError(f"no split {split!r}; known: {', '.join(SPLITS)}")
    if (missing := kind.missing(path)) is not None:
        other = looks_like(path)
        hint = f"; it looks like --format {other}" if other else ""
        raise DataError(f"{missing}; {format} is {kind.expects}{hint}")
    if folds is not None and split not in (None, "random"):
        raise DataError(f"--folds are made at random, not {split!r}; omit --split, or --folds")
    if folds is not None and folds < 2:
        raise DataError(f"{folds} folds leave nothing to train on; give --folds 2 or more")
    if rated is not None and not kind.rated:
        raise DataError(f"{format} has no ratings; omit --min-rating")
    if k is not None and k < 1:
        raise DataError(f"a {k}-core is no core; give --k-core 1 or more")
    if k and (split or ("random" if folds else kind.split)) == "given":
        raise DataError(
            f"--k-core would change the split that the files of {format} give; choose --split random"
        )
    return kind


def _read(format: str, path: Path, rated: float | None, repeats: bool) -> tuple[Interactions, Judged | None]:
    """The log, and the test part where the files give one."""
    if format == "adjacency":
        problem = read_adjacency(path, repeats=repeats)
        return problem.train, problem.test
    if format == "prefixes":
        problem = read_prefixes(path)
        return problem.train, problem.test
    if format == "sequences":
        log = read_sequences(path)
    elif format == "atomic":
        log = read_atomic(path, min_rating=rated)
    else:
        log = read_event_log(path, min_rating=rated)
    return replace(log, repeats=repeats), None


def _split(
    log: Interactions, given: Judged | None, split: str, *, seed: int, folds: int | None
) -> list[Problem]:
    if folds:
        return fold_splits(log, folds=folds, seed=seed)
    if split == "random":
        return [random_split(log, seed=seed)]
    if split == "temporal":
        return [temporal_split(log)]
    if split == "leave-last-out":
        return [leave_last_out(log)]
    assert given is not None
    return [Problem(log, given)]


def _check_filled(problem: Problem, path: str | Path, split: str) -> None:
    if not len(problem.train):
        raise DataError(f"{path}: split {split!r} leaves nothing to train on; choose another split")
    if not len(problem.test):
        raise DataError(
            f"{path}: split {split!r} leaves no query: no user has anything to be asked for; choose another "
            "split, or give more data"
        )


def _reason(split: str) -> str:
    return {
        "given": "its files give no split",
        "temporal": "it has no clock",
        "leave-last-out": "it has no order",
    }[split]


def _lacks(path: Path, *names: str) -> str | None:
    if not path.is_dir():
        return f"{path} is no folder" if path.exists() else f"nothing at {path}"
    absent = [name for name in names if not (path / name).is_file()]
    return f"{path} has no file {absent[0]}" if absent else None


def _lacks_inter(path: Path) -> str | None:
    if not path.is_dir():
        return _lacks(path)
    return None if any(path.glob("*.inter")) else f"{path} has no file *.inter"


def _lacks_prefixes(stem: Path) -> str | None:
    absent = [f"{stem}{ending}" for ending in prefixes.FILES if not Path(f"{stem}{ending}").is_file()]
    if ending := next((e for e in prefixes.FILES if stem.name.endswith(e)), None):
        return f"{stem} is no stem, but {str(stem).removesuffix(ending)} is"
    if absent and stem.is_dir() and (inside := sorted(stem.glob(f"*{prefixes.FILES[0]}"))):
        return f"{stem} is no stem, but {str(inside[0]).removesuffix(prefixes.FILES[0])} is"
    return f"no file {absent[0]}" if absent else None


def _lacks_sequences(path: Path) -> str | None:
    if not path.is_file():
        return f"{path} is no file" if path.exists() else f"nothing at {path}"
    other = {*TABLES, ".inter", ".user", ".item"} - {".txt"}
    return f"{path} is no text file of ids" if path.suffix.lower() in other else None


def _lacks_events(path: Path) -> str | None:
    if path.is_file():
        return None if path.suffix.lower() in TABLES else f"{path} is no file of events"
    if not path.is_dir():
        return f"nothing at {path}"
    found = store_of(path) is not None or (path / "_delta_log").is_dir()
    return None if found else f"{path} has no Delta table of events"


FORMATS = {
    "adjacency": Format(
        f"a folder with {' and '.join(adjacency.FILES)}, each line {adjacency.LINE}",
        lambda path: _lacks(path, *adjacency.FILES),
        split="given",
        metrics=("recall", "ndcg"),
        at=20,
    ),
    "sequences": Format(
        f"a text file, each line {sequences.LINE}, and <stem>_item2attributes.json beside it if there is one",
        _lacks_sequences,
        split="leave-last-out",
        metrics=("hr", "ndcg"),
        at=10,
    ),
    "prefixes": Format(
        f"a stem of two files: <stem>{prefixes.FILES[0]}, each line {prefixes.SESSION}, and "
        f"<stem>{prefixes.FILES[1]}, each line {prefixes.PREFIX}",
        _lacks_prefixes,
        split="given",
        metrics=("p", "mrr"),
        at=20,
    ),
    "atomic": Format(
        "a folder with one *.inter, and *.user and *.item if there are any, as RecBole writes them: "
        f"a header {INTERACTIONS}, then a row a line",
        _lacks_inter,
        split="random",
        metrics=("recall", "mrr", "ndcg", "hr"),
        at=10,
        rated=True,
    ),
    "events": Format(
        "a work directory of `recsys ingest`, a Delta table of events, or a file of events "
        f"({', '.join(TABLES)})",
        _lacks_events,
        split="temporal",
        metrics=("recall", "ndcg"),
        at=20,
        rated=True,
    ),
}
