"""A bucket of very many keys: how long until something can be seen, and until everything is known.

    python -m benchmarks.listing [--keys 1000000] [--per-directory 1000] [--wait-ms 20] [--find]

The server makes keys up on the fly, in a process of its own, and answers each page after ``--wait-ms``: what the way to
a store far away takes. Against it: the listings of obstore and aiobotocore, in processes of their own, and dsfs: mount
to the first ``ls``, to the sealed revision, ``find`` behind a mount (with ``--find``), processor time, memory.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.processes import cpu_s, memory_bytes
from benchmarks.report import Table, circumstances, command_line, progress, say
from tests.mounts import Mounts, clean_environment, eventually
from tests.servers.listing_server import BUCKET
from tests.servers.process import free_ports, running

# Programs of their own, as processor time is counted by process; each says how many keys it has seen.
_OBSTORE = """
import sys, obstore
from obstore.store import S3Store
store = S3Store(sys.argv[2], endpoint=sys.argv[1], region="us-east-1", skip_signature=True,
                client_options={"allow_http": True})
print(sum(len(page) for page in obstore.list(store, chunk_size=1000)))  # read by who started it
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
        print(sum([len(page["Contents"]) async for page in pages]))  # read by who started it
asyncio.run(main())
"""


class Listings:
    """The table: of so many keys, on the wall and in processor time, the most memory of a server."""

    def __init__(self, keys: int) -> None:
        self.keys = keys
        self._table = Table("", "wall s", "CPU-s", "µs a key", "peak MB")

    def row(self, what: str, wall_s: float, cpu_s: float | None = None, pid: int | None = None) -> None:
        cpu = ("", "") if cpu_s is None else (f"{cpu_s:.1f}", f"{cpu_s / self.keys * 1e6:.1f}")
        memory = "" if pid is None else f"{memory_bytes(pid, 'VmHWM') / 1e6:.0f}"
        self._table.row(what, f"{wall_s:.2f}", *cpu, memory)

    def timed(self, what: str, work: Callable[[], None], began_s: float, pid: int) -> None:
        before = sum(cpu_s(pid))
        work()
        self.row(what, time.perf_counter() - began_s, sum(cpu_s(pid)) - before, pid)


def client(listings: Listings, name: str, program: str, url: str) -> None:
    """A client's own listing, in a process of its own."""
    before, began_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    argv = [sys.executable, "-c", program, url, BUCKET]
    said = subprocess.run(argv, check=True, capture_output=True, text=True, env=clean_environment()).stdout
    wall_s, after = time.perf_counter() - began_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    if int(said) != listings.keys:
        raise RuntimeError(f"{name} found {said.strip()} of {listings.keys} keys")
    listings.row(name, wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def dsfs(listings: Listings, url: str, directory: Path, *, with_find: bool) -> None:
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
        listings.row("dsfs: mount returned", mounted_s)
        listings.row(f"dsfs: first ls ({len(names)} names)", listed_s)
        find_all = partial(find, mount.root, listings.keys)
        if with_find:
            listings.timed("dsfs: find, first time", find_all, began_s, pid)

        def sealed() -> bool:
            return "revision sealed" in mount.log()  # asking for the status would have it count all rows each time

        eventually(sealed, 3600.0, "the revision is sealed")
        listings.row("dsfs: sealed", time.perf_counter() - began_s, sum(cpu_s(pid)), pid)
        if with_find:
            listings.timed("dsfs: find again", find_all, time.perf_counter(), pid)
        catalog = next(mount.cache_dir.glob("catalogs/*/*.sqlite"))
        say(f"\nmemory now {memory_bytes(pid) / 1e6:.0f} MB, catalog {catalog.stat().st_size / 1e6:.0f} MB")
    finally:
        for problem in mounts.close():
            progress(problem)


def find(root: Path, expected: int) -> None:
    said = subprocess.run(["find", root, "-type", "f"], check=True, capture_output=True).stdout
    if said.count(b"\n") != expected:
        raise RuntimeError(f"find shows {said.count(bytes([10]))} of {expected} files")


def main() -> None:
    parser = command_line("benchmarks.listing", __doc__)
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
            asked = f"{args.keys:,} keys, {args.per_directory or 'all'} in a directory, {args.wait_ms:g} ms a request"
            say(f"{circumstances()}; {asked}\n")
            listings = Listings(args.keys)
            programs = {"obstore": _OBSTORE, "aiobotocore": _AIOBOTOCORE}
            for name in filter(None, args.clients.split(",")):
                client(listings, name, programs[name], url)
            dsfs(listings, url, Path(work), with_find=args.find)


if __name__ == "__main__":
    main()
