"""What every benchmark prints: a table, the ratios, and with `--json FILE` the same for machines."""

import argparse
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the two options that all benchmarks take."""
    parser = argparse.ArgumentParser(description=(description or "").strip().splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few minutes, less data")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, rows and ratios there too")
    return parser


def report(rows: Sequence[Mapping[str, Any]], ratios: Mapping[str, float], *, path: Path | None) -> None:
    """Prints rows (all with the same keys; a `note` below the table) and ratios; writes them to `path`."""
    console = Console(width=140)
    table = Table(box=None, header_style="bold", pad_edge=False)
    names = [name for name in (rows[0] if rows else ()) if name != "note"]
    for name in names:
        table.add_column(name.replace("_", " "), justify="left" if name == "what" else "right")
    for row in rows:
        table.add_row(*(f"{row[n]:,.0f}" if isinstance(row[n], float) else str(row[n]) for n in names))
    console.print(table, highlight=False)
    for row in rows:
        if row.get("note"):
            console.print(f"{row['what']}: {row['note']}", highlight=False)
    for name, ratio in ratios.items():
        console.print(f"{name} {ratio:.2f}", highlight=False)
    if path:
        found = {"machine": machine(), "rows": list(rows), "ratios": dict(ratios)}
        path.write_text(json.dumps(found, indent=1))


def machine() -> str:
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{os.cpu_count()} cores, {model}, Python {platform.python_version()}"
