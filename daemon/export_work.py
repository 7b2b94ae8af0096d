"""What is done of a copy that is being exported, kept beside it: whoever is interrupted goes on there."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Sequence

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
        whose = f"{self._directory}/dataset"
        if os.path.exists(whose):
            with open(whose, encoding="utf-8") as file:
                if file.read() != name:
                    raise MountError(f"{target}: another dataset was being exported there (give an empty directory)")
            self._load()
        elif set(os.listdir(target)) - {WORK}:
            raise MountError(f"{target}: is not empty (give an empty directory, or where an export was interrupted)")
        else:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            with open(whose, "w", encoding="utf-8") as file:
                file.write(name)

    @property
    def done_bytes(self) -> int:
        """Of files that are whole."""
        return sum(size for _version, size in self._done.values())

    def _load(self) -> None:
        try:
            with open(f"{self._directory}/done", encoding="ascii") as file:
                for line in file:
                    if not line.endswith("\n"):
                        return  # torn: the file that it tells of is copied again
                    path, version, size = json.loads(line)
                    self._done[path] = version, size
        except FileNotFoundError:
            return

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
        """Where a version of a file is written until it is whole."""
        name = hashlib.sha256(json.dumps([path, version]).encode()).hexdigest()
        return f"{self._directory}/{name}"

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
        with open(f"{self._directory}/done", "a", encoding="ascii") as file:
            _libc.syncfs(file.fileno())
            file.writelines(f"{json.dumps(line)}\n" for line in self._unsynced)
        self._unsynced.clear()
