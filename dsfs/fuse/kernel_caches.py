"""What the kernel keeps of a connection, and is told to forget: names, attributes, listings and pages."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import trio

from dsfs.fuse.device import Device, Disconnected

_NOTIFICATIONS: Final = trio.CapacityLimiter(2)


class KernelCaches:
    """Of one device. File side only; numbers are nodeids."""

    def __init__(self, device: Device) -> None:
        self._device = device

    async def forget(self, names: Sequence[tuple[int, bytes]], directories: Sequence[int]) -> None:
        """Have it ask anew for names and listings that changed."""
        await self.notify(lambda: self._forget(names, directories))

    async def forget_all(
        self, names: Callable[[], Iterable[tuple[int, bytes]]], directories: Callable[[], Sequence[int]]
    ) -> None:
        """As ``forget``, for more names than are held in memory: a kernel that knows epochs needs not be told each."""

        def work() -> None:
            try:
                self._device.forget_all_names()
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._forget(names(), directories())
            else:
                self._forget((), directories())  # listings, and attributes of the root, which is never looked up
                self._device.forget_all_names()  # what was on its way when the first was sent

        await self.notify(work)

    async def notify(self, work: Callable[[], None]) -> None:
        """Tell it something, unless the connection has ended, and its caches with it. In a thread: the kernel may wait
        there for what the connection's loop has to answer."""

        def while_held() -> None:
            with contextlib.suppress(Disconnected), self._device.held():
                work()

        await trio.to_thread.run_sync(while_held, limiter=_NOTIFICATIONS)

    def _forget(self, names: Iterable[tuple[int, bytes]], directories: Sequence[int]) -> None:
        for directory in directories:
            self._device.forget_inode(directory)
        for parent, name in names:
            self._device.forget_name(parent, name)
