"""The memory of this process and all that it started: Linux's proportional set size, sampled.

Shared pages count once in all, split between those who share them, so that Ray's object store and
memory-mapped files are not counted once for each worker.
"""

import resource
import threading
from pathlib import Path
from types import TracebackType

import psutil  # type: ignore[import-untyped]


class PeakMemory:
    """A context in which a thread looks every `every_s` seconds."""

    def __init__(self, every_s: float = 1.0) -> None:
        self._every_s = every_s
        self._peak_kb = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def peak_mb(self) -> int:
        return self._peak_kb // 1024

    def _watch(self) -> None:
        while not self._done.wait(self._every_s):
            self._peak_kb = max(self._peak_kb, family_kb())


def family_kb(*, without: str | None = None) -> int:
    """Of this process and all that it started, in KiB; `without` those of this name."""
    own = psutil.Process()
    family = [own, *own.children(recursive=True)]
    return sum(_pss_kb(process.pid) for process in family if _name(process) != without)


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:  # it has ended
        return ""


def _pss_kb(pid: int) -> int:
    """Proportional set size in KiB; 0 for a process that has ended."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def own_peak_mb() -> int:
    """The largest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 1_000_000


def free_mb(cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """What this process may still take, in MB: of the machine, or of its container where that is less."""
    free = float(psutil.virtual_memory().available)
    try:
        limit, used = ((cgroup / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        if limit != "max":
            free = min(free, float(limit) - float(used) + _cached(cgroup / "memory.stat"))
    except (OSError, ValueError):  # no such control group here
        pass
    return free / 1e6


def _cached(stat: Path) -> float:
    """Bytes of files that nobody read twice: in `memory.current`, but given back when memory is needed."""
    lines = (line.split() for line in stat.read_text().splitlines())
    return float(next((count for name, count in lines if name == "inactive_file"), 0))
