"""What is brought ahead of readers of whom nobody tells that they have gone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import trio
import trio.testing

from dsfs.fetch.queue import Priority
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


def test_without_opens_who_looks_at_heads_only_gets_less_ahead() -> None:
    async def main() -> None:
        origin = SimpleNamespace(namespace="test", dataset="ahead")
        asked = Asked()
        ahead = Ahead(SimpleNamespace(origin=origin), asked, 1 << 40, LONGEST)  # type: ignore[arg-type]
        by_file: list[int] = []
        for ino in range(60):
            before = asked.ahead_bytes
            file: Any = SimpleNamespace(origin=origin, obj=SimpleNamespace(path=f"{ino}.bin"), size_bytes=SIZE)
            ahead.on_read(ino, file, ByteRange(0, 16 * KiB))
            by_file.append(asked.ahead_bytes - before)
            await trio.sleep(1)
        assert by_file[0] >= 8 * MiB
        assert by_file[-1] <= 2 * MiB

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
