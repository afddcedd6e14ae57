"""Environments of the peers that benchmarks run beside us, each a venv of its own, made when asked for.

Decides what stands in them. RecBole pins an old Ray, so it is installed without what it asks for; torch,
and whatever else it needs, it finds in the project's own environment, after its own: both sides of the
comparison then run on the same torch, and nothing of gigabytes is fetched twice.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

PEERS: dict[str, list[list[str]]] = {  # the arguments of `pip install`, call by call
    "implicit": [["implicit==0.7.3"]],
    "scann": [["scann==1.4.2"]],
    "hnswlib": [["hnswlib==0.8.0"]],
    "usearch": [["usearch==2.26.6"]],
    "recbole": [
        ["--no-deps", "recbole==1.2.1", "colorlog==4.7.2", "colorama", "texttable", "thop", "tabulate"],
        ["--no-deps", "tensorboard==2.20.*", "absl-py", "markdown", "tensorboard-data-server"],
        ["--no-deps", "pandas==2.*", "pytz", "tzdata"],  # RecBole writes into columns as pandas 3 forbids
    ],
}
BORROWS = {"recbole"}


def python_of(peer: str) -> Path:
    """The interpreter of `peer`'s environment; makes the environment the first time (a minute, 300 MB)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "recsys" / "peers" / peer
    python, complete = folder / "bin" / "python", folder / ".complete"
    wanted = repr(PEERS[peer])
    if not complete.exists() or complete.read_text() != wanted:
        print(f"{peer}: installing into {folder}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        for arguments in PEERS[peer]:
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *arguments], check=True)
        if peer in BORROWS:
            (site,) = folder.glob("lib/python*/site-packages")
            (site / "project.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        complete.write_text(wanted)
    return python
