"""What the portable session tells the kernel when a dataset shows another revision."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import trio

from dsfs.catalog.diff import ManyChanges
from dsfs.datasets.selection import CATALOG
from dsfs.fuse import pyfuse3 as portable


def test_the_kernel_is_told_while_catalogs_are_scanned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rebuild or the measure of a preheat takes minutes, and until it is told the kernel shows old names."""
    told: list[int] = []

    async def forget(_names: object, nodeids: Sequence[int]) -> None:
        told.extend(nodeids)

    monkeypatch.setattr(portable, "_forget", forget)
    session = portable.PortableSession.__new__(portable.PortableSession)
    files = SimpleNamespace(all_directories=lambda: [7], names_of=lambda _changed: ())
    monkeypatch.setattr(session, "_files", {"team/data": files}, raising=False)

    async def swap() -> None:
        scans = [object() for _ in range(int(CATALOG.total_tokens))]
        for scan in scans:
            CATALOG.acquire_on_behalf_of_nowait(scan)
        try:
            with trio.fail_after(10):
                await session.swapped("team/data", ManyChanges.__new__(ManyChanges))
        finally:
            for scan in scans:
                CATALOG.release_on_behalf_of(scan)

    trio.run(swap)
    assert told == [7]
