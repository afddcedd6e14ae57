"""Other people's indexes, each in its own environment: settings tried, recall, milliseconds.

    python index_peers.py REQUEST.json

The request names the peer, the files of items, queries and exact neighbors, the threads, and the file
to write to. Graphs are given (x, sqrt(M^2 - |x|^2)) under L2, by which their neighbors are those of
the inner product (Bachrach et al. 2014): of unlike lengths they find little by the inner product itself.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

REQUEST = json.loads(Path(sys.argv[1]).read_text())
os.environ["OMP_NUM_THREADS"] = str(REQUEST["threads"])

ENOUGH = 0.992  # recall at which a ladder ends
Search = Callable[[np.ndarray], np.ndarray]  # queries [B, D] -> positions [B, k]
Ladder = list[tuple[str, Search, Search]]  # setting, for one query, for a batch; from fast to thorough


def main() -> None:
    items, queries, nearest = (np.load(REQUEST[name]) for name in ("items", "queries", "nearest"))
    k = nearest.shape[1]
    before, start = resident_mb(), time.perf_counter()
    ladders = PEERS[REQUEST["peer"]](items, k, REQUEST["threads"])
    built, size = time.perf_counter() - start, (resident_mb() - before) * 1e6 / len(items)
    points = []
    for ladder in ladders:
        for setting, one, batch in ladder:
            found = batch(queries)
            hit = np.array([len(np.intersect1d(a, b)) / k for a, b in zip(found, nearest)])
            half = len(hit) // 2
            points.append(
                {
                    "setting": setting,
                    "recall": float(hit[:half].mean()),
                    "error": float(hit[:half].std() / np.sqrt(half)),
                    "held_out": float(hit[half:].mean()),
                    "ms": clocked(one, queries, 1),
                    "batch_ms": clocked(batch, queries, 32),
                }
            )
            if points[-1]["recall"] >= ENOUGH:
                break
    Path(REQUEST["out"]).write_text(json.dumps({"points": points, "build_s": built, "bytes": size}))


def clocked(search: Search, queries: np.ndarray, size: int) -> float:
    """Milliseconds a query, the best of five rounds."""
    count = max(64, 128 // size * size)
    rounds = []
    for _ in range(5):
        start = time.perf_counter()
        for begin in range(0, count, size):
            search(queries[begin : begin + size])
        rounds.append((time.perf_counter() - start) * 1e3 / count)
    return min(rounds)


def scann(items: np.ndarray, k: int, threads: int) -> list[Ladder]:
    import scann as library

    leaves = 1 << round(np.log2(np.sqrt(len(items))))
    builder = library.scann_ops_pybind.builder(items, k, "dot_product").tree(
        num_leaves=leaves,
        num_leaves_to_search=leaves // 10,
        training_sample_size=min(len(items), 250_000),
    )
    index = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(4 * k).build()
    index.set_num_threads(threads)

    def rung(searched: int, reorder: int) -> tuple[str, Search, Search]:
        given = {
            "leaves_to_search": searched,
            "pre_reorder_num_neighbors": reorder,
            "final_num_neighbors": k,
        }
        return (
            f"leaves {searched} of {leaves}, reorder {reorder}",
            lambda q: index.search(q[0], **given)[0][None],
            lambda q: index.search_batched_parallel(q, **given)[0],
        )

    return [[rung(n, reorder) for n in rungs(4, leaves)] for reorder in (2 * k, 4 * k, 8 * k)]


def hnswlib(items: np.ndarray, k: int, threads: int) -> list[Ladder]:
    import hnswlib as library

    index = library.Index("l2", items.shape[1] + 1)
    index.init_index(len(items), M=32, ef_construction=200)
    index.set_num_threads(threads)
    index.add_items(lengthened(items))

    def rung(width: int) -> tuple[str, Search, Search]:
        def search(q: np.ndarray) -> np.ndarray:
            index.set_ef(width)
            return index.knn_query(asking(q), k)[0]

        return f"ef {width}", search, search

    return [[rung(width) for width in rungs(k, 16 * k)]]


def usearch(items: np.ndarray, k: int, threads: int) -> list[Ladder]:
    from usearch.index import Index

    index = Index(ndim=items.shape[1] + 1, metric="l2sq", dtype="f32", connectivity=32, expansion_add=200)
    index.add(np.arange(len(items)), lengthened(items), threads=threads)

    def rung(width: int) -> tuple[str, Search, Search]:
        def search(q: np.ndarray) -> np.ndarray:
            index.expansion_search = width
            return np.asarray(index.search(asking(q), k, threads=threads).keys).reshape(len(q), -1)

        return f"expansion {width}", search, search

    return [[rung(width) for width in rungs(k, 16 * k)]]


PEERS = {"scann": scann, "hnswlib": hnswlib, "usearch": usearch}


def lengthened(items: np.ndarray) -> np.ndarray:
    square = (items.astype(np.float64) ** 2).sum(1)
    return np.hstack([items, np.sqrt(square.max() - square)[:, None]]).astype(np.float32)


def asking(queries: np.ndarray) -> np.ndarray:
    return np.hstack([queries, np.zeros((len(queries), 1), np.float32)])


def rungs(first: int, last: int) -> list[int]:
    found = [first]
    while found[-1] < last:
        found.append(min(last, max(found[-1] + 1, round(found[-1] * 1.25))))
    return found


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


if __name__ == "__main__":
    main()
