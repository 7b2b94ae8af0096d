"""``dsfs bench``: how fast a directory is read here and now, in a dsfs mount or anywhere else."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from daemon.cli.options import AsJson
from daemon.cli.output import say, show_json, show_table
from dsfs.errors import MountError, one_line
from dsfs.ranges import MiB

_CHUNK_BYTES = 1 * MiB
_PAGE_BYTES = 4096
_SMALL_BYTES = 1 * MiB
_LARGE_BYTES = 8 * MiB
_MOST_NAMES = 200_000
_MOST_SMALL = 2_000
_SEED = 1  # the same choice each time, so that two runs can be compared

Unread = dict[str, str]
"""Path of what cannot be read, and why."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One row: what was done, how fast the first time, how fast again; None where there is nothing to do it on."""

    what: str
    unit: str
    first: float | None
    again: float | None


@dataclass(frozen=True, slots=True)
class Found:
    """What lies in a directory; ``large`` is (path, size in bytes)."""

    names: int
    small: list[str]
    large: tuple[str, int] | None


def bench(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A mount point, a directory in it, or any directory.")],
    readers: Annotated[int, typer.Option(min=1, metavar="N", help="Threads that read small files.")] = 8,
    seconds: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="At most so long for each number.")] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Measure reading: the largest file from start to end and at random, small files, names.

    "First" is whatever state the cache is in: after dsfs evict it is the wire. "Again" follows at once.
    """
    place = os.path.abspath(path)
    if not os.path.isdir(place):
        raise MountError(f"{place}: no such directory")
    unread: Unread = {}
    rows = measure(place, readers, seconds, unread)
    if as_json:
        rows_shown = [asdict(row) for row in rows]
        show_json({"path": place, "readers": readers, "rows": rows_shown, "passed_over": len(unread)})
        return
    cells = [(row.what, _number(row.first), _number(row.again), row.unit) for row in rows]
    show_table(("WHAT", "FIRST", "AGAIN", "UNIT"), cells)
    if unread:
        name, why = next(iter(unread.items()))
        say(f"dsfs: {len(unread)} names passed over that cannot be read, the first {one_line(name, 1000)}: {why}")


def measure(place: str, readers: int, seconds: float, unread: Unread) -> list[Measured]:
    """All rows, each number within about so many seconds. What cannot be read is passed over, and noted."""
    found, first_names = _timed(lambda: survey(place, seconds, unread))
    again, again_names = _timed(lambda: survey(place, seconds, unread))
    rows = [Measured("list and stat", "names/s", found.names / first_names, again.names / again_names)]
    if found.large is None:
        rows.append(Measured("no file of 8 MiB or more", "MB/s", None, None))
    else:
        file, size = found.large
        random_s = min(seconds, 3.0)
        for what, unit, run in (
            ("largest file, sequential", "MB/s", lambda: sequential(file, seconds) / 1e6),
            ("largest file, 4 KiB at random", "reads/s", lambda: at_random(file, size, random_s)),
        ):
            try:
                rows.append(Measured(what, unit, *_twice(run)))
            except OSError as error:
                unread[file] = _why(error)
                rows.append(Measured(what, unit, None, None))
    if not found.small:
        rows.append(Measured("no file of 1 MiB or less", "files/s", None, None))
    else:
        what = f"{len(found.small)} files of up to 1 MiB, {readers} readers"
        rows.append(Measured(what, "files/s", *_twice(lambda: small_files(found.small, readers, seconds, unread))))
    return rows


def survey(place: str, seconds: float, unread: Unread) -> Found:
    """Names and sizes below a directory, as far as the time goes and they are allowed; a choice of files to read."""
    until_s = time.perf_counter() + seconds
    names, large = 0, ("", 0)
    small: list[str] = []

    def is_over() -> bool:
        return names >= _MOST_NAMES or time.perf_counter() > until_s

    def refused(error: OSError) -> None:
        if error.filename == place:
            raise error
        unread[error.filename] = _why(error)

    for directory, _directories, files in os.walk(place, onerror=refused):
        for name in files:
            if is_over():
                break
            path = f"{directory}/{name}"
            try:
                size = os.stat(path, follow_symlinks=False).st_size
            except OSError as error:
                unread[path] = _why(error)
                continue
            names += 1
            if size > large[1]:
                large = path, size
            if 0 < size <= _SMALL_BYTES:
                small.append(path)
        names += 1
        if is_over():
            break
    random.Random(_SEED).shuffle(small)
    return Found(names, small[:_MOST_SMALL], large if large[1] >= _LARGE_BYTES else None)


def sequential(file: str, seconds: float) -> float:
    """Bytes a second, one reader, from the start."""
    buffer = bytearray(_CHUNK_BYTES)
    started_s = time.perf_counter()
    total = 0
    with open(file, "rb", buffering=0) as handle:
        while (count := handle.readinto(buffer)) and time.perf_counter() - started_s < seconds:
            total += count
    return total / (time.perf_counter() - started_s)


def at_random(file: str, size_bytes: int, seconds: float) -> float:
    """Reads of one page a second, one reader."""
    rng = random.Random(_SEED)
    pages = size_bytes // _PAGE_BYTES
    fd = os.open(file, os.O_RDONLY)
    try:
        started_s = time.perf_counter()
        done = 0
        while time.perf_counter() - started_s < seconds:
            os.pread(fd, _PAGE_BYTES, rng.randrange(pages) * _PAGE_BYTES)
            done += 1
        return done / (time.perf_counter() - started_s)
    finally:
        os.close(fd)


def small_files(files: Sequence[str], readers: int, seconds: float, unread: Unread) -> float:
    """Files a second: open, read to the end, close. Those that fail do not count."""
    until_s = time.perf_counter() + seconds

    def read(paths: Sequence[str]) -> int:
        buffer = bytearray(_SMALL_BYTES)
        done = 0
        for path in paths:
            if time.perf_counter() > until_s:
                return done
            try:
                fd = os.open(path, os.O_RDONLY)
                try:
                    while os.readv(fd, [buffer]):
                        pass
                finally:
                    os.close(fd)
                done += 1
            except OSError as error:
                unread[path] = _why(error)
        return done

    started_s = time.perf_counter()
    with ThreadPoolExecutor(readers) as pool:
        done = sum(pool.map(read, [files[number::readers] for number in range(readers)]))
    return done / (time.perf_counter() - started_s)


def _twice(run: Callable[[], float]) -> tuple[float, float]:
    return run(), run()


def _timed(run: Callable[[], Found]) -> tuple[Found, float]:
    started_s = time.perf_counter()
    return run(), time.perf_counter() - started_s


def _why(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else type(error).__name__


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
