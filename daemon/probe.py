"""A look through a mount, as a pod would take it, that always ends.

A process that waits for a FUSE server in the kernel cannot be killed. So the looking is done by a child, which is left
to itself when it does not end in time: it ends when the server answers, or the connection is gone. Standard library
only: a node runs this every minute.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from collections.abc import Iterator

from daemon.keeping.mounting import TYPES, mount_table
from dsfs.client import place_of

_DEEPEST, _MOST_NAMES = 4, 64
_GONE_S = 0.1
_SHARE_OF_SEARCHING = 0.5
"""Of the time, of all mounts together, for files that need no origin."""


def probe(path: str, within_s: float) -> list[str]:
    """Ask every dsfs mount at and below a path, and read a byte of a cached file of each; or of ``path``, a file.

    What is wrong, a line each; empty if all answered in time. An origin that is gone is not the node's fault: only
    files that are wholly cached are read, and a directory that cannot be listed is passed over.
    """
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        _look(path, writes, within_s * _SHARE_OF_SEARCHING)
    os.close(writes)
    deadline_s = time.monotonic() + within_s
    told = b""
    ended = False
    while not ended:
        ready, _w, _x = select.select([reads], [], [], max(0.0, deadline_s - time.monotonic()))
        if not ready:
            break
        piece = os.read(reads, 65536)
        told, ended = told + piece, not piece
    os.close(reads)
    lines = told.decode(errors="replace").splitlines()
    problems = [line[1:] for line in lines if line.startswith("!")]
    if ended:
        os.waitpid(child, 0)
        if not lines or lines[-1] != ".":
            problems.append(f"{path}: the look ended before its time")
    else:
        asked = [line[1:] for line in lines if line.startswith("?")]
        problems.append(f"{asked[-1] if asked else path}: no answer within {within_s:g} s")
    return problems


def _look(path: str, tell: int, search_s: float) -> None:
    """In the child. "?PLACE" before each look, "!PROBLEM" after a bad one, "." at the end."""
    try:
        null = os.open(os.devnull, os.O_RDWR)  # nobody shall wait for the output of one that hangs
        for fd in range(3):
            os.dup2(null, fd)
        if os.path.isfile(path):
            _tell(tell, f"?{path}")
            _read_byte(path)
        else:
            places = _mounts_below(place_of(path))
            if not places:
                _tell(tell, f"!{path}: no dsfs mount there")
            until_s = time.monotonic() + search_s
            for number, place in enumerate(places):
                _tell(tell, f"?{place}")
                try:
                    os.statvfs(place)  # never answered from the kernel's caches
                    left_s = max(0.0, until_s - time.monotonic())
                    cached = _found_within(left_s / (len(places) - number), place, tell)
                    if cached is not None:
                        _tell(tell, f"?{cached}")
                        _read_byte(cached)
                except PermissionError:
                    pass  # it answered; who may read it is another question
                except OSError as error:
                    _tell(tell, f"!{error.filename or place}: {error.strerror}")
        _tell(tell, ".")
    except OSError as error:
        _tell(tell, f"!{error.filename or path}: {error.strerror}")
    finally:
        os._exit(0)


def _mounts_below(path: str) -> list[str]:
    """Where dsfs has mounted at or below a path, from the mount table: nothing is entered."""
    inside = path.rstrip("/") + "/"
    ours = (mounted.path for mounted in mount_table() if mounted.type in TYPES)
    return [place for place in ours if place == path or place.startswith(inside)]


def _tell(pipe: int, line: str) -> None:
    os.write(pipe, line.replace("\n", "?").encode(errors="replace") + b"\n")


def _read_byte(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(fd, 0, 4096, os.POSIX_FADV_DONTNEED)  # or the kernel would answer from its page cache
        if not os.read(fd, 1) and os.fstat(fd).st_size:
            raise OSError(errno.EIO, "reads as empty, and is not", path)
    finally:
        os.close(fd)


def _found_within(seconds: float, place: str, tell: int) -> str | None:
    """As ``_a_cached_file``, by a child of its own: a directory that was never listed waits for its origin."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(tell)  # whose end says that all was looked at
            os.write(writes, os.fsencode(_a_cached_file(place) or ""))
        finally:
            os._exit(0)
    os.close(writes)
    ready, _w, _x = select.select([reads], [], [], seconds)
    found = os.read(reads, 65536) if ready else b""
    os.kill(child, signal.SIGKILL)
    os.close(reads)
    until_s = time.monotonic() + _GONE_S
    while os.waitpid(child, os.WNOHANG) == (0, 0) and time.monotonic() < until_s:
        time.sleep(0.001)  # longer, and it stays in the kernel until the origin answers: init waits for it then
    return os.fsdecode(found) or None


def _a_cached_file(place: str) -> str | None:
    """The first file, not far from the top, that needs no origin to be read."""
    for path in _files(place, 0):
        try:
            if os.path.getsize(path) == int(os.getxattr(path, "user.dsfs.cached")):
                return path
        except (OSError, ValueError):
            continue
    return None


def _files(directory: str, depth: int) -> Iterator[str]:
    try:
        with os.scandir(directory) as entries:
            for number, entry in enumerate(entries):
                if number == _MOST_NAMES:
                    return
                if entry.is_file(follow_symlinks=False):
                    yield entry.path
                elif depth < _DEEPEST and entry.is_dir(follow_symlinks=False) and not os.path.ismount(entry.path):
                    yield from _files(entry.path, depth + 1)  # a mount is looked at by itself
    except OSError:
        return  # its origin may be gone: what is not listed cannot be asked for
