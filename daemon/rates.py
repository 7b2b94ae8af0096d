"""What happened between two snapshots of a server's counters (daemon/control/stats.py): pure arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_FINE = ("ok", "cancelled")  # outcomes of requests to the origin that are nobody's fault


@dataclass(frozen=True, slots=True)
class DatasetRates:
    """One dataset. ``*_bytes_s``: bytes a second. ``hit_ratio`` is None when nothing was read."""

    namespace: str
    name: str
    phase: str
    read_bytes_s: float
    node_bytes_s: float
    shared_bytes_s: float
    origin_bytes_s: float
    kernel_bytes_s: float
    opens_s: float
    hit_ratio: float | None
    fetched_bytes_s: float
    origin_requests_s: float
    origin_timed_s: float
    origin_errors_s: float
    origin_request_seconds: float | None
    errors_s: float
    prefetched_bytes_s: float
    wasted_bytes_s: float
    waiting: int
    oldest_request_s: float
    cached_bytes: int
    bytes: int


@dataclass(frozen=True, slots=True)
class OperationRates:
    """One kind of request: how many a second, and how long one took, in seconds."""

    operation: str
    count_s: float
    mean_seconds: float
    p99_seconds: float


@dataclass(frozen=True, slots=True)
class Rates:
    """A whole server, over ``seconds``."""

    seconds: float
    cpu: float
    memory_bytes: int
    restarts: int
    cache_used_bytes: int
    cache_limit_bytes: int
    evicted_bytes_s: float
    device_read_bytes_s: float
    datasets: tuple[DatasetRates, ...]
    operations: tuple[OperationRates, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def between(before: Mapping[str, Any], after: Mapping[str, Any]) -> Rates:
    """Rates from one snapshot to a later one. A server that was replaced in between counts from nothing again."""
    seconds: float = max(1e-9, after["time_s"] - before["time_s"])
    anew = before["server"]["pid"] != after["server"]["pid"]

    def rate(earlier: Mapping[str, Any], later: Mapping[str, Any], key: str) -> float:
        was, now = (0.0 if anew else float(earlier.get(key, 0))), float(later.get(key, 0))
        return (now - was if now >= was else now) / seconds

    known = {(each["namespace"], each["name"]): each for each in before["datasets"]}
    datasets = []
    for now in after["datasets"]:
        was = known.get((now["namespace"], now["name"]), {})
        tiers_now, tiers_was = now["read_bytes"], was.get("read_bytes", {})
        outcomes_now, outcomes_was = now["origin_requests"], was.get("origin_requests", {})
        tier_s = {tier: rate(tiers_was, tiers_now, tier) for tier in ("node", "shared", "origin")}
        outcome_s = {outcome: rate(outcomes_was, outcomes_now, outcome) for outcome in outcomes_now}
        timed_s = rate(was, now, "origin_timed")  # a listing is counted, and not timed
        asked_s = sum(tier_s.values())
        # Openless: what is opened is read, and of that the daemon is asked for what is not in the page cache.
        kernel_s = rate(was, now, "kernel_opened_bytes") + max(0.0, rate(was, now, "opened_bytes") - asked_s)
        datasets.append(
            DatasetRates(
                namespace=now["namespace"],
                name=now["name"],
                phase=now["phase"],
                read_bytes_s=asked_s + kernel_s,
                node_bytes_s=tier_s["node"],
                shared_bytes_s=tier_s["shared"],
                origin_bytes_s=tier_s["origin"],
                kernel_bytes_s=kernel_s,
                opens_s=rate(was, now, "opens"),
                hit_ratio=hit_ratio(asked_s + kernel_s, rate(was, now, "origin_read_bytes")),
                fetched_bytes_s=rate(was, now, "origin_read_bytes"),
                origin_requests_s=sum(outcome_s.values()),
                origin_timed_s=timed_s,
                origin_errors_s=sum(each for outcome, each in outcome_s.items() if outcome not in _FINE),
                origin_request_seconds=rate(was, now, "origin_seconds") / timed_s if timed_s else None,
                errors_s=rate(was, now, "errors"),
                prefetched_bytes_s=rate(was, now, "prefetched_bytes"),
                wasted_bytes_s=rate(was, now, "wasted_bytes"),
                waiting=int(now["waiting"]),
                oldest_request_s=now["oldest_request_s"],
                cached_bytes=int(now["cached_bytes"]),
                bytes=int(now["bytes"]),
            )
        )
    return Rates(
        seconds=seconds,
        cpu=rate(before["server"], after["server"], "cpu_s"),
        memory_bytes=int(after["server"]["memory_bytes"]),
        restarts=int(after["server"]["restarts"]),
        cache_used_bytes=int(after["cache"]["used_bytes"]),
        cache_limit_bytes=int(after["cache"]["limit_bytes"]),
        evicted_bytes_s=rate(before["cache"], after["cache"], "evicted_bytes"),
        device_read_bytes_s=rate(before["cache"], after["cache"], "device_read_bytes"),
        datasets=tuple(datasets),
        operations=_operations({} if anew else before["operations"], after["operations"], seconds),
    )


def hit_ratio(read_bytes: float, fetched_bytes: float) -> float | None:
    """The share of what was read that did not have to come from the origin for it; None when nothing was read."""
    return max(0.0, 1 - fetched_bytes / read_bytes) if read_bytes > 0 else None


def _operations(was: Mapping[str, Any], now: Mapping[str, Any], seconds: float) -> tuple[OperationRates, ...]:
    found: list[OperationRates] = []
    for operation, later in now.items():
        earlier = was.get(operation, {"count": 0, "seconds": 0, "buckets": []})
        count = later["count"] - earlier["count"]
        if count <= 0:
            continue
        seen = dict(earlier["buckets"])
        buckets = [(float(up_to), number - seen.get(up_to, 0)) for up_to, number in later["buckets"]]
        mean = (later["seconds"] - earlier["seconds"]) / count
        found.append(OperationRates(operation, count / seconds, mean, quantile(0.99, buckets)))
    return tuple(sorted(found, key=lambda each: -each.count_s * each.mean_seconds))


def quantile(share: float, buckets: Sequence[tuple[float, float]]) -> float:
    """As Prometheus' histogram_quantile: linear inside a bucket; the last finite bound for what lies beyond it."""
    if not buckets or buckets[-1][1] <= 0:
        return 0.0
    rank = share * buckets[-1][1]
    lower, below = 0.0, 0.0
    for up_to, number in buckets:
        if number >= rank:
            if up_to == float("inf"):
                return lower
            return min(up_to, lower + (up_to - lower) * (rank - below) / (number - below))  # sums are rounded
        lower, below = up_to, number
    return lower
