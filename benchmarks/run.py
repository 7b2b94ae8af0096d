"""One entry: starts an origin, runs the workloads on every peer in turn, writes a table with ratios."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from benchmarks import data, download, peers, plot, workloads
from tests.servers.http_server import nginx
from tests.servers.s3_server import ACCESS_KEY, BUCKET, SECRET_KEY, seaweedfs

FULL = data.Sizes(large_bytes=1 << 30, small_files=10_000, names=100_000)
QUICK = data.Sizes(large_bytes=256 << 20, small_files=2_000, names=5_000)

# name → (unit, what it says)
ROWS = {
    "sequential cold": "MB/s",
    "sequential cached, pages warm": "MB/s",
    "sequential cached, pages dropped": "MB/s",
    "random 4 KiB, pages dropped": "reads/s",
    "mmap faults, pages dropped": "faults/s",
    "small files cold": "files/s",
    "small files again, pages warm": "files/s",
    "small files again, pages dropped": "files/s",
    "find, first": "names/s",
    "find, again": "names/s",
}

Result = dict[str, float]
DOWNLOAD = "obstore download"


def measure(root: Path, names: bool) -> Iterator[tuple[str, float]]:
    """All rows of one peer, in an order in which each row's state is what its name says."""
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
    yield "mmap faults, pages dropped", workloads.page_faults(root)
    data.drop_caches()
    yield "small files cold", workloads.small_files(root)
    _settle()
    yield "small files again, pages warm", max(workloads.small_files(root) for _ in range(3))
    data.drop_caches()
    yield "small files again, pages dropped", workloads.small_files(root)
    if names:
        yield "find, first", workloads.find(root)
        yield "find, again", workloads.find(root)


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
    with seaweedfs(work / "weed") as server:
        origin = peers.S3Origin(server.endpoint, BUCKET, ACCESS_KEY, SECRET_KEY)
        print("copying them to the origin", file=sys.stderr)
        copy = [peers.BIN / "rclone", "copy", source, *origin.remote, "--transfers=16", "--s3-no-check-bucket"]
        subprocess.run(copy, check=True, env=origin.environment())
        yield origin


Start = Callable[[], AbstractContextManager[Path]]


def contestants(origin: peers.Origin, source: Path, work: Path, wanted: set[str]) -> dict[str, Start]:
    """Who can be had here: a peer whose program is not installed is left out, unless it was asked for by name."""
    every: dict[str, Start] = {
        "raw": lambda: peers.raw(source),
        DOWNLOAD: lambda: peers.raw(fresh_directory(work)),
        "rclone": lambda: peers.rclone(origin, work),
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


def rows_of(name: str, root: Path, origin: peers.Origin, source: Path, names: bool) -> Iterator[tuple[str, float]]:
    """What one column is measured in: a download has only the rows that are cold."""
    if name != DOWNLOAD:
        yield from measure(root, names)
        return
    data.drop_caches()
    yield "sequential cold", download.large(origin, source, root)
    data.drop_caches()
    yield "small files cold", download.small(origin, source, root)


def table(results: dict[str, Result]) -> str:
    """Markdown: a row per workload, a column per peer, with the ratio to raw behind each number."""
    lines = ["| workload | unit | " + " | ".join(results) + " |", "|---|---|" + "---|" * len(results)]
    for row, unit in ROWS.items():
        cells = []
        for name, result in results.items():
            value, base = result.get(row), results.get("raw", {}).get(row)
            ratio = f" ({value / base:.2f})" if value is not None and base and name != "raw" else ""
            cells.append("-" if value is None else f"{value:,.0f}{ratio}")
        lines.append(f"| {row} | {unit} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a quarter of the data, for a look")
    parser.add_argument("--origin", choices=("s3", "http"), default="s3", help="SeaweedFS, or nginx")
    parser.add_argument("--only", action="append", default=[], help="a column of the table; may be repeated")
    parser.add_argument("--work", default=None, help="a directory on the disk to measure (default: a temporary one)")
    parser.add_argument("--json", dest="json_path", default=None, help="write the numbers there too")
    parser.add_argument("--plot", default=None, metavar="FILE.svg", help="draw ratios to raw there (needs matplotlib)")
    args = parser.parse_args()
    sizes = QUICK if args.quick else FULL
    work = Path(tempfile.mkdtemp(prefix="dsfs-bench-", dir=args.work))
    results: dict[str, Result] = {}
    try:
        source = work / "source"
        print("making files", file=sys.stderr)
        data.make(source, sizes)
        with started(args.origin, source, work) as origin:
            for name, start in contestants(origin, source, work, set(args.only)).items():
                results[name] = {}
                with start() as root:
                    for row, value in rows_of(name, root, origin, source, sizes.names > 0):
                        results[name][row] = value
                        print(f"{name:18} {row:34} {value:12,.0f} {ROWS[row]}", file=sys.stderr)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    machine = f"Linux {platform.release()}, {os.cpu_count()} cores, {platform.machine()}"
    print(f"{machine}, Python {platform.python_version()}, origin {args.origin}\n")
    print(table(results))
    if args.json_path:
        Path(args.json_path).write_text(json.dumps(results, indent=2))
    if args.plot:
        plot.ratios(results, list(ROWS), Path(args.plot), f"{machine}, origin {args.origin}")


if __name__ == "__main__":
    main()
