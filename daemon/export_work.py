"""What is done of a copy that is being exported, kept beside it: whoever is interrupted goes on there."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from dsfs.cache.owner import uid_in
from dsfs.errors import MountError

WORK = ".dsfs-export"
"""In the directory while it is not whole: what is done, and files that are not."""
_BATCH = 200  # files that are told to the disk at once
_libc = ctypes.CDLL(None, use_errno=True)


class ExportWork:
    """What is done of a copy into a directory, kept in it until it is whole."""

    def __init__(self, target: str, name: str) -> None:
        self._target = target
        self._directory = f"{target}/{WORK}"
        self._unsynced: list[list[object]] = []
        self._done: dict[str, tuple[str, int]] = {}
        os.makedirs(target, exist_ok=True)
        there = set(os.listdir(target))
        known = self._read("dataset") if WORK in there else None
        if known is not None:
            if known != name:
                raise MountError(f"{target}: another dataset was being exported there (give an empty directory)")
            self._load()
        elif there - {WORK}:
            raise MountError(f"{target}: is not empty (give an empty directory, or where an export was interrupted)")
        else:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            with self.opened() as fd:
                self._write(fd, "dataset", os.O_TRUNC, name)

    @contextmanager
    def opened(self) -> Iterator[int]:
        """The directory beside the copy, as a descriptor, which is ours for sure: others may be able to write to the
        target, and put a link or a directory of theirs in its place. Raises MountError, OSError."""
        try:
            fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            raise MountError(f"{self._directory}: is a link, or no directory (remove it)") from error
        try:
            owner = os.fstat(fd).st_uid
            if owner != os.geteuid() and owner != uid_in(self._directory):
                raise MountError(f"{self._directory}: belongs to user {owner} (remove it, or give another directory)")
            yield fd
        finally:
            os.close(fd)

    def open_file(self, fd: int, name: str, flags: int) -> int:
        """A file in it. Raises MountError for a link, OSError."""
        try:
            return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=fd)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise MountError(f"{self._directory}/{name}: is a link (remove it)") from error

    def _read(self, name: str) -> str | None:
        """All of a file in it; None if there is none."""
        try:
            with self.opened() as fd, open(self.open_file(fd, name, os.O_RDONLY), encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def _write(self, fd: int, name: str, how: int, text: str) -> None:
        with open(self.open_file(fd, name, os.O_WRONLY | os.O_CREAT | how), "w", encoding="utf-8") as file:
            file.write(text)

    @property
    def done_bytes(self) -> int:
        """Of files that are whole."""
        return sum(size for _version, size in self._done.values())

    def _load(self) -> None:
        for line in (self._read("done") or "").splitlines(keepends=True):
            if not line.endswith("\n"):
                return  # torn: the file that it tells of is copied again
            path, version, size = json.loads(line)
            self._done[path] = version, size

    def has(self, path: str, version: str, size_bytes: int, place: str) -> bool:
        """Whether this version of a file is in the copy already, whole."""
        if self._done.get(path) != (version, size_bytes):
            return False
        try:
            found = os.lstat(place)
        except FileNotFoundError:
            return False
        return stat.S_ISREG(found.st_mode) and found.st_size == size_bytes

    def part(self, path: str, version: str) -> str:
        """What a version of a file is called, in the directory beside the copy, until it is whole."""
        return hashlib.sha256(json.dumps([path, version]).encode()).hexdigest()

    def note(self, path: str, version: str, size_bytes: int) -> None:
        """A file is in its place; written down in batches, once the disk has it."""
        self._done[path] = version, size_bytes
        self._unsynced.append([path, version, size_bytes])
        if len(self._unsynced) >= _BATCH:
            self._flush()

    def forget_all_but(self, seen: set[str], left_out: Sequence[str]) -> None:
        """Remove what an interrupted export copied of a revision that is not shown any more; but not what was copied
        while it was allowed."""
        kept = tuple(f"{path}/" for path in left_out)
        for path in [path for path in self._done if path not in seen and not f"{path}/".startswith(kept)]:
            if os.path.lexists(f"{self._target}/{path}") and not os.path.isdir(f"{self._target}/{path}"):
                os.unlink(f"{self._target}/{path}")
            del self._done[path]
        self._flush()

    def finish(self) -> None:
        """The copy is whole."""
        self._flush()
        shutil.rmtree(self._directory)

    def _flush(self) -> None:
        with self.opened() as fd:
            _libc.syncfs(fd)
            self._write(fd, "done", os.O_APPEND, "".join(f"{json.dumps(line)}\n" for line in self._unsynced))
        self._unsynced.clear()
