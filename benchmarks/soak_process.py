"""One process of the crowd of soak and kills: operates for ever, compares what comes with the truth, counts in a slot.

PLAN.json names the datasets (``root`` in the mount, ``truth`` on disk, ``rough``: its origin may fail, ``direct``:
O_DIRECT reads of it reach the server), the file of counters (one slot of ``SLOT`` a process), the file with the time
until which the rough origin may fail a read, and what takes so long (``slow_s``) that a line in ``slow.NUMBER`` tells.
What is wrong is told on standard error. Standard library only.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

SLOT = struct.Struct("=QQQQQdd")
"""operations, bytes, wrong, failed where none may, failed where the origin had; longest calm and rough, in seconds."""
UNTIL = struct.Struct("=d")
_TOLD = 10  # failures of one process that are worth a line each
_LOOK_EVERY = 64  # operations, whether to end


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


class Operation(NamedTuple):
    """``carry_out`` says what that was, in how many requests, and how many bytes were compared; raises WrongBytes and
    OSError."""

    where: str
    rough: bool
    carry_out: Callable[[], tuple[str, int, int]]


Operations = Callable[[dict[str, Any], list[Dataset], int, random.Random], Iterator[Operation]]
"""From the plan, its datasets and the number of the process; without end."""


def main(operations: Operations) -> None:
    """PLAN.json and the number of the process are its arguments; ends when its standard input does."""
    plan, number = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])
    with contextlib.suppress(KeyboardInterrupt), open(f"{plan['slow']}.{number}", "w", buffering=1) as slow:
        datasets = [Dataset(each) for each in plan["datasets"]]
        _run(plan, number, operations(plan, datasets, number, random.Random(number)), slow)


def _run(plan: dict[str, Any], number: int, operations: Iterator[Operation], slow: TextIO) -> None:
    with open(plan["counters"], "r+b") as file, open(plan["until"], "rb") as until_file:
        counters = mmap.mmap(file.fileno(), 0)
        until = mmap.mmap(until_file.fileno(), 0, prot=mmap.PROT_READ)
    at, slow_s, monotonic = number * SLOT.size, plan["slow_s"], time.monotonic
    rounds = done = size = wrong = failed = rough_failed = 0
    longest = [0.0, 0.0]  # calm, rough
    while rounds % _LOOK_EVERY or not select.select([0], [], [], 0)[0]:
        where, rough, carry_out = next(operations)
        what, requests = "?", 1
        started = monotonic()
        try:
            what, requests, compared = carry_out()
            size += compared
        except WrongBytes as error:
            wrong += 1
            sys.stderr.write(f"WRONG {error}\n")
        except OSError as error:
            if rough and started <= UNTIL.unpack_from(until)[0]:
                rough_failed += 1
            else:
                failed += 1
                if failed <= _TOLD:
                    sys.stderr.write(f"FAILED {where}: {error}\n")
        took = monotonic() - started
        if took > longest[rough]:
            longest[rough] = took
        if took > slow_s and not rough:
            slow.write(f"{started:.4f} {took:.4f} {what}\n")
        rounds += 1
        done += requests
        SLOT.pack_into(counters, at, done, size, wrong, failed, rough_failed, *longest)
