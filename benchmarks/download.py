"""The limit for a cold read: the best client's plain download of the same objects to the same disk."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from pathlib import Path
from typing import Any

import obstore
from obstore.store import HTTPStore, S3Store

from benchmarks.peers import HttpOrigin, Origin

RANGE_BYTES = 8 << 20
RANGES = 8
OBJECTS = 32
"""In flight: ranges of one large object, or small objects (FACTS: where more did not move more)."""


def store_of(origin: Origin) -> Any:
    """obstore's client for an origin on loopback."""
    if isinstance(origin, HttpOrigin):
        return HTTPStore.from_url(origin.uri, client_options={"allow_http": True})
    return S3Store(
        origin.bucket,
        endpoint=origin.endpoint,
        access_key_id=origin.access_key,
        secret_access_key=origin.secret_key,
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )


def large(origin: Origin, source: Path, target: Path) -> float:
    """The large file in ranges, written in place: MB/s."""
    name = "large/file.bin"
    size = (source / name).stat().st_size
    return size / 1e6 / _timed(_ranges(store_of(origin), name, size, target / "file.bin"))


def small(origin: Origin, source: Path, target: Path) -> float:
    """Every small file: files/s."""
    names = sorted(str(path.relative_to(source)) for path in (source / "small").glob("*/*"))
    return len(names) / _timed(_objects(store_of(origin), names, target))


def first_bytes(origin: Origin, source: Path) -> float:
    """One plain ranged GET of the first MiB of each of some files: ms, the median."""
    store = store_of(origin)
    names = sorted(str(path.relative_to(source)) for path in (source / "first").iterdir())
    return statistics.median(1000 * _timed(_range(store, name)) for name in names)


async def _range(store: Any, name: str) -> None:
    await obstore.get_range_async(store, name, start=0, end=1 << 20)


def shards(origin: Origin, source: Path, target: Path) -> float:
    """As ``large``, of several files at once: MB/s of all together."""
    paths = sorted((source / "shards").iterdir())
    store = store_of(origin)

    async def work() -> None:
        await asyncio.gather(
            *(_ranges(store, f"shards/{path.name}", path.stat().st_size, target / path.name) for path in paths)
        )

    return sum(path.stat().st_size for path in paths) / 1e6 / _timed(work())


def model(origin: Origin, source: Path, target: Path) -> float:
    """As ``large``, of the model."""
    name = "model/model.safetensors"
    size = (source / name).stat().st_size
    return size / 1e6 / _timed(_ranges(store_of(origin), name, size, target / "model"))


def _timed(work: Any) -> float:
    started_s = time.perf_counter()
    asyncio.run(work)
    return time.perf_counter() - started_s


async def _ranges(store: Any, name: str, size: int, target: Path) -> None:
    fd = os.open(target, os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        starts = iter(range(0, size, RANGE_BYTES))

        async def work() -> None:
            for start in starts:
                piece = await obstore.get_range_async(store, name, start=start, end=min(size, start + RANGE_BYTES))
                await asyncio.to_thread(os.pwrite, fd, piece, start)

        await asyncio.gather(*(work() for _ in range(RANGES)))
    finally:
        os.close(fd)


async def _objects(store: Any, names: list[str], target: Path) -> None:
    waiting = iter(enumerate(names))

    async def work() -> None:
        for number, name in waiting:
            answer = await obstore.get_async(store, name)
            (target / f"{number}").write_bytes(await answer.bytes_async())

    await asyncio.gather(*(work() for _ in range(OBJECTS)))
