"""Draws dsfs.json without Grafana: its panels in their places, their queries asked of a Prometheus, as one HTML page.

    python deploy/grafana/picture.py PROMETHEUS_URL MINUTES > dashboard.html

For the README's picture, and to see the dashboard where no Grafana is. What it shows is what the queries answer; how a
panel looks in Grafana differs in detail.
"""

from __future__ import annotations

import html
import json
import math
import re
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

COLUMN, ROW, GAP = 66, 34, 8  # pixels of Grafana's grid
POINTS = 120
COLORS = ("#73bf69", "#5794f2", "#f2cc0c", "#ff9830", "#b877d9", "#f2495c", "#37bbca", "#c4a5e8", "#8f9aa8", "#e0b400")
VARIABLES = {"$node": ".*", "$namespace": ".*", "$dataset": ".*", "$__rate_interval": "30s"}

Series = tuple[str, list[tuple[float, float]]]


class Prometheus:
    """Asked for a range of time that ends now."""

    def __init__(self, url: str, minutes: float) -> None:
        self._url = url.rstrip("/")
        self.stop = time.time()
        self.start = self.stop - 60 * minutes

    def ask(self, target: dict[str, Any]) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        """Labels and points of each series."""
        expression = target["expr"]
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        asked = {"query": expression, "start": self.start, "end": self.stop, "step": (self.stop - self.start) / POINTS}
        with urllib.request.urlopen(f"{self._url}/api/v1/query_range?{urllib.parse.urlencode(asked)}") as answer:
            found = json.load(answer)["data"]["result"]
        return [(each["metric"], [(at, float(value)) for at, value in each["values"]]) for each in found]

    def series(self, panel: dict[str, Any]) -> list[Series]:
        """Every series of a panel, named as its legend says."""
        found: list[Series] = []
        for target in panel["targets"]:
            for labels, points in self.ask(target):
                found.append(
                    (
                        legend_of(target["legendFormat"], labels),
                        [(at, value) for at, value in points if not math.isnan(value)],
                    )
                )
        return [(name, points) for name, points in found if points]


def legend_of(legend_format: str, labels: dict[str, str]) -> str:
    """A series' name: the legend's {{label}}s filled in."""
    return re.sub(r"{{(\w+)}}", lambda label: labels.get(label[1], ""), legend_format).strip()


def shown(value: float, unit: str) -> str:
    """A value for people, in one of the units that the dashboard uses."""
    if unit in ("Bps", "bytes"):
        step = 0
        while abs(value) >= 1000 and step < 5:
            value, step = value / 1000, step + 1
        return f"{value:.3g} {('B', 'kB', 'MB', 'GB', 'TB', 'PB')[step]}" + ("/s" if unit == "Bps" else "")
    if unit == "percentunit":
        return f"{100 * value:.0f}%"
    if unit == "s":
        return f"{1e6 * value:.0f} µs" if value < 1e-3 else f"{1e3 * value:.3g} ms" if value < 1 else f"{value:.3g} s"
    return f"{value:.3g}" + {"reqps": " req/s", "ops": " ops/s"}.get(unit, "")


def color_of(panel: dict[str, Any], name: str, number: int) -> str:
    """The panel's own color for a series, if it names one."""
    for override in panel["fieldConfig"]["overrides"]:
        if override["matcher"]["options"] == name:
            for each in override["properties"]:
                if each["id"] == "color":
                    return str(each["value"]["fixedColor"])
    return COLORS[number % len(COLORS)]


def chart(panel: dict[str, Any], source: Prometheus, width: int, height: int) -> str:
    """Lines, or areas upon each other."""
    series = source.series(panel)
    defaults = panel["fieldConfig"]["defaults"]
    unit, custom = defaults.get("unit", "short"), defaults.get("custom", {})
    stacked = custom.get("stacking", {}).get("mode") == "normal"
    rows = -(-min(len(series), 6) // max(1, width // 250))
    left, plot = 70, height - 26 - 15 * rows
    base: dict[float, float] = {}
    drawn: list[tuple[str, list[tuple[float, float, float]]]] = []  # name → time, lower, upper
    for name, values in series:
        drawn.append((name, [(at, base.get(at, 0.0), base.get(at, 0.0) + value) for at, value in values]))
        if stacked:
            base.update({at: base.get(at, 0.0) + value for at, value in values})
    most = max((upper for _name, points in drawn for _at, _lower, upper in points), default=0.0)
    top = max(defaults.get("max") or 0, 0 if most <= (defaults.get("max") or 0) else 1.08 * most) or 1

    def x(at: float) -> float:
        return left + (width - left) * (at - source.start) / (source.stop - source.start)

    def y(value: float) -> float:
        return plot - (plot - 8) * value / top

    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        place = y(top * share)
        parts.append(f'<line x1="{left}" x2="{width}" y1="{place:.1f}" y2="{place:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{place + 4:.1f}" text-anchor="end">{shown(top * share, unit)}</text>')
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        at = source.start + share * (source.stop - source.start)
        clock = time.strftime("%H:%M", time.localtime(at))
        parts.append(f'<text x="{x(at):.1f}" y="{plot + 16}" text-anchor="middle">{clock}</text>')
    legend = []
    for number, (name, points) in enumerate(drawn):
        color = color_of(panel, name, number)
        line = " ".join(f"{x(at):.1f},{y(upper):.1f}" for at, _lower, upper in points)
        if stacked:
            back = " ".join(f"{x(at):.1f},{y(lower):.1f}" for at, lower, _upper in reversed(points))
            parts.append(f'<polygon points="{line} {back}" fill="{color}" fill-opacity=".7"/>')
        else:
            parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        legend.append(f'<span><i style="background:{color}"></i>{html.escape(name) or "all"}</span>')
    if not drawn:
        parts.append(f'<text x="{(left + width) / 2}" y="{plot / 2}" text-anchor="middle">No data</text>')
    names = f'<div class="legend">{"".join(legend[:6])}</div>'
    return f'<svg width="{width}" height="{plot + 22}">{"".join(parts)}</svg>{names}'


def number(panel: dict[str, Any], source: Prometheus, width: int, height: int) -> str:
    """One number, the color of its threshold."""
    series = source.series(panel)
    if not series:
        return '<div class="number">-</div>'
    points = series[0][1]
    value, color = points[-1][1], "#73bf69"
    for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]:
        if step.get("value") is not None and value >= step["value"]:
            color = {"red": "#f2495c", "orange": "#ff9830"}.get(step["color"], color)
    top = max(value for _at, value in points) or 1
    span = (points[-1][0] - points[0][0]) or 1
    line = " ".join(f"{width * (at - points[0][0]) / span:.1f},{36 - 32 * v / top:.1f}" for at, v in points)
    area = f'<polygon points="0,36 {line} {width},36" fill="{color}" fill-opacity=".18"/>' if len(points) > 1 else ""
    unit = panel["fieldConfig"]["defaults"]["unit"]
    told = f'<div class="number" style="color:{color}">{shown(value, unit)}</div>'
    return f'{told}<svg width="{width}" height="36">{area}</svg>'


def bars(panel: dict[str, Any], source: Prometheus, width: int, height: int) -> str:
    """The last value of each series, largest first."""
    values = sorted(((points[-1][1], name) for name, points in source.series(panel)), reverse=True)[:9]
    unit, most = panel["fieldConfig"]["defaults"]["unit"], values[0][0] if values else 1
    return "".join(
        f'<div class="bar"><span>{html.escape(name)}</span><b><i style="width:{max(1, 100 * value / most):.0f}%"></i>'
        f"</b><em>{shown(value, unit)}</em></div>"
        for value, name in values
    )


def table(panel: dict[str, Any], source: Prometheus, width: int, height: int) -> str:
    """One line for what has the same labels, as Grafana's "merge" does."""
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    keys = ("namespace", "dataset", "node", "instance")
    units = {"size": "bytes", "cached": "bytes", "read": "Bps"}
    for target in panel["targets"]:
        for labels, points in source.ask(target):
            line = lines.setdefault(tuple(labels.get(key, "") for key in keys), {})
            if target["legendFormat"] in units:
                line[target["legendFormat"]] = shown(points[-1][1], units[target["legendFormat"]])
            elif points[-1][0] >= source.stop - 60:
                line.update(phase=labels["phase"], type=labels["source_type"])
    columns = (*keys, "phase", "type", *units)
    rows = []
    for key, line in sorted(lines.items()):
        cells = {**dict(zip(keys, key, strict=True)), **line}
        texts = [html.escape(cells.get(column, "")) for column in columns]
        rows.append("<tr>" + "".join(f'<td class="{text}">{text}</td>' for text in texts) + "</tr>")
    return f"<table><tr>{''.join(f'<th>{c}</th>' for c in columns)}</tr>{''.join(rows)}</table>"


KINDS = {"timeseries": chart, "stat": number, "bargauge": bars, "table": table}
STYLE = """
body { margin: 0; background: #111217; color: #ccccdc; font: 12px Inter, "DejaVu Sans", sans-serif; }
main { position: relative; } main > * { position: absolute; box-sizing: border-box; overflow: hidden; }
.panel { background: #181b1f; border: 1px solid #25282e; border-radius: 3px; padding: 6px 10px; }
h3 { font-size: 12.5px; font-weight: 500; margin: 0 0 4px; color: #dcdce6; } h2 { font-size: 15px; font-weight: 500; margin: 6px 2px; }
svg { display: block; } svg line { stroke: #272b31; } svg text { fill: #8e939c; font-size: 11px; }
.legend { line-height: 15px; font-size: 11px; color: #b4b7c0; } .legend span { margin-right: 14px; white-space: nowrap; }
.legend i { display: inline-block; width: 12px; height: 3px; margin-right: 5px; vertical-align: middle; border-radius: 2px; }
.number { font-size: 30px; font-weight: 500; text-align: center; margin: 8px 0 4px; }
.bar { display: flex; align-items: center; gap: 10px; margin: 7px 0; } .bar span { width: 100px; text-align: right; }
.bar b { flex: 1; background: #22252b; height: 14px; } .bar i { display: block; height: 100%; background: linear-gradient(90deg, #5794f2, #b877d9); }
.bar em { width: 70px; font-style: normal; } td, th { text-align: left; padding: 4px 12px 4px 4px; border-bottom: 1px solid #25282e; }
table { border-collapse: collapse; width: 100%; } th { color: #6e9fff; font-weight: 500; } .READY { color: #73bf69; } .FAILED { color: #f2495c; }
"""  # noqa: E501


def page(panels: Sequence[dict[str, Any]], source: Prometheus) -> Iterable[str]:
    """The page, a panel at a time."""
    bottom = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    yield f'<!doctype html><meta charset="utf-8"><title>dsfs</title><style>{STYLE}</style>'
    yield f'<main style="width:{24 * COLUMN + GAP}px;height:{bottom * (ROW + GAP) + GAP}px">'
    for panel in panels:
        place = panel["gridPos"]
        left, top = place["x"] * COLUMN + GAP, place["y"] * (ROW + GAP) + GAP
        width, height = place["w"] * COLUMN - GAP, place["h"] * (ROW + GAP) - GAP
        where = f'style="left:{left}px;top:{top}px;width:{width}px;height:{height}px"'
        if panel["type"] == "row":
            yield f"<h2 {where}>{html.escape(panel['title'])}</h2>"
            continue
        inner = KINDS[panel["type"]](panel, source, width - 22, height - 34)
        yield f'<div class="panel" {where}><h3>{html.escape(panel["title"])}</h3>{inner}</div>'
    yield "</main>"


def main() -> int:
    if len(sys.argv) != 3:
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    panels = json.loads((Path(__file__).parent / "dsfs.json").read_text(encoding="utf-8"))["panels"]
    for part in page(panels, Prometheus(sys.argv[1], float(sys.argv[2]))):
        print(part)
    return 0


if __name__ == "__main__":
    sys.exit(main())
