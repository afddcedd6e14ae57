"""What was measured as a picture: the offline evaluation, and the recall of an index."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recsys.index.dials import told
from recsys.index.manifest import IndexManifest
from recsys.index.tuning import Point

METRICS = ("recall@20", "recall@100", "ndcg@10", "coverage@20", "category_diversity@20")
ONE_BAR, EMPHASIS = "#9db4c9", "#1f5a8a"


def plot_evaluation(report: Mapping[str, Any], path: Path) -> None:
    """Write a PNG. `report`: protocol -> {"scene", "users", "lines": name -> metric -> value}."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(report), len(METRICS), figsize=(16, 1.2 + 3.0 * len(report)), squeeze=False, sharey="row"
    )
    for row, (protocol, part) in enumerate(report.items()):
        lines = {name: line for name, line in part["lines"].items() if METRICS[0] in line}
        names = list(lines)[::-1]
        for axis, metric in zip(axes[row], METRICS, strict=True):
            values = [lines[name][metric] for name in names]
            spans = [lines[name][f"{metric}_interval"] for name in names]
            # An interval that does not hold its own estimate (few users) is drawn to the estimate.
            errors = [
                [max(0.0, v - low) for v, (low, _) in zip(values, spans, strict=True)],
                [max(0.0, high - v) for v, (_, high) in zip(values, spans, strict=True)],
            ]
            colors = [EMPHASIS if name.startswith("pipeline") else ONE_BAR for name in names]
            axis.barh(names, values, xerr=errors, color=colors, error_kw={"elinewidth": 1, "capsize": 2})
            axis.set_title(metric, fontsize=10)
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(labelsize=8)
        axes[row][0].set_ylabel(f"{protocol} (scene {part['scene']})\n{part['users']:,} users", fontsize=10)
    figure.suptitle("Held-out window, full catalog ranked; bars with 95 % bootstrap intervals", fontsize=11)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def plot_recall_curve(manifest: IndexManifest, curve: Sequence[Point], path: Path) -> None:
    """Write a PNG: what an index finds, and how long it takes for that; a line for each `k_factor`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4.5))
    ladders: dict[Any, list[Any]] = {}
    for point in curve:
        ladders.setdefault(point.setting.get("k_factor"), []).append(point)
    for factor, ladder in ladders.items():
        name = None if factor is None else f"k_factor {factor:g}"
        axis.plot([p.held_out for p in ladder], [p.ms for p in ladder], "o-", ms=3, lw=1, label=name)
    chosen = next(point for point in curve if point.setting == manifest.setting)
    axis.plot(
        chosen.held_out, chosen.ms, "s", ms=8, color=EMPHASIS, label=f"chosen: {told(manifest.setting)}"
    )
    axis.axvline(manifest.asked, color="0.6", lw=1, ls="--", label=f"asked: {manifest.asked:g}")
    axis.set_yscale("log")
    axis.set_xlabel(f"recall@{manifest.at} of held-out queries")
    axis.set_ylabel("ms a query and shard, one thread")
    axis.set_title(
        f"{manifest.factory}, {manifest.items:,} items, {len(manifest.shards)} shards", fontsize=11
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
