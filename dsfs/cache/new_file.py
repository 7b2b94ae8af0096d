"""A file that is written from start to end and by nobody else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def new_file(path: str) -> Iterator[tuple[int, bool]]:
    """A descriptor of a new file, and whether another one had this name."""
    replaced = False
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o600)
    except FileExistsError:
        replaced = True
        os.unlink(path)
        fd = os.open(path, flags, 0o600)
    try:
        yield fd, replaced
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes | memoryview) -> int:
    """Write all of a new file; the space that it takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    return os.fstat(fd).st_blocks * 512
