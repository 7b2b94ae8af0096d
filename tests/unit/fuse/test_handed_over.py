"""Reads that wait for the disk of the cache, and what may happen to connection, reader and descriptor meanwhile."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import trio

from dsfs.fetch.disk_read import DiskRead
from dsfs.filesystem.files import DatasetFiles
from dsfs.filesystem.tree import Directories
from dsfs.fuse import connection
from dsfs.fuse.connection import Channel
from dsfs.fuse.device import Device, Disconnected
from dsfs.fuse.reading_connection import ReadingConnection
from dsfs.fuse.waiters import Waiters
from dsfs.fuse.wire import IN_HEADER, INTERRUPT_IN, OUT_HEADER, READ_IN, Opcode
from dsfs.ranges import ByteRange

SIZE = 4096
NOBODY = 0  # a pid that cannot be looked at gets its EINTR


class Disk(DiskRead):
    """Has the pages once it is told so."""

    def __init__(self) -> None:
        self.wanted = ByteRange(0, SIZE)
        self.here = False
        self.broken = False
        self.waited = threading.Event()
        self.comes = threading.Event()

    @property
    def opened(self) -> bool:
        return True

    def now(self, into: memoryview) -> bool:
        if self.broken:
            raise ValueError("a bug")
        return self.here

    def wait(self, into: memoryview) -> bool:
        self.waited.set()
        return self.comes.wait(20)


class OneFile:
    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def try_pieces(self, nodeid: int, offset: int, size: int) -> None:
        return None

    def begin_absent(self, nodeid: int, offset: int) -> None:
        return None

    def is_coming(self, nodeid: int, read: DiskRead) -> bool:
        return False

    def from_disk(self, nodeid: int, offset: int, size: int) -> DiskRead:
        return self._disk


class CutDevice(Device):
    """The connection ends after so many answers."""

    answers_left = 1000

    def _write(self, parts: list[bytes | bytearray | memoryview]) -> None:
        if self.answers_left == 0:
            raise Disconnected
        self.answers_left -= 1
        super()._write(parts)


class Scene(ReadingConnection):
    def __init__(self) -> None:
        self.kernel, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel.settimeout(10)
        self.cut = CutDevice(server.detach())
        channel = Channel(self.cut, 0, lambda _offered: None, Waiters(SIZE, 1))
        super().__init__("scene", channel, ("a", "b"), cast(Directories, None))
        self.disks: dict[int, Disk] = {}

    def files_at(self, nodeid: int) -> DatasetFiles:
        return cast(DatasetFiles, OneFile(self.disks.setdefault(nodeid, Disk())))

    def asks(self, opcode: Opcode, unique: int, nodeid: int, body: bytes) -> None:
        head = IN_HEADER.pack(IN_HEADER.size + len(body), opcode, unique, nodeid, 0, 0, NOBODY, 0, 0)
        self._handle(memoryview(head + body))

    def read(self, number: int) -> Disk:
        """Of file ``number``, with a request of that number."""
        self.asks(Opcode.READ, number, number, READ_IN.pack(0, 0, SIZE, 0, 0, 0, 0))
        return self.disks[number]

    def hears(self) -> tuple[int, int]:
        """The number of an answered request, and its errno."""
        _length, code, unique = OUT_HEADER.unpack_from(self.kernel.recv(2 * SIZE))
        return unique, -code

    def hears_nothing_more(self) -> bool:
        self.kernel.setblocking(False)
        with pytest.raises(BlockingIOError):
            self.kernel.recv(2 * SIZE)
        return True


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    for disk in made.disks.values():
        disk.comes.set()
    made.kernel.close()


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@contextmanager
def reused(fd: int, directory: Path) -> Iterator[Path]:
    """A file that has got the number of a descriptor, if that is free."""
    path = directory / "other"
    got = {os.open(path, os.O_WRONLY | os.O_CREAT)}
    if not is_open(fd):
        got.add(os.dup2(*got, fd))
    try:
        yield path
    finally:
        for each in got:
            os.close(each)


def test_a_connection_that_ends_between_two_answers(scene: Scene) -> None:
    """Of reads that the loop asks the disk for again: the first is answered, for the second the connection is gone."""
    first, second = scene.read(2), scene.read(4)
    first.here = second.here = True
    scene.cut.answers_left = 1
    with suppress(Disconnected):
        scene.poll()
    assert scene.hears() == (2, 0)
    scene.close()
    assert not is_open(scene.device.fd)


def test_a_bug_below_a_read_that_is_asked_for_again(scene: Scene) -> None:
    disk = scene.read(2)
    disk.broken = True
    while scene.poll():
        pass
    disk.comes.set()
    assert scene.hears() == (2, 0), "a thread answers"


def test_a_reader_that_is_killed_does_not_wait_for_a_disk(scene: Scene) -> None:
    disk = scene.read(2)
    while scene.poll():
        pass
    assert disk.waited.wait(10), "a thread waits for the disk"
    scene.asks(Opcode.INTERRUPT, 3, 0, INTERRUPT_IN.pack(2))
    assert scene.hears() == (2, errno.EINTR)
    assert scene.waiting().requests == 0
    disk.comes.set()
    other = scene.read(4)
    while scene.poll():
        pass
    other.comes.set()
    assert scene.hears() == (4, 0)
    assert scene.hears_nothing_more(), "one answer each"


def test_a_thread_that_answers_after_the_end_meets_no_other_descriptor(scene: Scene, tmp_path: Path) -> None:
    disk = scene.read(2)
    while scene.poll():
        pass
    assert disk.waited.wait(10)
    scene.close()
    with reused(scene.device.fd, tmp_path) as other:
        done = threading.Event()
        scene._waiters.put(lambda _buffer: done.set())
        disk.comes.set()
        assert done.wait(10), "the one thread has answered, and come to what was next"
        assert other.read_bytes() == b""


def test_a_batch_that_takes_long_gives_others_their_turn(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that each wait for a slow disk: the loop has deadlines to keep between them, and forgets none."""
    monkeypatch.setattr(connection, "_DRAIN_S", 0.0)
    for number in range(1, 21):
        scene.kernel.send(IN_HEADER.pack(IN_HEADER.size, Opcode.IOCTL, number, 1, 0, 0, NOBODY, 0, 0))
    scene._drain()
    assert scene.hears() == (1, errno.ENOTTY)
    assert scene.hears_nothing_more()
    scene.kernel.settimeout(10)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(scene.run, resume=False))
            for number in range(2, 21):
                await trio.lowlevel.wait_readable(scene.kernel)
                assert scene.hears() == (number, errno.ENOTTY)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_the_kernel_is_told_nothing_after_the_end(scene: Scene, tmp_path: Path) -> None:
    """Somebody has unmounted one dataset of many, and its source has another revision then."""
    scene.close()
    with reused(scene.device.fd, tmp_path) as other:
        trio.run(scene.kernel_caches.forget, [(1, b"name")], [1])
        trio.run(scene.kernel_caches.forget_all, lambda: [(1, b"name")], lambda: [1])
        assert other.read_bytes() == b""
