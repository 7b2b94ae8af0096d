"""One reader of the soak: random reads of random files, compared with the truth. Standard library only.

python -m benchmarks.soak_reader PLAN.json NUMBER      what these are: soak_process.py
"""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.soak_process import Dataset, Operation, WrongBytes, main


def operations(_plan: dict[str, Any], datasets: list[Dataset], _number: int, rng: random.Random) -> Iterator[Operation]:
    while True:
        dataset = rng.choice(datasets)
        yield Operation(dataset.root, dataset.rough, partial(operate, dataset, rng))


def operate(dataset: Dataset, rng: random.Random) -> tuple[str, int, int]:
    name = rng.choice(dataset.names)
    path, truth = f"{dataset.root}/{name}", dataset.truth[name]
    match rng.randrange(16):
        case 0:
            directory = rng.choice(list(dataset.listings))
            _same(sorted(os.listdir(f"{dataset.root}/{directory}")) == dataset.listings[directory], directory)
            return "readdir", 1, 0
        case 1:
            _same(os.stat(path).st_size == len(truth), name)
            return "stat", 1, 0
        case 2:
            _same(not os.path.exists(f"{path}.none"), f"{name}.none")
            os.stat(f"{dataset.root}/")  # os.path.exists takes every error for "no"
            return "lookup", 1, 0
        case 3 | 4:
            return "held", 1, _held(dataset, name, path, truth, rng)
        case 5:
            return "whole", 1, _read(path, truth, 0, len(truth), rng)
        case _:
            start = rng.randrange(len(truth))
            stop = min(len(truth), start + rng.choice((4096, 65536, 1 << 20)))
            return "range", 1, _read(path, truth, start, stop, rng)


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


if __name__ == "__main__":
    main(operations)
