"""One reader of the soak: random reads of random files, compared with the truth, for ever. Standard library only.

    python -m benchmarks.soak_reader PLAN.json SEED      ends when its standard input does

PLAN names the datasets (``root`` in the mount, ``truth`` on disk, ``rough``: its origin may fail, ``direct``: O_DIRECT
reads of it reach the server), the file of counters (one slot of ``SLOT`` a reader), and the file with the time until
which the rough origin may fail a read.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import select
import struct
import sys
import time
from pathlib import Path
from typing import Any, TextIO

SLOT = struct.Struct("=QQQQQdd")
"""operations, bytes, wrong, failed where none may, failed where the origin had; longest calm and rough, in seconds."""
TOLD = 10  # failures of one process that are worth a line each
UNTIL = struct.Struct("=d")


class Dataset:
    """Where it is, and what it ought to be."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.root: str = plan["root"]
        self.rough: bool = plan["rough"]
        self.direct: bool = plan["direct"]
        self.truth: dict[str, mmap.mmap] = {}
        base = Path(plan["truth"])
        for path in sorted(base.rglob("*")):
            if path.is_file():
                with path.open("rb") as file:
                    self.truth[str(path.relative_to(base))] = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self.names = sorted(self.truth)
        self.listings = {
            str(p.relative_to(base)): sorted(os.listdir(p)) for p in [base, *base.rglob("*")] if p.is_dir()
        }
        self.held: dict[str, tuple[int, mmap.mmap | None]] = {}  # handles and mappings that stay open through it all


class WrongBytes(Exception):
    """What must never happen."""


def operate(dataset: Dataset, rng: random.Random) -> tuple[str, int]:
    """One operation; its name, and how many bytes were compared. Raises WrongBytes, OSError."""
    name = rng.choice(dataset.names)
    path, truth = f"{dataset.root}/{name}", dataset.truth[name]
    match rng.randrange(16):
        case 0:
            directory = rng.choice(list(dataset.listings))
            _same(sorted(os.listdir(f"{dataset.root}/{directory}")) == dataset.listings[directory], directory)
            return "readdir", 0
        case 1:
            _same(os.stat(path).st_size == len(truth), name)
            return "stat", 0
        case 2:
            _same(not os.path.exists(f"{path}.none"), f"{name}.none")
            os.stat(f"{dataset.root}/")  # os.path.exists takes every error for "no"
            return "lookup", 0
        case 3 | 4:
            return "held", _held(dataset, name, path, truth, rng)
        case 5:
            return "whole", _read(path, truth, 0, len(truth), rng)
        case _:
            start = rng.randrange(len(truth))
            return "range", _read(path, truth, start, min(len(truth), start + rng.choice((4096, 65536, 1 << 20))), rng)


def _read(path: str, truth: mmap.mmap, start: int, stop: int, rng: random.Random) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        if rng.random() < 0.3:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        at = start
        while at < stop:
            piece = os.pread(fd, min(1 << 20, stop - at), at)
            _same(bool(piece) and piece == truth[at : at + len(piece)], f"{path} at {at}")
            at += len(piece)
    finally:
        os.close(fd)
    return stop - start


def _held(dataset: Dataset, name: str, path: str, truth: mmap.mmap, rng: random.Random) -> int:
    if name not in dataset.held:
        if len(dataset.held) > 100:
            _old, (fd, mapped) = dataset.held.popitem()
            if mapped is not None:
                mapped.close()
            os.close(fd)
        fd = os.open(path, os.O_RDONLY)
        # a page that cannot be read kills who touches it: mapped only where nothing may fail
        dataset.held[name] = fd, None if dataset.rough else mmap.mmap(fd, 0, prot=mmap.PROT_READ)
    fd, mapped = dataset.held[name]
    at = rng.randrange(len(truth))
    wanted = truth[at : at + 4096]
    got = os.pread(fd, 4096, at) if mapped is None or rng.random() < 0.5 else mapped[at : at + 4096]
    _same(got == wanted, f"{path} at {at}, held open")
    return len(wanted)


def _same(right: bool, what: str) -> None:
    if not right:
        raise WrongBytes(what)


def main(plan: dict[str, Any], seed: int, slow: TextIO) -> None:
    rng = random.Random(seed)
    datasets = [Dataset(each) for each in plan["datasets"]]
    with open(plan["counters"], "r+b") as file, open(plan["until"], "rb") as until_file:
        counters = mmap.mmap(file.fileno(), 0)
        until = mmap.mmap(until_file.fileno(), 0, prot=mmap.PROT_READ)
    done = size = wrong = failed = rough_failed = 0
    longest = {False: 0.0, True: 0.0}
    slow_s = plan["slow_s"]
    while done % 64 or not select.select([0], [], [], 0)[0]:
        dataset = rng.choice(datasets)
        started = time.monotonic()
        what = "?"
        try:
            what, compared = operate(dataset, rng)
            size += compared
        except WrongBytes as error:
            wrong += 1
            print(f"WRONG {error}", file=sys.stderr, flush=True)
        except OSError as error:
            if dataset.rough and started <= UNTIL.unpack_from(until)[0]:
                rough_failed += 1
            else:
                failed += 1
                if failed <= TOLD:
                    print(f"FAILED {dataset.root}: {error}", file=sys.stderr, flush=True)
        took = time.monotonic() - started
        longest[dataset.rough] = max(longest[dataset.rough], took)
        if took > slow_s and not dataset.rough:
            print(f"{started:.4f} {took:.4f} {what}", file=slow, flush=True)
        done += 1
        SLOT.pack_into(
            counters, seed * SLOT.size, done, size, wrong, failed, rough_failed, longest[False], longest[True]
        )


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as text:
        the_plan = json.load(text)
    with contextlib.suppress(KeyboardInterrupt), open(f"{the_plan['slow']}.{sys.argv[2]}", "w") as slow_file:
        main(the_plan, int(sys.argv[2]), slow_file)
