"""Numbers as a picture: a panel for each workload, in it a bar for each peer, as long as its ratio to the base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_COLUMNS = 3


def ratios(by_row: Mapping[str, Mapping[str, float]], target: Path, title: str) -> None:
    """``by_row``: workload → peer → ratio, above 1 is better. Needs matplotlib (the extra "bench"). Workloads without
    a number are left out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = {row: found for row, found in by_row.items() if found}
    names = list(dict.fromkeys(name for found in shown.values() for name in found))
    colours = {name: f"C{number % 10}" for number, name in enumerate(names)}
    lines = max(1, -(-len(shown) // _COLUMNS))
    size = (4.6 * _COLUMNS, lines * (0.9 + 0.22 * len(names)))
    figure, panels = pyplot.subplots(lines, _COLUMNS, figsize=size, squeeze=False)
    for panel in panels.flat[len(shown) :]:
        panel.axis("off")
    for panel, (row, found) in zip(panels.flat, shown.items(), strict=False):
        most = max(1.0, *found.values())
        panel.barh(range(len(found)), list(found.values()), color=[colours[name] for name in found])
        for at, value in enumerate(found.values()):
            panel.text(value + most * 0.02, at, f"{value:.2f}", va="center", fontsize=7)
        panel.axvline(1.0, color="black", linewidth=0.8, linestyle="--")
        panel.set_xlim(0, most * 1.18)
        panel.set_yticks(range(len(found)), list(found), fontsize=7)
        panel.tick_params(axis="x", labelsize=7)
        panel.invert_yaxis()
        panel.set_title(row, fontsize=9)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    figure.suptitle(f"{title}: ratio to the raw disk or to the plain download, dashed: as fast", fontsize=10)
    figure.tight_layout()
    figure.savefig(target)
    pyplot.close(figure)
