"""How good a model becomes, and after how many seconds: ours and a peer's, judged alike.

Decides what is in the time: training, not the judging between epochs. Peers run in environments of their
own, by the scripts of `benchmarks/peers`.
"""

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environments import python_of
from recsys.datasets.problem import Problem
from recsys.evaluation.full_ranking import measure, rank_all
from recsys.interactions import Queries
from recsys.models.retrieval import Fitted

THREADS = 2  # of either side
JUDGED_USERS = 10_000  # that a curve is judged on
METRIC_NAMES = {"recall": "Recall", "ndcg": "NDCG"}


@dataclass(frozen=True)
class Product:
    """Scores that are inner products, of user code and item row. For the judge only."""

    users: np.ndarray
    items: np.ndarray

    def score(self, queries: Queries) -> np.ndarray:
        scores = np.nan_to_num(self.users[queries.user]) @ np.nan_to_num(self.items).T
        scores[:, np.isnan(self.items).any(1)] = -np.inf
        return scores


@dataclass(frozen=True)
class Curve:
    """How good a model was, and after how many seconds of training."""

    what: str
    epochs: list[float]
    seconds: list[float]
    quality: list[float]

    @property
    def epoch_seconds(self) -> float:
        """Without what stands before the first epoch, where there are two points."""
        if len(self.epochs) == 1:
            return self.seconds[0] / self.epochs[0]
        return (self.seconds[-1] - self.seconds[0]) / (self.epochs[-1] - self.epochs[0])

    def seconds_to(self, quality: float) -> float:
        """Until it was reached for the first time; NaN = never."""
        reached = np.flatnonzero(np.array(self.quality) >= quality)
        if not len(reached):
            return float("nan")
        at = int(reached[0])
        if at == 0:
            return self.seconds[0]
        share = (quality - self.quality[at - 1]) / (self.quality[at] - self.quality[at - 1])
        return self.seconds[at - 1] + share * (self.seconds[at] - self.seconds[at - 1])


class Bench:
    """The problem, and the rows and ratios that have been found so far; `metric` is what a curve is of."""

    def __init__(self, problem: Problem, folder: Path, *, metric: str = "recall", at: int = 20) -> None:
        self.problem, self.folder, self.metric, self.at = problem, folder, metric, at
        rows = np.sort(np.random.default_rng(0).permutation(len(problem.test))[:JUDGED_USERS])
        self.judged = problem.test.take(rows)
        self.rows: list[dict[str, Any]] = []
        self.ratios: dict[str, float] = {}
        log = problem.train.histories
        np.savez(
            folder / "pairs.npz",
            user=log.request,
            item=log.item,
            users=problem.train.users,
            items=problem.train.items,
        )

    @property
    def quality(self) -> str:
        return f"{METRIC_NAMES[self.metric]}@{self.at}"

    def judge(self, fitted: Fitted | Product) -> float:
        ranked = rank_all(fitted, self.judged, items=self.problem.train.items, depth=self.at)  # type: ignore[arg-type]
        found = measure(ranked, self.judged, metrics=(self.metric,), at=(self.at,))
        return float(np.nanmean(found[f"{self.metric}@{self.at}"]))

    def ours(self, what: str, course: Iterator[Callable[[], Fitted | Product]], keep: Sequence[int]) -> Curve:
        """`course` does an epoch each time it is asked, and gives what makes the model of then."""
        curve, passed = Curve(what, [], [], []), 0.0
        for epoch in range(1, max(keep) + 1):
            start = time.perf_counter()
            made = next(course)
            passed += time.perf_counter() - start
            if epoch in keep:
                self.note(curve, epoch, passed, made())
        return curve

    def theirs(self, what: str, peer: str, model: str, keep: Sequence[int], **settings: Any) -> Curve:
        """The same by a script of `benchmarks/peers`."""
        curve = Curve(what, [], [], [])
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            request = {
                "pairs": str(self.folder / "pairs.npz"),
                "out": folder,
                "keep": list(keep),
                "model": model,
                "threads": THREADS,
                "settings": settings,
            }
            (Path(folder) / "request.json").write_text(json.dumps(request))
            script = Path(__file__).parent / "peers" / f"{peer}_models.py"
            done = subprocess.run(
                [str(python_of(peer)), str(script), f"{folder}/request.json"],
                capture_output=True,
                text=True,
                cwd=folder,  # RecBole leaves logs where it runs
            )
            if done.returncode:
                raise SystemExit(f"{what} failed:\n{done.stderr[-3000:]}")
            seconds = json.loads((Path(folder) / "seconds.json").read_text())
            for epoch in keep:
                found = np.load(f"{folder}/{epoch}.npz")
                self.note(curve, epoch, seconds[str(epoch)], Product(found["users"], found["items"]))
        return curve

    def note(self, curve: Curve, epoch: float, seconds: float, model: Fitted | Product) -> None:
        curve.epochs.append(epoch)
        curve.seconds.append(seconds)
        curve.quality.append(self.judge(model))
        told = f"{self.quality} {curve.quality[-1]:.4f}"
        print(f"{curve.what}: epoch {epoch}, {seconds:.1f} s, {told}", flush=True)

    def compare(self, name: str, ours: Curve, *peers: tuple[str, Curve]) -> None:
        """Rows of all and ratios to each; the equal quality is of each pair."""
        self._row(ours, f"{ours.epochs[-1]:.1f} epochs in all")
        for peer, theirs in peers:
            equal = min(max(ours.quality), max(theirs.quality))
            mine, other = ours.seconds_to(equal), theirs.seconds_to(equal)
            self._row(theirs, f"{self.quality} of {equal:.4f} after {other:.1f} s, ours after {mine:.1f} s")
            self.ratios[f"{name}_epoch_vs_{peer}"] = theirs.epoch_seconds / ours.epoch_seconds
            self.ratios[f"{name}_quality_vs_{peer}"] = other / mine

    def _row(self, curve: Curve, note: str) -> None:
        best = int(np.argmax(curve.quality))
        self.add(
            curve.what + ", an epoch",
            curve.epoch_seconds,
            f"{max(curve.quality):.4f} after {curve.epochs[best]:.1f} epochs; {note}",
        )

    def add(self, what: str, seconds: float, note: str = "") -> None:
        self.rows.append({"what": what, "seconds": f"{seconds:.2f}", "note": note})


def of_fits(bench: Bench, what: str, fit: Callable[[int], Fitted], keep: Sequence[int]) -> Curve:
    """Of a model whose fit of fewer epochs is the beginning of one of more: a fit for each."""
    curve = Curve(what, [], [], [])
    for epochs in keep:
        start = time.perf_counter()
        fitted = fit(epochs)
        bench.note(curve, epochs, time.perf_counter() - start, fitted)
    return curve
