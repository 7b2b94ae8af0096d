"""One process of the storm: requests that always reach the server and cost it little, as fast as it answers them.

    python -m benchmarks.soak_storm PLAN.json NUMBER      what these are: soak_process.py

Attributes that are asked for past the kernel's cache, names that nobody has looked up before, and O_DIRECT reads of a
few files that stay open, a batch of them at a time (Linux AIO: a process that sleeps and wakes for each request costs
more than the server does); each answer is compared with the truth. Standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import mmap
import os
import random
import struct
from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.soak_process import Dataset, Operation, WrongBytes, main

PAGE = 4096
FILES = 24  # of each dataset, the same for all processes: what is asked for so often stays in the cache
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

    def attributes(self, target: Target) -> tuple[str, int, int]:
        """One GETATTR."""
        if self._statx(-100, target.raw, AT_STATX_FORCE_SYNC, STATX_SIZE, self._status):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), target.path)
        if self._size[0] != len(target.truth):
            raise WrongBytes(f"{target.path} has size {self._size[0]}, not {len(target.truth)}")
        return "attributes", 1, 0

    def absent(self, target: Target) -> tuple[str, int, int]:
        """One LOOKUP of a name that nobody has asked for yet."""
        self._asked += 1
        path = f"{target.path}.{self._number}.{self._asked}"
        try:
            os.stat(path)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return "absent", 1, 0
            raise
        raise WrongBytes(f"{path} is there")

    def pages(self, chosen: list[tuple[Target, int]]) -> tuple[str, int, int]:
        """A READ for each target and offset."""
        for number, (target, at) in enumerate(chosen):
            of_file = target.fd, self._base + number * PAGE, PAGE, at
            IOCB.pack_into(self._iocbs, number * IOCB.size, number, 0, 0, 0, 0, *of_file, 0, 0, 0)
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
        return "pages", submitted, size


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def operations(plan: dict[str, Any], datasets: list[Dataset], number: int, rng: random.Random) -> Iterator[Operation]:
    storm = Storm(datasets, number)
    for turn in itertools.cycle(range(16)):
        target = rng.choice(storm.targets)
        if turn == 3:
            batch = rng.choices(storm.readable, k=plan["batch"])
            places = [(each, rng.randrange(0, len(each.truth), PAGE)) for each in batch]
            yield Operation("a batch of reads", any(each.rough for each in batch), partial(storm.pages, places))
        elif turn == 7:
            yield Operation(target.path, target.rough, partial(storm.absent, target))
        else:
            yield Operation(target.path, target.rough, partial(storm.attributes, target))


if __name__ == "__main__":
    main(operations)
