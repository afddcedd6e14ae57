"""Write requirements/cpu.lock and gpu.lock: what pip resolves `.[cpu,dev]` to today, every package with ==.

pip only reads metadata for it (--dry-run), so the venv is not touched. Left out on purpose: the CUDA
packages that torch pins itself, exactly. Naming them here would make a machine that has a CPU build
of torch on disk (pip's find-links) download gigabytes that nothing uses.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PINNED_BY_TORCH = re.compile(r"cuda-.*|triton|nvidia-(?!.*-cu12$).*")  # xgboost and faiss-gpu use cu12

HEADER = """\
# Written by `make lock`; don't edit. Everything that `recsys[{extra},dev]` needs, for Python {python}.
# torch's CUDA packages are missing on purpose: torch pins them itself, exactly, and a machine with a
# CPU build of torch {torch} in pip's find-links then doesn't download them.
"""


def resolve(target: str, *options: str) -> dict[str, str]:
    """Name -> version of all that pip would install for `target`, without the project itself."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    report = subprocess.run([*command, "--report", "-", *options, target], check=True, stdout=subprocess.PIPE)
    found = [package["metadata"] for package in json.loads(report.stdout)["install"]]
    versions = {re.sub(r"[-_.]+", "-", p["name"]).lower(): p["version"].split("+")[0] for p in found}
    del versions["recsys"]
    return versions


def write(path: Path, versions: dict[str, str], *, extra: str) -> None:
    header = HEADER.format(
        extra=extra, python=f"{sys.version_info[0]}.{sys.version_info[1]}", torch=versions["torch"]
    )
    pins = [f"{n}=={v}\n" for n, v in sorted(versions.items()) if not PINNED_BY_TORCH.fullmatch(n)]
    path.write_text(header + "".join(pins))
    print(f"{path.relative_to(HERE.parent)}: {len(pins)} packages")


def main() -> None:
    cpu_lock, gpu_lock = HERE / "cpu.lock", HERE / "gpu.lock"
    write(cpu_lock, resolve(f"{HERE.parent}[cpu,dev]"), extra="cpu")
    write(gpu_lock, resolve(f"{HERE.parent}[gpu,dev]", "--constraint", str(cpu_lock)), extra="gpu")


if __name__ == "__main__":
    main()
