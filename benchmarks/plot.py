"""Numbers as a picture: a bar for each peer, a group for each workload, on a logarithmic scale of ratios to raw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def ratios(results: Mapping[str, Mapping[str, float]], rows: Sequence[str], target: Path, title: str) -> None:
    """Needs matplotlib (the extra "bench"). Rows that raw has no number for are left out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    base = results["raw"]
    shown = [row for row in rows if base.get(row)]
    names = [name for name in results if name != "raw"]
    figure, axes = pyplot.subplots(figsize=(10, 1 + 0.16 * len(shown) * (len(names) + 1)))
    height = 0.85 / max(1, len(names))
    for number, name in enumerate(names):
        places = [at + number * height for at, row in enumerate(shown) if results[name].get(row)]
        values = [results[name][row] / base[row] for row in shown if results[name].get(row)]
        axes.barh(places, values, height, label=name)
    axes.set_xscale("log")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks([at + 0.4 for at in range(len(shown))], shown)
    axes.invert_yaxis()
    axes.set_xlabel("ratio to the raw disk (1 is as fast)")
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.tight_layout()
    figure.savefig(target)
