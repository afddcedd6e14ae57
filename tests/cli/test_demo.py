"""`recsys demo` as a person runs it: real Ray, Redis, Delta, MLflow and Serve, on a sample of the real
data under the other published header. One run of the steps, then the same work directory again."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import yaml

from recsys.datasets.online_retail import SHIPPED

RECSYS = str(Path(sys.executable).parent / "recsys")
SMALL = {
    "training": {
        "slices": 1,
        "two_tower": {"steps": 20, "steps_more": 5, "batch": 64},
        "rankers": {"home": {"rounds": 20}, "discover": {"rounds": 20}},
    }
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(*arguments: str, timeout: float = 400) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return subprocess.run(
        [RECSYS, *arguments], capture_output=True, text=True, timeout=timeout, env=environment, check=False
    )


def ask(url: str, path: str, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, list[str], dict]:
    """(work directory, arguments of the command, the report of its first run)."""
    folder = tmp_path_factory.mktemp("demo")
    table = pq.read_table(SHIPPED)
    customer = np.asarray(table["CustomerID"].to_pylist(), float)
    sample = table.filter(
        pa.array((customer % 6 == 1) | ((customer == 0) & (np.arange(len(table)) % 50 == 0)))
    )
    published = {"InvoiceNo": "Invoice", "UnitPrice": "Price", "CustomerID": "Customer ID"}
    sample = sample.rename_columns([published.get(name, name) for name in sample.column_names])
    pa_csv.write_csv(sample, folder / "retail.csv")
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    arguments = ["demo", "--path", f"{folder / 'retail.csv'}", "--workdir", f"{folder / 'work'}"]
    arguments += ["--config", f"{folder / 'small.yaml'}", "--port", str(free_port())]
    done = run(*arguments, "--stop", "--report", str(folder / "report.json"))
    assert done.returncode == 0, done.stderr + done.stdout
    for shown in (
        "two-stage since 50 users or more come back",
        "pipeline after diversity",
        "home for user",
        "discover for user",
        "gone from the next slate",
    ):
        assert shown in done.stdout
    return folder / "work", arguments, json.loads((folder / "report.json").read_text())


def test_the_report_tells_all(demo):
    workdir, _, report = demo
    steps = ["data", "ingest", "features", "retrieval", "ranker", "index", "evaluation", "release", "serve"]
    assert list(report["seconds"]) == steps
    assert report["peak_memory_mb"] > 100
    counts = report["ingest"]
    assert counts["read"] == counts["stored"] + counts["duplicate"] + sum(counts["rejected"].values())
    assert counts["rejected"]["missing_user"] > 1000
    for protocol in ("all", "new"):
        lines = report["evaluation"][protocol]
        assert {"popularity", "two_tower", "ease", "retrieval order", "pipeline", "union"} <= set(lines)
        low, high = lines["pipeline"]["recall@20_interval"]
        assert low <= lines["pipeline"]["recall@20"] <= high
        assert lines["pipeline"]["recall@100"] <= lines["union"]["recall"] + 1e-9
    assert len(report["slates"]) == 5
    assert (workdir / "evaluation" / "evaluation.png").stat().st_size > 10_000
    bought = report["slates"][3]["items"][0]["item_id"]
    assert bought not in [item["item_id"] for item in report["slates"][4]["items"]]


def test_again_it_serves_what_was_evaluated_and_ends_what_it_started(demo):
    """Finished steps are not redone; 50 users' slates over HTTP are those of the offline evaluation;
    moving the alias back and reloading serves the earlier release; Ctrl-C ends all, and only that."""
    workdir, arguments, first = demo
    url = f"http://127.0.0.1:{arguments[-1]}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    log = (workdir / "again.log").open("w+")
    process = subprocess.Popen([RECSYS, *arguments], stdout=log, stderr=subprocess.STDOUT, env=environment)
    try:
        deadline = time.monotonic() + 200
        while "Ctrl-C stops it" not in (said := (workdir / "again.log").read_text()):
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.5)
        assert said.count("  done ") == 8

        items = [row["item_id"] for row in pq.read_table(workdir / "catalog.parquet").to_pylist()]
        evaluated = json.loads((workdir / "evaluation" / "slates.json").read_text())
        buyer = first["slates"][0]["user_id"]  # of the first run's purchase
        for scene, slates in evaluated.items():
            users = [user for user in sorted(slates) if user != buyer][:50]
            with ThreadPoolExecutor(8) as pool:
                answers = list(
                    pool.map(
                        lambda user, scene=scene: ask(
                            url, "/v1/recommendations", {"user_id": user, "scene": scene, "n": 20}
                        ),
                        users,
                    )
                )
            for user, answer in zip(users, answers, strict=True):
                served = [item["item_id"] for item in answer["items"]]
                assert served == [items[row] for row in slates[user][:20]], (scene, user)
                assert not answer["degraded"]
        assert ask(url, "/readyz")
    finally:
        redis_pid = json.loads((workdir / "redis" / "redis.json").read_text())["pid"]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0, (workdir / "again.log").read_text()
        log.close()
    assert not Path(f"/proc/{redis_pid}").exists()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(arguments[-1]))) != 0


def test_recommend_and_similar_in_the_terminal(demo):
    workdir, _, report = demo
    slate = report["slates"][1]
    config = workdir / "recsys.yaml"
    found = run("recommend", slate["user_id"], "--n", "5", "--config", str(config))
    assert found.returncode == 0, found.stderr
    for item in slate["items"]:
        assert item["item_id"] in found.stdout
    near = run("similar", slate["items"][0]["item_id"], "--n", "3", "--config", str(config))
    assert near.returncode == 0, near.stderr
    gone = run("similar", "no-such-item", "--config", str(config))
    assert gone.returncode == 2
    assert "no item 'no-such-item'" in gone.stderr
    assert "Traceback" not in gone.stderr


@pytest.fixture(scope="module")
def full_disk(tmp_path_factory) -> Iterator[Path]:
    """A file system of its own with nothing free."""
    folder = tmp_path_factory.mktemp("full")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    with suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["demo", "--path", "nowhere.csv"], "nowhere.csv"),
        (["demo", "--model", "sasrek"], "did you mean 'sasrec'"),
        (["demo", "--dataset", "netflix"], "no data set 'netflix'"),
        (["demo", "--dataset", "movielens-100k"], "not shipped"),
        (["demo", "--report", "no/such/folder.json"], "no folder"),
        (["demo", "--workdir", "{full}"], "is the disk full?"),
        (["demo", "--workdir", "{held}", "--path", "{one}"], "holds another data set"),
        (["demo", "--config", "{bad}"], "unknown key 'training.slice'"),
        (["demo", "--config", "{dead}"], "redis://127.0.0.1:1/0"),
        (["recommend", "u1", "--scene", "cart", "--config", "{dead}"], "unknown scene 'cart'"),
        (["demo", "--port", "{taken}"], "can't listen on 127.0.0.1:{taken}"),
        (["ingest", "--path", "{empty}", "--map", "user=u,item=i,time=t,type==purchase"], "empty.csv"),
        (["recommend", "u1", "--scene", "discover", "--config", "{dead}"], "redis://127.0.0.1:1/0"),
        (["releases", "list", "--config", "no.yaml"], "can't read no.yaml"),
    ],
)
def test_bad_input_is_one_line_with_the_remedy(arguments, expected, tmp_path, demo, full_disk):
    (tmp_path / "bad.yaml").write_text("training: {slice: 3}\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "one.csv").write_text("Invoice,StockCode\n1,2\n")
    settings = yaml.safe_load((demo[0] / "recsys.yaml").read_text())
    settings["online_store"]["url"] = "redis://127.0.0.1:1/0"
    (tmp_path / "dead.yaml").write_text(yaml.safe_dump(settings))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        names = {
            "bad": tmp_path / "bad.yaml",
            "empty": tmp_path / "empty.csv",
            "dead": tmp_path / "dead.yaml",
            "taken": taken.getsockname()[1],
            "full": full_disk / "work",
            "held": demo[0],
            "one": tmp_path / "one.csv",
        }
        given = [argument.format(**names) for argument in arguments]
        if arguments[0] == "demo":
            given += ["--stop"] + ([] if "--workdir" in given else ["--workdir", str(tmp_path / "work")])
            if "--port" not in given:
                given += ["--port", str(free_port())]
        elif arguments[0] == "ingest":
            given += ["--workdir", str(tmp_path / "work")]
        ended = run(*given, timeout=90)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert expected.format(**names) in ended.stderr
    assert "Traceback" not in ended.stderr + ended.stdout
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
