"""The counters as one JSON object: what ``dsfs top``, ``dsfs stats`` and the web page take two of to show rates.

    {"time_s": …, "mountpoint": …,
     "server": {"pid", "version", "session", "restarts", "cpu_s", "memory_bytes"},
     "cache": {"used_bytes", "limit_bytes", "evicted_bytes", "corrupt_blocks", "device_read_bytes"},
     "operations": {NAME: {"count", "seconds", "buckets": [[UP_TO_S, COUNT], …]}},
     "datasets": [{"namespace", "name", "phase", "revision", "bytes", "cached_bytes", "read_bytes": {TIER: …},
                   "kernel_opened_bytes", "opened_bytes", "opens", "origin_read_bytes", "origin_requests": {OUTCOME: …},
                   "origin_timed", "origin_seconds", "errors", "waiting", "oldest_request_s",
                   "prefetched_bytes", "wasted_bytes"}]}

Sizes in bytes, times in seconds; counters are since ``server`` started, buckets are cumulative as in Prometheus.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.metrics_core import Metric

_SINGLE = {  # metrics without labels: where their value goes
    "dsfs_server_restarts_total": ("server", "restarts"),
    "process_cpu_seconds_total": ("server", "cpu_s"),
    "process_resident_memory_bytes": ("server", "memory_bytes"),
    "dsfs_cache_evicted_bytes_total": ("cache", "evicted_bytes"),
    "dsfs_cache_corrupt_blocks_total": ("cache", "corrupt_blocks"),
    "dsfs_cache_device_read_bytes_total": ("cache", "device_read_bytes"),
}
_BY_DATASET = {
    "dsfs_kernel_opened_bytes_total": "kernel_opened_bytes",
    "dsfs_opened_bytes_total": "opened_bytes",
    "dsfs_opens_total": "opens",
    "dsfs_origin_read_bytes_total": "origin_read_bytes",
    "dsfs_origin_request_seconds_count": "origin_timed",
    "dsfs_origin_request_seconds_sum": "origin_seconds",
    "dsfs_errors_total": "errors",
    "dsfs_prefetch_bytes_total": "prefetched_bytes",
    "dsfs_prefetch_wasted_bytes_total": "wasted_bytes",
    "dsfs_dataset_bytes": "bytes",
    "dsfs_dataset_cached_bytes": "cached_bytes",
    "dsfs_waiting_requests": "waiting",
    "dsfs_oldest_request_seconds": "oldest_request_s",
}
_BY_DATASET_AND = {
    "dsfs_read_bytes_total": ("read_bytes", "tier"),
    "dsfs_origin_requests_total": ("origin_requests", "outcome"),
}
_CACHE = {"dsfs_cache_bytes": "used_bytes", "dsfs_cache_limit_bytes": "limit_bytes"}


def snapshot(mountpoint: str) -> dict[str, Any]:
    """The counters of this process now."""
    return from_metrics(REGISTRY.collect(), mountpoint)


def from_metrics(families: Iterable[Metric], mountpoint: str) -> dict[str, Any]:
    """The same from any metrics, as they are collected or were parsed."""
    found: dict[str, Any] = {
        "time_s": time.time(),
        "mountpoint": mountpoint,
        "server": {"pid": os.getpid(), "version": "", "session": "", "restarts": 0, "cpu_s": 0, "memory_bytes": 0},
        "cache": {
            "used_bytes": 0,
            "limit_bytes": 0,
            "evicted_bytes": 0,
            "corrupt_blocks": 0,
            "device_read_bytes": 0,
        },
        "operations": {},
    }
    datasets: dict[tuple[str, str], dict[str, Any]] = {}
    for family in families:
        for name, labels, value, *_rest in family.samples:
            if name in _SINGLE:
                part, key = _SINGLE[name]
                found[part][key] = value
            elif name in _CACHE and labels["tier"] == "node":
                found["cache"][_CACHE[name]] = value
            elif name in _BY_DATASET:
                _dataset(datasets, labels)[_BY_DATASET[name]] += value
            elif name in _BY_DATASET_AND:
                key, label = _BY_DATASET_AND[name]
                _dataset(datasets, labels)[key][labels[label]] = value
            elif name.startswith("dsfs_operation_seconds"):
                _operation(found["operations"], name, labels, value)
            elif name == "dsfs_dataset_info":
                _dataset(datasets, labels).update(phase=labels["phase"], revision=labels["revision"])
            elif name == "dsfs_build_info":
                found["server"].update(version=labels["version"], session=labels["session"])
    found["datasets"] = [
        dataset for _name, dataset in sorted(datasets.items()) if dataset["phase"]
    ]  # without one it is deleted
    return found


def _dataset(datasets: dict[tuple[str, str], dict[str, Any]], labels: dict[str, str]) -> dict[str, Any]:
    name = labels["namespace"], labels["dataset"]
    if name not in datasets:
        datasets[name] = {
            "namespace": name[0],
            "name": name[1],
            "phase": "",
            "revision": "",
            **dict.fromkeys(_BY_DATASET.values(), 0),
            "read_bytes": {},
            "origin_requests": {},
        }
    return datasets[name]


def _operation(operations: dict[str, Any], name: str, labels: dict[str, str], value: float) -> None:
    operation = operations.setdefault(labels["operation"], {"count": 0, "seconds": 0, "buckets": []})
    match name.removeprefix("dsfs_operation_seconds"):
        case "_count":
            operation["count"] = value
        case "_sum":
            operation["seconds"] = value
        case "_bucket":
            operation["buckets"].append([labels["le"], value])
