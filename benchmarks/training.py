"""Speed of training beside peers on the same two threads: iALS, BPR, two-tower; and of full ranking.

    python -m benchmarks.training [--data FOLDER] [--only PART ...] [--quick] [--json FILE]

`implicit` and RecBole run in environments of their own (made the first time), one after the other with
us. After an epoch the vectors of either side are judged by our full ranking, outside of the time. An
epoch is as many positives as there are training pairs. Seconds to equal quality: until the lower of the
two best Recall@20, in between epochs by straight lines. Both sides have the same number of factors and
settings that were chosen for each on a part of gowalla's training pairs. Ratios are the peer's seconds
over ours: above 1 we are faster. What is compiled is compiled before.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numba
import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.curves import THREADS, Bench, Product, of_fits
from benchmarks.ranking import compare_ranking
from benchmarks.report import arguments, report
from recsys.datasets.formats import read_problems
from recsys.datasets.problem import Problem, judge_users
from recsys.evaluation.full_ranking import measure, rank_all
from recsys.interactions import interactions_from_pairs
from recsys.models.ials import Ials
from recsys.models.pairwise import Bpr
from recsys.models.pairwise_sgd import Embeddings, Pairs, sgd_epoch
from recsys.models.retrieval import Fitted
from recsys.training.loop import train
from recsys.training.two_tower_model import TwoTowerModel

QUICK_USERS = 6000
PARTS = ("ials", "bpr", "two_tower", "evaluation")


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
    keep = (1, 2) if quick else (1, 2, 4)
    theirs = bench.theirs("SimpleX, RecBole", "recbole", "SimpleX", keep, **SIMPLEX)
    bench.compare("two_tower", ours, ("recbole_simplex", theirs))


# Chosen on a part of gowalla's training pairs, for 64 factors.
IMPLICIT_ALS = {"factors": 64, "regularization": 20.0, "alpha": 100.0}
IMPLICIT_BPR = {"learning_rate": 0.02, "regularization": 0.001}
SIMPLEX = {
    "train_neg_sample_args": {"distribution": "uniform", "sample_num": 10},
    "train_batch_size": 4096 * 10,
    "learning_rate": 0.001,
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
