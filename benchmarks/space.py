"""How much lies in a cache directory while it is used, against what --cache-size allows: measured, not asked of dsfs.

    python -m benchmarks.space [--seconds 20] [--work DIR]

Two datasets of one web server, each larger than the cache: small files, read without opens, and large ones, read at
random and in order (so blocks are written past the page cache, ahead of readers, and behind them), by eight threads at
once. The cache has a disk of its own, which is measured all the time, in two ways of which each says too much: ``du``
takes a while, and counts what goes and then what comes in its place; ``df`` counts what is unlinked and still open. The
smaller of the two is what lies there at most.
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.report import Table, circumstances, command_line, progress, say
from tests.lab.disk import small_disk
from tests.manifests import dataset, write_manifests
from tests.mounts import Mounts
from tests.servers.http_server import nginx

MIB = 1 << 20
SMALL_FILES, SMALL_BYTES = 3_000, 110_000
LARGE_FILES, LARGE_BYTES = 6, 64 * MIB
_PAUSE_S = 0.05  # between two looks, which take a while themselves and delay who reads


class Row(NamedTuple):
    limit_bytes: int
    most_bytes: int
    du_bytes: int
    df_bytes: int
    samples: int
    read_bytes: int


def du(directory: Path) -> int:
    """Space of all files and directories, in bytes; what is unlinked meanwhile does not count."""
    found = 0
    for parent, directories, files in os.walk(directory):
        for name in (*directories, *files):
            with contextlib.suppress(FileNotFoundError):
                found += os.lstat(f"{parent}/{name}").st_blocks * 512
    return found


def df(place: Path) -> int:
    """What is used of a file system, in bytes."""
    found = os.statvfs(place)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def make(root: Path) -> None:
    rng = random.Random(5)
    piece = rng.randbytes(8 * MIB)
    for number in range(SMALL_FILES):
        path = root / f"small/{number // 100:03}/{number:05}"
        path.parent.mkdir(parents=True, exist_ok=True)
        at = rng.randrange(7 * MIB)
        path.write_bytes(piece[at : at + SMALL_BYTES])
    (root / "large").mkdir()
    for number in range(LARGE_FILES):
        with (root / f"large/{number}").open("wb") as file:
            for _ in range(LARGE_BYTES // (8 * MIB)):
                file.write(piece)


class Load:
    """Threads that read. What they read is random and the same each time."""

    def __init__(self, root: Path) -> None:
        self._small = sorted(str(path) for path in (root / "team/small").glob("*/*"))
        self._large = sorted(str(path) for path in (root / "team/large").iterdir())
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.read_bytes = 0
        works = [self._small_files, self._small_files, self._small_files, self._in_order, self._in_order]
        works += [self._at_random, self._at_random, self._at_random]
        self._threads = [threading.Thread(target=work, args=(random.Random(seed),)) for seed, work in enumerate(works)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _count(self, size_bytes: int) -> None:
        with self._lock:
            self.read_bytes += size_bytes

    def _small_files(self, rng: random.Random) -> None:
        while not self._stop.is_set():
            self._count(len(Path(rng.choice(self._small)).read_bytes()))

    def _in_order(self, rng: random.Random) -> None:
        while not self._stop.is_set():
            with open(rng.choice(self._large), "rb", buffering=0) as file:
                while not self._stop.is_set() and (piece := file.read(MIB)):
                    self._count(len(piece))

    def _at_random(self, rng: random.Random) -> None:
        while not self._stop.is_set():
            fd = os.open(rng.choice(self._large), os.O_RDONLY)
            for _ in range(20):
                self._count(len(os.pread(fd, 65_536, rng.randrange(LARGE_BYTES))))
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def measure(work: Path, manifest: Path, cache: Path, size: str, seconds: float) -> Row:
    mounts = Mounts(work / f"mount{size.strip('%')}")
    mounts.directory.mkdir()
    base_bytes = df(cache)
    try:
        mount = mounts.mount("-f", manifest, f"--cache-size={size}", "--min-free=0", cache_dir=cache / "c")
        for name in ("small", "large"):
            mount.wait_phase("READY", name, 60)
        limit_bytes = int(mount.status()["cache_size"])
        most_bytes = du_bytes = df_bytes = samples = 0
        with contextlib.closing(Load(mount.mountpoint)) as load:
            until_s = time.monotonic() + seconds
            while time.monotonic() < until_s:
                before_bytes, found_bytes = df(cache) - base_bytes, du(cache)
                on_disk_bytes = max(before_bytes, df(cache) - base_bytes)
                most_bytes = max(most_bytes, min(found_bytes, on_disk_bytes))
                du_bytes, df_bytes = max(du_bytes, found_bytes), max(df_bytes, on_disk_bytes)
                samples += 1
                time.sleep(_PAUSE_S)  # how often to look, while others read
        return Row(limit_bytes, most_bytes, du_bytes, df_bytes, samples, load.read_bytes)
    finally:
        for problem in mounts.close():
            progress(problem)


def main() -> None:
    parser = command_line("benchmarks.space", __doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--work", default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dsfs-space-", dir=arguments.work) as made, contextlib.ExitStack() as stack:
        work = Path(made)
        work.chmod(0o755)
        (work / "www").mkdir()
        server = stack.enter_context(nginx(work / "www"))
        make(server.root)
        documents = (
            dataset(name, f"{server.url}{name}/", "team", type="HTTP", readPath=path)
            for name, path in (("small", "openless"), ("large", "passthrough"))
        )
        manifest = write_manifests(work / "manifest.yaml", *documents)
        say(f"{circumstances()}\n")
        table = Table(
            *("`--cache-size`", "limit, MiB", "most on the disk, MiB", "over, MiB", "`du`, `df` alone, MiB"),
            *("samples", "read, MB"),
        )
        for size in ("32MiB", "100MiB", "250MiB", "40%"):
            with small_disk(work, 400) as disk:
                row = measure(work, manifest, disk, size, arguments.seconds)
            over_bytes = max(0, row.most_bytes - row.limit_bytes)
            sizes = [f"{size_bytes / MIB:.1f}" for size_bytes in (row.limit_bytes, row.most_bytes, over_bytes)]
            both = f"{row.du_bytes / MIB:.1f}, {row.df_bytes / MIB:.1f}"
            table.row(size, *sizes, both, row.samples, f"{row.read_bytes / 1e6:,.0f}")


if __name__ == "__main__":
    main()
