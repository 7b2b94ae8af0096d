"""How panels of the dashboard look: one function for each kind. What they show is in make.py."""

from __future__ import annotations

from collections.abc import Sequence

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
TIER_COLORS = {"kernel": "#7c5cff", "node": "#2f7df6", "shared": "#12a594", "origin": "#f08c1a"}
GREEN, RED = "green", "red"

Panel = timeseries.Panel | stat.Panel | table.Panel | bargauge.Panel
Queries = Sequence[tuple[str, str]]  # expression, legend


def target(expression: str, legend: str, ref: str, *, instant: bool = False) -> prometheus.Dataquery:
    query = prometheus.Dataquery().datasource(SOURCE).expr(expression).legend_format(legend).ref_id(ref)
    return query.instant().format(PromQueryFormat.TABLE) if instant else query.range()


def with_targets(panel: Panel, queries: Queries, *, instant: bool = False) -> None:
    panel.datasource(SOURCE)
    for number, (expression, legend) in enumerate(queries):
        panel.with_target(target(expression, legend, chr(ord("A") + number), instant=instant))


def number(title: str, expression: str, unit: str, help_text: str, *, bad_from: float | None = None) -> stat.Panel:
    """One number, with its recent past behind it."""
    panel = stat.Panel().title(title).description(help_text).unit(unit).span(3).height(4).no_value("-")
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    panel.graph_mode(common_models.BigValueGraphMode.AREA)
    steps = [models.Threshold(value=None, color=GREEN)]
    if bad_from is not None:
        steps.append(models.Threshold(value=bad_from, color=RED))
    panel.thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
    with_targets(panel, [(expression, title)])
    return panel


def lines(
    title: str, queries: Queries, unit: str, help_text: str, *, span: int = 12, stacked: bool = False
) -> timeseries.Panel:
    """Lines over time."""
    panel = timeseries.Panel().title(title).description(help_text).unit(unit).span(span).height(8).min(0)
    panel.line_width(1.5 if not stacked else 0).fill_opacity(70 if stacked else 8)
    panel.show_points(common_models.VisibilityMode.NEVER)
    panel.legend(
        common.VizLegendOptions()
        .display_mode(common_models.LegendDisplayMode.LIST)
        .placement(common_models.LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    panel.tooltip(
        common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI).sort(common_models.SortOrder.DESCENDING)
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL).group("A"))
    with_targets(panel, queries)
    return panel


def share(panel: timeseries.Panel) -> timeseries.Panel:
    return panel.max(1).decimals(0)


def tiers_colored(panel: timeseries.Panel) -> timeseries.Panel:
    for tier, color in TIER_COLORS.items():
        value = {"mode": "fixed", "fixedColor": color}
        panel.override_by_name(tier, [models.DynamicConfigValue(id_val="color", value=value)])
    return panel


def bars(title: str, queries: Queries, unit: str, help_text: str) -> bargauge.Panel:
    """A bar for each, largest first."""
    panel = bargauge.Panel().title(title).description(help_text).unit(unit).span(12).height(8).no_value("-").min(0)
    panel.orientation(common_models.VizOrientation.HORIZONTAL)
    panel.display_mode(common_models.BarGaugeDisplayMode.GRADIENT)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    panel.color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.CONTINUOUS_BL_PU))
    with_targets(panel, queries)
    return panel


def variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    made = dashboard.QueryVariable(name).label(label).datasource(SOURCE).query(query)
    made.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)
    return made.multi(True).include_all(True).all_value(".*").current(models.VariableOption(text="All", value="$__all"))
