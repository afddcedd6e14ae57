"""Nearest items by inner product, beside raw FAISS, ScaNN, hnswlib and usearch on the same two threads.

    python -m benchmarks.index [--data FOLDER] [--only SET ...] [--plot FILE] [--quick] [--json FILE]

Each is tuned to a recall@200 of .98 on one half of the queries; the recall in the table is that of the other
half. `single` is one query at a time, `batch` 32 together, both in milliseconds a query, the best of rounds.
"raw FAISS" is the same FAISS index without our shard around it, tuned, and ours has the same setting;
"FAISS's own" is what FAISS makes of the same type by itself. Ratios are of single queries, ours over theirs
(below 1 we are faster): of each set where the other one reaches that recall, and the geometric mean of these.
Peers have environments of their own.
"""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from benchmarks.environments import python_of
from benchmarks.index_data import LikeFactors, Vectors, factors, low_rank
from benchmarks.report import arguments, report
from recsys.index.build import build_shard
from recsys.index.dials import Dials, told
from recsys.index.exact import exact_neighbors
from recsys.index.factory import shard_type
from recsys.index.shard import IndexShard
from recsys.index.vectors import VectorArray

THREADS, AT, RECALL, BATCH = 2, 200, 0.98, 32
ROUNDS = 5  # as index_peers.py has
ENOUGH = 0.992  # recall at which a ladder ends
PEERS = ("scann", "hnswlib", "usearch")
SETS = ("gowalla", "drawn", "low rank")

Search = Callable[[np.ndarray], Any]


@dataclass(frozen=True)
class Point:
    setting: str
    recall: float
    error: float
    held_out: float
    ms: float
    batch_ms: float


@dataclass(frozen=True)
class Contender:
    what: str
    points: Sequence[Point]
    build_s: float
    bytes: float  # a vector
    setting: str | None = None  # None = to be chosen

    @property
    def chosen(self) -> Point | None:
        """The fastest for single queries that reaches the recall, by the queries to tune by."""
        if self.setting is not None:
            return next(point for point in self.points if point.setting == self.setting)
        enough = [point for point in self.points if point.recall - point.error >= RECALL]
        return min(enough, key=lambda point: point.ms, default=None)


def compare(data: Vectors, folder: Path, *, peers: Sequence[str]) -> list[Contender]:
    nearest, _ = exact_neighbors(VectorArray(data.items).blocks(), data.queries, k=AT)
    print(f"{data.name}: ours and FAISS", flush=True)
    found = [*ours(data, nearest), faiss_alone(data, nearest)]
    files = {name: str(folder / f"{name}.npy") for name in ("items", "queries", "nearest")}
    for name, array in (("items", data.items), ("queries", data.queries), ("nearest", nearest)):
        np.save(files[name], array)
    for peer in peers:
        print(f"{data.name}: {peer}", flush=True)
        request = files | {"peer": peer, "threads": THREADS, "out": str(folder / "found.json")}
        (folder / "request.json").write_text(json.dumps(request))
        script = str(Path(__file__).parent / "peers" / "index_peers.py")
        done = subprocess.run(
            [str(python_of(peer)), script, str(folder / "request.json")], capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{peer} failed:\n{done.stderr[-3000:]}")
        theirs = json.loads((folder / "found.json").read_text())
        points = [Point(**point) for point in theirs["points"]]
        found.append(Contender(peer, points, theirs["build_s"], theirs["bytes"]))
    return found


def _bytes(index: faiss.Index) -> float:
    return len(faiss.serialize_index(index)) / index.ntotal


def ours(data: Vectors, nearest: np.ndarray) -> list[Contender]:
    """Our shard, and the same index without it, measured in turn."""
    start = time.perf_counter()
    kind = shard_type("auto", items=len(data.items), dimensions=data.items.shape[1])
    length = float(np.linalg.norm(data.queries, axis=1).mean())
    built = build_shard(VectorArray(data.items), kind, query_length=length)
    seconds = time.perf_counter() - start
    shard = IndexShard(built.index, built.rows)
    faiss.omp_set_num_threads(THREADS)
    searches = [lambda queries: shard.search(queries, AT)[0], searching(built.index)]
    points = climb(shard, data.queries, nearest, searches)
    raw = Contender("raw FAISS, the same index", points[1], seconds, _bytes(built.index))
    alike = raw.chosen.setting if raw.chosen else None
    return [Contender(f"ours, {kind}", points[0], seconds, _bytes(built.index), alike), raw]


def faiss_alone(data: Vectors, nearest: np.ndarray) -> Contender:
    start = time.perf_counter()
    kind = str(shard_type("auto", items=len(data.items), dimensions=data.items.shape[1]))
    index = faiss.index_factory(data.items.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
    index.train(data.items[np.random.default_rng(0).permutation(len(data.items))[:100_000]])
    index.add(data.items)
    seconds = time.perf_counter() - start
    (points,) = climb(Dials.of(index), data.queries, nearest, [searching(index)])
    return Contender(f"FAISS's own {kind}", points, seconds, _bytes(index))


def climb(
    turned: IndexShard | Dials, queries: np.ndarray, nearest: np.ndarray, searches: Sequence[Search]
) -> list[list[Point]]:
    """The points of each search, of the same index at the same settings."""
    points: list[list[Point]] = [[] for _ in searches]
    dials = turned.dials if isinstance(turned, IndexShard) else turned
    for ladder in dials.ladders(AT):
        for setting in ladder:
            turned.turn(setting)
            times = zip(clocked(searches, queries, 1), clocked(searches, queries, BATCH))
            for own, search, (ms, batch_ms) in zip(points, searches, times):
                found = search(queries)
                hit = np.array([len(np.intersect1d(a, b)) / AT for a, b in zip(found, nearest)])
                half = len(hit) // 2
                recall, error = float(hit[:half].mean()), float(hit[:half].std() / np.sqrt(half))
                own.append(Point(told(setting), recall, error, float(hit[half:].mean()), ms, batch_ms))
            if recall >= ENOUGH:  # of the last one, which does not look further by itself
                break
    return points


def searching(index: faiss.Index) -> Search:
    return lambda queries: index.search(queries, AT)[1]


def clocked(searches: Sequence[Search], queries: np.ndarray, size: int) -> list[float]:
    """Milliseconds a query of each search, the best of rounds in which they take turns."""
    best, count = [np.inf] * len(searches), max(64, 128 // size * size)
    for _ in range(ROUNDS):
        for number, search in enumerate(searches):
            start = time.perf_counter()
            for begin in range(0, count, size):
                search(queries[begin : begin + size])
            best[number] = min(best[number], (time.perf_counter() - start) * 1e3 / count)
    return best


def rows_of(data: Vectors, contenders: Sequence[Contender]) -> list[dict[str, Any]]:
    rows = []
    for one in contenders:
        point = one.chosen
        row: dict[str, Any] = {"what": f"{data.name}: {one.what}"}
        if point is None:
            best = max(one.points, key=lambda p: p.recall)
            row |= {"recall": f"{best.held_out:.3f}", "single_ms": "-", "batch_ms": "-"}
            row["note"] = f"does not reach {RECALL}: {best.setting}, {best.ms:.3f} ms"
        else:
            row |= {"recall": f"{point.held_out:.4f}", "single_ms": f"{point.ms:.3f}"}
            row |= {"batch_ms": f"{point.batch_ms:.3f}", "note": point.setting}
        rows.append(row | {"build_s": f"{one.build_s:.1f}", "bytes": f"{one.bytes:.0f}"})
    return rows


def ratios_of(found: Mapping[str, Sequence[Contender]]) -> dict[str, float]:
    """Ours over theirs, of single queries: of each set, and their geometric mean."""
    ratios: dict[str, float] = {}
    for name, pick in (("raw_faiss", lambda c: c[1:2]), ("best_peer", lambda c: c[3:])):
        each = {}
        for data, contenders in found.items():
            mine = contenders[0].chosen
            theirs = [one.chosen.ms for one in pick(contenders) if one.chosen]
            if mine and theirs:
                each[data.replace(" ", "_")] = mine.ms / min(theirs)
        if each:
            ratios[f"ours_vs_{name}"] = float(np.exp(np.mean(np.log(list(each.values())))))
            ratios |= {f"ours_vs_{name}_{data}": ratio for data, ratio in each.items()}
    return ratios


def plot(found: Mapping[str, Sequence[Contender]], sizes: Mapping[str, int], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(5 * len(found), 4.2), squeeze=False)
    for axis, (name, contenders) in zip(axes[0], found.items()):
        for number, one in enumerate(contenders):
            points = sorted(one.points, key=lambda p: p.held_out)
            shown = [p for p in points if p.ms <= min(q.ms for q in points if q.held_out >= p.held_out)]
            label = one.what.split(",")[0] if number != 1 else "raw FAISS, same index"
            style = {"lw": 2.5, "color": "#1f5a8a"} if number == 0 else {"lw": 1.2}
            axis.plot([p.held_out for p in shown], [p.ms for p in shown], "-", label=label, **style)
        axis.axvline(RECALL, color="0.7", lw=1, ls="--")
        axis.set(yscale="log", xlim=(0.8, 1.0), xlabel=f"recall@{AT}, queries not tuned by")
        axis.set_title(f"{name}, {sizes[name]:,} x 64", fontsize=11)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("ms a query, one at a time")
    axes[0][-1].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/gowalla"), metavar="FOLDER")
    parser.add_argument("--only", nargs="+", choices=SETS, default=SETS, help="these sets; otherwise all")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS, help="these; otherwise all")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw recall against time there, too")
    options = parser.parse_args()
    faiss.omp_set_num_threads(THREADS)
    os.environ["OMP_NUM_THREADS"] = str(THREADS)
    real, many = factors(options.data), 100_000 if options.quick else 1_000_000
    made = {
        "gowalla": lambda: real,
        "drawn": lambda: LikeFactors(real, many).in_memory(),
        "low rank": lambda: low_rank(many),
    }
    found: dict[str, list[Contender]] = {}
    rows: list[dict[str, Any]] = []
    sizes: dict[str, int] = {}
    for name in options.only:
        data = made[name]()
        sizes[name] = len(data.items)
        with tempfile.TemporaryDirectory(prefix="recsys-bench-") as folder:
            found[name] = compare(data, Path(folder), peers=options.peers)
        rows += rows_of(data, found[name])
        print("\n".join(str(row) for row in rows[-len(found[name]) :]), flush=True)
    if options.plot:
        plot(found, sizes, options.plot)
    report(rows, ratios_of(found), path=options.json)


if __name__ == "__main__":
    main()
