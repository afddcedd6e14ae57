"""Speed of training beside peers on the same two threads: iALS, BPR, two-tower; and of full ranking.

    python -m benchmarks.training [--data FOLDER] [--only PART ...] [--quick] [--json FILE]

`implicit` and RecBole run in environments of their own (made the first time), one after the other with
us. After an epoch the vectors of either side are judged by our full ranking, outside of the time. An
epoch is as many positives as there are training pairs. Seconds to equal quality: until the lower of the
two best Recall@20, in between epochs by straight lines. Both sides have the same number of factors and
settings that were chosen for each on a tenth of gowalla's training pairs. Ratios are the peer's seconds
over ours: above 1 we are faster. What is compiled is compiled before.
"""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.environments import python_of
from benchmarks.ranking import compare_ranking
from benchmarks.report import arguments, report
from recsys.datasets.formats import read_problems
from recsys.datasets.problem import Problem, judge_users
from recsys.evaluation.full_ranking import measure, rank_all
from recsys.interactions import Queries, interactions_from_pairs
from recsys.models.ials import Ials
from recsys.models.pairwise import Bpr
from recsys.models.pairwise_sgd import Embeddings, Pairs, sgd_epoch
from recsys.models.retrieval import Fitted
from recsys.training.loop import train
from recsys.training.two_tower_model import TwoTowerModel

THREADS = 2
QUICK_USERS = 6000
JUDGED_USERS = 10_000  # that a curve is judged on
PARTS = ("ials", "bpr", "two_tower", "evaluation")


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
    recall: list[float]

    @property
    def epoch_seconds(self) -> float:
        """Without what stands before the first epoch, where there are two points."""
        if len(self.epochs) == 1:
            return self.seconds[0] / self.epochs[0]
        return (self.seconds[-1] - self.seconds[0]) / (self.epochs[-1] - self.epochs[0])

    def seconds_to(self, recall: float) -> float:
        """Until it was reached for the first time; NaN = never."""
        reached = np.flatnonzero(np.array(self.recall) >= recall)
        if not len(reached):
            return float("nan")
        at = int(reached[0])
        if at == 0:
            return self.seconds[0]
        share = (recall - self.recall[at - 1]) / (self.recall[at] - self.recall[at - 1])
        return self.seconds[at - 1] + share * (self.seconds[at] - self.seconds[at - 1])


class Bench:
    """The problem, and the rows and ratios that have been found so far."""

    def __init__(self, problem: Problem, folder: Path) -> None:
        self.problem, self.folder = problem, folder
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

    def recall(self, fitted: Fitted | Product) -> float:
        ranked = rank_all(fitted, self.judged, items=self.problem.train.items, depth=20)  # type: ignore[arg-type]
        return float(np.nanmean(measure(ranked, self.judged, metrics=("recall",), at=(20,))["recall@20"]))

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
                [str(python_of(peer)), str(script), f"{folder}/request.json"], capture_output=True, text=True
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
        curve.recall.append(self.recall(model))
        print(f"{curve.what}: epoch {epoch}, {seconds:.1f} s, Recall@20 {curve.recall[-1]:.4f}", flush=True)

    def compare(self, name: str, ours: Curve, *peers: tuple[str, Curve]) -> None:
        """Rows of all and ratios to each; the equal quality is of each pair."""
        self._row(ours, f"{ours.epochs[-1]:.1f} epochs in all")
        for peer, theirs in peers:
            equal = min(max(ours.recall), max(theirs.recall))
            mine, other = ours.seconds_to(equal), theirs.seconds_to(equal)
            self._row(theirs, f"Recall@20 of {equal:.4f} after {other:.1f} s, ours after {mine:.1f} s")
            self.ratios[f"{name}_epoch_vs_{peer}"] = theirs.epoch_seconds / ours.epoch_seconds
            self.ratios[f"{name}_quality_vs_{peer}"] = other / mine

    def _row(self, curve: Curve, note: str) -> None:
        self.add(
            curve.what + ", an epoch",
            curve.epoch_seconds,
            f"{max(curve.recall):.4f} after {curve.epochs[int(np.argmax(curve.recall))]:.1f} epochs; {note}",
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


def ials(bench: Bench, *, quick: bool) -> None:
    keep, data = (1, 2, 3) if quick else (1, 2, 3, 4, 6, 8), bench.problem.train

    def fit(epochs: int) -> Fitted:
        return Ials(factors=64, regularization=0.01, epochs=epochs).fit(data, seed=0)

    ours = of_fits(bench, "iALS, ours, exact", fit, keep)
    steps = bench.theirs("iALS, implicit, 3 CG steps", "implicit", "als", keep, **IMPLICIT_ALS)
    exact = bench.theirs("iALS, implicit, exact", "implicit", "als", keep, use_cg=False, **IMPLICIT_ALS)
    bench.compare("ials", ours, ("implicit", steps), ("implicit_exact", exact))


def bpr(bench: Bench, *, quick: bool) -> None:
    model, data = Bpr(), bench.problem.train

    def course() -> Iterator[Callable[[], Product]]:
        pairs = Pairs.of(data)
        state = Embeddings.start(data, factors=model.factors, content=False, seed=0)
        for epoch in range(10**6):
            sgd_epoch(
                state,
                pairs,
                loss=model.loss,
                learning_rate=model.learning_rate,
                regularization=model.regularization,
                seed=epoch,
            )
            yield lambda: Product(state.user_vectors(pairs), state.item_vectors())

    keep = (1, 2, 5, 10) if quick else (1, 2, 5, 10, 20, 30, 40, 50, 60, 80, 100)
    ours = bench.ours("BPR, ours, one thread", course(), keep)
    theirs = bench.theirs("BPR, implicit", "implicit", "bpr", keep, factors=model.factors, **IMPLICIT_BPR)
    bench.compare("bpr", ours, ("implicit", theirs))


def two_tower(bench: Bench, *, quick: bool) -> None:
    data = bench.problem.train
    # Fewer passes than by default: each side gets some minutes.
    model = TwoTowerModel(dimensions=64, passes=6 if quick else 10, epochs=6)
    scale: list[float] = []

    def course() -> Iterator[Callable[[], Fitted]]:
        task = model.task(data, seed=0)
        task.judged = None  # validation is not in the time
        examples = task.batches.examples
        picked = np.flatnonzero(examples.chance > 0)
        targets = len(examples.draw(picked, np.random.default_rng(0)).target) / len(picked)
        scale.append(task.steps * task.size * targets / len(data))
        for _ in train(task, settings=model.loop(), seed=0):
            yield lambda: model.finish(task)

    ours = bench.ours("two-tower, ours", course(), range(1, model.epochs + 1))
    ours.epochs[:] = [epoch * scale[0] for epoch in ours.epochs]
    keep = (1, 2) if quick else (1, 2, 3)
    theirs = bench.theirs("SimpleX, RecBole", "recbole", "SimpleX", keep, **SIMPLEX)
    bench.compare("two_tower", ours, ("recbole_simplex", theirs))


# Chosen on a tenth of gowalla's training pairs, for 64 factors.
IMPLICIT_ALS = {"factors": 64, "regularization": 20.0, "alpha": 100.0}
IMPLICIT_BPR = {"learning_rate": 0.02, "regularization": 0.001}
SIMPLEX = {
    "train_neg_sample_args": {"distribution": "uniform", "sample_num": 10},
    "train_batch_size": 4096 * 10,
    "learning_rate": 0.005,
}


def compile_all() -> None:
    """Runs everything once on little data, so that no compilation is in the times."""
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 300, 6000), rng.integers(0, 200, 6000)
    data = interactions_from_pairs(user, item, users=300, items=200)
    judged = judge_users(data, user=np.arange(300), item=rng.integers(0, 200, 300))
    fitted = [
        Ials(factors=8, regularization=0.01, epochs=1).fit(data, seed=0),
        Bpr(epochs=1).fit(data, seed=0),
        TwoTowerModel(passes=1, epochs=1).fit(data, seed=0),
    ]
    for one in fitted:
        measure(rank_all(one, judged, items=200, depth=20), judged, metrics=("recall",), at=(20,))


def of_first(problem: Problem, users: int) -> Problem:
    """The part of the first `users` users; all items stay."""
    train = problem.train.where(problem.train.histories.request < users)
    asking = np.flatnonzero(problem.test.queries.user < users)
    return replace(problem, train=train, test=problem.test.take(asking))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/gowalla"), metavar="FOLDER")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts; otherwise all")
    options = parser.parse_args()
    if not (options.data / "train.txt").is_file():
        raise SystemExit(
            f"error: no train.txt in {options.data}; give --data a folder with train.txt and test.txt, "
            "each line a user and their items"
        )
    os.environ["OMP_NUM_THREADS"] = str(THREADS)  # what our own threads go by
    threadpool_limits(THREADS)
    torch.set_num_threads(THREADS)
    numba.set_num_threads(THREADS)
    (problem,) = read_problems("adjacency", options.data)
    if options.quick:
        problem = of_first(problem, QUICK_USERS)
    compile_all()
    with tempfile.TemporaryDirectory(prefix="recsys-bench-") as folder:
        bench = Bench(problem, Path(folder))
        for name, part in (("ials", ials), ("bpr", bpr), ("two_tower", two_tower)):
            if name in options.only:
                part(bench, quick=options.quick)
        if "evaluation" in options.only:
            compare_ranking(bench.problem, bench.add, bench.ratios)
    report(bench.rows, bench.ratios, path=options.json)


if __name__ == "__main__":
    main()
