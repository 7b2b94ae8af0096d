"""What readers do. Each takes the root of a tree laid out by ``data.make`` and returns a rate."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import random
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

READERS = 8
CHUNK = 1 << 20
_FORK = multiprocessing.get_context("fork")


def sequential(root: Path) -> float:
    """One large file from start to end, in reads of 1 MiB: MB/s."""
    buffer = bytearray(CHUNK)
    started = time.perf_counter()
    total = 0
    with (root / "large/file.bin").open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            total += count
    return total / 1e6 / (time.perf_counter() - started)


def random_reads(root: Path, block: int = 4096, seconds: float = 3.0) -> float:
    """pread of 4 KiB at random offsets of the large file: reads/s."""
    rng = random.Random(11)
    fd = os.open(root / "large/file.bin", os.O_RDONLY)
    blocks = os.fstat(fd).st_size // block
    started = time.perf_counter()
    done = 0
    while time.perf_counter() - started < seconds:
        for _ in range(64):
            os.pread(fd, block, rng.randrange(blocks) * block)
        done += 64
    rate = done / (time.perf_counter() - started)
    os.close(fd)
    return rate


def page_faults(root: Path, seconds: float = 3.0) -> float:
    """One byte of a random page of the mapped large file: faults/s."""
    rng = random.Random(12)
    with (root / "large/file.bin").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        pages = len(mapped) // mmap.PAGESIZE
        started = time.perf_counter()
        done = 0
        while time.perf_counter() - started < seconds:
            for _ in range(64):
                mapped[rng.randrange(pages) * mmap.PAGESIZE]
            done += 64
        return done / (time.perf_counter() - started)


def small_files(root: Path) -> float:
    """Every small file once, in random order, 8 processes, open + read to the end + close: files/s."""
    # names come from the listing of one process, so that all peers are asked the same
    paths = sorted(str(path) for path in (root / "small").glob("*/*"))
    random.Random(13).shuffle(paths)
    started = time.perf_counter()
    workers = [_FORK.Process(target=_read_all, args=(paths[number::READERS],)) for number in range(READERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        if worker.exitcode:
            raise RuntimeError(f"a reader ended with {worker.exitcode}")
    return len(paths) / (time.perf_counter() - started)


def _read_all(paths: Sequence[str]) -> None:
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        while os.read(fd, 128 * 1024):
            pass
        os.close(fd)


def find(root: Path) -> float:
    """``find`` over the many names, with the size of each: names/s."""
    started = time.perf_counter()
    done = subprocess.run(["find", str(root / "names"), "-size", "+1M"], check=True, capture_output=True)
    assert not done.stdout
    elapsed_s = time.perf_counter() - started
    counted = subprocess.run(["find", str(root / "names"), "-type", "f"], check=True, capture_output=True)
    return counted.stdout.count(b"\n") / elapsed_s
