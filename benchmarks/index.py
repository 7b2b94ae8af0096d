"""The index of the cache with many objects: start, look-up, pass of eviction, memory.

    python -m benchmarks.index [OBJECTS]

The rows are made, the objects are not: no part of this opens one.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.processes import memory_bytes
from benchmarks.report import Table, circumstances, command_line, say
from dsfs.cache.index import Index

SPACE = 114_688
LIMIT = 10**15


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def measured(table: Table, what: str, work: Callable[[], object], each: int = 1, unit: str = "s") -> None:
    started, cpu = time.perf_counter(), time.process_time()
    work()
    scale = {"s": 1.0, "ms": 1e3, "us": 1e6}[unit] / each
    wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    table.row(what, f"{wall_s * scale:.2f} {unit}", f"{cpu_s * scale:.2f} {unit}")


def measure(objects: int) -> None:
    with tempfile.TemporaryDirectory(prefix="dsfs-index-") as directory:
        table = Table(f"{objects:,} objects", "wall", "CPU")
        timed = partial(measured, table)
        index = Index(directory)
        index.limit_bytes = LIMIT

        def fill() -> None:
            for number in range(objects):
                index.add(key(number), SPACE, SPACE, f"team/set{number % 4}")
                if number % 5_000 == 4_999:
                    index.flush(float(number))
            index.flush(0.0)

        timed("add, for one object", fill, objects, "us")
        index.close(0.0)
        before_bytes = memory_bytes(os.getpid())
        opened: list[Index] = []
        timed("start", lambda: opened.append(Index(directory)), unit="ms")
        index = opened[0]
        index.limit_bytes = LIMIT
        table.row("memory of an open index", f"{(memory_bytes(os.getpid()) - before_bytes) / 2**20:.0f} MiB", "")
        step = max(1, objects // 2_000)
        looked = range(0, objects, step)
        timed("is it pinned", lambda: [index.pinned(key(number)) for number in looked], len(looked), "us")

        def use() -> None:
            for number in range(0, objects, step):
                index.use(key(number), "team/set0")
            index.flush(1e6)

        timed("note a use and write it", use, len(looked), "us")
        timed("a pass of eviction for 1,000 objects", lambda: index.choose_victims(1_000 * SPACE), unit="ms")

        def some() -> Iterator[tuple[str, int]]:
            return ((key(number), SPACE) for number in range(objects // 2))

        timed("pin half of them, the oldest; for one", lambda: index.pin("team/set0", 1, some()), objects // 2, "us")
        timed(
            "a pass of eviction for 1,000 objects, half pinned", lambda: index.choose_victims(1_000 * SPACE), unit="ms"
        )
        table.row("memory at the end", f"{(memory_bytes(os.getpid()) - before_bytes) / 2**20:.0f} MiB", "")
        index.close(2e6)


def main() -> None:
    parser = command_line("benchmarks.index", __doc__)
    parser.add_argument("objects", type=int, nargs="?", default=1_000_000)
    arguments = parser.parse_args()
    say(f"{circumstances()}\n")
    measure(arguments.objects)


if __name__ == "__main__":
    main()
