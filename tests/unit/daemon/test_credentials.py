"""Secrets that are followed: one that hangs keeps nobody else's from being read."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import trio
import trio.testing

from daemon.building import Builder
from daemon.credentials import Credentials
from daemon.showing import Showing
from dsfs.bridge import Bridge
from dsfs.datasets.store import DatasetStore
from dsfs.fuse.keeper_client import KeeperClient


def test_secrets_in_a_directory_that_hangs_do_not_keep_another_from_being_read(tmp_path: Path) -> None:
    """Its dataset is refused by its origin, and its readers wait until the Secret was looked at."""
    hangs = threading.Event()

    def reads_with(name: str) -> str:
        if name != "team/other":
            hangs.wait(30)
        return "as before"

    def showing(name: str) -> Showing:
        return cast(Showing, SimpleNamespace(dataset=SimpleNamespace(manifest=name), credentials="as before"))

    shown = {name: showing(name) for name in (*(f"team/{number}" for number in range(8)), "team/other")}

    async def look() -> None:
        builder = cast(Builder, SimpleNamespace(reads_with=reads_with))
        async with trio.open_nursery() as nursery:
            credentials = Credentials(
                builder,
                cast(Bridge, None),
                DatasetStore(str(tmp_path)),
                cast(KeeperClient, None),
                nursery,
                lambda: shown,
                trio.Lock(),
            )
            try:
                for name in shown:
                    if name != "team/other":
                        nursery.start_soon(credentials._renew_if_changed, name)
                await trio.testing.wait_all_tasks_blocked()
                with trio.fail_after(10):
                    assert not await credentials._renew_if_changed("team/other")
            finally:
                hangs.set()

    trio.run(look)
