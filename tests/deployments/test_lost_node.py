"""A whole node is lost: what it held is held by another."""

import json
import subprocess
import sys
from pathlib import Path


def test_no_request_fails_when_a_node_is_killed_that_held_a_replica_of_every_shard(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.deployments.lost_node", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert (found["held"], found["left"]) == (["Shard0", "Shard1"], [])
    assert found["before"].keys() == {"200 10"}
    # A call that was under way may have cost its shard's share, and then says so.
    assert all(reply.startswith("200 10") for reply in found["after"]), found["after"]
    assert found["last"] == {"200 10": 20}
