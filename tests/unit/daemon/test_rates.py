"""Rates between two snapshots, against what Prometheus would say of the same counters."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.parser import text_string_to_metric_families

from daemon.control.stats import from_metrics
from daemon.rates import between, hit_ratio, quantile

LABELS = '{namespace="team",dataset="data"'
SECONDS = 2.0


def snapshot(time_s: float, pid: int = 1, **values: float) -> dict[str, Any]:
    """From exposition text; ``read`` and the others are counters of one dataset."""
    text = f"""
dsfs_dataset_info{LABELS},phase="READY",revision="r1",source_type="PVC"}} 1
dsfs_dataset_info{{namespace="team",dataset="gone",phase="",revision="",source_type="PVC"}} 1
dsfs_read_bytes_total{LABELS},tier="node"}} {values.get("node", 0)}
dsfs_read_bytes_total{LABELS},tier="origin"}} {values.get("origin", 0)}
dsfs_kernel_opened_bytes_total{LABELS}}} {values.get("passthrough", 0)}
dsfs_opened_bytes_total{LABELS},pod="a"}} {values.get("opened", 0) / 2}
dsfs_opened_bytes_total{LABELS},pod="b"}} {values.get("opened", 0) / 2}
dsfs_origin_read_bytes_total{LABELS}}} {values.get("fetched", 0)}
dsfs_origin_requests_total{LABELS},outcome="ok"}} {values.get("requests", 0)}
dsfs_origin_requests_total{LABELS},outcome="refused"}} {values.get("refused", 0)}
dsfs_origin_request_seconds_count{LABELS}}} {values.get("timed", 0)}
dsfs_origin_request_seconds_sum{LABELS}}} {values.get("request_seconds", 0)}
dsfs_prefetch_bytes_total{LABELS},policy="order"}} {values.get("ahead", 0)}
dsfs_prefetch_wasted_bytes_total{LABELS},policy="order"}} {values.get("wasted", 0)}
dsfs_dataset_bytes{LABELS}}} 1000
dsfs_dataset_cached_bytes{LABELS}}} 250
"""
    found = from_metrics(text_string_to_metric_families(text), "/data")
    found["time_s"] = time_s
    found["server"]["pid"] = pid
    return found


def test_rates_of_a_dataset() -> None:
    before = snapshot(10, node=100, fetched=50, requests=1, passthrough=7)
    after = snapshot(
        12, node=700, origin=200, fetched=250, requests=3, refused=2, timed=2, request_seconds=0.4, passthrough=207
    )
    (data,) = between(before, after).datasets
    assert (data.namespace, data.name, data.phase) == ("team", "data", "READY")
    assert (data.node_bytes_s, data.origin_bytes_s, data.kernel_bytes_s) == (300, 100, 100)
    assert data.read_bytes_s == 500
    assert data.hit_ratio == pytest.approx(1 - 100 / 500)
    assert (data.origin_requests_s, data.origin_errors_s) == (2, 1)
    assert data.origin_request_seconds == pytest.approx(0.2), "of those that were timed: a listing is not"
    assert between(before, snapshot(12, requests=2)).datasets[0].origin_request_seconds is None
    assert (data.cached_bytes, data.bytes) == (250, 1000)
    (data,) = between(snapshot(0), snapshot(2, ahead=100, wasted=40)).datasets
    assert (data.prefetched_bytes_s, data.wasted_bytes_s) == (50, 20)


def test_openless_counts_what_the_kernel_did_not_ask_for() -> None:
    (data,) = between(snapshot(0), snapshot(1, opened=1000, node=300)).datasets
    assert (data.kernel_bytes_s, data.read_bytes_s) == (700, 1000)


def test_a_new_server_counts_from_nothing() -> None:
    (data,) = between(snapshot(0, pid=1, node=10**9), snapshot(SECONDS, pid=2, node=400)).datasets
    assert data.node_bytes_s == 200


def test_nothing_read_has_no_hit_ratio() -> None:
    assert hit_ratio(0, 0) is None
    assert hit_ratio(100, 300) == 0, "read ahead, and not read yet"


@given(st.lists(st.floats(0.0001, 20), min_size=1), st.sampled_from([0.5, 0.9, 0.99]))
def test_quantile_is_in_the_bucket_that_holds_it(seen: list[float], share: float) -> None:
    bounds = [0.001, 0.01, 0.1, 1, 10]
    registry = CollectorRegistry()
    histogram = Histogram("h", "seconds", buckets=bounds, registry=registry)
    for value in seen:
        histogram.observe(value)
    (family,) = registry.collect()
    buckets = [(float(sample.labels["le"]), sample.value) for sample in family.samples if sample.name == "h_bucket"]
    found = quantile(share, buckets)
    rank = share * len(seen)
    true = sorted(seen)[min(len(seen) - 1, max(0, int(rank + 0.999999) - 1))]
    upper = next((bound for bound in bounds if true <= bound), bounds[-1])
    lower = max([0.0, *(bound for bound in bounds if bound < upper)]) if true <= bounds[-1] else bounds[-1]
    assert lower <= found <= upper
