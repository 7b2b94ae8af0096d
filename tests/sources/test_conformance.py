"""What ``sources.base.Source`` promises, asked of every source against a real server."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from dsfs.errors import SourceChanged, SourceError, SourceMissing, SourceUnavailable
from dsfs.model import Kind
from dsfs.ranges import ByteRange, MiB
from dsfs.sources.base import Source
from tests.sources.conftest import Place
from tests.sources.sinks import names_in, read_range, tree_of

T = TypeVar("T")

BIG = random.Random(1).randbytes(3 * MiB + 4321)
FILES = {"a.txt": b"first", "big.bin": BIG, "sub/b.txt": b"second", "sub/deep/er/c.txt": b"third", "sub-way.txt": b"4"}
PLAIN_NAMES = [
    "with space.txt",
    "per%cent%20.txt",
    "plus+and&amp;.txt",
    "ünï-日本.txt",
    "q?uest#hash.txt",
    "semi;colon.txt",
]
ODD_NAMES = ["line\nbreak.txt", "tab\there.txt", 'quote"and<tag>.txt']


def with_source(place: Place, folder: str, use: Callable[[Source], Awaitable[T]]) -> T:
    async def run() -> T:
        source = place.source(folder)
        try:
            return await use(source)
        finally:
            await source.close()

    return asyncio.run(run())


def put_all(place: Place, folder: str, files: dict[str, bytes]) -> None:
    for path, data in files.items():
        place.put(f"{folder}/{path}", data)


def test_the_whole_tree_and_its_bytes(place: Place, folder: str) -> None:
    put_all(place, folder, FILES)

    async def use(source: Source) -> None:
        tree = await tree_of(source)
        assert {p for p, o in tree.items() if o.kind is Kind.FILE} == set(FILES)
        assert {p for p, o in tree.items() if o.kind is Kind.DIRECTORY} == {"sub", "sub/deep", "sub/deep/er"}
        for path, data in FILES.items():
            assert tree[path].size == len(data)
            assert tree[path].version_tag
            assert await read_range(source, tree[path], 0, len(data)) == data

    with_source(place, folder, use)


def test_one_directory_at_a_time(place: Place, folder: str) -> None:
    put_all(place, folder, FILES)

    async def use(source: Source) -> None:
        assert await names_in(source, "") == {
            "a.txt": Kind.FILE,
            "big.bin": Kind.FILE,
            "sub-way.txt": Kind.FILE,
            "sub": Kind.DIRECTORY,
        }
        assert await names_in(source, "sub/deep") == {"sub/deep/er": Kind.DIRECTORY}
        with pytest.raises(SourceMissing):
            await names_in(source, "none")

    with_source(place, folder, use)


def test_a_root_that_is_not_there_is_missing(place: Place, folder: str) -> None:
    place.put(f"{folder}/x", b"x")

    async def use(source: Source) -> None:
        with pytest.raises(SourceMissing):
            await tree_of(source)

    with_source(place, f"{folder}/none", use)


def test_ranges(place: Place, folder: str) -> None:
    place.put(f"{folder}/big.bin", BIG)
    size = len(BIG)
    ranges = [(0, 1), (size - 1, size), (0, size), (1, size), (MiB - 1, MiB + 1), (MiB, 2 * MiB), (size - 4322, size)]
    rng = random.Random(2)
    ranges += [(start, start + rng.randint(1, size - start)) for start in (rng.randrange(size) for _ in range(8))]

    async def use(source: Source) -> None:
        obj = await source.stat("big.bin")
        assert obj is not None
        for start, stop in ranges:
            assert await read_range(source, obj, start, stop) == BIG[start:stop], (start, stop)
        both = await asyncio.gather(*(read_range(source, obj, start, stop) for start, stop in ranges))
        assert both == [BIG[start:stop] for start, stop in ranges]

    with_source(place, folder, use)


def test_an_empty_file(place: Place, folder: str) -> None:
    put_all(place, folder, {"empty": b"", "not": b"1"})

    async def use(source: Source) -> None:
        assert (await tree_of(source))["empty"].size == 0
        stat = await source.stat("empty")
        assert stat is not None
        assert stat.size == 0

    with_source(place, folder, use)


def test_names(place: Place, folder: str) -> None:
    names = PLAIN_NAMES + (ODD_NAMES if place.any_name else [])
    put_all(place, folder, {f"dir {i % 2}%/{name}": name.encode() for i, name in enumerate(names)})

    async def use(source: Source) -> None:
        tree = await tree_of(source)
        assert {p for p, o in tree.items() if o.kind is Kind.FILE} == {f"dir {i % 2}%/{n}" for i, n in enumerate(names)}
        for path, obj in tree.items():
            stat = await source.stat(path)
            assert stat is not None
            assert (stat.kind, stat.size, stat.version_tag) == (obj.kind, obj.size, obj.version_tag)
            if obj.kind is Kind.FILE:
                data = os.path.basename(path).encode()
                assert await read_range(source, obj, 1, len(data)) == data[1:]

    with_source(place, folder, use)


def test_stat(place: Place, folder: str) -> None:
    put_all(place, folder, FILES)

    async def use(source: Source) -> None:
        for path, data in FILES.items():
            found = await source.stat(path)
            assert found is not None
            assert (found.path, found.kind, found.size) == (path, Kind.FILE, len(data))
        inside = await source.stat("sub/deep")
        assert inside is not None
        assert inside.kind is Kind.DIRECTORY
        assert inside.path == "sub/deep"
        for missing in ("none", "sub/none", "none/none", "a.txt/none"):
            assert await source.stat(missing) is None, missing

    with_source(place, folder, use)


def test_a_file_that_changed_is_an_error_and_not_a_mix(place: Place, folder: str) -> None:
    place.put(f"{folder}/f", b"old" * 50_000)

    async def use(source: Source) -> None:
        obj = await source.stat("f")
        assert obj is not None
        assert await read_range(source, obj, 0, 3) == b"old"
        place.put(f"{folder}/f", b"new!" * 50_000 if place.coarse_times else b"new" * 50_000)
        with pytest.raises(SourceChanged):
            await read_range(source, obj, 3, 6)
        now = await source.stat("f")
        assert now is not None
        assert now.version_tag != obj.version_tag
        assert await read_range(source, now, 0, 3) == b"new"

    with_source(place, folder, use)


def test_a_file_that_went_is_changed(place: Place, folder: str) -> None:
    put_all(place, folder, {"f": b"content", "other": b"1"})

    async def use(source: Source) -> None:
        obj = await source.stat("f")
        assert obj is not None
        place.delete(f"{folder}/f")
        with pytest.raises(SourceChanged):
            await read_range(source, obj, 0, 3)
        assert await source.stat("f") is None

    with_source(place, folder, use)


def test_a_dead_server_is_unavailable_soon_and_nothing_disappears(mortal_place: Place, folder: str) -> None:
    put_all(mortal_place, folder, FILES)

    async def use(source: Source) -> None:
        obj = await source.stat("big.bin")
        assert obj is not None
        await read_range(source, obj, 0, 10)
        assert mortal_place.kill is not None
        mortal_place.kill()
        started = time.monotonic()
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: read_range(source, obj, 10, 20),
            lambda: source.stat("a.txt"),
            lambda: source.stat("none"),
            lambda: names_in(source, ""),
            lambda: tree_of(source),
        ]
        for call in calls:
            with pytest.raises(SourceUnavailable):
                await call()
        assert time.monotonic() - started < 10

    with_source(mortal_place, folder, use)


def test_a_cancelled_read_leaves_the_source_usable(place: Place, folder: str) -> None:
    place.put(f"{folder}/big.bin", BIG)

    async def use(source: Source) -> None:
        obj = await source.stat("big.bin")
        assert obj is not None

        class Stop:
            async def write(self, offset: int, data: object) -> None:
                raise asyncio.CancelledError

        for _ in range(3):
            with pytest.raises(asyncio.CancelledError):
                await source.read(obj, ByteRange(0, len(BIG)), Stop())
        assert await read_range(source, obj, 5, 5000) == BIG[5:5000]

    with_source(place, folder, use)


def test_errors_are_one_line(place: Place, folder: str) -> None:
    async def use(source: Source) -> None:
        with pytest.raises(SourceError) as caught:
            await names_in(source, "")
        assert "\n" not in str(caught.value)

    with_source(place, f"{folder}/none", use)
