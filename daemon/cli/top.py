"""Watching: ``dsfs top``, a screen that is drawn anew, and ``dsfs stats``, a line each second."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon import running
from daemon.cli.options import Mountpoint
from daemon.cli.output import percent, say, size
from daemon.control.client import ask
from daemon.rates import Rates, between, hit_ratio
from dsfs.errors import MountError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_HEADER_EVERY = 20
_DATASETS = ("DATASET", "PHASE", "READ/s", "NODE/s", "SHARED/s", "ORIGIN/s", "KERNEL/s", "HIT", "CACHED")
_ORIGINS = ("OPENS/s", "FETCHED/s", "AHEAD/s", "WASTED/s", "REQ/s", "ms/REQ", "FAILED/s", "ERRORS/s", "WAITING")
_WORDS = ("DATASET", "PHASE", "OPERATION")
_ALL_COLUMNS = 170  # a narrower terminal gets the columns in two tables
_OPERATIONS = ("OPERATION", "/s", "MEAN", "P99")
_STATS = (  # group, column, width
    *(("server", "cpu", 6), ("server", "mem", 10)),
    *(("requests", "ops", 8), ("requests", "lat", 9), ("requests", "read", 11), ("requests", "p99", 9)),
    *(("read", "node", 11), ("read", "shared", 11), ("read", "origin", 11), ("read", "kernel", 11), ("read", "hit", 6)),
    *(("origin", "get", 11), ("origin", "req", 7), ("origin", "lat", 9), ("origin", "err", 6)),
    *(("disk", "read", 11), ("disk", "evict", 11)),
)

Interval = Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="How long one look takes.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object an interval.")]


def top(
    mountpoint: Mountpoint = None,
    interval: Interval = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, print, end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Live throughput, hit ratio and latency of each dataset; on a terminal until it is interrupted."""
    found = running.find(mountpoint)
    looks = _looks(found, interval)
    if as_json:
        for rates in looks:
            typer.echo(json.dumps({"mountpoint": found.mountpoint, **rates.as_json()}))
            if once:
                return
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False, markup=False)
    if once or not console.is_terminal:
        plain = Console(highlight=False, markup=False, width=None if console.is_terminal else 200)
        for rates in looks:
            plain.print(_screen(found.mountpoint, rates, plain.width))  # this is what was asked for
            if once:
                return
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        live.update(f"{found.mountpoint}: the first look takes {interval:g} s", refresh=True)
        for rates in looks:
            live.update(_screen(found.mountpoint, rates, console.width), refresh=True)


def stats(
    mountpoint: Mountpoint = None,
    interval: Interval = 1.0,
    count: Annotated[int, typer.Option(min=0, metavar="N", help="End after so many lines; 0: never.")] = 0,
    as_json: AsJson = False,
) -> None:
    """One line an interval for the whole mount: server, requests, what was read from where, origin, disk."""
    found = running.find(mountpoint)
    for number, rates in enumerate(_looks(found, interval)):
        if as_json:
            typer.echo(json.dumps({"mountpoint": found.mountpoint, **rates.as_json()}))
        else:
            if number % _HEADER_EVERY == 0:
                for line in _stats_header():
                    typer.echo(line)
            typer.echo(_stats_line(rates))
        if number + 1 == count:
            return


def _looks(found: running.Running, interval_s: float) -> Iterator[Rates]:
    """Rates of one interval after the other. A server that is just being replaced is waited for.

    Raises MountError when the first look fails, and when the mount is gone.
    """
    before = _ask(found)
    while True:
        time.sleep(interval_s)  # rates are of an interval
        try:
            after = _ask(found)
        except MountError as error:
            running.find(found.mountpoint)
            say(f"dsfs: {error}")
            continue
        yield between(before, after)
        before = after


def _ask(found: running.Running) -> dict[str, Any]:
    return ask(found, "GET", "/api/v1/stats")


def _screen(mountpoint: str, rates: Rates, width: int) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    head = Text(
        f"{mountpoint}  over {rates.seconds:.1f} s  cpu {100 * rates.cpu:.0f}%  memory {size(rates.memory_bytes)}  "
        f"cache {size(rates.cache_used_bytes)} of {size(rates.cache_limit_bytes)}  "
        f"disk read {_rate(rates.device_read_bytes_s)}/s  restarts {rates.restarts}"
    )
    wide = width >= _ALL_COLUMNS
    datasets = _table((*_DATASETS, *_ORIGINS) if wide else _DATASETS)
    origins = _table(("DATASET", *_ORIGINS))
    for each in sorted(rates.datasets, key=lambda each: -each.read_bytes_s):
        name, style = f"{each.namespace}/{each.name}", "red" if each.phase == "FAILED" or each.errors_s else None
        read = (
            *(name, each.phase, _rate(each.read_bytes_s), _rate(each.node_bytes_s), _rate(each.shared_bytes_s)),
            *(_rate(each.origin_bytes_s), _rate(each.kernel_bytes_s), _ratio(each.hit_ratio)),
            percent(each.cached_bytes, each.bytes),
        )
        fetched = (
            *(_count(each.opens_s), _rate(each.fetched_bytes_s), _rate(each.prefetched_bytes_s)),
            *(_rate(each.wasted_bytes_s), _count(each.origin_requests_s)),
            "-" if each.origin_request_seconds is None else f"{1000 * each.origin_request_seconds:.1f}",
            *(_count(each.origin_errors_s), _count(each.errors_s), _waiting(each.waiting, each.oldest_request_s)),
        )
        datasets.add_row(*read, *(fetched if wide else ()), style=style)
        origins.add_row(name, *fetched, style=style)
    operations = _table(_OPERATIONS)
    for operation in rates.operations:
        operations.add_row(
            operation.operation,
            _count(operation.count_s),
            _time(operation.mean_seconds),
            _time(operation.p99_seconds),
        )
    parts: list[RenderableType] = [head, datasets, operations] if wide else [head, datasets, origins, operations]
    return Group(*(each for part in parts for each in (part, Text())))


def _table(columns: Sequence[str]) -> Table:
    """Words to the left, numbers to the right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="left" if column in _WORDS else "right", no_wrap=True)
    return table


def _stats_header() -> tuple[str, str]:
    groups, columns, last = "", "", ""
    for group, column, width in _STATS:
        groups += ("" if group == last else group).rjust(width)
        columns += column.rjust(width)
        last = group
    return groups, columns


def _stats_line(rates: Rates) -> str:
    datasets, operations = rates.datasets, {each.operation: each for each in rates.operations}
    count_s = sum(each.count_s for each in operations.values())
    busy_s = sum(each.count_s * each.mean_seconds for each in operations.values())
    read = operations.get("read")
    read_bytes_s = sum(each.read_bytes_s for each in datasets)
    fetched_bytes_s = sum(each.fetched_bytes_s for each in datasets)
    requests_s = sum(each.origin_requests_s for each in datasets)
    timed_s = sum(each.origin_timed_s for each in datasets)
    waited_s = sum(each.origin_timed_s * (each.origin_request_seconds or 0) for each in datasets)
    cells = (
        f"{100 * rates.cpu:.0f}%",
        size(rates.memory_bytes),
        _count(count_s),
        _time(busy_s / count_s) if count_s else "-",
        _count(read.count_s) if read else "0",
        _time(read.p99_seconds) if read else "-",
        _rate(sum(each.node_bytes_s for each in datasets)),
        _rate(sum(each.shared_bytes_s for each in datasets)),
        _rate(sum(each.origin_bytes_s for each in datasets)),
        _rate(sum(each.kernel_bytes_s for each in datasets)),
        _ratio(hit_ratio(read_bytes_s, fetched_bytes_s)),
        _rate(fetched_bytes_s),
        _count(requests_s),
        _time(waited_s / timed_s) if timed_s else "-",
        _count(sum(each.origin_errors_s for each in datasets)),
        _rate(rates.device_read_bytes_s),
        _rate(rates.evicted_bytes_s),
    )
    return "".join(cell.rjust(width) for cell, (_group, _column, width) in zip(cells, _STATS, strict=True))


def _rate(bytes_s: float) -> str:
    return size(int(bytes_s)) if bytes_s >= 1 else "0"


def _count(number_s: float) -> str:
    return f"{number_s:.0f}" if number_s >= 10 or number_s == 0 else f"{number_s:.1f}"


def _ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * ratio:.0f}%"


def _waiting(requests: int, oldest_s: float) -> str:
    return f"{requests}, {oldest_s:.0f} s" if requests else "0"


def _time(seconds: float) -> str:
    if seconds < 0.001:
        return f"{1e6 * seconds:.0f} us"
    return f"{1e3 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
