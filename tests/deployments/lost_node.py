"""A node is killed that held a replica of every shard, while requests are answered.

    python -m tests.deployments.lost_node FOLDER

Three Ray nodes on one machine: one for the gateway and all else, two that hold a replica of each shard. A
process of its own, since a process has one Ray. Prints what came back as JSON.
"""

import collections
import json
import os
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

AFTER_S = 12.0  # that requests go on after the kill


def main(folder: Path) -> dict[str, Any]:
    os.environ |= {"RAY_SERVE_ENABLE_HA_PROXY": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
    import psutil
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    from deployments.server import deploy_release, free_port, read_config
    from recsys.events.redis_server import start_redis
    from recsys.releases.manifest import write_release
    from recsys.settings import OnlineStore, Serving, Settings
    from tests.deployments.service import put_users
    from tests.world import ITEMS, NOW, release_parts, world

    parts = release_parts(world().parts, folder / "index")
    release = write_release(folder / "artifacts", parts, as_of=NOW, items=ITEMS)
    memory = {"object_store_memory": 100_000_000}
    cluster = Cluster(True, head_node_args={"num_cpus": 2, "resources": {"front": 10}} | memory)
    holders = [cluster.add_node(num_cpus=1, resources={"index": 10}, **memory) for _ in range(2)]
    port = free_port()
    try:
        with start_redis(folder / "redis") as redis:
            ray.init(address=cluster.address, namespace="serve", log_to_driver=False)
            serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
            settings = Settings(
                workdir=str(folder),
                serving=Serving(port=port, clock=NOW),
                online_store=OnlineStore(url=redis.url),
            )
            put_users(redis.url, world())
            (application,) = (tree := read_config("cluster"))["applications"]
            application["args"]["placement"] = {"shards": "deployment"}
            application["deployments"] = [d for d in application["deployments"] if d["name"] != "Ranking"]
            for deployment in application["deployments"]:
                shard = deployment["name"].startswith("Shard")
                deployment.pop("autoscaling_config", None)
                deployment["num_replicas"] = 2 if shard else 1
                deployment["ray_actor_options"] = {
                    "num_cpus": 0.1,
                    "resources": {"index" if shard else "front": 1},
                }
            deploy_release(tree, settings=settings, release=release.uri)
            held = {
                actor["Name"].split("#")[1]: actor["Pid"]
                for actor in ray._private.state.actors().values()
                if actor["Address"]["NodeID"] == holders[0].node_id and "#" in actor["Name"]
            }
            replies, kill_at = asked(port, lambda: cluster.remove_node(holders[0], allow_graceful=False))
            return {
                "held": sorted(held),
                "before": summary(reply for reply in replies if reply[0] < kill_at),
                "after": summary(reply for reply in replies if reply[0] >= kill_at),
                "last": summary(replies[-20:]),
                "left": [name for name, pid in held.items() if psutil.pid_exists(pid)],
            }
    finally:
        ray.shutdown()
        cluster.shutdown()


def asked(port: int, kill: Any) -> tuple[list[tuple[float, int, int, str]], float]:
    """(time, status, items, degraded) of each reply, and when the node was killed."""
    replies: list[tuple[float, int, int, str]] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            body = json.dumps({"user_id": "u001", "n": 10}).encode()
            request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/recommendations", body)
            request.add_header("content-type", "application/json")
            start = time.monotonic()
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    told = json.load(answer)
                    replies.append((start, 200, len(told["items"]), ",".join(told["degraded"])))
            except OSError as error:
                replies.append((start, getattr(error, "code", 0), 0, str(error)))
            time.sleep(0.02)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    while len(replies) < 50:
        time.sleep(0.05)
    kill_at = time.monotonic()
    kill()
    time.sleep(AFTER_S)
    done.set()
    for thread in threads:
        thread.join()
    return replies, kill_at


def summary(replies: Any) -> dict[str, int]:
    """How often each (status, items, degraded) came."""
    return dict(collections.Counter(f"{status} {items} {told}".strip() for _, status, items, told in replies))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        print(json.dumps(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(made))))
