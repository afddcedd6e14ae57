"""Speed beside peers on the same two threads: of training, of full ranking, of encoding a user.

    python -m benchmarks.training [--data FOLDER] [--sequences FILE] [--only PART ...] [--quick] [--json FILE]

`implicit` and RecBole run in environments of their own (made the first time), one after the other with
us. After an epoch the vectors of either side are judged by our full ranking, outside of the time. An
epoch is as many positives as there are training pairs. Seconds to equal quality: until the lower of the
two best Recall@20 (of sequences NDCG@10), in between epochs by straight lines. Both sides have the same
number of factors and settings that were chosen for each on a part of gowalla's training pairs; RecBole's
sequence models have its defaults. Ratios are the peer's seconds over ours: above 1 we are faster. What is
compiled is compiled before.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from benchmarks.curves import THREADS, Bench, Product, of_fits
from benchmarks.ranking import compare_ranking
from benchmarks.report import arguments, report
from recsys.datasets.formats import read_problems
from recsys.datasets.problem import Problem, judge_users
from recsys.evaluation.full_ranking import measure, rank_all
from recsys.interactions import Queries, interactions_from_pairs
from recsys.models.factors.ials import Ials
from recsys.models.factors.pairwise import Bpr
from recsys.models.factors.pairwise_sgd import Embeddings, Pairs, sgd_epoch
from recsys.models.retrieval import Fitted
from recsys.models.sequence.encoder import padded
from recsys.models.sequence.modules import SequenceModule
from recsys.training.loop import train
from recsys.training.sequence_model import Gru4Rec, SasRec, SequenceModel
from recsys.training.two_tower_model import TwoTowerModel

QUICK_USERS = 6000
PARTS = ("ials", "bpr", "two_tower", "sasrec", "gru4rec", "encoding", "evaluation")
OF_SEQUENCES = ("sasrec", "gru4rec", "encoding")


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
        for _ in train(task, settings=task.loop, seed=0):
            yield lambda: model.finish(task)

    ours = bench.ours("two-tower, ours", course(), range(1, model.epochs + 1))
    ours.epochs[:] = [epoch * scale[0] for epoch in ours.epochs]
    keep = (1, 2) if quick else (1, 2, 4)
    theirs = bench.theirs("SimpleX, RecBole", "recbole", "SimpleX", keep, **SIMPLEX)
    bench.compare("two_tower", ours, ("recbole_simplex", theirs))


def sequence(bench: Bench, model: SequenceModel, peer: str, *, quick: bool) -> None:
    """Both sides without content, with a full softmax; RecBole's `peer` with its own defaults."""
    passes = 6 if quick else 18
    model = replace(model, content=False, passes=passes)

    def course() -> Iterator[Callable[[], Fitted]]:
        task = model.task(bench.problem.train, seed=0)
        task.judged = task.judged.take(np.zeros(0, np.int64))  # validation is not in the time
        for _ in train(task, settings=task.loop, seed=0):
            yield lambda: model.finish(task)

    keep = (1, 2, 4, 6, 9, 12, 15, 18)
    ours = bench.ours(f"{peer}, ours", course(), [e for e in keep if e <= passes])
    theirs = bench.theirs(f"{peer}, RecBole", "recbole", peer, (1, 2) if quick else (1, 2, 4), **RECBOLE)
    bench.compare(peer.lower(), ours, (f"recbole_{peer.lower()}", theirs))


def encoding(bench: Bench, *, quick: bool) -> None:
    """Users to vectors as the request path does it, one at a time and 64 together; and by torch."""
    for name, model in (("SASRec", SasRec()), ("GRU4Rec", Gru4Rec())):
        task = model.task(bench.problem.train, seed=0)
        encoder, module = model.finish(task), task.module.eval()
        vectors = torch.from_numpy(np.nan_to_num(encoder.items))
        for size in (1, 64):
            rows = np.arange(size * (20 if quick else 100)) % len(bench.judged)
            blocks = [bench.judged.queries.take(block) for block in np.split(rows, len(rows) // size)]

            by_torch = partial(encode_by_torch, module, vectors)
            ours, theirs = (median_seconds(of, blocks) for of in (encoder.encode, by_torch))
            bench.add(
                f"{name}, encoding {size} user{'s' * (size > 1)}, milliseconds",
                1000 * ours,
                f"torch {1000 * theirs:.2f}",
            )
            bench.ratios[f"{name.lower()}_encoding_{size}_vs_torch"] = theirs / ours


def encode_by_torch(module: SequenceModule, items: Tensor, queries: Queries) -> Tensor:
    window = module.settings.window
    event, _ = padded(queries.histories, window=window, start=len(items), padding=len(items) + 1)
    with torch.inference_mode():
        return module.encode(items, torch.from_numpy(event))


def median_seconds(encode: Callable[[Queries], object], blocks: list[Queries]) -> float:
    encode(blocks[0])
    found = []
    for block in blocks:
        start = time.perf_counter()
        encode(block)
        found.append(time.perf_counter() - start)
    return float(np.median(found))


# Chosen on a part of gowalla's training pairs, for 64 factors.
IMPLICIT_ALS = {"factors": 64, "regularization": 20.0, "alpha": 100.0}
IMPLICIT_BPR = {"learning_rate": 0.02, "regularization": 0.001}
SIMPLEX = {
    "train_neg_sample_args": {"distribution": "uniform", "sample_num": 10},
    "train_batch_size": 4096 * 10,
    "learning_rate": 0.001,
}

RECBOLE = {"loss_type": "CE", "train_batch_size": 2048, "learning_rate": 0.001}


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
    parser.add_argument(
        "--sequences",
        type=Path,
        default=Path("../shared/data/s3rec-beauty-lastfm/Beauty.txt"),
        metavar="FILE",
        help="a line for each user, and their items, oldest first",
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts; otherwise all")
    options = parser.parse_args()
    wanted = {name: name in options.only for name in PARTS}
    needs_pairs = any(wanted[name] for name in PARTS if name not in OF_SEQUENCES)
    if needs_pairs and not (options.data / "train.txt").is_file():
        raise SystemExit(
            f"error: no train.txt in {options.data}; give --data a folder with train.txt and test.txt, "
            "each line a user and their items"
        )
    if any(wanted[name] for name in OF_SEQUENCES) and not options.sequences.is_file():
        raise SystemExit(f"error: no file {options.sequences}; give --sequences a line for each user")
    os.environ["OMP_NUM_THREADS"] = str(THREADS)  # what our own threads go by
    threadpool_limits(THREADS)
    torch.set_num_threads(THREADS)
    numba.set_num_threads(THREADS)
    compile_all()
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="recsys-bench-") as folder:
        if needs_pairs:
            bench = Bench(_problem("adjacency", options.data, quick=options.quick), Path(folder))
            for name, part in (("ials", ials), ("bpr", bpr), ("two_tower", two_tower)):
                if wanted[name]:
                    part(bench, quick=options.quick)
            if wanted["evaluation"]:
                compare_ranking(bench.problem, bench.add, bench.ratios)
            rows, ratios = bench.rows, bench.ratios
        if any(wanted[name] for name in OF_SEQUENCES):
            problem = _problem("sequences", options.sequences, quick=options.quick)
            bench = Bench(problem, Path(folder), metric="ndcg", at=10)
            for name, model, peer in (("sasrec", SasRec(), "SASRec"), ("gru4rec", Gru4Rec(), "GRU4Rec")):
                if wanted[name]:
                    sequence(bench, model, peer, quick=options.quick)
            if wanted["encoding"]:
                encoding(bench, quick=options.quick)
            rows, ratios = rows + bench.rows, ratios | bench.ratios
    report(rows, ratios, path=options.json)


def _problem(format: str, path: Path, *, quick: bool) -> Problem:
    (problem,) = read_problems(format, path)
    return of_first(problem, QUICK_USERS) if quick else problem


if __name__ == "__main__":
    main()
