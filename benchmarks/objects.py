"""A cache directory with very many objects: how long a server takes to start over it, and what memory it has then.

    python -m benchmarks.objects [--objects 1000000] [--files 1000000] [--work DIR]

The objects are real, of one sparse block each (a file, a map, and a row of the index), so a million of them take 4 GB
of maps and two million inodes. Memory is the PSS of a fresh server over the full cache, and of one over an empty one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import tempfile
import time
from pathlib import Path

from benchmarks.processes import cpu_s, memory_bytes
from benchmarks.report import Table, circumstances, command_line, progress, say
from dsfs.cache.layout import open_layout, trust_id
from dsfs.cache.mapfile import crc32c, pack_complete
from dsfs.cache.open_index import open_index
from tests.mounts import Mount, Mounts

SIZE_BYTES = 110_000
BLOCK_BYTES = 1 << 20
MAP_SPACE = 4096
MIB = 1 << 20
IDLE_S = 5  # what is measured: nobody asks, and a few rounds of upkeep


def fill(cache: Path, objects: int, files: int) -> None:
    """As a server leaves them, but for the bytes: all zeros, in holes, with the checksum of that."""
    layout = open_layout(str(cache))
    index = open_index(layout.index)
    boot, zeros = trust_id(layout.root), crc32c(bytes(SIZE_BYTES))
    for number in range(objects):
        key = hashlib.sha256(struct.pack("=Q", number)).hexdigest()
        packed = pack_complete(key, SIZE_BYTES, BLOCK_BYTES, boot, [zeros])
        index.add(key, MAP_SPACE, SIZE_BYTES, f"team/set{number % 4}")
        if number % 20_000 == 19_999:
            index.flush(time.time())
        if number >= files:
            continue
        path = layout.object_path(key)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.ftruncate(fd, SIZE_BYTES)
        os.close(fd)
        fd = os.open(f"{path}.map", os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(fd, packed)
        os.close(fd)
    index.close(time.time())
    layout.release()


def measure(table: Table, mounts: Mounts, source: Path, cache: Path, what: str) -> None:
    mount: Mount = mounts.mount(source, "--cache-size=10TiB", "--scrub-every=0", cache_dir=cache)
    pid = mount.server_pid
    started_cpu_s = sum(cpu_s(pid))
    (mount.root / "file").read_bytes()
    time.sleep(IDLE_S)  # what the server takes in this time is measured
    table.row(
        what,
        f"{mount.mount_seconds:.2f} s",
        f"{started_cpu_s:.2f} s",
        f"{memory_bytes(pid, 'Pss') / MIB:.0f} MiB",
        f"{(sum(cpu_s(pid)) - started_cpu_s) / IDLE_S * 1000:.0f} ms",
    )
    assert mount.unmount().returncode == 0


def main() -> None:
    parser = command_line("benchmarks.objects", __doc__)
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=1_000_000, help="of how many objects the files are made")
    parser.add_argument("--work", default=None)
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="dsfs-objects-", dir=arguments.work))
    work.chmod(0o755)
    mounts = Mounts(work)
    try:
        source = work / "source"
        source.mkdir()
        (source / "file").write_bytes(b"what is read")
        say(f"{circumstances()}\n")
        table = Table("cache", "`dsfs mount`", "CPU of the server until then", "its PSS", "CPU a second, idle")
        measure(table, mounts, source, work / "empty", "empty")
        began_s = time.monotonic()
        fill(work / "full", arguments.objects, min(arguments.files, arguments.objects))
        made_s = time.monotonic() - began_s
        measure(table, mounts, source, work / "full", f"{arguments.objects:,} objects")
        measure(table, mounts, source, work / "full", "the same, again")
        say(f"\nmade in {made_s:.0f} s")
    finally:
        for problem in mounts.close():
            progress(problem)
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
