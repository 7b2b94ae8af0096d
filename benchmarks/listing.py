"""A bucket of very many keys: how long until something can be seen, and until everything is known.

    python -m benchmarks.listing [--keys 1000000] [--per-directory 1000] [--wait-ms 20] [--find]

The server makes keys up on the fly, in a process of its own, and answers each page after ``--wait-ms``: what the way to
a store far away takes. Against it: the listings of obstore and aiobotocore, in processes of their own, and dsfs: mount
to the first ``ls``, to the sealed revision, ``find`` behind a mount (with ``--find``), processor time, memory.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.cost import cpu_seconds
from tests.mounts import Mounts, clean_environment, eventually
from tests.servers.listing_server import BUCKET
from tests.servers.process import free_ports, running

_OBSTORE = """
import sys, obstore
from obstore.store import S3Store
store = S3Store(sys.argv[2], endpoint=sys.argv[1], region="us-east-1", skip_signature=True,
                client_options={"allow_http": True})
print(sum(len(page) for page in obstore.list(store, chunk_size=1000)))
"""
_AIOBOTOCORE = """
import asyncio, sys
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore import UNSIGNED
async def main():
    config = AioConfig(signature_version=UNSIGNED)
    made = get_session().create_client("s3", endpoint_url=sys.argv[1], region_name="us-east-1", config=config)
    async with made as client:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=sys.argv[2])
        print(sum([len(page["Contents"]) async for page in pages]))
asyncio.run(main())
"""


def row(what: str, wall_s: float, cpu_s: float | None, keys: int, memory: float | None = None) -> None:
    cpu = "" if cpu_s is None else f"{cpu_s:.1f}"
    each = "" if cpu_s is None else f"{cpu_s / keys * 1e6:.1f}"
    print(f"| {what} | {wall_s:.2f} | {cpu} | {each} | {'' if memory is None else f'{memory:.0f}'} |", flush=True)


def client(name: str, program: str, url: str, keys: int) -> None:
    """A client's own listing, in a process of its own."""
    before, began_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    argv = [sys.executable, "-c", program, url, BUCKET]
    said = subprocess.run(argv, check=True, capture_output=True, text=True, env=clean_environment()).stdout
    wall_s, after = time.perf_counter() - began_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    if int(said) != keys:
        raise RuntimeError(f"{name} found {said.strip()} of {keys} keys")
    row(name, wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, keys)


def memory_mb(pid: int, line: str = "VmRSS") -> float:
    """Resident memory now, or at its most ("VmHWM"), in MB."""
    fields = dict(each.split(":", 1) for each in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields[line].split()[0]) * 1024 / 1e6


def dsfs(url: str, args: argparse.Namespace, directory: Path) -> None:
    mounts = Mounts(directory)
    try:
        began_s = time.perf_counter()
        mount = mounts.mount(
            f"s3://{BUCKET}", "--option", f"endpoint={url}", "--option", "region=us-east-1",
            "--option", "anonymous=true",
        )  # fmt: skip
        mounted_s = time.perf_counter() - began_s
        names = os.listdir(mount.root)
        listed_s = time.perf_counter() - began_s
        pid = mount.server_pid
        row("dsfs: mount returned", mounted_s, None, args.keys)
        row(f"dsfs: first ls ({len(names)} names)", listed_s, None, args.keys)
        if args.find:
            timed("dsfs: find, first time", lambda: find(mount.root, args.keys), began_s, pid, args.keys)

        def sealed() -> bool:
            return "revision sealed" in mount.log()  # asking for the status would have it count all rows each time

        eventually(sealed, 3600.0, "the revision is sealed")
        row("dsfs: sealed", time.perf_counter() - began_s, sum(cpu_seconds([pid])), args.keys, memory_mb(pid, "VmHWM"))
        if args.find:
            timed("dsfs: find again", lambda: find(mount.root, args.keys), time.perf_counter(), pid, args.keys)
        catalog = next(mount.cache_dir.glob("catalogs/*/*.sqlite"))
        print(f"\nmemory now {memory_mb(pid):.0f} MB, catalog {catalog.stat().st_size / 1e6:.0f} MB")
    finally:
        for problem in mounts.close():
            print(problem, file=sys.stderr)


def find(root: Path, expected: int) -> None:
    said = subprocess.run(["find", root, "-type", "f"], check=True, capture_output=True).stdout
    if said.count(b"\n") != expected:
        raise RuntimeError(f"find shows {said.count(bytes([10]))} of {expected} files")


def timed(what: str, work: Callable[[], None], began_s: float, pid: int, keys: int) -> None:
    before = sum(cpu_seconds([pid]))
    work()
    row(what, time.perf_counter() - began_s, sum(cpu_seconds([pid])) - before, keys, memory_mb(pid, "VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.listing", description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--per-directory", type=int, default=1000, help="0: all keys in one directory")
    parser.add_argument("--wait-ms", type=float, default=20.0)
    parser.add_argument("--find", action="store_true")
    parser.add_argument("--clients", default="obstore,aiobotocore", help="whose own listings to measure; may be empty")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dsfs-listing-") as work:
        (port,) = free_ports(1)
        argv = [sys.executable, "-m", "tests.servers.listing_server", f"--port={port}", f"--keys={args.keys}"]
        argv += [f"--per-directory={args.per_directory}", f"--wait-ms={args.wait_ms}"]
        with running(argv, port, Path(work) / "server.log"):
            url = f"http://127.0.0.1:{port}"
            print(f"{args.keys:,} keys, {args.per_directory or 'all'} in a directory, {args.wait_ms:g} ms a request, "
                  f"load {os.getloadavg()[0]:.1f}\n")  # fmt: skip
            print("| | wall s | CPU-s | µs a key | peak MB |\n|---|---|---|---|---|")
            programs = {"obstore": _OBSTORE, "aiobotocore": _AIOBOTOCORE}
            for name in filter(None, args.clients.split(",")):
                client(name, programs[name], url, args.keys)
            dsfs(url, args, Path(work))


if __name__ == "__main__":
    main()
