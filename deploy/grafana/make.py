"""The dashboard, made by code: fleet, then node, then dataset. Writes dsfs.json beside this file.

    python deploy/grafana/make.py            write it
    python deploy/grafana/make.py --check    exit 1 if it is not what this says

Grafana 11 or later, with Prometheus. ``node`` is a label of the scrape (the chart's PodMonitor sets it; README says how
else); ``namespace`` is the team's that owns a dataset, so the scrape has to honour labels.
"""

from __future__ import annotations

import sys
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard, table
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models
from panels import GREEN, RED, Panel, bars, lines, number, share, tiers_colored, variable, with_targets

TARGET = Path(__file__).parent / "dsfs.json"

NODE = 'node=~"$node"'
DATASET = f'{NODE}, namespace=~"$namespace", dataset=~"$dataset"'
FAILED_REQUESTS = f'{DATASET}, outcome!~"ok|cancelled"'
# CONDA and DATABASE are built, not read, and FAILED for good.
FAILED = f'{DATASET}, phase="FAILED", source_type!~"CONDA|DATABASE"'
EACH = "node, instance, namespace, dataset"
RANGE = "[$__rate_interval]"

BY_DATASET = "{{namespace}}/{{dataset}}"  # legends
BY_NODE = "{{node}} {{instance}}"


def rate(metric: str, matchers: str) -> str:
    return f"rate({metric}{{{matchers}}}{RANGE})"


def kernel_bytes(by: str = "") -> str:
    """Bytes a second that the daemon did not see: passthrough, as files are opened; of openless, what had no READ."""
    passthrough = f"sum by ({EACH}) ({rate('dsfs_kernel_opened_bytes_total', DATASET)})"
    opened = f"sum by ({EACH}) ({rate('dsfs_opened_bytes_total', DATASET)})"
    asked = f"sum by ({EACH}) ({rate('dsfs_read_bytes_total', DATASET)})"
    return f"sum{by} ({passthrough} + (clamp_min({opened} - {asked}, 0) or 0 * {asked}))"


def read_bytes(by: str = "") -> str:
    """All bytes a second that readers got."""
    return f"{kernel_bytes(by)} + sum{by} ({rate('dsfs_read_bytes_total', DATASET)})"


def ten_largest(aggregate: str, expression: str) -> str:
    """Of all datasets."""
    return f"topk(10, {aggregate} by (namespace, dataset) ({expression}))"


def hit_ratio(by: str = "") -> str:
    """The share of what was read that was not fetched from an origin for it."""
    return f"clamp_min(1 - sum{by} ({rate('dsfs_origin_read_bytes_total', DATASET)}) / ({read_bytes(by)} > 0), 0)"


# -- rows -----------------------------------------------------------------------------------------------------------


def fleet() -> list[Panel]:
    failed = f"dsfs_dataset_info{{{FAILED}}}"
    return [
        number("Nodes", f"count(dsfs_build_info{{{NODE}}})", "short", "Servers that answer."),
        number("Read", read_bytes(), "Bps", "What readers got, by whatever path."),
        number("Hit ratio", hit_ratio(), "percentunit", "Share of what was read that was not fetched for it."),
        number(
            "From origins",
            f"sum({rate('dsfs_origin_read_bytes_total', DATASET)})",
            "Bps",
            "What came over the network from the sources.",
        ),
        number(
            "Datasets FAILED",
            f"count({failed}) or 0 * count(dsfs_dataset_info{{{DATASET}}})",
            "short",
            "dsfs status says why. Without those of types that are not read (CONDA, DATABASE).",
            bad_from=1,
        ),
        number(
            "Failed requests to origins",
            f"sum({rate('dsfs_origin_requests_total', FAILED_REQUESTS)})",
            "reqps",
            "Refused, missing, changed, timed out, put off or failed.",
            bad_from=0.1,
        ),
        number(
            "Server restarts",
            f"sum(increase(dsfs_server_restarts_total{{{NODE}}}[1h]))",
            "short",
            "In an hour; upgrades count too.",
            bad_from=3,
        ),
        number(
            "Corrupt blocks",
            f"sum(increase(dsfs_cache_corrupt_blocks_total{{{NODE}}}[24h]))",
            "short",
            "In a day; each was dropped and fetched again. A disk that makes several is failing.",
            bad_from=1,
        ),
        tiers_colored(
            lines(
                "Throughput by tier",
                [
                    (kernel_bytes(), "kernel"),
                    (f"sum by (tier) ({rate('dsfs_read_bytes_total', DATASET)})", "{{tier}}"),
                ],
                "Bps",
                "kernel: page cache and passthrough, which the daemon does not see; counted as files are opened.",
                stacked=True,
            )
        ),
        share(
            lines(
                "Hit ratio by dataset",
                [(f"bottomk(10, {hit_ratio(' by (namespace, dataset)')})", BY_DATASET)],
                "percentunit",
                "The ten lowest. Share of what was read that was not fetched from the origin for it.",
            )
        ),
    ]


def origins() -> list[Panel]:
    by = "namespace, dataset"
    seconds = f"sum by (le, {by}) ({rate('dsfs_origin_request_seconds_bucket', DATASET)})"
    return [
        lines(
            "Requests to origins by outcome",
            [(f"sum by (outcome) ({rate('dsfs_origin_requests_total', DATASET)}) > 0", "{{outcome}}")],
            "reqps",
            "refused: credentials; missing, changed: the source is not what was listed; later: it asked for patience.",
        ),
        lines(
            "Requests to origins, 99th percentile",
            [(f"topk(10, histogram_quantile(0.99, {seconds}))", BY_DATASET)],
            "s",
            "How long one request takes, in seconds.",
        ),
        lines(
            "Bytes from origins by dataset",
            [(ten_largest("sum", rate("dsfs_origin_read_bytes_total", DATASET)), BY_DATASET)],
            "Bps",
            "The ten largest.",
        ),
        lines(
            "Fetched ahead of reads, and in vain",
            [
                (f"sum by (policy) ({rate('dsfs_prefetch_bytes_total', DATASET)})", "ahead, {{policy}}"),
                (f"sum by (policy) ({rate('dsfs_prefetch_wasted_bytes_total', DATASET)})", "in vain, {{policy}}"),
            ],
            "Bps",
            "In vain: what was not read while it was expected. A policy that wastes gets less.",
        ),
        lines(
            "Errors that readers saw",
            [
                (
                    f"sum by (errno, {by}) ({rate('dsfs_errors_total', DATASET)}) > 0",
                    "{{errno}} {{namespace}}/{{dataset}}",
                )
            ],
            "ops",
            "EACCES: refused; ESTALE: changed at the origin; ETIMEDOUT: nothing answered; EIO: the rest, see the log.",
            span=24,
        ),
    ]


def nodes() -> list[Panel]:
    by = "node, instance"
    seconds = f"sum by (le, operation) ({rate('dsfs_operation_seconds_bucket', NODE)})"
    return [
        lines("Read by node", [(read_bytes(f" by ({by})"), BY_NODE)], "Bps", "What readers got."),
        share(
            lines(
                "Cache fill",
                [
                    (f"dsfs_cache_bytes{{{NODE}}} / (dsfs_cache_limit_bytes{{{NODE}}} > 0)", "{{tier}} " + BY_NODE),
                    (
                        f"sum by ({by}) (dsfs_cache_pinned_bytes{{{NODE}}}) / "
                        f'sum by ({by}) (dsfs_cache_limit_bytes{{{NODE}, tier="node"}} > 0)',
                        "pinned " + BY_NODE,
                    ),
                ],
                "percentunit",
                "A full cache is a good cache, as long as what is evicted is not fetched again.",
            )
        ),
        lines(
            "Disk under the cache",
            [
                (f"sum by ({by}) ({rate('dsfs_cache_device_read_bytes_total', NODE)})", "read " + BY_NODE),
                (f"sum by ({by}) ({rate('dsfs_cache_device_written_bytes_total', NODE)})", "written " + BY_NODE),
            ],
            "Bps",
            "Of the device, for whomever: beside the read rate it shows what memory served.",
        ),
        lines(
            "Evicted",
            [(f"sum by ({by}) ({rate('dsfs_cache_evicted_bytes_total', NODE)})", BY_NODE)],
            "Bps",
            "As much as comes from origins, hour after hour: the cache is too small for what is read.",
        ),
        bars(
            "Slowest operations, 99th percentile",
            [(f"topk(10, histogram_quantile(0.99, {seconds}) > 0)", "{{operation}}")],
            "s",
            "Requests that reached the daemon. A read waits for its origin when it is not cached.",
        ),
        lines(
            "Operations",
            [(f"topk(10, sum by (operation) ({rate('dsfs_operation_seconds_count', NODE)}))", "{{operation}}")],
            "ops",
            "Requests from the kernel; what it answers alone is not among them.",
        ),
        lines(
            "Server processor",
            [(f"{rate('process_cpu_seconds_total', NODE)} and on(instance) dsfs_build_info", BY_NODE)],
            "percentunit",
            "1 is one processor.",
            span=8,
        ),
        lines(
            "Server memory",
            [(f"process_resident_memory_bytes{{{NODE}}} and on(instance) dsfs_build_info", BY_NODE)],
            "bytes",
            "Resident; a part of it is shared with the stand-by.",
            span=8,
        ),
        lines(
            "Restarts",
            [(f"sum by ({by}) (increase(dsfs_server_restarts_total{{{NODE}}}[15m]))", BY_NODE)],
            "short",
            "In 15 minutes. Mounts go on meanwhile.",
            span=8,
        ),
    ]


def shared() -> list[Panel]:
    by = "node, instance"
    return [
        lines(
            "Taken from the shared tier, and given to it",
            [
                (f"sum by ({by}) ({rate('dsfs_shared_read_bytes_total', DATASET)})", "taken " + BY_NODE),
                (f"sum by ({by}) ({rate('dsfs_shared_written_bytes_total', NODE)})", "given " + BY_NODE),
            ],
            "Bps",
            "Much taken, little given: nodes profit from each other.",
        ),
        lines(
            "Caches in trouble",
            [
                (f"max by ({by}) (dsfs_cache_trouble{{{NODE}}})", "node's " + BY_NODE),
                (f"max by ({by}) (dsfs_shared_trouble{{{NODE}}})", "shared " + BY_NODE),
            ],
            "short",
            "1 while a node cannot use its own directory, or the shared one. Reads go on from the rest.",
        ),
    ]


def datasets() -> list[Panel]:
    by = " by (namespace, dataset)"
    return [
        dataset_table(),
        lines(
            "Read by dataset",
            [(f"topk(10, {read_bytes(by)})", BY_DATASET)],
            "Bps",
            "The ten most read.",
        ),
        share(
            lines(
                "Cached: progress of warm-ups and preheating",
                [
                    (
                        f"sum by (namespace, dataset, node, instance) (dsfs_dataset_cached_bytes{{{DATASET}}}) / "
                        f"(sum by (namespace, dataset, node, instance) (dsfs_dataset_bytes{{{DATASET}}}) > 0)",
                        "{{namespace}}/{{dataset}} {{node}}",
                    )
                ],
                "percentunit",
                "How much of a dataset is on a node.",
            )
        ),
        lines(
            "Waiting requests",
            [(ten_largest("sum", f"dsfs_waiting_requests{{{DATASET}}}"), BY_DATASET)],
            "short",
            "Requests of the kernel that have no answer yet.",
        ),
        lines(
            "Longest wait",
            [(ten_largest("max", f"dsfs_oldest_request_seconds{{{DATASET}}}"), BY_DATASET)],
            "s",
            "How long the oldest request without an answer has waited. A read ends within the read timeout.",
        ),
        lines(
            "Files opened, by pod",
            [
                (
                    f"topk(10, sum by (dataset, pod) ({rate('dsfs_opens_total', DATASET)}))",
                    "{{dataset}} {{pod}}",
                )
            ],
            "ops",
            "Openless datasets, where the kernel asks nobody. The pod by its uid; none: on the node itself.",
        ),
        lines(
            "Served out of the page cache",
            [
                (
                    f"clamp_min(1 - sum{by} ({rate('dsfs_read_bytes_total', DATASET)}) / "
                    f"(sum{by} ({rate('dsfs_opened_bytes_total', DATASET)}) > 0), 0)",
                    BY_DATASET,
                )
            ],
            "percentunit",
            "Openless datasets: the share of opened bytes that the daemon was not asked for.",
        ),
    ]


COLUMNS = ("namespace", "dataset", "node", "instance", "phase", "source_type", "Value #B", "Value #C", "Value #D")


def dataset_table() -> table.Panel:
    panel = table.Panel().title("Datasets").span(24).height(8)
    panel.description("One line for each dataset on each node.")
    queries = [
        (f"max by (namespace, dataset, node, instance, phase, source_type) (dsfs_dataset_info{{{DATASET}}})", "info"),
        (f"sum by (namespace, dataset, node, instance) (dsfs_dataset_bytes{{{DATASET}}})", "size"),
        (f"sum by (namespace, dataset, node, instance) (dsfs_dataset_cached_bytes{{{DATASET}}})", "cached"),
        (read_bytes(" by (namespace, dataset, node, instance)"), "read"),
    ]
    with_targets(panel, queries, instant=True)
    panel.with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
    panel.with_transformation(
        models.DataTransformerConfig(
            id_val="organize",
            options={
                "excludeByName": {"Time": True, "Value #A": True},
                "indexByName": {name: place for place, name in enumerate(COLUMNS)},
                "renameByName": {"Value #B": "size", "Value #C": "cached", "Value #D": "read", "source_type": "type"},
            },
        )
    )
    for name, unit in (("size", "bytes"), ("cached", "bytes"), ("read", "Bps")):
        panel.override_by_name(name, [models.DynamicConfigValue(id_val="unit", value=unit)])
    colors = {"READY": GREEN, "FAILED": RED}
    mapping = {phase: {"color": color, "index": index} for index, (phase, color) in enumerate(colors.items())}
    panel.override_by_name(
        "phase",
        [
            models.DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-text"}),
            models.DynamicConfigValue(id_val="mappings", value=[{"type": "value", "options": mapping}]),
        ],
    )
    return panel


# -- the dashboard --------------------------------------------------------------------------------------------------


def build() -> str:
    made = dashboard.Dashboard("dsfs").uid("dsfs").tags(["dsfs"]).editable().refresh("30s").timezone("browser")
    made.description("What is read, from where, and how the nodes are. Made by deploy/grafana/make.py.")
    made.tooltip(models.DashboardCursorSync.CROSSHAIR).time("now-3h", "now")
    made.with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    made.with_variable(variable("node", "Node", "label_values(dsfs_build_info, node)"))
    made.with_variable(variable("namespace", "Namespace", f"label_values(dsfs_dataset_info{{{NODE}}}, namespace)"))
    made.with_variable(
        variable("dataset", "Dataset", f'label_values(dsfs_dataset_info{{{NODE}, namespace=~"$namespace"}}, dataset)')
    )
    rows = (
        ("Fleet", fleet()),
        ("Origins", origins()),
        ("Nodes", nodes()),
        ("Shared tier", shared()),
        ("Datasets", datasets()),
    )
    for title, panels in rows:
        made.with_row(dashboard.Row(title))
        for panel in panels:
            made.with_panel(panel)
    return JSONEncoder(sort_keys=True, indent=2).encode(made.build()) + "\n"


def main() -> int:
    made = build()
    if "--check" in sys.argv:
        if not TARGET.exists() or TARGET.read_text(encoding="utf-8") != made:
            print(f"{TARGET} is out of date: python {Path(__file__).name}", file=sys.stderr)
            return 1
        return 0
    TARGET.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
