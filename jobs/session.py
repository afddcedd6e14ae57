"""A job's beginning and end: its settings, a Ray to work on, its figures on standard output, its errors.

    python -m jobs.train_retrieval --config configs/recsys.yaml --set training.workers=4

Under `ray job submit` Ray is there already; on a laptop one is started for the job and ends with it.
"""

import argparse
import inspect
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import yaml

from jobs.workspace import Progress
from recsys.errors import SettingsError, UnavailableError, in_one_line
from recsys.events.bus import Bus, BusSettings, open_bus
from recsys.events.redis_server import start_redis
from recsys.settings import Settings, load_settings

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")


def run_job(
    job: Callable[..., dict[str, Any]],
    *,
    description: str | None,
    switches: Mapping[str, str] | None = None,
    **arguments: str,
) -> None:
    """Parse the command line, run `job(settings, progress=..., **given)`, print its figures as JSON.

    `arguments`: further options, name -> help; `switches` take no value. Exits with 2 and one line for
    a RecsysError.
    """
    parser = argparse.ArgumentParser(description=(description or "").strip().splitlines()[0])
    parser.add_argument("--config", help="a settings file; without it, the defaults")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides a setting")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    for name, text in arguments.items():
        kind = inspect.signature(job).parameters.get(name)
        number = kind is not None and kind.annotation is int
        parser.add_argument(f"--{name.replace('_', '-')}", help=text, type=int if number else str)
    for name, text in (switches or {}).items():
        parser.add_argument(f"--{name.replace('_', '-')}", help=text, action="store_true", default=None)
    given = vars(parser.parse_args())
    debug = given.pop("debug")
    try:
        settings = load_settings(given.pop("config"), overrides=dict(map(_override, given.pop("set"))))
        with ray_session(settings):
            figures = job(settings, progress=to_stderr(), **{k: v for k, v in given.items() if v is not None})
        print(json.dumps(figures))
    except KeyboardInterrupt:
        sys.exit(130)  # as shells say it; who pressed Ctrl-C needs no traceback
    except Exception as error:
        told = in_one_line(error)
        if told is None or debug:
            raise
        print(f"error: {told}", file=sys.stderr)
        sys.exit(2)


def _override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise SettingsError(f"--set {text!r}: write KEY=VALUE")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise SettingsError(f"--set {text!r}: {value!r} is not YAML; quote it") from error


@contextmanager
def ray_session(settings: Settings) -> Iterator[None]:
    """Ray: the one that is there, the one that `ray.address` names, or a local one for this while."""
    import ray

    if ray.is_initialized():
        yield
        return
    for name in THREADS:  # of this process; workers get theirs from the runtime environment
        os.environ.setdefault(name, str(os.cpu_count() or 1))
    inside_job = "RAY_ADDRESS" in os.environ  # set by `ray job submit`
    address = settings.ray.address or ("auto" if inside_job else "local")
    local: dict[str, Any] = {
        "num_cpus": max(2, os.cpu_count() or 2),
        "include_dashboard": False,
        "object_store_memory": settings.ray.object_store_mb * 1_000_000,
    }
    try:
        ray.init(
            address=address,
            namespace="serve",
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": dict.fromkeys(THREADS, "1")},
            **(local if address == "local" else {}),
        )
    except (ConnectionError, RuntimeError) as error:
        raise UnavailableError(f"no Ray at {address} ({error}): check ray.address") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def online_store_url(settings: Settings) -> Iterator[str]:
    """The Redis that `online_store.url` names, else the work directory's, started if it does not run."""
    if settings.online_store.url:
        yield settings.online_store.url
        return
    with start_redis(settings.folder / "redis") as server:
        yield server.url


@contextmanager
def bus_session(settings: Settings) -> Iterator[BusSettings]:
    """Where the bus is: at `bus.url`, else in the online store's Redis."""
    if settings.bus.url:
        yield settings.bus
        return
    with online_store_url(settings) as url:
        yield replace(settings.bus, url=url)


@contextmanager
def changelog_session(settings: Settings, log: str) -> Iterator[Bus]:
    """The catalog changelog of that name."""
    with bus_session(settings) as bus, closing(open_bus(bus.of_changelog(log))) as opened:
        yield opened


def to_stderr(every_s: float = 2.0) -> Progress:
    """A line on standard error now and then."""
    last = [0.0]

    def tell(share: float, doing: str) -> None:
        if time.monotonic() - last[0] > every_s:
            last[0] = time.monotonic()
            print(f"{share:5.0%} {doing}", file=sys.stderr)

    return tell
