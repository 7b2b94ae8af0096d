"""Side by side: starts an origin, runs the workloads on every peer in turn, and says a table with ratios.

python -m benchmarks [--quick] [--origin s3|http] [--far MS [--late N]] [--only COLUMN] [--workload NAME]
                     [--plot FILE.png|FILE.svg]
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from benchmarks import data, download, peers, plot, workloads
from benchmarks.far import LATE_S, far
from benchmarks.report import Table, circumstances, command_line, progress, say
from tests.servers.http_server import nginx
from tests.servers.s3_server import ACCESS_KEY, BUCKET, SECRET_KEY, seaweedfs

FULL = data.Sizes(large_bytes=1 << 30, small_files=10_000, names=100_000, shards=8, firsts=20, layers=32)
QUICK = data.Sizes(large_bytes=256 << 20, small_files=2_000, names=5_000, shards=8, firsts=20, layers=8)

RAW, DOWNLOAD = "raw", "obstore download"


@dataclass(frozen=True, slots=True)
class Row:
    """One workload: what it is counted in, and which column the ratios are to (raw, where that has no number)."""

    unit: str
    base: str = RAW

    @property
    def less_is_better(self) -> bool:
        return self.unit == "ms"


ROWS = {
    "first byte of a cold file": Row("ms", DOWNLOAD),
    "sequential cold": Row("MB/s", DOWNLOAD),
    "sequential cold, 8 readers": Row("MB/s", DOWNLOAD),
    "safetensors cold, mapped": Row("MB/s", DOWNLOAD),
    "safetensors cold, first layer": Row("ms"),
    "sequential cached, pages warm": Row("MB/s"),
    "sequential cached, pages dropped": Row("MB/s"),
    "random 4 KiB, pages dropped": Row("reads/s"),
    "random 128 KiB, pages dropped": Row("reads/s"),
    "mmap faults, pages dropped": Row("faults/s"),
    "small files cold": Row("files/s", DOWNLOAD),
    "small files again, pages warm": Row("files/s"),
    "small files again, pages dropped": Row("files/s"),
    "find, first": Row("names/s"),
    "find, again": Row("names/s"),
}
_WARM_S = 1.0
_VOLUMES = 256  # of the origin: all there is twice, as JuiceFS keeps a copy of its own

Result = dict[str, float]
Rows = Iterator[tuple[str, float]]
"""Names of rows, and what was measured."""


def _first(root: Path) -> Rows:
    data.drop_caches()
    yield "first byte of a cold file", workloads.first_bytes(root)


def _large(root: Path) -> Rows:
    data.drop_caches()
    yield "sequential cold", workloads.sequential(root)
    _settle()
    workloads.sequential(root)  # whoever completes a file in the background or on the second open is let do so
    yield "sequential cached, pages warm", workloads.sequential(root)
    data.drop_caches()
    yield "sequential cached, pages dropped", workloads.sequential(root)
    data.drop_caches()
    yield "random 4 KiB, pages dropped", workloads.random_reads(root)
    data.drop_caches()
    yield "random 128 KiB, pages dropped", workloads.random_reads(root, 128 * 1024)
    data.drop_caches()
    yield "mmap faults, pages dropped", workloads.page_faults(root)


def _shards(root: Path) -> Rows:
    data.drop_caches()
    yield "sequential cold, 8 readers", workloads.shards(root)
    _settle()


def _model(root: Path) -> Rows:
    data.drop_caches()
    rate, first_ms = workloads.safetensors(root)
    yield "safetensors cold, mapped", rate
    yield "safetensors cold, first layer", first_ms
    _settle()


def _small(root: Path) -> Rows:
    data.drop_caches()
    yield "small files cold", workloads.small_files(root)
    _settle()
    workloads.small_files(root)  # what the kernel has given up of it meanwhile comes back
    yield "small files again, pages warm", workloads.small_files(root, _WARM_S)
    data.drop_caches()
    yield "small files again, pages dropped", workloads.small_files(root)


def _names(root: Path) -> Rows:
    yield "find, first", workloads.find(root)
    yield "find, again", workloads.find(root)


WORKLOADS = {"first": _first, "large": _large, "shards": _shards, "model": _model, "small": _small, "names": _names}
"""What readers do; in each, rows come in an order in which the state is what their names say."""


def _downloaded(workload: str, root: Path, origin: peers.Origin, source: Path) -> Rows:
    """A download has only the rows that are cold."""
    cold = {
        "first": ("first byte of a cold file", lambda: download.first_bytes(origin, source)),
        "large": ("sequential cold", lambda: download.large(origin, source, root)),
        "shards": ("sequential cold, 8 readers", lambda: download.shards(origin, source, root)),
        "model": ("safetensors cold, mapped", lambda: download.model(origin, source, root)),
        "small": ("small files cold", lambda: download.small(origin, source, root)),
    }
    if workload in cold:
        row, work = cold[workload]
        data.drop_caches()
        yield row, work()
        _settle()


def _settle() -> None:
    """Let writes that a cold pass left behind reach the disk, so that the next row is not slowed by them."""
    os.sync()
    time.sleep(2)  # for what peers still do behind their last answer, which none of them tells the end of


@contextmanager
def started(kind: str, source: Path, work: Path) -> Iterator[peers.Origin]:
    """A server that has the files."""
    if kind == "http":
        (work / "nginx").mkdir()
        with nginx(work / "nginx") as server:
            subprocess.run(["cp", "-al", f"{source}/.", server.root], check=True)
            yield peers.HttpOrigin(server.url)
        return
    (work / "weed").mkdir()
    with seaweedfs(work / "weed", _VOLUMES) as server:
        origin = peers.S3Origin(server.endpoint, BUCKET, ACCESS_KEY, SECRET_KEY)
        progress("copying them to the origin")
        copy = [peers.BIN / "rclone", "copy", source, *origin.remote, "--transfers=16", "--s3-no-check-bucket"]
        subprocess.run(copy, check=True, env=origin.environment())
        yield origin


@contextmanager
def distant(origin: peers.Origin, round_trip_ms: float, mb_per_s: float, one_late_in: int) -> Iterator[peers.Origin]:
    """The same one so far away; where that is nowhere, itself."""
    if not round_trip_ms:
        yield origin
        return
    url = origin.uri if isinstance(origin, peers.HttpOrigin) else origin.endpoint
    near = urlsplit(url)
    assert near.port is not None
    with far(near.port, round_trip_ms, mb_per_s, one_late_in) as port:
        there = near._replace(netloc=f"{near.hostname}:{port}").geturl()
        if isinstance(origin, peers.HttpOrigin):
            yield replace(origin, uri=there)
        else:
            yield replace(origin, endpoint=there)


Start = Callable[[], AbstractContextManager[Path]]


def contestants(origin: peers.Origin, source: Path, work: Path, wanted: set[str]) -> dict[str, Start]:
    """Who can be had here: a peer whose program is not installed is left out, unless it was asked for by name."""
    every: dict[str, Start] = {
        RAW: lambda: peers.raw(source),
        DOWNLOAD: lambda: peers.raw(fresh_directory(work)),
        "rclone": lambda: peers.rclone(origin, work),
        "dsfs (default)": lambda: peers.dsfs(origin, work, "auto"),
        "dsfs passthrough": lambda: peers.dsfs(origin, work, "passthrough"),
        "dsfs openless": lambda: peers.dsfs(origin, work, "openless"),
        "dsfs daemon": lambda: peers.dsfs(origin, work, "daemon"),
        "dsfs pyfuse3": lambda: peers.dsfs(origin, work, "daemon", session="pyfuse3"),
    }
    if isinstance(origin, peers.S3Origin):
        if (peers.BIN / "juicefs").exists() or "juicefs" in wanted:
            every["juicefs"] = lambda: peers.juicefs(origin, work, source)
        if shutil.which("s3fs") or "s3fs" in wanted:
            every["s3fs"] = lambda: peers.s3fs(origin, work)
    if unknown := wanted - set(every):
        raise SystemExit(f"no such column here: {', '.join(sorted(unknown))} (there are: {', '.join(every)})")
    return {name: start for name, start in every.items() if not wanted or name in wanted}


def fresh_directory(work: Path) -> Path:
    return data.fresh(work, "download")


def rows_of(name: str, root: Path, origin: peers.Origin, source: Path, wanted: Collection[str]) -> Rows:
    """What one column is measured in."""
    for workload, measure in WORKLOADS.items():
        if workload in wanted:
            yield from _downloaded(workload, root, origin, source) if name == DOWNLOAD else measure(root)


def ratio(results: Mapping[str, Result], name: str, row: str) -> float | None:
    """How a number stands to that of the row's base: above 1 is better, whatever it is counted in. None: no number."""
    base = next((base for base in (ROWS[row].base, RAW) if results.get(base, {}).get(row)), None)
    value = results[name].get(row)
    if base is None or base == name or not value:
        return None
    of_base = results[base][row]
    return of_base / value if ROWS[row].less_is_better else value / of_base


def tell(results: Mapping[str, Result]) -> None:
    """A row per workload, a column per peer, with the ratio to the row's base behind each number."""
    table = Table("workload", "unit", "ratio to", *results)
    for row, kind in ROWS.items():
        if not any(row in result for result in results.values()):
            continue
        cells = []
        for name, result in results.items():
            value, found = result.get(row), ratio(results, name, row)
            digits = 1 if kind.less_is_better else 0
            text = "-" if value is None else f"{value:,.{digits}f}"
            cells.append(text if found is None else f"{text} ({found:.2f})")
        base = kind.base if results.get(kind.base, {}).get(row) else RAW
        table.row(row, kind.unit, base, *cells)


def main() -> None:
    parser = command_line("benchmarks", __doc__)
    parser.add_argument("--quick", action="store_true", help="a quarter of the data, for a look")
    parser.add_argument("--origin", choices=("s3", "http"), default="s3", help="SeaweedFS, or nginx")
    parser.add_argument(
        "--far", type=float, default=0, metavar="MS", help="put the origin a round trip of so much away"
    )
    parser.add_argument(
        "--connection", type=float, default=40, metavar="MB/S", help="what one brings then (default: 40)"
    )
    parser.add_argument(
        "--late", type=int, default=0, metavar="N", help=f"one of N requests is {LATE_S:g} s late then (default: none)"
    )
    parser.add_argument("--only", action="append", default=[], help="a column of the table; may be repeated")
    parser.add_argument(
        "--workload", action="append", choices=WORKLOADS, help="what readers do; may be repeated (default: all)"
    )
    parser.add_argument("--work", default=None, help="a directory on the disk to measure (default: a temporary one)")
    parser.add_argument("--json", dest="json_path", default=None, help="write the numbers there too")
    parser.add_argument(
        "--plot", default=None, metavar="FILE", help="draw the ratios there, .png or .svg (needs matplotlib)"
    )
    args = parser.parse_args()
    sizes = QUICK if args.quick else FULL
    results: dict[str, Result] = {}
    with TemporaryDirectory(prefix="dsfs-bench-", dir=args.work, ignore_cleanup_errors=True) as made:
        work = Path(made)
        source = work / "source"
        progress("making files")
        data.make(source, sizes)
        with started(args.origin, source, work) as near, distant(near, args.far, args.connection, args.late) as origin:
            for name, start in contestants(origin, source, work, set(args.only)).items():
                results[name] = {}
                with start() as root:
                    for row, value in rows_of(name, root, origin, source, args.workload or WORKLOADS):
                        results[name][row] = value
                        progress(f"{name:18} {row:34} {value:12,.1f} {ROWS[row].unit}")
    away = f" {args.far:g} ms away, {args.connection:g} MB/s a connection" if args.far else ""
    away += f", one request of {args.late} {LATE_S:g} s late" if args.far and args.late else ""
    setting = f"{circumstances()}, origin {args.origin}{away}"
    say(f"{setting}\n")
    tell(results)
    if args.json_path:
        Path(args.json_path).write_text(json.dumps(results, indent=2))
    if args.plot:
        ratios = {row: {name: found for name in results if (found := ratio(results, name, row))} for row in ROWS}
        plot.ratios(ratios, Path(args.plot), setting)


if __name__ == "__main__":
    main()
