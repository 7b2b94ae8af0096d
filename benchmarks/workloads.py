"""What readers do. Each takes the root of a tree laid out by ``data.make`` and returns a rate, or milliseconds."""

from __future__ import annotations

import json
import mmap
import multiprocessing
import os
import random
import statistics
import struct
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path

READERS = 8
CHUNK = 1 << 20
_FORK = multiprocessing.get_context("fork")


def sequential(root: Path) -> float:
    """One large file from start to end, in reads of 1 MiB: MB/s."""
    started = time.perf_counter()
    return _read_chunks(root / "large/file.bin") / 1e6 / (time.perf_counter() - started)


def _read_chunks(path: Path) -> int:
    buffer = bytearray(CHUNK)
    total = 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            total += count
    return total


def shards(root: Path) -> float:
    """As ``sequential``, of as many files as there are shards, a process each: MB/s of all together."""
    paths = sorted((root / "shards").iterdir())
    size = sum(path.stat().st_size for path in paths)
    return size / 1e6 / _together([partial(_read_chunks, path) for path in paths])


def first_bytes(root: Path) -> float:
    """Open each of some files, of which nothing was read, and read a byte: ms, the median."""
    paths = sorted((root / "first").iterdir())
    return statistics.median(_milliseconds(partial(_first_byte, path)) for path in paths)


def _first_byte(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    assert os.pread(fd, 1, 0)
    os.close(fd)


def _milliseconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def safetensors(root: Path) -> tuple[float, float]:
    """Map a model and read its tensors in order: MB/s, and after how many ms the first of them was there."""
    started = time.perf_counter()
    first_ms = 0.0
    size = 0
    with (root / "model/model.safetensors").open("rb") as file:
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            (length,) = struct.unpack_from("<Q", mapped)
            tensors = json.loads(mapped[8 : 8 + length])
            for tensor in tensors.values():
                start, stop = tensor["data_offsets"]
                size += len(mapped[8 + length + start : 8 + length + stop])  # a copy, as into an accelerator's memory
                first_ms = first_ms or (time.perf_counter() - started) * 1000
    return size / 1e6 / (time.perf_counter() - started), first_ms


def random_reads(root: Path, block: int = 4096, seconds: float = 3.0) -> float:
    """pread of a block at random offsets of the large file: reads/s."""
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


def small_files(root: Path, at_least_s: float = 0.0) -> float:
    """Every small file once, in random order, 8 processes, open + read to the end + close: files/s.

    ``at_least_s``: again and again for so long, as a pass over what is in memory ends before it can be timed.
    """
    # names come from the listing of one process, so that all peers are asked the same
    paths = sorted(str(path) for path in (root / "small").glob("*/*"))
    random.Random(13).shuffle(paths)
    passes = 1
    while True:
        elapsed_s = _together([partial(_read_all, paths[number::READERS], passes) for number in range(READERS)])
        if elapsed_s >= at_least_s:
            return passes * len(paths) / elapsed_s
        passes = max(passes + 1, int(1.2 * passes * at_least_s / elapsed_s))


def _read_all(paths: Sequence[str], passes: int) -> None:
    for _ in range(passes):
        for path in paths:
            fd = os.open(path, os.O_RDONLY)
            while os.read(fd, 128 * 1024):
                pass
            os.close(fd)


def _together(works: Sequence[Callable[[], object]]) -> float:
    """A process for each; how long they took from when all of them were there, in seconds."""
    ready = _FORK.Barrier(len(works) + 1)
    processes = [_FORK.Process(target=_after, args=(ready, work)) for work in works]
    for process in processes:
        process.start()
    ready.wait()
    started = time.perf_counter()
    for process in processes:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a reader ended with {process.exitcode}")
    return time.perf_counter() - started


def _after(ready: Barrier, work: Callable[[], object]) -> None:
    ready.wait()
    work()


def find(root: Path) -> float:
    """``find`` over the many names, with the size of each: names/s."""
    started = time.perf_counter()
    done = subprocess.run(["find", str(root / "names"), "-size", "+1M"], check=True, capture_output=True)
    assert not done.stdout
    elapsed_s = time.perf_counter() - started
    counted = subprocess.run(["find", str(root / "names"), "-type", "f"], check=True, capture_output=True)
    return counted.stdout.count(b"\n") / elapsed_s
