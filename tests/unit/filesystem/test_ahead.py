"""What is brought ahead of readers of whom nobody tells that they have gone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import trio
import trio.testing

from dsfs.fetch.queue import Priority
from dsfs.fetch.reader import Reader
from dsfs.filesystem.ahead import Ahead
from dsfs.ranges import ByteRange, KiB, MiB, blocks_of

SIZE = 64 * MiB
LONGEST = 16 * MiB


class Asked:
    """Stands for the reader: notes what is wanted."""

    block_bytes = MiB

    def __init__(self) -> None:
        self.ahead_bytes = 0

    def want(self, _file: Any, wanted: ByteRange, priority: Priority) -> int:
        missing = len(blocks_of(wanted, MiB))
        if priority is Priority.AHEAD:
            self.ahead_bytes += missing * MiB
        return missing

    def present_bytes(self, _file: Any) -> int:
        return 0


def a_file(name: str) -> Any:
    origin = SimpleNamespace(namespace="test", dataset="ahead", is_kept=True)
    return SimpleNamespace(origin=origin, obj=SimpleNamespace(path=name), size_bytes=SIZE)


def run(test: Callable[[Ahead, Asked], Awaitable[None]]) -> None:
    async def main() -> None:
        asked = Asked()
        dataset: Any = SimpleNamespace(origin=SimpleNamespace(namespace="test", dataset="ahead", is_kept=True))
        await test(Ahead(dataset, cast("Reader", asked), 1 << 40, LONGEST), asked)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_without_opens_who_looks_at_heads_only_gets_less_ahead() -> None:
    async def heads(ahead: Ahead, asked: Asked) -> None:
        by_file: list[int] = []
        for ino in range(60):
            before = asked.ahead_bytes
            ahead.on_read(ino, a_file(f"{ino}.bin"), ByteRange(0, 128 * KiB))
            by_file.append(asked.ahead_bytes - before)
            await trio.sleep(1)
        assert by_file[0] >= 8 * MiB
        assert by_file[-1] <= 2 * MiB

    run(heads)


def test_who_reads_slowly_gets_no_less_ahead() -> None:
    async def slowly(ahead: Ahead, asked: Asked) -> None:
        for place in range(0, SIZE, MiB):
            for ino in (1, 2):
                ahead.on_read(ino, a_file(f"{ino}.bin"), ByteRange(place, place + MiB))
                await trio.sleep(6)
        before = asked.ahead_bytes
        assert before >= 2 * (SIZE - LONGEST)
        ahead.on_read(3, a_file("3.bin"), ByteRange(0, MiB))
        assert asked.ahead_bytes - before >= 8 * MiB

    run(slowly)
