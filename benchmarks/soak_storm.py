"""One process of the storm: requests that always reach the server and cost it little, as fast as it answers them.

    python -m benchmarks.soak_storm PLAN.json SLOT_NUMBER      ends when its standard input does

Attributes that are asked for past the kernel's cache, names that nobody has looked up before, and O_DIRECT reads of a
few files that stay open, a batch of them at a time (Linux AIO: a process that sleeps and wakes for each request costs
more than the server does); each answer is compared with the truth. PLAN and counters are those of ``soak_reader.py``.
Standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import random
import select
import struct
import sys
import time
from typing import Any, TextIO

from benchmarks.soak_reader import SLOT, TOLD, UNTIL, Dataset, WrongBytes

PAGE = 4096
FILES = 24  # of each dataset, the same for all processes: what is asked for so often stays in the cache
LOOK_EVERY = 256  # operations
AT_STATX_FORCE_SYNC = 0x2000  # <linux/stat.h>
STATX_SIZE = 0x200
STATX_BYTES = 256
STX_SIZE_AT = 40
LARGEST_BATCH = 32
IO_SETUP, IO_GETEVENTS, IO_SUBMIT = 206, 208, 209  # x86_64
IOCB = struct.Struct("=QIIHhIQQqQII")  # <linux/aio_abi.h>: data key rw_flags opcode prio fd buf nbytes offset - - -
IO_EVENT = struct.Struct("=QQqq")  # data obj res res2

_libc = ctypes.CDLL(None, use_errno=True)


class Target:
    """A file that is asked about again and again; ``fd`` only where its reads reach the server."""

    def __init__(self, dataset: Dataset, name: str, *, reads: bool) -> None:
        self.rough = dataset.rough
        self.path = f"{dataset.root}/{name}"
        self.raw = os.fsencode(self.path)
        self.truth = dataset.truth[name]
        self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECT) if reads else -1


class Storm:
    def __init__(self, datasets: list[Dataset], number: int) -> None:
        self._number = number
        self._asked = 0
        self._status = ctypes.create_string_buffer(STATX_BYTES)
        self._size = memoryview(self._status)[STX_SIZE_AT : STX_SIZE_AT + 8].cast("B").cast("Q")
        self._pages = mmap.mmap(-1, LARGEST_BATCH * PAGE)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._pages))
        self._iocbs = ctypes.create_string_buffer(LARGEST_BATCH * IOCB.size)
        self._pointers = (ctypes.c_void_p * LARGEST_BATCH)(
            *(ctypes.addressof(self._iocbs) + number * IOCB.size for number in range(LARGEST_BATCH))
        )
        self._events = ctypes.create_string_buffer(LARGEST_BATCH * IO_EVENT.size)
        self._context = ctypes.c_ulong(0)
        _checked(_libc.syscall(IO_SETUP, LARGEST_BATCH, ctypes.byref(self._context)), "io_setup")
        self._statx = _libc.statx
        self.targets = [
            Target(dataset, name, reads=dataset.direct)
            for dataset in datasets
            for name in random.Random(dataset.root).sample(dataset.names, min(FILES, len(dataset.names)))
        ]
        self.readable = [target for target in self.targets if target.fd >= 0]

    def attributes(self, target: Target) -> int:
        """One GETATTR."""
        if self._statx(-100, target.raw, AT_STATX_FORCE_SYNC, STATX_SIZE, self._status):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), target.path)
        if self._size[0] != len(target.truth):
            raise WrongBytes(f"{target.path} has size {self._size[0]}, not {len(target.truth)}")
        return 0

    def absent(self, target: Target) -> int:
        """One LOOKUP of a name that nobody has asked for yet."""
        self._asked += 1
        path = f"{target.path}.{self._number}.{self._asked}"
        try:
            os.stat(path)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return 0
            raise
        raise WrongBytes(f"{path} is there")

    def pages(self, chosen: list[tuple[Target, int]]) -> int:
        """A READ for each target and offset."""
        for number, (target, at) in enumerate(chosen):
            IOCB.pack_into(
                self._iocbs,
                number * IOCB.size,
                number,
                0,
                0,
                0,
                0,
                target.fd,
                self._base + number * PAGE,
                PAGE,
                at,
                0,
                0,
                0,
            )
        submitted = _checked(_libc.syscall(IO_SUBMIT, self._context, len(chosen), self._pointers), "io_submit")
        _checked(_libc.syscall(IO_GETEVENTS, self._context, submitted, submitted, self._events, None), "io_getevents")
        size = 0
        for event in range(submitted):
            number, _obj, count, _res2 = IO_EVENT.unpack_from(self._events, event * IO_EVENT.size)
            target, at = chosen[number]
            if count < 0:
                raise OSError(-count, os.strerror(-count), target.path)
            if self._pages[number * PAGE : number * PAGE + count] != target.truth[at : at + PAGE]:
                raise WrongBytes(f"{target.path} at {at}, past the page cache")
            size += count
        return size


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def main(plan: dict[str, Any], slot: int, slow: TextIO) -> None:
    rng = random.Random(slot)
    storm = Storm([Dataset(each) for each in plan["datasets"]], slot)
    with open(plan["counters"], "r+b") as file, open(plan["until"], "rb") as until_file:
        counters = mmap.mmap(file.fileno(), 0)
        until = mmap.mmap(until_file.fileno(), 0, prot=mmap.PROT_READ)
    done = requests = size = wrong = failed = rough_failed = 0
    longest = {False: 0.0, True: 0.0}
    slow_s = plan["slow_s"]
    monotonic = time.monotonic

    def tell() -> None:
        of_failures = failed, rough_failed, longest[False], longest[True]
        SLOT.pack_into(counters, slot * SLOT.size, requests, size, wrong, *of_failures)

    while done % LOOK_EVERY or not select.select([0], [], [], 0)[0]:
        turn = done % 16
        target = rng.choice(storm.targets)
        started = monotonic()
        try:
            if turn == 3:
                batch = rng.choices(storm.readable, k=plan["batch"])
                size += storm.pages([(each, rng.randrange(0, len(each.truth), PAGE)) for each in batch])
                requests += len(batch) - 1
            elif turn == 7:
                storm.absent(target)
            else:
                storm.attributes(target)
        except WrongBytes as error:
            wrong += 1
            print(f"WRONG {error}", file=sys.stderr, flush=True)
        except OSError as error:
            if target.rough and started <= UNTIL.unpack_from(until)[0]:
                rough_failed += 1
            else:
                failed += 1
                if failed <= TOLD:
                    print(f"FAILED {target.path}: {error}", file=sys.stderr, flush=True)
        took = monotonic() - started
        if took > longest[target.rough]:
            longest[target.rough] = took
        if took > slow_s and not target.rough:
            print(f"{started:.4f} {took:.4f} storm{turn}", file=slow, flush=True)
        done += 1
        requests += 1
        if not done % 16:
            SLOT.pack_into(
                counters, slot * SLOT.size, requests, size, wrong, failed, rough_failed, longest[False], longest[True]
            )
    SLOT.pack_into(
        counters, slot * SLOT.size, requests, size, wrong, failed, rough_failed, longest[False], longest[True]
    )


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as text:
        the_plan = json.load(text)
    with contextlib.suppress(KeyboardInterrupt), open(f"{the_plan['slow']}.{sys.argv[2]}", "w") as slow_file:
        main(the_plan, int(sys.argv[2]), slow_file)
