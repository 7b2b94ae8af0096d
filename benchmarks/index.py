"""The index of the cache with many objects: start, look-up, pass of eviction, memory.

python -m benchmarks.index [OBJECTS]

The rows are made, the objects are not: no part of this opens one.
"""

from __future__ import annotations

import hashlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from dsfs.cache.index import Index

SPACE = 114_688
LIMIT = 10**15


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def timed(what: str, work: Callable[[], object], each: int = 1, unit: str = "s") -> None:
    started, cpu = time.perf_counter(), time.process_time()
    work()
    scale = {"s": 1.0, "ms": 1e3, "us": 1e6}[unit] / each
    print(
        f"| {what} | {(time.perf_counter() - started) * scale:.2f} {unit} |"
        f" {(time.process_time() - cpu) * scale:.2f} {unit} |",
        flush=True,
    )


def memory() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def main(objects: int) -> int:
    with tempfile.TemporaryDirectory() as directory:
        print(f"| {objects:,} objects | wall | CPU |\n|---|---|---|")
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
        before = memory()
        opened: list[Index] = []
        timed("start", lambda: opened.append(Index(directory)), unit="ms")
        index = opened[0]
        index.limit_bytes = LIMIT
        print(f"| memory of an open index | {(memory() - before) / 2**20:.0f} MiB | |")
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
        print(f"| memory at the end | {(memory() - before) / 2**20:.0f} MiB | |")
        index.close(2e6)
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000))
