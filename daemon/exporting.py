"""An offline copy of a dataset, read through its mount: into a directory, where it can be resumed, or as a tar stream.

Each block that the cache has is compared with its checksum on the way, as the kernel reads complete files from the disk
without asking anybody. One that is wrong is dropped and read again, so that it comes from the origin.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from daemon.export_work import WORK, ExportWork
from dsfs.cache.mapfile import crc32c
from dsfs.errors import MountError

_BATCH = 200  # files whose checksums are asked for at once
_PASSES = 3
_LEFT_OUT = frozenset({errno.EACCES, errno.EPERM, errno.EOVERFLOW})
"""What a look at a name says that the origin refuses, or that is of a size that no file can have. EIO is said of one of
which the origin does not say what it takes to read it, but of a disk that fails too: the daemon knows which it is."""


@dataclass(frozen=True, slots=True)
class Checksums:
    """Of one file in the cache: crc32c of each block, None for one that is not there."""

    block_bytes: int
    of_blocks: Sequence[int | None]


class Daemon(Protocol):
    """What the running mount is asked."""

    def revision(self) -> str:
        """Which revision is shown now."""

    def checksums(self, paths: Sequence[str]) -> list[Checksums]:
        """Of files of the dataset."""

    def is_unreadable(self, path: str) -> bool:
        """Whether the revision was sealed without what it takes to read a file."""

    def verify(self, path: str) -> None:
        """Check what is cached of a file, and drop what is wrong."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One name below ``root``."""

    root: str
    path: str
    status: os.stat_result

    @property
    def place(self) -> str:
        return f"{self.root}/{self.path}"

    def version(self) -> str:
        return os.getxattr(self.place, "user.dsfs.version").decode("utf-8", "replace")


class Export:
    """``root`` is where the dataset is mounted. ``progress`` is told of bytes that are done.

    Raises MountError for what a person must know, OSError of the mount and of the target.
    """

    def __init__(self, root: str, name: str, daemon: Daemon, progress: Callable[[int], None]) -> None:
        self.root = root
        self.name = name
        self.files = 0
        self.bytes = 0
        self.left_out: list[str] = []
        """Paths that the source refuses, or that cannot be read from it; of a directory there is no more than its name.
        """
        self.mode = 0o777
        """Bits that the modes of all of it have, as far as it was walked through: who may read a copy in one piece."""
        self._daemon = daemon
        self._progress = progress

    def to_directory(self, target: str, needed_bytes: int) -> None:
        """Make or complete a copy. Whoever interrupts it can call it again; what is whole is not copied twice."""
        work = ExportWork(target, self.name)
        free_bytes = _free_bytes(target)
        if needed_bytes - work.done_bytes > free_bytes:
            raise MountError(
                f"{target}: {needed_bytes - work.done_bytes} bytes are needed there, {free_bytes} are free"
            )
        for _ in range(_PASSES):
            revision = self._daemon.revision()
            try:
                directories = self._copy_all(target, work)
            except OSError as error:
                if error.errno != errno.ESTALE:
                    raise
                continue
            if self._daemon.revision() == revision:
                if not self.left_out:  # else it goes on here, once that is allowed
                    work.finish()
                for entry in reversed(directories):  # what is in it has changed its time, and it may forbid writing
                    _dress(f"{target}/{entry.path}", entry.status)
                return
        raise MountError(f"{self.name}: was listed anew {_PASSES} times meanwhile (run it again: it goes on)")

    def to_tar(self, output: BinaryIO) -> None:
        """Write all of it to a stream. Raises MountError when the dataset was listed anew meanwhile."""
        revision = self._daemon.revision()
        with tarfile.open(fileobj=output, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            for entry, expected in self._walk():
                info = _tar_info(entry)
                if expected is None:
                    tar.addfile(info)
                    continue
                with self._blocks(entry, expected) as blocks:
                    tar.addfile(info, _Stream(blocks))  # type: ignore[arg-type]  # reads, and nothing else
                self.files += 1
        if self._daemon.revision() != revision:
            raise MountError(f"{self.name}: was listed anew meanwhile (run it again)")

    # -- reading --------------------------------------------------------------------------------------------------

    def _walk(self) -> Iterator[tuple[Entry, Checksums | None]]:
        """Everything below the root, a directory before what is in it; checksums beside files."""
        batch: list[Entry] = []
        self.mode &= os.stat(self.root).st_mode
        for entry in _entries(self.root, self.left_out, self._daemon):
            if not stat.S_ISLNK(entry.status.st_mode):
                self.mode &= entry.status.st_mode
            batch.append(entry)
            if len(batch) >= _BATCH:
                yield from self._with_checksums(batch)
                batch = []
        yield from self._with_checksums(batch)

    def _with_checksums(self, batch: list[Entry]) -> Iterator[tuple[Entry, Checksums | None]]:
        files = [entry.path for entry in batch if stat.S_ISREG(entry.status.st_mode)]
        known = dict(zip(files, self._daemon.checksums(files) if files else (), strict=True))
        for entry in batch:
            yield entry, known.get(entry.path)

    @contextmanager
    def _blocks(self, entry: Entry, expected: Checksums, first: int = 0) -> Iterator[Iterator[bytes]]:
        """The blocks of a file from one on, each of them right. Raises MountError for one that stays wrong."""
        opened = [os.open(entry.place, os.O_RDONLY | os.O_CLOEXEC)]

        def read(block: int) -> bytes:
            start = block * expected.block_bytes
            return _pread_all(opened[0], min(expected.block_bytes, entry.status.st_size - start), start, entry.place)

        def right(block: int, data: bytes) -> bool:
            return expected.of_blocks[block] in (None, crc32c(data))

        def blocks() -> Iterator[bytes]:
            for block in range(first, len(expected.of_blocks)):
                data = read(block)
                if not right(block, data):
                    # Closed before it is dropped: while it is open, the kernel goes on reading the file it has.
                    os.close(opened.pop())
                    self._daemon.verify(entry.path)
                    opened.append(os.open(entry.place, os.O_RDONLY | os.O_CLOEXEC))
                    os.posix_fadvise(opened[0], 0, 0, os.POSIX_FADV_DONTNEED)
                    data = read(block)
                    if not right(block, data):
                        raise MountError(f"{entry.place}: byte {block * expected.block_bytes} and on are not what came "
                                         "from the origin (dsfs verify; is it open elsewhere?)")  # fmt: skip
                self.bytes += len(data)
                self._progress(len(data))
                yield data

        try:
            yield blocks()
        finally:
            for fd in opened:
                os.close(fd)

    # -- writing --------------------------------------------------------------------------------------------------

    def _copy_all(self, target: str, work: ExportWork) -> list[Entry]:
        """One pass; the directories, outermost first."""
        directories: list[Entry] = []
        seen: set[str] = set()
        self.files = self.bytes = 0
        self.left_out.clear()
        for entry, expected in self._walk():
            place = f"{target}/{entry.path}"
            if stat.S_ISDIR(entry.status.st_mode):
                _make_way(place, for_directory=True)
                os.makedirs(place, mode=0o700, exist_ok=True)
                os.chmod(place, 0o700)  # an export before has dressed it, if something was left out
                directories.append(entry)
            elif expected is None:
                _make_way(place)
                os.symlink(os.readlink(entry.place), place)
                _dress(place, entry.status)
            else:
                seen.add(entry.path)
                self._copy_file(entry, expected, place, work)
        work.forget_all_but(seen, self.left_out)
        return directories

    def _copy_file(self, entry: Entry, expected: Checksums, place: str, work: ExportWork) -> None:
        version = entry.version()
        self.files += 1
        if work.has(entry.path, version, entry.status.st_size, place):
            self.bytes += entry.status.st_size
            self._progress(entry.status.st_size)
            return
        part = work.part(entry.path, version)
        with work.opened() as beside:
            with open(work.open_file(beside, part, os.O_RDWR | os.O_CREAT), "r+b") as file:
                first = self._right_blocks(file, entry, expected)
                file.truncate(file.seek(first * expected.block_bytes))
                with self._blocks(entry, expected, first) as blocks:
                    for data in blocks:
                        file.write(data)
            _dress(part, entry.status, beside)
            _make_way(place)
            os.rename(part, place, src_dir_fd=beside)
        work.note(entry.path, version, entry.status.st_size)

    def _right_blocks(self, file: BinaryIO, entry: Entry, expected: Checksums) -> int:
        """How many blocks of a file that was begun before need not be copied again: those that can be checked."""
        for block, checksum in enumerate(expected.of_blocks):
            length = min(expected.block_bytes, entry.status.st_size - block * expected.block_bytes)
            data = file.read(length)
            if len(data) < length or checksum is None or crc32c(data) != checksum:
                return block
            self.bytes += length
            self._progress(length)
        return len(expected.of_blocks)


class _Stream:
    """Blocks as a file that is read to its end."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = memoryview(b"")

    def read(self, size: int) -> memoryview:
        if not self._rest:
            self._rest = memoryview(next(self._blocks, b""))
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece


def _entries(root: str, left_out: list[str], daemon: Daemon, below: str = "") -> Iterator[Entry]:
    try:
        with os.scandir(f"{root}/{below}") as found:
            names = sorted(entry.name for entry in found)
    except PermissionError:
        if not below:
            raise
        left_out.append(below)
        return
    for name in names:
        path = f"{below}/{name}" if below else name
        if path == WORK:
            raise MountError(f"{root}/{path}: an export cannot hold this name (it keeps its own notes there)")
        try:
            entry = Entry(root, path, os.lstat(f"{root}/{path}"))
        except OSError as error:
            if error.errno not in _LEFT_OUT and not (error.errno == errno.EIO and daemon.is_unreadable(path)):
                raise
            left_out.append(path)
            continue
        yield entry
        if stat.S_ISDIR(entry.status.st_mode):
            yield from _entries(root, left_out, daemon, path)


def _make_way(place: str, *, for_directory: bool = False) -> None:
    """Remove what an interrupted export left where something else is now: nothing is ever written through a link."""
    try:
        is_directory = stat.S_ISDIR(os.lstat(place).st_mode)
    except FileNotFoundError:
        return
    if is_directory and not for_directory:
        shutil.rmtree(place)
    elif not is_directory:
        os.unlink(place)


def _pread_all(fd: int, length: int, offset: int, place: str) -> bytes:
    data = os.pread(fd, length, offset)
    while len(data) < length:
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            raise MountError(f"{place}: ends at byte {offset + len(data)}, too early")
        data += more
    return data


def _dress(place: str, status: os.stat_result, dir_fd: int | None = None) -> None:
    """Owner if that is ours to give, mode and times as the mount shows them."""
    link = stat.S_ISLNK(status.st_mode)
    if os.getuid() == 0:
        os.chown(place, status.st_uid, status.st_gid, dir_fd=dir_fd, follow_symlinks=False)
    if not link:
        os.chmod(place, stat.S_IMODE(status.st_mode), dir_fd=dir_fd)
    os.utime(place, ns=(status.st_mtime_ns, status.st_mtime_ns), dir_fd=dir_fd, follow_symlinks=False)


def _tar_info(entry: Entry) -> tarfile.TarInfo:
    status = entry.status
    info = tarfile.TarInfo(entry.path)
    info.mode, info.uid, info.gid = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
    seconds, rest = divmod(status.st_mtime_ns, 10**9)
    info.mtime = seconds
    if rest:
        info.pax_headers = {"mtime": f"{seconds}.{rest:09d}"}
    if stat.S_ISDIR(status.st_mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(status.st_mode):
        info.type = tarfile.SYMTYPE
        info.linkname = os.readlink(entry.place)
    else:
        info.size = status.st_size
    return info


def _free_bytes(directory: str) -> int:
    disk = os.statvfs(directory)
    return disk.f_bavail * disk.f_frsize
