"""The offline evaluation as a picture: one panel per metric, one bar per line, with its interval."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
