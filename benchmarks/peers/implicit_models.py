"""ALS and BPR of `implicit`, one run; started by benchmarks/training.py, in an environment of its own.

    python implicit_models.py REQUEST.json

Trains on the pairs of REQUEST's `pairs` (npz: user, item, users, items), and leaves in its folder `out`
<epoch>.npz with the vectors after each epoch of `keep`, and seconds.json: epoch -> seconds of training
until then, without the time that this keeping takes.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from implicit.cpu.bpr import BayesianPersonalizedRanking
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

MODELS = {"als": AlternatingLeastSquares, "bpr": BayesianPersonalizedRanking}


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    pairs, out, keep = np.load(request["pairs"]), Path(request["out"]), request["keep"]
    ones = np.ones(len(pairs["user"]), np.float32)
    taken = csr_matrix((ones, (pairs["user"], pairs["item"])), (int(pairs["users"]), int(pairs["items"])))
    taken.data[:] = 1
    threadpool_limits(1, "blas")  # as implicit advises: its own threads call BLAS
    model = MODELS[request["model"]](
        iterations=max(keep), num_threads=request["threads"], random_state=0, **request["settings"]
    )
    seconds: dict[int, float] = {}
    kept = 0.0

    def after(epoch: int, *_: object) -> None:
        nonlocal kept
        now = time.perf_counter()
        if epoch + 1 in keep:
            seconds[epoch + 1] = now - start - kept
            np.savez(out / f"{epoch + 1}.npz", users=model.user_factors, items=model.item_factors)
        kept += time.perf_counter() - now

    start = time.perf_counter()
    model.fit(taken, show_progress=False, callback=after)
    (out / "seconds.json").write_text(json.dumps(seconds))


if __name__ == "__main__":
    main()
