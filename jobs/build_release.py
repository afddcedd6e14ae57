"""Builds a release from the work directory, registers it in MLflow and makes it the champion.

python -m jobs.build_release
"""

import hashlib
import json
from dataclasses import asdict
from typing import Any

from jobs.session import run_job
from jobs.workspace import Progress, Workspace, silent
from recsys.evaluation.pipeline import PIPELINE
from recsys.features.cross import FEATURES
from recsys.features.views import ITEM_FEATURES, USER_FEATURES
from recsys.releases.manifest import open_release, write_release
from recsys.releases.parts import encode, index_curve, index_parts, load_parts
from recsys.settings import Settings


def run(settings: Settings, *, progress: Progress = silent) -> dict[str, Any]:
    workspace = Workspace(settings)
    now = workspace.windows.held_out
    progress(0.1, "writing the parts")
    parts = workspace.parts(now, rankers=workspace.rankers)
    index = workspace.folder / "index"
    report = json.loads((workspace.folder / "evaluation" / "report.json").read_bytes())
    views = {"user": USER_FEATURES, "item": ITEM_FEATURES, "candidate": FEATURES}
    release = write_release(
        workspace.folder / "artifacts",
        {**encode(parts), **index_parts(index, of=parts.snapshot.vectors)},
        as_of=now,
        items=len(parts.snapshot),
        watermark={
            "event_table_version": workspace.store.version(),
            "events_before": now,
            "catalog": asdict(workspace.catalog.position),
        },
        feature_views={n: hashlib.sha256("\n".join(c).encode()).hexdigest() for n, c in views.items()},
        evaluation={name: part["lines"][PIPELINE] for name, part in report.items() if part["users"]},
        index_curve=index_curve(index),
    )
    progress(0.4, "reading it back")
    load_parts(open_release(release.uri))
    progress(0.6, "registering in MLflow")
    registry = workspace.registry
    metrics = {
        f"{protocol}.{metric}": value
        for protocol, line in release.manifest.evaluation.items()
        for metric, value in line.items()
        if isinstance(value, float)
    }
    version = registry.register(release.manifest.id, uri=release.uri, metrics=metrics)
    registry.promote(version)
    size = sum(release.path(name).stat().st_size for name in release.manifest.parts)
    return {
        "release": release.manifest.id,
        "version": version,
        "alias": "champion",
        "parts": len(release.manifest.parts),
        "megabytes": round(size / 1e6, 1),
    }


if __name__ == "__main__":
    run_job(run, description=__doc__)
