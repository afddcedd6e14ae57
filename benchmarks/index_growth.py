"""How an index grows with the catalog, from 100,000 to 10 million items of 64 numbers.

    python -m benchmarks.index_growth [--data FOLDER] [--plot FILE] [--quick] [--json FILE]

Vectors are drawn like gowalla's factors, written to Parquet and streamed from there; one shard, by default
settings, except that the largest keeps a byte a number. It is then mapped from its file and asked one query
at a time on one thread. The peak is that of the building process, which holds one block and the shard.
"""

import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from benchmarks.index_data import LikeFactors, factors
from benchmarks.report import arguments, report
from recsys.index.building import build_index
from recsys.index.manifest import CURVE
from recsys.index.settings import IndexSettings
from recsys.index.vectors import VectorFiles, write_vectors
from recsys.memory import own_peak_mb

SIZES = (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
QUICK = SIZES[:3]
SMALL_FROM = 10_000_000  # items from which numbers are bytes


def built(files: Path, folder: Path, queries: np.ndarray, factory: str, found: Any) -> None:
    """In a process of its own, whose peak is that of the build."""
    faiss.omp_set_num_threads(2)
    start = time.perf_counter()
    settings = IndexSettings(factory=factory, shards=1, queries=1000)
    manifest = build_index(VectorFiles(files), folder, settings=settings, queries=queries)
    curve = json.loads((folder / CURVE).read_bytes())
    (point,) = [p for p in curve if p["setting"] == manifest.setting]
    found.put(
        {
            "what": f"{manifest.items:,} items, {manifest.factory}",
            "items": manifest.items,
            "recall": f"{manifest.recall:.4f}",
            "ms": f"{point['ms']:.3f}",
            "build_s": time.perf_counter() - start,
            "megabytes": manifest.shards[0].bytes / 1e6,
            "peak_mb": float(own_peak_mb()),
            "note": f"nprobe {manifest.setting['nprobe']}",
        }
    )


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    items = [row["items"] for row in rows]
    panels = {
        "ms a query, one thread": [float(row["ms"]) for row in rows],
        "seconds to build and tune, two threads": [row["build_s"] for row in rows],
        "megabytes of the file": [row["megabytes"] for row in rows],
    }
    figure, axes = pyplot.subplots(1, len(panels), figsize=(13, 3.6))
    for axis, (title, values) in zip(axes, panels.items()):
        axis.plot(items, values, "o-", color="#1f5a8a")
        axis.set(xscale="log", yscale="log", xlabel="items", title=title)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/gowalla"), metavar="FOLDER")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it there, too")
    options = parser.parse_args()
    real = factors(options.data)
    rows = []
    for count in QUICK if options.quick else SIZES:
        print(f"{count:,} items", flush=True)
        data = LikeFactors(real, count)
        with tempfile.TemporaryDirectory(prefix="recsys-bench-") as name:
            folder = Path(name)
            for number, (own, vectors) in enumerate(data.blocks()):
                write_vectors(folder / "vectors" / f"{number:05}.parquet", vectors, rows=own)
            factory = "IVF,SQ8" if count >= SMALL_FROM else "auto"
            spawn = multiprocessing.get_context("spawn")
            found = spawn.Queue()
            work = (folder / "vectors", folder / "index", data.queries, factory, found)
            process = spawn.Process(target=built, args=work)
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"the build of {count:,} items failed")
            rows.append(found.get())
        print(rows[-1], flush=True)
    if options.plot:
        plot(rows, options.plot)
    report(rows, {}, path=options.json)


if __name__ == "__main__":
    main()
