"""Kills ingestion with SIGKILL at random points and looks whether the store is whole.

    python -m benchmarks.kill_ingestion [--quick] [--json FILE] [--kills 20] [--seed 1]

For Kafka and Redis, bounded (`--bus`) and continuous (`--follow`). Needs `make kafka`.
"""

import random
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path

from benchmarks.report import arguments, report
from recsys.events.redis_server import start_redis
from tests.kafka_server import new_kafka
from tests.kill_ingestion import TARGETS, survive


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    kills = 4 if options.quick else options.kills
    rng = random.Random(options.seed)
    rows = []
    with tempfile.TemporaryDirectory(prefix="recsys-kill-") as name:
        folder = Path(name)
        with new_kafka(folder / "kafka") as kafka, start_redis(folder / "redis") as redis:
            for url in (kafka.url, redis.url):
                for mode, possible in TARGETS.items():
                    targets = [rng.choice(possible) for _ in range(kills)]
                    start = time.perf_counter()
                    row = survive(
                        url,
                        mode,
                        folder / uuid.uuid4().hex[:8],
                        targets=targets,
                        seed=rng.randrange(1 << 30),
                        count=4000 * kills if mode == "bounded" else 1000,
                    )
                    rows.append(row | {"seconds": round(time.perf_counter() - start)})
                    print(rows[-1], dict(Counter(targets)), flush=True)
    report(rows, {}, path=options.json)


if __name__ == "__main__":
    main()
